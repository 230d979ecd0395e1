"""The searches of `kquants` as Triton kernels: weights in a card's memory, packed blocks in a card's memory."""
