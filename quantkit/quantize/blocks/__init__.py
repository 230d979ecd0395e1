"""Grids of ggml's block types: scales searched, columns rounded with feedback, scales refitted, groups revised."""
