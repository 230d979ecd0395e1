"""Tensor types that overflow in llama.cpp's CUDA kernels, and what to use instead of them.

Activations that enter `ffn_down_exps` of M2.7's last layer are huge and share their sign within a block. The CUDA
kernels keep the sum of each activation block as float16; above 65504 it becomes infinite, and a weight type whose
kernel uses that sum then answers NaN. See llama.cpp pull request 21652 and issue 22571.
"""

import re

# Unsafe type: what replaces it. Every replacement is free of block sums on the prompt path (MMQ) and on the decode
# path (MMVQ). Q4_0 and Q4_1 exist for size and speed, so they get the safe type nearest in size: IQ4_XS has 4.25 bits
# for their 4.5 and 5.0 and is still nearer to the weights (relative RMS error on Gaussian weights 0.077 for 0.086 and
# 0.078). Q4_K is chosen for quality and has 0.071, so IQ4_XS would be a step down in the layer that needs precision
# most; Q6_K, the type that Q4_K_M itself puts there, costs 0.31 GB of M2.7.
# The entry for IQ1_S only helps with an importance matrix, which both of its types need.
SAFE_REPLACEMENT = {
    "Q4_0": "IQ4_XS",
    "Q4_1": "IQ4_XS",
    "Q5_0": "Q6_K",
    "Q5_1": "Q6_K",
    "Q2_K": "Q3_K",
    "Q4_K": "Q6_K",
    "Q5_K": "Q6_K",
    "IQ1_S": "IQ2_XXS",
}
UNSAFE_TYPES = frozenset(SAFE_REPLACEMENT)

_DOWN_EXPERTS = re.compile(r"blk\.(\d+)\.ffn_down_exps\.weight")


def guarded_type(gguf_name: str, type: str, n_layers: int, guarded_layers: int = 1) -> str:
    """`type`, or its safe replacement if `gguf_name` is the down projection of one of the last `guarded_layers`."""
    match = _DOWN_EXPERTS.fullmatch(gguf_name)
    if match is None or int(match[1]) < n_layers - guarded_layers:
        return type
    return SAFE_REPLACEMENT.get(type, type)
