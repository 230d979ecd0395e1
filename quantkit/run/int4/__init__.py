"""FP8 or BF16 shards to an INT4 or INT8 checkpoint: what is written, how experts are solved, and the story of a run."""
