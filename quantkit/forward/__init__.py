"""The streamed forward pass: one layer at a time, and of its experts one per worker, over all tokens."""
