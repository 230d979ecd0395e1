"""ggml's block types made by vectorized searches of our own, for rows that may still be in FP8."""
