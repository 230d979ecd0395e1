"""ggml's blocks of weights: made of given grids and integers, and taken apart, for types with a code per weight."""
