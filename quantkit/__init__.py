"""quantkit: MiniMax-M2.7 quantized from its FP8 shards, expert by expert, on machines that cannot hold the model."""

__version__ = "0.2.0"
