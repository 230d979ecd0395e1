"""`quantkit gguf --imatrix`: what it prints and writes, and importance matrices that it refuses."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import gguf
import imatrix_files
import numpy as np
import pytest
from harness import Cli, CliResult, Damage
from imatrix_files import Values
from refusals import Refused

from quantkit.recipe.mixes import MIXES, WRITABLE_TYPES

UP = "blk.0.ffn_up_exps.weight"
QUERY = "blk.0.attn_q.weight"


@pytest.fixture
def values(tiny_checkpoint: Path) -> dict[str, Values]:
    return imatrix_files.make_up(imatrix_files.shapes(tiny_checkpoint))


@pytest.fixture
def given(tmp_path: Path, values: dict[str, Values]) -> Callable[[], Path]:
    """Writes `values`, which a test may have changed, as an importance matrix."""
    return lambda: imatrix_files.write(tmp_path / "my-imatrix.gguf", values).path


def test_provenance_as_llama_quantize_writes_it(
    run: Callable[..., CliResult], out: Path, given: Callable[[], Path], values: dict[str, Values]
) -> None:
    path = given()
    result = run("--imatrix", path, "--json", mix="iq4_xs").json()
    fields = gguf.GGUFReader(out).fields
    keys = {key: field.contents() for key, field in fields.items() if "imatrix" in key}
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert keys == {
        "quantize.imatrix.file": "my-imatrix.gguf",
        "quantize.imatrix.dataset": "made-up.txt",
        "quantize.imatrix.entries_count": len(values),
        "quantize.imatrix.chunks_count": 7,
        "quantkit.imatrix.sha256": digest,
        "quantkit.imatrix.tensors_without": ["token_embd.weight", "output.weight"],
    }
    assert fields["quantize.imatrix.entries_count"].types == [gguf.GGUFValueType.UINT32]
    assert fields["quantize.imatrix.chunks_count"].types == [gguf.GGUFValueType.UINT32]
    assert result["imatrix"] == {
        "file": str(path),
        "sha256": digest,
        "entries": len(values),
        "guided_tensors": 7,
        "tensors_without": ["token_embd.weight", "output.weight"],
        "missing_experts": [],
    }


def test_without_an_imatrix_nothing_is_said_about_one(run: Callable[..., CliResult], out: Path) -> None:
    assert run("--json", mix="iq4_xs").json()["imatrix"] is None
    assert not [key for key in gguf.GGUFReader(out).fields if "imatrix" in key]


def test_terminal_text(run: Callable[..., CliResult], given: Callable[[], Path], values: dict[str, Values]) -> None:
    sums, counts = values[UP]
    sums[1], counts[1] = 0, 0
    lines = run("--imatrix", given(), mix="q4_k_m").out.splitlines()
    assert [line for line in lines if line.startswith("imatrix: ")] == [
        "imatrix: guides 7 tensors",
        "imatrix: no data for 2 tensors, made without it: token_embd.weight, output.weight",
        "imatrix: blk.0.ffn_up_exps: 1 of 2 experts without data use the layer's mean",
    ]


@pytest.mark.parametrize("mix", ["q8_0", "bf16", "mxfp4_moe"])
def test_types_that_do_not_use_it_say_so(run: Callable[..., CliResult], given: Callable[[], Path], mix: str) -> None:
    (line,) = [line for line in run("--imatrix", given(), mix=mix).out.splitlines() if "imatrix:" in line]
    assert "not used" in line


@pytest.mark.parametrize("mix", [name for name, mix in MIXES.items() if mix.needs_imatrix])
def test_mixes_that_need_one(refused: Refused, given: Callable[[], Path], mix: str) -> None:
    refused("importance matrix", mix.lower(), "--imatrix", mix=mix)
    assert refused.cli("gguf", mix, refused.source, "-o", refused.out, "--imatrix", given()).code == 0
    reader = gguf.GGUFReader(refused.out)
    assert reader.fields["general.file_type"].contents() == MIXES[mix].file_type
    assert all(np.isfinite(gguf.dequantize(tensor.data, tensor.tensor_type)).all() for tensor in reader.tensors)


def test_rules_may_use_every_type_then(refused: Refused, given: Callable[[], Path]) -> None:
    assert "IQ2_S" in WRITABLE_TYPES
    rule = ("--tensor-type", "attn_k=iq2_s")
    refused("blk.0.attn_k.weight", "IQ2_S", "--imatrix FILE", "--tensor-type", options=rule)
    embedding = ("--tensor-type", "embd=iq2_xs", "--imatrix", given())
    refused("token_embd.weight", "IQ2_XS", "no data for it", options=embedding)
    assert refused.cli("gguf", "q8_0", refused.source, "-o", refused.out, *rule, "--imatrix", given()).code == 0
    types = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(refused.out).tensors}
    assert types["blk.0.attn_k.weight"] == "IQ2_S"


def test_the_overflow_guard_holds(run: Callable[..., CliResult], given: Callable[[], Path]) -> None:
    options = ("--json", "--force", "--imatrix", given())
    down = "blk.0.ffn_down_exps.weight"
    for mix, before, after in (("iq1_s", "IQ1_S", "IQ2_XXS"), ("q2_k_s", "Q2_K", "Q3_K")):
        changes = run(*options, mix=mix).json()["overflow_changes"]
        assert changes == [{"tensor": down, "from": before, "to": after}]
    assert run(*options, mix="iq1_m").json()["overflow_changes"] == []


def test_a_tensor_without_data_is_made_without_it(
    run: Callable[..., CliResult], given: Callable[[], Path], values: dict[str, Values]
) -> None:
    del values[QUERY]
    found = run("--imatrix", given(), "--json", mix="q4_k_m").json()["imatrix"]
    assert found["tensors_without"] == ["token_embd.weight", QUERY, "output.weight"]


def test_a_tensor_that_needs_data_and_has_none(
    refused: Refused, given: Callable[[], Path], values: dict[str, Values]
) -> None:
    del values[QUERY]
    path = given()
    line = refused(QUERY, "IQ2_XS", path, mix="iq2_xs", options=("--imatrix", path))
    assert "no data" in line
    # The remedy that the line gives is one.
    remedy = line.partition("--tensor-type '")[2].partition("'")[0]
    assert refused.cli(
        "gguf", "iq2_xs", refused.source, "-o", refused.out, "--imatrix", path, "--tensor-type", remedy
    ).code == 0  # fmt: skip


def test_a_tensor_that_no_expert_saw_data_of(
    refused: Refused, given: Callable[[], Path], values: dict[str, Values]
) -> None:
    values[UP][0][:], values[UP][1][:] = 0, 0
    refused(UP, "no data", mix="iq2_xs", options=("--imatrix", given()))


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("blk.1.attn_q.weight", (1, 256), ["blk.1.attn_q.weight", "1 layers"]),
        ("blk.0.attn_qkv.weight", (1, 256), ["blk.0.attn_qkv.weight", "no tensor of this model"]),
        (QUERY, (1, 512), [QUERY, "1 x 512", "1 x 256"]),
        (UP, (3, 256), [UP, "3 x 256", "2 x 256"]),
        (UP, (1, 256), [UP, "1 x 256", "2 x 256"]),
        (QUERY, (2, 256), [QUERY, "2 x 256", "1 x 256"]),
    ],
)
def test_an_imatrix_of_another_model(
    refused: Refused, given: Callable[[], Path], values: dict[str, Values], name: str, shape: tuple[int, int],
    words: list[str],
) -> None:  # fmt: skip
    values |= imatrix_files.make_up({name: shape})
    path = given()
    refused(path, "with this model", *words, options=("--imatrix", path))


def test_damaged_files(
    refused: Refused, given: Callable[[], Path], tmp_path: Path, values: dict[str, Values], damaged: Damage
) -> None:
    path = given()
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    refused(path, "truncated", options=("--imatrix", path))
    path.write_bytes(whole[:-32] + b"\xff" * 32)
    refused(path, "negative or not finite", options=("--imatrix", path))
    refused("absent.gguf", "cannot read", options=("--imatrix", tmp_path / "absent.gguf"))
    refused(damaged.index_path, "not an importance matrix", options=("--imatrix", damaged.index_path))
    dat = imatrix_files.write_dat(tmp_path / "x.dat", values)
    dat.write_bytes(dat.read_bytes()[:-100])
    refused(dat, "truncated", options=("--imatrix", dat))


def test_a_models_gguf_is_no_imatrix(refused: Refused, cli: Cli, tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    assert cli("gguf", "q8_0", refused.source, "-o", model).code == 0
    refused(model, "minimax-m2", "not an importance matrix", options=("--imatrix", model))
