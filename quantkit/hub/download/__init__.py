"""A checkpoint on the Hub as a folder: small files for real, shards fetched ahead of need within a bounded cache."""
