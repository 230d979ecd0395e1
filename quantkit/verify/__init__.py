"""Is a quantized model still the model? Servers, perplexity, divergence, tool calls, the gate and the report."""
