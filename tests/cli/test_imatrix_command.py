"""`quantkit imatrix`: what it prints and writes, for models, texts and files of any size and name."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from harness import Cli, CliResult, MakeCheckpoint
from PIL import Image
from refusals import left
from token_files import saved

from quantkit.calibration.heatmap import EMPTY, LEFT, TOP

DOCUMENTS, LENGTH = 6, 16
TOKENS = DOCUMENTS * LENGTH
NAMES = ["i.coverage.json", "i.coverage.png", "i.gguf"]


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokens") / "my-tokens.safetensors"
    return saved(path, np.random.default_rng(0).integers(0, 500, (DOCUMENTS, LENGTH)))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "i.gguf"


@pytest.fixture
def run(cli: Cli, small_checkpoint: Path, tokens: Path, out: Path) -> Callable[..., CliResult]:
    """`quantkit imatrix` on two small layers of four experts."""
    return lambda *options: cli("imatrix", small_checkpoint, "-o", out, "--tokens", tokens, *options)


# What is written


def test_json(run: Callable[..., CliResult], out: Path, tokens: Path) -> None:
    result = run("--json", "--min-tokens-per-expert", "50")
    assert result.code == 0, result.err
    assert result.err == ""
    found = result.json()
    assert left(out) == NAMES
    paths = {key: found.pop(key) for key in ("output", "report", "picture")}
    assert paths == {
        "output": str(out),
        "report": str(out.with_name("i.coverage.json")),
        "picture": str(out.with_name("i.coverage.png")),
    }
    ids = np.random.default_rng(0).integers(0, 500, TOKENS).astype("<i4")
    starts = (np.arange(DOCUMENTS + 1) * LENGTH).astype("<i8")
    digest = hashlib.sha256(ids.tobytes() + starts.tobytes()).hexdigest()
    assert 0 < found.pop("seconds") < 100
    assert 10**8 < found.pop("peak_rss_bytes") < 10**10
    coverage = found.pop("coverage")
    assert found == {
        "tokens": TOKENS,
        "documents": DOCUMENTS,
        "tokens_sha256": digest,
        "precision": "float32",
        "resumed_layers": 0,
        "overflow_risks": [],
        "excluded_tokens": [],
        "calibration": {"corpus": tokens.name, "tokens": TOKENS, "tokens_sha256": digest},
    }
    assert coverage["min_tokens_per_expert"] == 50
    assert coverage["experts"] == 8
    assert coverage["experts_still_below_floor"] == 0
    assert len(coverage["worst"]) == 8


def test_coverage_report(run: Callable[..., CliResult], out: Path) -> None:
    summary = run("--json", "--min-tokens-per-expert", "50").json()
    report = json.loads(out.with_name("i.coverage.json").read_text())
    for key in ("tokens", "tokens_sha256", "precision", "calibration", "overflow_risks", "excluded_tokens"):
        assert report[key] == summary[key]
    layers = report["coverage"].pop("layers")
    assert report["coverage"] == summary["coverage"]
    assert [layer["layer"] for layer in layers] == [0, 1]
    counts = {tensor.name: tensor.data.ravel() for tensor in gguf.GGUFReader(out).tensors}
    for number, layer in enumerate(layers):
        routed, topped = np.array(layer["routed"]), np.array(layer["topped_up"])
        assert routed.sum() == 2 * TOKENS
        assert topped.tolist() == np.maximum(50 - routed, 0).tolist()
        assert counts[f"blk.{number}.ffn_up_exps.weight.counts"].tolist() == (routed + topped).tolist()
        share = routed[routed > 0] / routed.sum()
        assert layer["entropy"] == pytest.approx(-(share * np.log(share)).sum() / np.log(4), abs=1e-4)
    worst = report["coverage"]["worst"]
    assert [entry["routed"] for entry in worst] == sorted(count for layer in layers for count in layer["routed"])
    first = worst[0]
    assert layers[first["layer"]]["routed"][first["expert"]] == first["routed"]
    assert first["seen"] == max(50, first["routed"])


def test_picture(run: Callable[..., CliResult], out: Path) -> None:
    assert run().code == 0
    report = json.loads(out.with_name("i.coverage.json").read_text())
    routed = [layer["routed"] for layer in report["coverage"]["layers"]]
    with Image.open(out.with_name("i.coverage.png")) as picture:
        assert picture.format == "PNG"
        picture.load()
        cell = 24  # the largest: there are four experts
        assert picture.width >= LEFT + 4 * cell
        assert picture.height >= TOP + 2 * cell
        colours = {
            picture.getpixel((LEFT + int((expert + 0.5) * cell), TOP + int((layer + 0.5) * cell))): routed[layer][
                expert
            ]
            for layer in range(2)
            for expert in range(4)
        }
    assert len(colours) == len({count for layer in routed for count in layer})
    by_tokens = sorted(colours, key=lambda colour: colours[colour])
    brightness = [0.3 * red + 0.6 * green + 0.1 * blue for red, green, blue in by_tokens if (red, green, blue) != EMPTY]
    assert brightness == sorted(brightness)


def test_provenance_in_the_file(run: Callable[..., CliResult], out: Path, tokens: Path) -> None:
    found = run("--json").json()
    report = json.loads(out.with_name("i.coverage.json").read_text())
    fields = {key: field.contents() for key, field in gguf.GGUFReader(out).fields.items() if not key.startswith("GGUF")}
    assert json.loads(fields.pop("quantkit.calibration")) == found["calibration"]
    assert fields == {
        "general.type": "imatrix",
        "imatrix.datasets": [tokens.name],
        "imatrix.chunk_count": DOCUMENTS,
        "imatrix.chunk_size": LENGTH,
        "quantkit.version": report["quantkit"],
        "quantkit.source.layout_sha256": report["source_layout_sha256"],
        "quantkit.calibration.tokens_sha256": found["tokens_sha256"],
        "quantkit.calibration.min_tokens_per_expert": 256,
        "quantkit.calibration.precision": "float32",
    }


def test_the_same_run_gives_the_same_bytes(run: Callable[..., CliResult], out: Path) -> None:
    content = []
    for _ in range(2):
        assert run("--force").code == 0
        content.append([out.with_name(name).read_bytes() for name in NAMES])
    assert content[0] == content[1]


def test_terminal(run: Callable[..., CliResult], out: Path) -> None:
    lines = run("--min-tokens-per-expert", "200").out.splitlines()
    assert lines[0].startswith(f"{TOKENS} tokens in {DOCUMENTS} documents, float32; tokens per expert: ")
    short, still = lines[1].split("; ", 1)
    assert short == "8 of 8 experts were routed fewer than 200 tokens and topped up"
    assert still == "8 are still below; more --samples would help"
    assert lines[-3:] == [str(out.with_name(name)) for name in ("i.gguf", "i.coverage.json", "i.coverage.png")]


def test_an_interrupted_run_goes_on(run: Callable[..., CliResult], out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from quantkit.calibration.layer_store import LayerStore

    def interrupt(self: LayerStore, layer: int, *rest: object) -> None:
        if layer == 1:
            raise KeyboardInterrupt
        save(self, layer, *rest)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        save = LayerStore.save
        patch.setattr(LayerStore, "save", interrupt)
        stopped = run()
    assert stopped.code == 130
    assert "repeat the same command" in stopped.err
    assert not out.exists()
    assert "resumed: 1 layers were on disk" in run().out.splitlines()
    assert left(out) == NAMES


def test_gguf_takes_the_file(run: Callable[..., CliResult], cli: Cli, small_checkpoint: Path, out: Path) -> None:
    assert run().code == 0
    result = cli("gguf", "iq2_xs", small_checkpoint, "-o", out.with_name("m.gguf"), "--imatrix", out, "--json").json()
    assert result["imatrix"]["missing_experts"] == []
    assert result["imatrix"]["guided_tensors"] > 0


def test_text_and_its_sizes(cli: Cli, tiny_m2: Path, out: Path, tmp_path: Path) -> None:
    text = tmp_path / "a text.txt"
    text.write_text("def f(x):\n    return x + 1\n" * 40)
    options = ("--calibration", text, "--samples", "3", "--sequence-length", "20", "--json")
    found = cli("imatrix", tiny_m2, "-o", out, *options).json()
    assert (found["tokens"], found["documents"]) == (60, 3)
    assert found["calibration"]["corpus"] == "a text.txt"
    assert found["calibration"]["sources"][0]["sha256"] == hashlib.sha256(text.read_bytes()).hexdigest()


def test_rejected_rows_are_shown(cli: Cli, tiny_m2: Path, out: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "one two three"}\n{"messages": []}\n')
    result = cli("imatrix", tiny_m2, "-o", out, "--calibration", path)
    assert result.code == 0
    assert "1 row rejected" in result.err


# Odd sizes


@pytest.mark.parametrize("floor", [0, 1, 256, 10_000, 2**32 - 1])
@pytest.mark.parametrize("lengths", [[1], [1, 1, 1], [3, 40, 1, 7, 200], [300]], ids=str)
def test_documents_of_any_length(
    cli: Cli, small_checkpoint: Path, out: Path, tmp_path: Path, lengths: list[int], floor: int
) -> None:
    ids = np.random.default_rng(1).integers(0, 512, sum(lengths))
    path = saved(tmp_path / "t", ids, np.cumsum([0, *lengths]))
    result = cli("imatrix", small_checkpoint, "-o", out, "--tokens", path, "--min-tokens-per-expert", floor, "--json")
    assert result.code == 0, result.err
    found = {tensor.name: tensor.data for tensor in gguf.GGUFReader(out).tensors}
    assert all(np.isfinite(value).all() for value in found.values())
    counts = found["blk.1.ffn_down_exps.weight.counts"].ravel()
    assert counts.max() <= sum(lengths)
    assert counts.sum() == 2 * sum(lengths) if floor == 0 else counts.min() >= min(floor, sum(lengths))


@pytest.mark.parametrize(
    "size", [{"experts": 1, "used": 1}, {"experts": 3, "used": 3}, {"experts": 40, "used": 1}, {"layers": 1}], ids=str
)
def test_models_of_odd_sizes(
    cli: Cli, make_checkpoint: MakeCheckpoint, tokens: Path, out: Path, tmp_path: Path, size: dict[str, int]
) -> None:
    source = make_checkpoint(tmp_path / "odd", **size)
    found = cli("imatrix", source, "-o", out, "--tokens", tokens, "--json", "--min-tokens-per-expert", "3").json()
    assert found["coverage"]["experts_still_below_floor"] == 0
    with Image.open(out.with_name("i.coverage.png")) as picture:
        picture.load()
    assert cli("gguf", "q4_k_m", source, "-o", out.with_name("m.gguf"), "--imatrix", out).code == 0


def test_experts_without_tokens(cli: Cli, make_checkpoint: MakeCheckpoint, out: Path, tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "many", experts=40, used=1, layers=1)
    path = saved(tmp_path / "t", np.zeros((1, 4)))
    result = cli("imatrix", source, "-o", out, "--tokens", path, "--min-tokens-per-expert", "0")
    assert "39 experts saw no token at all: their layer's mean will stand in" in result.out.splitlines()
    assert cli("gguf", "iq2_xs", source, "-o", out.with_name("m.gguf"), "--imatrix", out).code == 0


def test_bf16_checkpoint(cli: Cli, bf16_small_checkpoint: Path, run: Callable[..., CliResult], out: Path) -> None:
    assert run().code == 0
    eight = {tensor.name: np.array(tensor.data) for tensor in gguf.GGUFReader(out).tensors}
    tokens = out.parent.parent / "t"
    saved(tokens, np.random.default_rng(0).integers(0, 500, (DOCUMENTS, LENGTH)))
    assert cli("imatrix", bf16_small_checkpoint, "-o", out, "--tokens", tokens, "--force").code == 0
    for tensor in gguf.GGUFReader(out).tensors:
        if tensor.name.startswith("blk.0.attn_q"):
            np.testing.assert_allclose(tensor.data, eight[tensor.name], rtol=1e-4)


@pytest.mark.parametrize("name", ["plain", "two.dots.dat", "x.safetensors", "ünï çødé.gguf"])
def test_names_of_the_output(run: Callable[..., CliResult], cli: Cli, out: Path, name: str) -> None:
    assert run("-o", out.with_name(name)).code == 0  # the last -o counts
    assert left(out) == sorted(
        [name, *(f"{name.removesuffix('.gguf').removesuffix('.dat')}.coverage.{kind}" for kind in ("json", "png"))]
    )


@pytest.mark.parametrize("option", ["--tokens", "--calibration"])
def test_names_that_are_not_utf8(cli: Cli, tiny_m2: Path, tokens: Path, out: Path, tmp_path: Path, option: str) -> None:
    name = os.fsdecode(b"caf\xe9")
    if option == "--tokens":
        path = Path(shutil.copyfile(tokens, tmp_path / f"{name}.safetensors"))
    else:
        path = tmp_path / f"{name}.txt"
        path.write_text("one two three")
    result = cli("imatrix", tiny_m2, "-o", out, option, path)
    assert (result.code, left(out)) in ((0, NAMES), (2, [])), result.err
