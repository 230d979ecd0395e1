"""Bytes on disk, one folder or file per format, without model knowledge."""
