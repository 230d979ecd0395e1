"""The checks, by subject; every module ends in a table of them."""
