"""Quantization algorithms as pure array functions: no files, no tensor names."""
