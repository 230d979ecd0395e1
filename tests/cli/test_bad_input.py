"""Every refusal through the command line: exit code 2, one line that names the file, nothing under the final name."""

import json
import os
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from harness import Cli, CliResult, Damage, MakeCheckpoint
from safetensors.torch import load_file, save_file

MOE = "model.layers.0.block_sparse_moe."
EXPERT = MOE + "experts.1.w2.weight"
SCALE = EXPERT + "_scale_inv"
NORM = "model.norm.weight"


@dataclass(frozen=True)
class Refused:
    """Runs `quantkit gguf` on a spoilt checkpoint and checks what every refusal has in common."""

    cli: Cli
    source: Path
    out: Path

    def __call__(self, *naming: object, options: tuple[object, ...] = (), mix: str = "q8_0") -> str:
        """Return the one line; it must contain every word of `naming`."""
        line = refusal(self.cli("gguf", mix, self.source, "-o", self.out, *options))
        for word in naming:
            assert str(word) in line
        self.nothing_there()
        return line

    def nothing_there(self) -> None:
        """No output, under no name that a split output would have either."""
        assert [path.name for path in self.out.parent.iterdir() if path.suffix == ".gguf"] == []


def refusal(result: CliResult) -> str:
    """The one line of a refused command."""
    assert result.code == 2, result.err
    assert result.out == ""
    assert "Traceback" not in result.err
    (line,) = result.error_lines
    assert line.startswith("quantkit: error: ")
    return line


@pytest.fixture
def refused(cli: Cli, damaged: Damage, tmp_path: Path) -> Refused:
    (tmp_path / "out").mkdir()
    return Refused(cli, damaged.folder, tmp_path / "out" / "model.gguf")


# Shards, headers, index


def test_missing_shard(refused: Refused, damaged: Damage) -> None:
    shard = damaged.shard_of(NORM)
    shard.unlink()
    refused(shard, "missing")


@pytest.mark.parametrize("left", [0, 5, 100, -1])
def test_truncated_shard(refused: Refused, damaged: Damage, left: int) -> None:
    shard = damaged.shard_of(EXPERT)
    with shard.open("r+b") as file:
        file.truncate(left % shard.stat().st_size)
    line = refused(shard)
    if left == -1:  # the header is whole, so the tensor at the end is known
        header = json.loads(damaged_header(shard))
        last = max((name for name in header if name != "__metadata__"), key=lambda name: header[name]["data_offsets"])
        assert last in line


def damaged_header(shard: Path) -> bytes:
    raw = shard.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    return raw[8 : 8 + length]


@pytest.mark.parametrize("length", [10**8, 2**64 - 1])
def test_header_longer_than_the_file(refused: Refused, damaged: Damage, length: int) -> None:
    shard = damaged.shard_of(NORM)
    with shard.open("r+b") as file:
        file.write(struct.pack("<Q", length))
    refused(shard, f"header claims {length} bytes")


def test_header_that_is_not_json(refused: Refused, damaged: Damage) -> None:
    shard = damaged.shard_of(NORM)
    with shard.open("r+b") as file:
        file.seek(9)
        file.write(b"\n\n\xff")
    refused(shard)


def test_tensor_that_is_not_in_its_shard(refused: Refused, damaged: Damage) -> None:
    other = next(shard for shard in damaged.folder.glob("*.safetensors") if shard != damaged.shard_of(EXPERT))
    damaged.edit_weight_map(**{EXPERT: other.name})
    refused(other, EXPERT)


@pytest.mark.parametrize("shard", ["../checkpoint/model.safetensors", "/etc/passwd", "C:\\x", "", None, "a\nb\0"])
def test_weight_map_that_leaves_the_folder(refused: Refused, damaged: Damage, shard: object) -> None:
    damaged.edit_weight_map(**{EXPERT: shard})
    refused(damaged.index_path, EXPERT)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"weight_map": 7}', '{"weight_map": null}'])
