"""Items that go over the card: the CPU's bytes, whatever is in flight, and the CPU's errors.

Without a card Triton's interpreter stands in for it, with plain memory and no streams.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from harness import Cli, Damage

from quantkit.checkpoint.reader import Reader
from quantkit.errors import BadInput
from quantkit.recipe.recipe import recipe_from_options
from quantkit.run.gguf.convert import write_gguf
from quantkit.run.gguf.executor import run_items
from quantkit.run.gguf.items import Item
from quantkit.run.gguf.on_cuda import CardQuantizer
from quantkit.run.gguf.plan import Plan, Target, make_plan
from quantkit.run.gguf.quantize_item import quantize_item

# What the interpreter says where a card says nothing.
pytestmark = pytest.mark.filterwarnings("ignore:.* encountered in .*:RuntimeWarning")
W1 = "model.layers.0.block_sparse_moe.experts.1.w1.weight"


@pytest.fixture(autouse=True)
def _nothing_to_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter compiles nothing, and takes seconds for that."""
    if not torch.cuda.is_available():
        monkeypatch.setattr("quantkit.run.gguf.on_cuda.prepare", lambda *arguments: None)


def plan_for(source: Path, mix: str, folder: Path) -> Plan:
    return make_plan(source, [Target(folder / "m.gguf", recipe_from_options(mix))])


def by_card(plan: Plan, items: Sequence[Item], card: torch.device, in_flight: int) -> dict[int, bytes]:
    """The bytes of `items`, by number."""
    found: dict[int, bytes] = {}
    with Reader(plan.checkpoint, plan.model.block) as reader:
        quantize = CardQuantizer(plan, reader, card, in_flight)

        def work(item: Item) -> None:
            def write(packed: np.ndarray) -> None:
                found[item.number] = packed.tobytes()

            quantize(item, write)

        run_items(items, work, threads=in_flight + 1, budget=10**9)
    return found


def by_cpu(plan: Plan, items: Sequence[Item]) -> dict[int, bytes]:
    with Reader(plan.checkpoint, plan.model.block) as reader:
        return {item.number: quantize_item(plan, reader, item).tobytes() for item in items}


def stop_after(count: int) -> Callable[..., np.ndarray | None]:
    """What a person with a keyboard does once `count` items were on the card."""
    original, done = CardQuantizer._on_card, []

    def on_card(self: CardQuantizer, *arguments: object) -> np.ndarray | None:
        if len(done) == count:
            raise KeyboardInterrupt
        done.append(None)
        return original(self, *arguments)

    return on_card


@pytest.mark.parametrize("in_flight", [1, 3])
def test_bytes_are_the_cpus_whatever_is_in_flight(
    tiny_checkpoint: Path, tmp_path: Path, card: torch.device, in_flight: int
) -> None:
    """Q8_0 has one result, so that every byte has to be the same."""
    plan = plan_for(tiny_checkpoint, "q8_0", tmp_path)
    assert by_card(plan, plan.items, card, in_flight) == by_cpu(plan, plan.items)


@pytest.mark.parametrize("mix", ["iq3_s", "mxfp4_moe"])
def test_types_without_a_kernel_stay_on_the_cpu(
    tiny_checkpoint: Path, tmp_path: Path, card: torch.device, mix: str
) -> None:
    plan = plan_for(tiny_checkpoint, mix, tmp_path)
    others = [item for item in plan.items if item.type in ("IQ3_S", "MXFP4")]
    assert others
    assert by_card(plan, others, card, 2) == by_cpu(plan, others)


def test_a_bf16_checkpoint(bf16_small_checkpoint: Path, tmp_path: Path, card: torch.device) -> None:
    plan = plan_for(bf16_small_checkpoint, "q8_0", tmp_path)
    assert by_card(plan, plan.items, card, 2) == by_cpu(plan, plan.items)


@pytest.mark.parametrize(("raw", "said"), [(b"\x7f", "NaN or Inf"), (None, "exceeds 65504")])
def test_what_does_not_fit_is_said_as_on_the_cpu(
    damaged: Damage, tmp_path: Path, card: torch.device, raw: bytes | None, said: str
) -> None:
    if raw is None:
        damaged.poke(f"{W1}_scale_inv", np.float32(1e4).tobytes())
    else:
        damaged.poke(W1, raw, at=300)
    plan = plan_for(damaged.folder, "q8_0", tmp_path)
    with pytest.raises(BadInput, match=f"{W1}: .*{said}"):
        by_card(plan, plan.items, card, 2)


def test_a_stopped_conversion_goes_on_to_the_same_file(
    tiny_checkpoint: Path, tmp_path: Path, card: torch.device, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The card's and the CPU's files differ in nothing but what they say of the quantizer."""
    monkeypatch.setattr("quantkit.forward.precision.find_device", lambda name: card)
    made = tmp_path / "card.gguf"
    command = ("gguf", "q8_0", tiny_checkpoint, "-o", made, "--device", "cuda")
    with monkeypatch.context() as patch:
        patch.setattr(CardQuantizer, "_on_card", stop_after(5))
        assert cli(*command).code == 130
    assert not made.exists()
    assert cli(*command).code == 0
    write_gguf(tiny_checkpoint, tmp_path / "cpu.gguf", recipe_from_options("q8_0"))
    files = [gguf.GGUFReader(tmp_path / f"{name}.gguf") for name in ("card", "cpu")]
    assert [str(file.fields["quantkit.quantizer"].contents()).count("CUDA") for file in files] == [1, 0]
    tensors = [{tensor.name: tensor.data.tobytes() for tensor in file.tensors} for file in files]
    assert tensors[0] == tensors[1]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_without_a_card_it_is_refused(tiny_checkpoint: Path, tmp_path: Path, cli: Cli) -> None:
    result = cli("gguf", "q4_k_m", tiny_checkpoint, "-o", tmp_path / "m.gguf", "--device", "cuda")
    assert result.code == 2
    assert len(result.error_lines) == 1
    assert "--device cuda: torch finds no CUDA device here" in result.err
    assert list(tmp_path.iterdir()) == []
