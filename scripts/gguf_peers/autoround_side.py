"""AutoRound's side of the comparison; runs in the environment of scripts/setup_autoround, without quantkit.

    autoround_side.py MODEL TOKENS OUT.gguf [--type gguf:q4_k_m] [--iters 200]

Tunes the float checkpoint MODEL block by block with SignRound and the enhanced algorithm (`enable_alg_ext`) and writes
a GGUF of the mix. TOKENS holds `ids` and `starts`. The settings are AutoRound's defaults (200 iterations, batches of 8)
but for these:

* The tokens are cut into rows as long as the longest document, a shorter rest is left out: the same ids, but a row may
  hold the end of one document and the start of the next. AutoRound batches samples of one length only, and padding
  would enter its importance matrix.
* Float32 throughout (`amp=False`): by default the model is rounded to bfloat16 before anything else.
* No torch.compile, which saves time only.
* `AR_DISABLE_META_LOAD`: its loader of single blocks does not know this architecture's tensor names and says so.

AutoRound 0.16.1 can tune MiniMax-M2 but not export it: `teach_minimax` adds the names that it lacks.
"""

import argparse
import os
import re
import tempfile
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import torch
from auto_round import AutoRound
from auto_round.export.export_to_gguf import export
from safetensors.torch import load_file

BATCH = 8  # AutoRound's default

# AutoRound's copy of llama.cpp's converter has these in the module that also holds MiniMax-M2; gguf-py does not yet.
UNRELEASED_ARCHITECTURES = ("MINIMAX01", "MINIMAXM3")


def teach_minimax() -> None:
    """Let AutoRound export MiniMax-M2: the converter's import, the experts' types and tensors, the vocabulary."""
    for name in UNRELEASED_ARCHITECTURES:
        if not hasattr(gguf.MODEL_ARCH, name):
            setattr(gguf.MODEL_ARCH, name, None)

    # The mix's rules go by GGUF name and there is none for a single expert: without this the Q6_K half of the down
    # experts would be tuned on Q4_K's grid, then stored as Q6_K.
    whole_name = gguf.TensorNameMap.get_name
    gguf.TensorNameMap.get_name = lambda self, key, try_suffixes=(): whole_name(
        self, re.sub(r"\.experts\.\d+\.", ".experts.", key), try_suffixes
    )

    special = export.handle_special_model

    def with_experts(instance: Any, architecture: str) -> Any:
        instance.modify_tensors = partial(expert_tensors, instance, instance.modify_tensors)
        instance.get_vocab_base_pre = lambda tokenizer: "minimax-m2"  # the converter knows published vocabularies only
        return special(instance, architecture)

    export.handle_special_model = with_experts


def expert_tensors(
    instance: Any, others: Any, tensor: torch.Tensor, name: str, layer: int | None
) -> Iterable[tuple[str, torch.Tensor]]:
    """Yield transformers' stacked experts under GGUF's names; the converter expects single ones, w1 to w3."""
    if name.endswith(".mlp.experts.gate_up_proj"):
        gate, up = tensor.chunk(2, dim=1)
        yield instance.format_tensor_name(gguf.MODEL_TENSOR.FFN_GATE_EXP, layer), gate
        yield instance.format_tensor_name(gguf.MODEL_TENSOR.FFN_UP_EXP, layer), up
    elif name.endswith(".mlp.experts.down_proj"):
        yield instance.format_tensor_name(gguf.MODEL_TENSOR.FFN_DOWN_EXP, layer), tensor
    else:
        yield from others(tensor, name, layer)


def batches(tokens: Path) -> list[torch.Tensor]:
    """Return the token ids in batches [8, L] of rows as long as the longest document, the last batch maybe smaller."""
    held = load_file(tokens)
    length = int(held["starts"].diff().max())
    ids = held["ids"].long()
    return list(ids[: len(ids) // length * length].view(-1, length).split(BATCH))


def tune(model: Path, tokens: Path, out: Path, mix: str, iters: int) -> None:
    os.environ["AR_DISABLE_META_LOAD"] = "1"
    samples = batches(tokens)
    compressor = AutoRound(
        str(model),
        scheme=mix,
        dataset=samples,
        nsamples=sum(map(len, samples)),
        seqlen=samples[0].shape[1],
        batch_size=BATCH,
        iters=iters,
        enable_alg_ext=True,
        amp=False,
        enable_torch_compile=False,
        device_map="cpu",
        trust_remote_code=False,
    )
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        compressor.quantize_and_save(folder, format=mix)
        (written,) = Path(folder).rglob("*.gguf")
        written.replace(out)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("tokens", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--type", default="gguf:q4_k_m")
    parser.add_argument("--iters", type=int, default=200)  # AutoRound's default
    arguments = parser.parse_args()
    teach_minimax()
    tune(arguments.model, arguments.tokens, arguments.out, arguments.type, arguments.iters)


if __name__ == "__main__":
    main()
