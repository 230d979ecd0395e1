"""Judging anybody's quantized MiniMax-M2 by headers and the small files beside the weights."""
