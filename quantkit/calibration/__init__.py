"""Calibration: corpora, the token ids made of them, the streamed forward and its statistics."""
