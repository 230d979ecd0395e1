"""`quantkit inspect`: what is in a checkpoint or a GGUF."""
from __future__ import annotations


def command() -> None:
    """placeholder"""
