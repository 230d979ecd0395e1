"""What a checkpoint or GGUF holds, from headers alone, and what is wrong with it."""
