"""Importance matrices: llama.cpp's GGUF form, written and read, and its older `.dat` form, read."""
