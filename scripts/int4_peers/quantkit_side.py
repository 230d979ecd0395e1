"""quantkit's side of the solver comparison: all experts of INPUTS, as many at a time as there are threads.

quantkit_side.py INPUTS.safetensors SETTINGS.json RESULT.json
"""

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from quantkit.quantize.gptq import output_error, solve
from quantkit.quantize.integers import IntegerGrid, Quantized


def solve_expert(inputs: dict[str, Tensor], expert: int, grid: IntegerGrid) -> list[Quantized]:
    """w1 and w3 together, because the same rows enter them, and w2."""
    gate_up = torch.cat([inputs[f"{expert}.w1"], inputs[f"{expert}.w3"]])
    solutions = [
        solve(gate_up, inputs[f"{expert}.entering"], grid),
        solve(inputs[f"{expert}.w2"], inputs[f"{expert}.middle"], grid),
    ]
    assert None not in solutions
    return [solution.quantized for solution in solutions]


def losses(inputs: dict[str, Tensor], expert: int, quantized: list[Quantized]) -> list[float]:
    gate_up = torch.cat([inputs[f"{expert}.w1"], inputs[f"{expert}.w3"]])
    return [
        output_error(gate_up, quantized[0], inputs[f"{expert}.entering"]),
        output_error(inputs[f"{expert}.w2"], quantized[1], inputs[f"{expert}.middle"]),
    ]


def main() -> None:
    inputs = load_file(sys.argv[1])
    settings = json.loads(Path(sys.argv[2]).read_text())
    grid = IntegerGrid(4, settings["group_size"], settings["symmetric"])
    experts = range(settings["experts"])
    solve_expert({name: tensor[:128, :128].contiguous() for name, tensor in inputs.items()}, 0, grid)  # compiles
    torch.set_num_threads(1)
    start = time.perf_counter()
    with ThreadPoolExecutor(settings["threads"]) as pool:
        solved = list(pool.map(lambda expert: solve_expert(inputs, expert, grid), experts))
    seconds = time.perf_counter() - start
    torch.set_num_threads(settings["threads"])
    found = [losses(inputs, expert, one) for expert, one in zip(experts, solved)]
    Path(sys.argv[3]).write_text(json.dumps({"seconds": seconds, "losses": found}))


if __name__ == "__main__":
    main()
