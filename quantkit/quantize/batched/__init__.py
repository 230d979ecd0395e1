"""GPTQ of many matrices of one shape at a time, in torch: what a GPU needs to be kept busy."""