def test_broken_index(refused: Refused, damaged: Damage, text: str) -> None:
    damaged.index_path.write_text(text)
    refused(damaged.index_path)


def test_tensor_name_with_line_breaks(refused: Refused, damaged: Damage) -> None:
    damaged.edit_tensors(damaged.shard_of(NORM), **{"a\nb\r\nc\x85d\u2028e": torch.zeros(2)})
    refused(damaged.shard_of(NORM), "is not known")


# Tensors


def test_scale_of_the_wrong_shape(refused: Refused, damaged: Damage) -> None:
    shard = damaged.replace(SCALE, torch.ones(5, 5))
    refused(shard, SCALE, "[5, 5]")


def test_missing_scale(refused: Refused, damaged: Damage) -> None:
    damaged.edit_tensors(damaged.shard_of(SCALE), **{SCALE: ...})
    refused(damaged.folder, SCALE)


@pytest.mark.parametrize("raw", [b"\x7f", b"\xff"])
def test_nan_in_a_weight(refused: Refused, damaged: Damage, raw: bytes) -> None:
    refused(damaged.poke(EXPERT, raw, at=300), EXPERT, "NaN or Inf")


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_not_finite_scale(refused: Refused, damaged: Damage, value: str) -> None:
    refused(damaged.poke(SCALE, struct.pack("<f", float(value))), SCALE, "NaN or Inf")


@pytest.mark.parametrize("name", [NORM, "lm_head.weight", MOE + "gate.weight", MOE + "e_score_correction_bias"])
def test_nan_in_an_unquantized_weight(refused: Refused, damaged: Damage, name: str) -> None:
    wide = ".block_sparse_moe." in name
    refused(damaged.poke(name, struct.pack("<I", 0x7FC00000) if wide else b"\xc0\x7f"), name, "NaN or Inf")


@pytest.mark.parametrize("mix", ["f16", "q8_0", "q4_k_m", "iq4_xs", "mxfp4_moe"])
def test_weight_too_large_for_half_precision(refused: Refused, damaged: Damage, mix: str) -> None:
    shard = damaged.poke("model.embed_tokens.weight", struct.pack("<H", 0x7F00))  # 1.7e38
    refused(shard, "model.embed_tokens.weight", "--tensor-type", mix=mix)


def test_unknown_tensor(refused: Refused, damaged: Damage) -> None:
    shard = damaged.shard_of(NORM)
    damaged.edit_tensors(shard, **{"model.layers.0.self_attn.q_proj.bias": torch.zeros(4)})
    refused(shard, "model.layers.0.self_attn.q_proj.bias", "not known")


# config.json and its neighbours


@pytest.mark.parametrize("text", ["", "[]", "null", "{", '"x"', "\ufeff{}", "[" * 100_000, '{"a":' + "1" * 5000 + "}"])
def test_broken_config(refused: Refused, damaged: Damage, text: str) -> None:
    (damaged.folder / "config.json").write_text(text)
    refused(damaged.folder / "config.json")


def test_missing_config(refused: Refused, damaged: Damage) -> None:
    (damaged.folder / "config.json").unlink()
    refused(damaged.folder / "config.json", "missing")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_type", "llama"),
        ("model_type", None),
        ("architectures", ["LlamaForCausalLM"]),
        ("architectures", "x"),
        ("architectures", 7),
        ("hidden_size", None),
        ("num_hidden_layers", "2"),
        ("rope_parameters", [1]),
        ("quantization_config", {"quant_method": "awq", "bits": 4}),
        ("quantization_config", "fp8"),
        ("rms_norm_eps", None),
        ("num_local_experts", 2.0),
    ],
)
def test_unsupported_config(refused: Refused, damaged: Damage, key: str, value: object) -> None:
    damaged.edit_json("config.json", **{key: value})
    refused(damaged.folder / "config.json")


