"""FP8 or BF16 shards to GGUF: what files hold and where, plain conversion, and integers that calibration chose."""
