"""Which of our INT4 checkpoints transformers loads by itself, with its own integrations, on a CPU.

Its MiniMax-M2 keeps a layer's experts in two stacked parameters. For compressed-tensors it dequantizes every expert
while it stacks them; for GPTQ and AWQ it hands the model to other packages, which know linear layers only. Where it
cannot load a file, the tests pin what it says and which weights are left out, and fail when that changes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from harness import Cli
from integer_reference import dequantized_folder, model_from_integers
from transformers import AutoModelForCausalLM, AutoTokenizer, CompressedTensorsConfig, PreTrainedModel
from transformers_reference import logprobs

TOKENS = 256
# Of |difference| of log-probabilities at held-out tokens, in nat: transformers rounds the experts' weights to bfloat16.
MEAN_DIFFERENCE = 0.01