def test_missing_tokenizer(refused: Refused, damaged: Damage) -> None:
    (damaged.folder / "tokenizer.json").unlink()
    refused(damaged.folder / "tokenizer.json", "missing")


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "generation_config.json"])
@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"7", b'{"a": "\xff"}'], ids=["empty", "cut", "list", "7", "latin"])
def test_broken_sidecar(refused: Refused, damaged: Damage, name: str, raw: bytes) -> None:
    (damaged.folder / name).write_bytes(raw)
    refused(damaged.folder / name)


@pytest.mark.parametrize("value", [None, [], {}, "BPE", {"type": "Unigram", "vocab": []}, {"type": "BPE", "vocab": []}])
def test_other_tokenizer(refused: Refused, damaged: Damage, value: object) -> None:
    damaged.edit_json("tokenizer.json", model=value)
    refused(damaged.folder / "tokenizer.json")


@pytest.mark.parametrize("token_id", [512, -1, 2**70, "7", None, 1.5, [1]])
def test_token_id_that_the_embedding_does_not_have(refused: Refused, damaged: Damage, token_id: object) -> None:
    model = json.loads((damaged.folder / "tokenizer.json").read_text())["model"]
    model["vocab"]["odd"] = token_id
    damaged.edit_json("tokenizer.json", model=model)
    refused(damaged.folder / "tokenizer.json", "odd")


@pytest.mark.parametrize(
    "added",
    [
        [{"id": 600, "content": "odd"}],
        [{"id": "3", "content": "odd"}],
        [{"content": "odd"}],
        [{"id": 3}],
        [7],
        7,
        {"odd": 3},
    ],
)
def test_added_tokens_that_make_no_sense(refused: Refused, damaged: Damage, added: object) -> None:
    damaged.edit_json("tokenizer.json", added_tokens=added)
    refused(damaged.folder / "tokenizer.json")


@pytest.mark.parametrize("merges", [[], None, [7], [["a", "b", "c"]], {"a": "b"}, ["a b", 7], [["a", "b"], ["c", 7]]])
def test_merges_that_make_no_sense(refused: Refused, damaged: Damage, merges: object) -> None:
    model = json.loads((damaged.folder / "tokenizer.json").read_text())["model"] | {"merges": merges}
    damaged.edit_json("tokenizer.json", model=model)
    refused(damaged.folder / "tokenizer.json")


def test_token_text_that_utf8_cannot_hold(refused: Refused, damaged: Damage) -> None:
    model = json.loads((damaged.folder / "tokenizer.json").read_text())["model"]
    model["vocab"]["\ud800"] = 500
    damaged.edit_json("tokenizer.json", model=model)
    refused(damaged.folder / "tokenizer.json")


def test_no_end_of_turn_token(refused: Refused, damaged: Damage) -> None:
    damaged.edit_json("tokenizer_config.json", eos_token=...)
    refused(damaged.folder, "end-of-turn")


@pytest.mark.parametrize("values", [{"top_k": 2**40}, {"top_k": -(2**40)}])
def test_sampling_values_that_the_format_cannot_hold(refused: Refused, damaged: Damage, values: dict[str, Any]) -> None:
    damaged.edit_json("generation_config.json", **values)
    refused(damaged.folder / "generation_config.json")


# Source and output


@pytest.mark.parametrize("source", ["nothing", "a file", "deep/er"])
def test_source_that_is_no_folder(cli: Cli, tmp_path: Path, source: str) -> None:
    (tmp_path / "a file").write_text("{}")
    line = refusal(cli("gguf", "q8_0", tmp_path / source, "-o", tmp_path / "x.gguf"))
    assert f"{tmp_path / source}: not a folder" in line


def test_no_source(cli: Cli, tmp_path: Path) -> None:
    assert "no source given" in refusal(cli("gguf", "q8_0", "-o", tmp_path / "x.gguf"))


def test_no_output(cli: Cli, damaged: Damage) -> None:
    assert "-o OUT.gguf" in refusal(cli("gguf", "q8_0", damaged.folder))


