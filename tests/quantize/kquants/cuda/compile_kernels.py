"""Compile every kernel for an H100, which takes no card, and print what each of them needs as JSON.

A program of its own: where tests run without a card, kernels are bound to the interpreter, which accepts more.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from quantkit.formats.gguf.blocks.table import FORMATS
from quantkit.quantize.kquants.cuda.launch import CARD_LANES
from quantkit.quantize.kquants.cuda.quantize import quantize

HOPPER = GPUTarget("cuda", 90, 32)
POINTERS = {
    torch.float32: "*fp32", torch.float16: "*fp16", torch.uint8: "*u8", torch.int8: "*i8", torch.int32: "*i32",
}  # fmt: skip
needs: dict[str, dict[str, int]] = {}


def type_of(value: Any) -> str:
    """What Triton calls the type of an argument; a 1 it takes as a constant."""
    if isinstance(value, torch.Tensor):
        return POINTERS[value.dtype]
    if isinstance(value, int):
        return "constexpr" if value == 1 else "i32"
    return "fp32"


def resources(cubin: bytes) -> dict[str, int]:
    """Registers of a thread, and bytes of its stack: what did not fit into registers."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        said = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True)
    found = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", said.stdout + said.stderr))
    return {name.lower(): int(value) for name, value in found.items()}


def compile_instead(kernel: Any, *arguments: Any, grid: Any, warmup: bool, **named: Any) -> None:
    """What stands in for a launch."""
    constants = {name: named.pop(name) for name in kernel.arg_names if name in named} | {"LANES": CARD_LANES}
    values = dict(zip(kernel.arg_names, arguments, strict=False)) | constants
    signature = {name: "constexpr" if name in constants else type_of(value) for name, value in values.items()}
    fixed = {name: values[name] for name, kind in signature.items() if kind == "constexpr"}
    # What torch hands out on a card begins at multiples of 16 bytes.
    aligned = {
        (kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in signature if signature[name][0] == "*"
    }
    constexprs = {(kernel.arg_names.index(name),): value for name, value in fixed.items()}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constexprs, attrs=aligned)
    compiled = triton.compile(source, target=HOPPER, options=named)
    key = f"{kernel.__name__} " + " ".join(f"{name}={value}" for name, value in fixed.items())
    needs[key] = resources(compiled.asm["cubin"])
    if sys.argv[1:]:
        Path(sys.argv[1], key.replace(" ", "-") + ".cubin").write_bytes(compiled.asm["cubin"])


def main() -> None:
    triton.JITFunction.run = compile_instead
    for name in sys.stdin.read().split():
        x = torch.zeros(FORMATS[name].block, 16)
        quantize(x, name)
        quantize(x, name, torch.ones(len(x)))
    print(json.dumps(needs))


main()
