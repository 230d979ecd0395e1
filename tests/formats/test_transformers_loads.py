"""Which INT4 checkpoints transformers loads on a CPU with its own integrations, and what it makes of them.

Its MiniMax-M2 keeps a layer's experts in two stacked parameters. From compressed-tensors it dequantizes every expert
while it stacks them. GPTQ and AWQ it leaves to other packages, which know linear layers only. What cannot be loaded is
pinned by the error, or by the weights that stay behind, so that these tests fail when that changes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from harness import Cli
from integer_reference import model_from_integers
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, CompressedTensorsConfig
from transformers.quantizers import quantizer_gptq
from transformers_reference import logprobs

TOKENS = 128
LOADED: dict[str, dict[str, Any]] = {
    "as it is": {},
    "dequantized": {"quantization_config": CompressedTensorsConfig(dequantize=True)},
}
COMPRESSED = {
    "defaults": "",
    "8 bits": "--bits 8 --group-size 32",
    "rows, attention int4": "--group-size -1 --attention int4",
    "attention fp8": "--attention fp8",
}
# Mean |difference| of log-probabilities at held-out tokens, in nat. Weights rounded to bfloat16 give 0.002.
DIFFERENCE = 0.01
# FP8 attention that stays compressed also has its inputs rounded, as the configuration says; that gives 0.05.
DIFFERENCE_OF_ROUNDED_INPUTS = 0.1

Make = Callable[..., Path]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Small products: more threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def make(cli: Cli, tiny_m2: Path, tmp_path: Path) -> Make:
    """The fixture as `quantkit rtn` with the options writes it."""

    def run(options: str) -> Path:
        result = cli("rtn", tiny_m2, "-o", tmp_path / "quantized", *options.split())
        assert result.code == 0, result.err
        return tmp_path / "quantized"

    return run


def load(folder: Path, **options: Any) -> tuple[torch.nn.Module, dict[str, set[str]]]:
    """Return transformers' model in float32 and what it says of the loading, empty entries left out."""
    model, problems = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True, **options
    )
    return model.eval(), {kind: names for kind, names in problems.items() if names}


@pytest.mark.filterwarnings("ignore:You passed `quantization_config`")  # that is how it is asked to dequantize
@pytest.mark.parametrize("loaded", LOADED)
@pytest.mark.parametrize("variant", COMPRESSED)
def test_compressed_tensors_loads(make: Make, tiny_m2: Path, tmp_path: Path, variant: str, loaded: str) -> None:
    folder = make(COMPRESSED[variant])
    model, problems = load(folder, **LOADED[loaded])
    assert not problems
    reference = model_from_integers(folder, tmp_path / "float32")

    text = (tiny_m2 / "heldout" / "text_code.txt").read_text()
    ids = AutoTokenizer.from_pretrained(folder)(text)["input_ids"][:TOKENS]
    chosen = torch.tensor(ids[1:])[:, None]
    found, expected = (logprobs(each, ids)[:-1].gather(1, chosen) for each in (model, reference))
    rounded_inputs = variant == "attention fp8" and loaded == "as it is"
    limit = DIFFERENCE_OF_ROUNDED_INPUTS if rounded_inputs else DIFFERENCE
    assert (found - expected).abs().mean() < limit

    weights = model.state_dict()  # after the first pass, which decompresses what was loaded as it is
    for name, wanted in reference.state_dict().items():
        near = wanted.bfloat16().float()  # integers times scales in the scales' own dtype
        assert torch.equal(weights[name], wanted) or torch.equal(weights[name], near), name


def test_kept_layers_do_not_load(make: Make) -> None:
    """transformers takes all layers' experts for packed, or all for plain."""
    folder = make("--keep-layers 1")
    with pytest.raises(RuntimeError, match="automatic conversion of the weights"):
        load(folder)


@pytest.mark.parametrize(("format_name", "package"), [("gptq", "optimum"), ("awq", "gptqmodel")])
def test_other_formats_ask_for_packages(make: Make, format_name: str, package: str) -> None:
    """Both lead to gptqmodel, which wants a newer torch than quantkit allows: it is not in this environment."""
    folder = make(f"--format {format_name}")
    with pytest.raises(ImportError, match=rf"requires {package}.*`pip install {package}`"):
        load(folder)


def test_gptq_experts_stay_behind(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the packages transformers answers noise: it has no way from GPTQ's tensors to stacked experts.

    optimum replaces linear layers, and there are none among the experts; the one here replaces nothing. (With optimum
    2.3.0 and gptqmodel 7.7.0 the attention is lost as well, as optimum does not read what the file excepts.)
    """
    folder = make("--format gptq")
    _pretend_optimum(monkeypatch)
    model, problems = load(folder)
    experts = {name for name in model.state_dict() if ".experts." in name}
    assert len(experts) == 2 * 4
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        packed = {name for name in file.keys() if ".experts." in name}  # noqa: SIM118
    assert len(packed) == 4 * 16 * 3 * 4
    assert problems == {
        "missing_keys": experts,
        "unexpected_keys": {name.replace("block_sparse_moe", "mlp") for name in packed},
    }


def _pretend_optimum(monkeypatch: pytest.MonkeyPatch) -> None:
    class GPTQQuantizer:
        @classmethod
        def from_dict(cls, settings: dict[str, Any]) -> GPTQQuantizer:
            return cls()

        def convert_model(self, model: torch.nn.Module, **options: Any) -> torch.nn.Module:
            return model

        def post_init_model(self, model: torch.nn.Module) -> torch.nn.Module:
            return model

    module = ModuleType("optimum.gptq")
    module.GPTQQuantizer = GPTQQuantizer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "optimum", ModuleType("optimum"))
    monkeypatch.setitem(sys.modules, "optimum.gptq", module)
    for package in ("optimum", "gptqmodel"):
        monkeypatch.setattr(quantizer_gptq, f"is_{package}_available", lambda: True)
    monkeypatch.setattr(quantizer_gptq.metadata, "version", lambda package: "99.0")