@pytest.mark.parametrize("out", ["nothing/x.gguf", "file/x.gguf"])
def test_output_in_no_folder(cli: Cli, damaged: Damage, tmp_path: Path, out: str) -> None:
    (tmp_path / "file").write_text("")
    line = refusal(cli("gguf", "q8_0", damaged.folder, "-o", tmp_path / out))
    assert str((tmp_path / out).parent) in line


def test_output_that_is_a_folder(cli: Cli, damaged: Damage, tmp_path: Path) -> None:
    assert str(tmp_path) in refusal(cli("gguf", "q8_0", damaged.folder, "-o", tmp_path))
    assert refusal(cli("gguf", "q8_0", damaged.folder, "-o", ""))
    assert refusal(cli("gguf", "q8_0", damaged.folder, "-o", tmp_path, "--force"))


def test_output_whose_name_is_too_long(refused: Refused) -> None:
    for length in (250, 300):  # with ".partial", and by itself
        line = refusal(refused.cli("gguf", "q8_0", refused.source, "-o", refused.out.parent / ("x" * length)))
        assert "xxx" in line
    assert list(refused.out.parent.iterdir()) == []


def test_output_exists(refused: Refused) -> None:
    refused.out.write_text("precious")
    line = refusal(refused.cli("gguf", "q8_0", refused.source, "-o", refused.out))
    assert f"{refused.out}: output exists" in line
    assert "--force" in line
    assert refused.out.read_text() == "precious"
    assert [path.name for path in refused.out.parent.iterdir()] == ["model.gguf"]


def test_a_part_of_the_output_exists(refused: Refused) -> None:
    part = refused.out.with_name("model-00002-of-00002.gguf")
    part.write_text("precious")
    line = refusal(refused.cli("gguf", "q8_0", refused.source, "-o", refused.out, "--split-max-size", "700K"))
    assert f"{part}: output exists" in line
    assert part.read_text() == "precious"


def test_output_that_is_no_file(refused: Refused) -> None:
    os.mkfifo(refused.out)
    assert str(refused.out) in refusal(refused.cli("gguf", "q8_0", refused.source, "-o", refused.out, "--force"))
    assert refused.out.is_fifo()


def test_output_that_is_one_of_the_sources_files(refused: Refused) -> None:
    shard = next(refused.source.glob("*.safetensors"))
    for name in (shard.name, "config.json", "tokenizer.json"):
        before = (refused.source / name).read_bytes()
        line = refusal(refused.cli("gguf", "q8_0", refused.source, "-o", refused.source / name, "--force"))
        assert name in line
        assert (refused.source / name).read_bytes() == before


