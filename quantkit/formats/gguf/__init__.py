"""GGUF: types, metadata, tokenizer keys, file layout and reading. The format is llama.cpp's; headers come from gguf."""
