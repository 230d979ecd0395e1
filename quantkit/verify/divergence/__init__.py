"""Perplexity and divergence: token ids go in, log-probabilities of the next token come out."""