@pytest.mark.parametrize("suffix", [".journal", ".partial"])
def test_folder_in_the_place_of_a_working_file(refused: Refused, suffix: str) -> None:
    path = refused.out.with_name(refused.out.name + suffix)
    path.mkdir()
    refused(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write and read everything")
def test_permissions(refused: Refused, damaged: Damage) -> None:
    refused.out.parent.chmod(0o500)
    refused(refused.out.parent, "not writable")
    refused.out.parent.chmod(0o700)
    shard = damaged.shard_of(NORM)
    shard.chmod(0)
    refused(shard)


@pytest.fixture
def free_bytes(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Let disks have this many free bytes."""

    def set_free(free: int) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=free, used=0, free=free))

    return set_free


def output_bytes(cli: Cli, source: Path, out: Path) -> int:
    result = cli("gguf", "q8_0", source, "-o", out, "--json")
    out.unlink()
    return int(result.json()["output_bytes"])


def test_disk_too_small(refused: Refused, free_bytes: Callable[[int], None]) -> None:
    needed = output_bytes(refused.cli, refused.source, refused.out)
    free_bytes(needed - 1)
    refused(refused.out.parent, "free")
    assert list(refused.out.parent.iterdir()) == [], "nothing was begun, so nothing stays behind"
    free_bytes(needed)
    assert refused.cli("gguf", "q8_0", refused.source, "-o", refused.out).code == 0


def test_disk_too_small_for_one_mix_leaves_the_way_free_for_another(
    refused: Refused, free_bytes: Callable[[int], None]
) -> None:
    free_bytes(output_bytes(refused.cli, refused.source, refused.out) - 1)
    refused("free")
    assert refused.cli("gguf", "q4_k_m", refused.source, "-o", refused.out).error_lines == []


# Types, rules, recipes


@pytest.mark.parametrize("name", ["q9_9", "", "Q4", "q4_k_m ", "--", "f64"])
def test_unknown_type(refused: Refused, name: str) -> None:
    line = refusal(refused.cli("gguf", "-o", refused.out, "--", name, refused.source))
    assert f"unknown type {name!r}; choose one of " in line


@pytest.mark.parametrize("name", ["iq2_xxs", "IQ1_S", "q2_k_s", "iq3_xxs"])
def test_type_that_needs_an_imatrix(refused: Refused, name: str) -> None:
    refused(name, "importance matrix", mix=name)


@pytest.mark.parametrize(
    ("rule", "word"),
    [
        ("attn_(=q8_0", "not a regular expression"),
        ("[[a]ttn=q8_0", "not a regular expression"),  # Python only warns of it
        ("attn", "REGEX=TYPE"),
        ("=q8_0", "empty"),
        ("attn=", "unknown tensor type"),
        ("attn=q4_k_m", "unknown tensor type"),
        ("attn=iq1_s", "importance matrix"),
        ("nothing=q8_0", "no tensor of this model matches"),
        ("_norm=q8_0", "always stay F32"),
        ("ffn_gate_inp=q8_0", "always stay F32"),
        ("exp_probs_b=f16", "always stay F32"),
        ("a{99999999999999999999}=q8_0", "regular expression"),
    ],
)
def test_tensor_rule_that_cannot_hold(refused: Refused, rule: str, word: str) -> None:
    refused(rule.partition("=")[0], word, options=("--tensor-type", rule))


def test_row_length_that_the_block_does_not_divide(cli: Cli, make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "checkpoint", layers=1, experts=2, width=160)
    out = tmp_path / "x.gguf"
    line = refusal(cli("gguf", "q4_k_m", source, "-o", out))
    assert "blk.0.ffn_down_exps.weight" in line
    assert "160" in line
    assert "256" in line
    assert not out.exists()
    # The remedy that the line gives is one.
    remedy = line.partition("--tensor-type '")[2].partition("'")[0]
    assert cli("gguf", "q4_k_m", source, "-o", out, "--tensor-type", remedy).code == 0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "base: [",
        "base: q9",
        "base: 7",
        "nobase: q8_0",
        "base: q8_0\nbsae: q8_0",
        "base: q8_0\ntensors: {match: a, type: q8_0}",
        "base: q8_0\ntensors: [{match: a}]",
        "base: q8_0\ntensors: [{match: '(', type: q8_0}]",
        "base: q8_0\noverflow_guard: maybe",
        "7: q8_0",
        "base: 2024-13-45",
        "base: !!python/object:os.system x",
        "base: !!int x",
        "- " * 3000,
        "a: &a [*a]",
        "\t",
    ],
)
def test_broken_recipe(refused: Refused, tmp_path: Path, text: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    refused(path, options=("--recipe", path))


def test_recipe_that_cannot_be_read(refused: Refused, tmp_path: Path) -> None:
    refused(tmp_path / "none.yaml", options=("--recipe", tmp_path / "none.yaml"))
    refused(tmp_path, options=("--recipe", tmp_path))
    (tmp_path / "latin.yaml").write_bytes(b"base: \xff")
    refused(tmp_path / "latin.yaml", options=("--recipe", tmp_path / "latin.yaml"))


# Numbers


@pytest.mark.parametrize("option", ["--memory", "--split-max-size"])
@pytest.mark.parametrize("value", ["x", "0", "-1", "8X", "8 G B", "1e9", "nan", "inf", "", "9" * 400, "8GG"])
def test_option_that_is_no_size(refused: Refused, option: str, value: str) -> None:
    refused(option, options=(f"{option}={value}",))


@pytest.mark.parametrize("value", ["1", "10K", "50M"])
def test_memory_too_small(refused: Refused, value: str) -> None:
    refused("--memory", options=("--memory", value))
    assert list(refused.out.parent.iterdir()) == [], "nothing was begun, so nothing stays behind"


@pytest.mark.parametrize("value", ["1", "2K", "60K"])
def test_split_size_that_a_tensor_does_not_fit(refused: Refused, value: str) -> None:
    line = refused("tensor", "--split-max-size", options=("--split-max-size", value))
    remedy = int(line.rpartition(" ")[2])
    assert remedy > 0


@pytest.mark.parametrize("value", ["0", "-1", "x", "1.5", ""])
def test_threads_that_are_no_number(refused: Refused, value: str) -> None:
    refused("--threads", options=(f"--threads={value}",))


@pytest.mark.parametrize(
    "arguments",
    [("gguf", "--nonsense"), ("nonsense",), ("gguf",), ("inspect",), ("--nonsense",), ("gguf", "a", "b", "c")],
)
def test_usage(cli: Cli, arguments: tuple[str, ...]) -> None:
    refusal(cli(*arguments))


# The command line itself


def test_no_arguments_show_the_help(cli: Cli) -> None:
    result = cli()
    assert "Usage:" in result.out + result.err
    assert "inspect" in result.out + result.err
    assert len((result.out + result.err).splitlines()) > 5, "the help is not pressed into one line"


def test_interrupt(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("quantkit.run.gguf.publish", interrupted)
    result = refused.cli("gguf", "q8_0", refused.source, "-o", refused.out)
    assert result.code == 130
    (line,) = result.error_lines
    assert "repeat the same command" in line
    refused.nothing_there()
    monkeypatch.undo()


def test_unforeseen_error_is_one_line_as_well(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object) -> None:
        raise ZeroDivisionError("two\nlines")

    monkeypatch.setattr("quantkit.run.gguf.publish", broken)
    result = refused.cli("gguf", "q8_0", refused.source, "-o", refused.out)
    assert result.code == 1
    assert result.error_lines == ["quantkit: error: ZeroDivisionError: two lines (--debug shows where)"]


@pytest.mark.parametrize("before", [True, False])
def test_debug_shows_a_traceback(cli: Cli, tmp_path: Path, before: bool) -> None:
    arguments: list[object] = ["inspect", tmp_path / "nothing"]
    arguments.insert(0 if before else 2, "--debug")
    result = cli(*arguments)
    assert result.code == 2
    assert result.err.startswith("Traceback")
    assert result.error_lines[-1].startswith("quantkit: error: ")


def test_a_refusal_with_json_leaves_stdout_empty(refused: Refused, damaged: Damage) -> None:
    damaged.shard_of(NORM).unlink()
    refused("missing", options=("--json",))


def test_names_with_blanks_are_shown_as_they_are(cli: Cli, tmp_path: Path) -> None:
    name = "two  blanks and ünïcödé 🙂"
    assert name in refusal(cli("inspect", tmp_path / name))


def test_single_file_checkpoint_that_is_damaged(refused: Refused, damaged: Damage) -> None:
    tensors = {}
    for shard in damaged.folder.glob("*.safetensors"):
        tensors |= load_file(shard)
        shard.unlink()
    damaged.index_path.unlink()
    single = damaged.folder / "model.safetensors"
    save_file(tensors, single)
    with single.open("r+b") as file:
        file.truncate(single.stat().st_size - 1)
    refused(single, "truncated")
