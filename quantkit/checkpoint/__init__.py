"""Where weights come from: the shard index, byte-range reads and dequantization to float32."""
