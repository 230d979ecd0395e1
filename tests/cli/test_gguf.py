"""`quantkit gguf` when all is well: what it prints and writes, and how it goes on after an interruption."""

import fcntl
import json
import os
import resource
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from harness import Cli, CliResult, Damage

from quantkit.recipe.recipe import recipe_from_options
from quantkit.run.gguf import make_plan
from quantkit.run.output import OutputFiles

MOE = "model.layers.0.block_sparse_moe."


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "model.gguf"


@pytest.fixture
def run(cli: Cli, damaged: Damage, out: Path) -> Callable[..., CliResult]:
    """`quantkit gguf MIX` on the copy of the tiny checkpoint."""
    return lambda *options, mix="q8_0": cli("gguf", mix, damaged.folder, "-o", out, *options)


def left(out: Path) -> list[str]:
    return sorted(path.name for path in out.parent.iterdir())


@pytest.fixture
def kill_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Let the next run be interrupted when it has written this many items."""

    def arm(items: int) -> None:
        count = 0
        write = OutputFiles.write

        def counted(self: OutputFiles, part: int, offset: int, packed: object) -> None:
            nonlocal count
            if count == items:
                raise KeyboardInterrupt
            count += 1
            write(self, part, offset, packed)  # type: ignore[arg-type]

        monkeypatch.setattr(OutputFiles, "write", counted)

    return arm


@pytest.fixture
def whole(cli: Cli, damaged: Damage, tmp_path: Path) -> Callable[[], bytes]:
    """The bytes of an uninterrupted Q8_0 run on the checkpoint as it is now."""

    def fresh() -> bytes:
        path = tmp_path / "fresh" / "model.gguf"
        path.parent.mkdir()
        assert cli("gguf", "q8_0", damaged.folder, "-o", path).code == 0
        return path.read_bytes()

    return fresh


def test_terminal_text(run: Callable[..., CliResult], out: Path) -> None:
    result = run(mix="q4_k_m")
    assert result.code == 0
    assert result.err == ""
    size = f"{out.stat().st_size / 1e3:.1f} kB" if out.stat().st_size < 1e6 else f"{out.stat().st_size / 1e6:.1f} MB"
    assert f"-> {size}, " in result.out
    assert "Q4_K_M: " in result.out
    assert " bits per weight, " in result.out
    assert "tensors: 7 F32, " in result.out  # five norms, the router and its bias
    assert result.out.splitlines()[-1] == str(out)
    assert left(out) == ["model.gguf"]


def test_json(run: Callable[..., CliResult], out: Path, damaged: Damage) -> None:
    result = run("--json", mix="q4_k_m")
    assert result.err == ""
    assert len(result.out.splitlines()) == 1
    found = result.json()
    reader = gguf.GGUFReader(out)
    weights = sum(int(tensor.n_elements) for tensor in reader.tensors)
    assert found["outputs"] == [str(out)]
    assert found["mix"] == "Q4_K_M"
    assert found["weights"] == weights
    assert found["output_bytes"] == out.stat().st_size
    assert found["bits_per_weight"] == round(out.stat().st_size * 8 / weights, 4)
    index = damaged.index()["weight_map"]
    headers = 0
    for shard in set(index.values()):
        headers += 8 + struct.unpack("<Q", (damaged.folder / shard).read_bytes()[:8])[0]
    assert found["source_bytes"] == sum((damaged.folder / s).stat().st_size for s in set(index.values())) - headers
    assert sum(found["types"].values()) == len(reader.tensors)
    assert found["types"]["F32"] == sum(tensor.tensor_type.name == "F32" for tensor in reader.tensors)
    assert found["resumed_items"] == 0
    assert found["items"] >= len(reader.tensors)
    assert 0 < found["seconds"] < 600
    assert found["peak_rss_bytes"] > 10**7
    assert found["ignored_tensors"] == []


def test_overflow_guard_is_reported(run: Callable[..., CliResult]) -> None:
    change = {"tensor": "blk.0.ffn_down_exps.weight", "from": "Q4_K", "to": "Q6_K"}
    assert run("--json", mix="q4_k_s").json()["overflow_changes"] == [change]
    text = run("--force", mix="q4_k_s").out
    assert "overflow guard: blk.0.ffn_down_exps.weight Q4_K -> Q6_K" in text
    assert run("--json", "--force", "--no-overflow-guard", mix="q4_k_s").json()["overflow_changes"] == []


def test_prediction_layers_are_reported(run: Callable[..., CliResult], damaged: Damage) -> None:
    import torch

    name = "model.layers.1.enorm.weight"
    damaged.edit_tensors(damaged.shard_of("model.norm.weight"), **{name: torch.zeros(4)})
    assert run("--json").json()["ignored_tensors"] == [name]
    assert "left aside: 1 tensors" in run("--force").out


def test_rules_and_recipe(run: Callable[..., CliResult], out: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("base: q4_k_m\ntensors:\n  - {match: 'attn_[qk]\\.', type: f16}\n")
    assert run("--recipe", recipe, "--tensor-type", "attn_q=bf16", mix="q4_k_m").code == 0
    types = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(out).tensors}
    assert types["blk.0.attn_q.weight"] == "BF16"
    assert types["blk.0.attn_k.weight"] == "F16"
    assert types["blk.0.attn_v.weight"] == "Q6_K"
    assert types["blk.0.attn_q_norm.weight"] == "F32"


def test_numbers_of_threads_do_not_change_the_bytes(run: Callable[..., CliResult], out: Path) -> None:
    outputs = set()
    for threads in (1, 3, 1000):
        assert run("--threads", threads, "--force", mix="q4_k_m").code == 0
        outputs.add(out.read_bytes())
    assert len(outputs) == 1


def test_weights_are_those_of_the_checkpoint(run: Callable[..., CliResult], out: Path, damaged: Damage) -> None:
    assert run(mix="f32").code == 0
    tensors = {tensor.name: tensor.data for tensor in gguf.GGUFReader(out).tensors}
    from safetensors.torch import load_file

    stored = {}
    for shard in damaged.folder.glob("*.safetensors"):
        stored |= load_file(shard)
    for index, projection in (("gate", "w1"), ("up", "w3"), ("down", "w2")):
        for expert in range(2):
            name = f"{MOE}experts.{expert}.{projection}.weight"
            scale = stored[name + "_scale_inv"].repeat_interleave(128, 0).repeat_interleave(128, 1)
            expected = (stored[name].float() * scale).numpy()
            assert np.array_equal(tensors[f"blk.0.ffn_{index}_exps.weight"][expert], expected)
    assert np.array_equal(tensors["output_norm.weight"], stored["model.norm.weight"].float().numpy())


def test_split_names(run: Callable[..., CliResult], out: Path) -> None:
    result = run("--split-max-size", "700K", "--json")
    names = [Path(path).name for path in result.json()["outputs"]]
    count = len(names)
    assert count >= 2
    assert names == [f"model-{number:05d}-of-{count:05d}.gguf" for number in range(1, count + 1)]
    assert left(out) == names
    assert all(path.stat().st_size <= 700_000 for path in out.parent.iterdir())
    assert sum(path.stat().st_size for path in out.parent.iterdir()) == result.json()["output_bytes"]
    assert not out.exists()


def test_force_replaces(run: Callable[..., CliResult], out: Path) -> None:
    out.write_text("old")
    assert run().code == 2
    assert out.read_text() == "old"
    assert run("--force").code == 0
    assert out.read_bytes()[:4] == b"GGUF"
    assert left(out) == ["model.gguf"]


def test_force_leaves_the_old_output_until_the_new_one_is_complete(
    run: Callable[..., CliResult], out: Path, kill_after: Callable[[int], None]
) -> None:
    out.write_text("old")
    kill_after(3)
    assert run("--force", "--threads", 1).code == 130
    assert out.read_text() == "old"


def test_names_with_blanks_and_other_alphabets(cli: Cli, damaged: Damage, tmp_path: Path) -> None:
    source = damaged.folder.rename(tmp_path / "Модель  zwei 🙂")
    target = tmp_path / "ein  Ausgang — ü.gguf"
    result = cli("gguf", "q8_0", source, "-o", target)
    assert result.code == 0, result.err
    assert result.out.splitlines()[-1] == str(target)
    assert gguf.GGUFReader(target).fields["general.name"].contents() == source.name


def test_names_that_are_no_utf8(damaged: Damage, tmp_path: Path) -> None:
    """In a process of its own, whose stdout is strict."""
    source = os.fsencode(tmp_path) + b"/model-\xff"
    os.rename(damaged.folder, source)
    target = os.fsencode(tmp_path) + b"/out-\xff.gguf"
    done = subprocess.run(
        [sys.executable, "-m", "quantkit", "gguf", "q8_0", source, "-o", target], capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert os.path.exists(target)


def test_symbolic_links_in_the_source_are_followed(run: Callable[..., CliResult], damaged: Damage, out: Path) -> None:
    blobs = damaged.folder.parent / "blobs"
    blobs.mkdir()
    for path in list(damaged.folder.iterdir()):  # as the Hub's cache has it
        path.rename(blobs / path.name)
        path.symlink_to(blobs / path.name)
    assert run().code == 0
    assert left(out) == ["model.gguf"]


def test_output_over_a_link_leaves_its_target(run: Callable[..., CliResult], out: Path) -> None:
    target = out.parent / "target"
    target.write_text("precious")
    out.symlink_to(target)
    assert run().code == 2
    assert run("--force").code == 0
    assert target.read_text() == "precious"
    assert not out.is_symlink()


# Resumption


@pytest.mark.parametrize("items", [0, 1, 7, 15])
def test_a_killed_run_goes_on(
    run: Callable[..., CliResult], out: Path, kill_after: Callable[[int], None], whole: Callable[[], bytes], items: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    kill_after(items)
    assert run("--threads", 1).code == 130
    assert "model.gguf" not in left(out)
    monkeypatch.undo()
    result = run("--json")
    assert result.json()["resumed_items"] == items
    assert left(out) == ["model.gguf"]
    assert out.read_bytes() == whole()


def killed(run: Callable[..., CliResult], kill_after: Callable[[int], None], monkeypatch: pytest.MonkeyPatch) -> None:
    kill_after(12)
    assert run("--threads", 1).code == 130
    monkeypatch.undo()


def test_a_terminal_says_what_was_resumed(
    run: Callable[..., CliResult], kill_after: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    killed(run, kill_after, monkeypatch)
    assert "resumed: 12 of " in run().out


def test_another_type_does_not_go_on_with_an_unfinished_run(
    run: Callable[..., CliResult], kill_after: Callable[[int], None], monkeypatch: pytest.MonkeyPatch, out: Path
) -> None:
    killed(run, kill_after, monkeypatch)
    result = run(mix="q4_k_m")
    assert result.code == 2
    (line,) = result.error_lines
    assert f"{out}.journal" in line
    assert "--force" in line
    assert run("--force", mix="q4_k_m").code == 0
    assert left(out) == ["model.gguf"]


@pytest.mark.parametrize(
    ("journal", "code"),
    [
        (b"", 0),
        (b"\n", 2),
        (b"garbage", 0),  # no whole line: as good as none
        (b"garbage\n", 2),
        (b"\x00" * 100 + b"\n", 2),
        (b"[]\n1\n2\n", 2),
        (b'{"output": "x", "shards": [], "summary": "y"}\n', 2),
        (b'{"output": "x", "shards": null, "summary": 7}\n', 2),
        (b'{"output": 1}\n', 2),
        (b"{" * 100_000 + b"\n", 2),
        (b'{"output": ' + b"1" * 5000 + b"}\n", 2),
    ],
)
def test_a_damaged_journal(
    run: Callable[..., CliResult], out: Path, kill_after: Callable[[int], None], monkeypatch: pytest.MonkeyPatch,
    whole: Callable[[], bytes], journal: bytes, code: int,
) -> None:  # fmt: skip
    killed(run, kill_after, monkeypatch)
    out.with_name("model.gguf.journal").write_bytes(journal)
    result = run("--json")
    assert result.code == code, result.err
    assert len(result.error_lines) == (code != 0)
    assert run("--json", "--force").json()["resumed_items"] == 0
    assert out.read_bytes() == whole()


@pytest.mark.parametrize("line", ["²", "-1", "1.5", "9" * 5000, "x", "", " 3", "999999"])
def test_a_damaged_line_of_the_journal(
    run: Callable[..., CliResult], out: Path, kill_after: Callable[[int], None], monkeypatch: pytest.MonkeyPatch,
    whole: Callable[[], bytes], line: str,
) -> None:  # fmt: skip
    killed(run, kill_after, monkeypatch)
    with out.with_name("model.gguf.journal").open("a", encoding="utf-8") as journal:
        journal.write(line + "\n")
    result = run("--json")
    assert result.code == 0, result.err
    assert result.json()["resumed_items"] == 12
    assert out.read_bytes() == whole()


def test_a_line_that_a_kill_cut_is_not_glued_to_the_next(
    run: Callable[..., CliResult], out: Path, kill_after: Callable[[int], None], monkeypatch: pytest.MonkeyPatch,
    damaged: Damage,
) -> None:  # fmt: skip
    """A line without its end and the next run's first line must not read as the number of an item not yet done."""
    order = [item.number for item in make_plan(damaged.folder, out, recipe_from_options("q8_0")).items]
    journal = out.with_name("model.gguf.journal")
    kill_after(2)
    assert run("--threads", 1).code == 130
    monkeypatch.undo()
    with journal.open("a") as file:
        file.write("1")
    kill_after(1)
    assert run("--threads", 1).code == 130
    assert [int(line) for line in journal.read_text().splitlines()[1:]] == order[:3]


@pytest.mark.parametrize("damage", ["removed", "shorter", "longer"])
def test_a_partial_output_that_somebody_touched_is_begun_again(
    run: Callable[..., CliResult], out: Path, kill_after: Callable[[int], None], monkeypatch: pytest.MonkeyPatch,
    whole: Callable[[], bytes], damage: str,
) -> None:  # fmt: skip
    killed(run, kill_after, monkeypatch)
    partial = out.with_name("model.gguf.partial")
    if damage == "removed":
        partial.unlink()
    else:
        os.truncate(partial, partial.stat().st_size + (1 if damage == "longer" else -1))
    assert run("--json").json()["resumed_items"] == 0
    assert out.read_bytes() == whole()


def test_a_partial_output_without_its_journal_is_begun_again(
    run: Callable[..., CliResult], out: Path, kill_after: Callable[[int], None], monkeypatch: pytest.MonkeyPatch,
    whole: Callable[[], bytes],
) -> None:  # fmt: skip
    killed(run, kill_after, monkeypatch)
    out.with_name("model.gguf.journal").unlink()
    assert run("--json").json()["resumed_items"] == 0
    assert out.read_bytes() == whole()


def first_scale_in_another_shard(damaged: Damage) -> tuple[str, str]:
    weight_map = damaged.index()["weight_map"]
    return next(
        (name, name + "_scale_inv")
        for name in weight_map
        if weight_map.get(name + "_scale_inv", weight_map[name]) != weight_map[name]
    )


@pytest.mark.parametrize("what", ["weight", "scale"])
def test_a_shard_fetched_again_is_read_again(
    run: Callable[..., CliResult], out: Path, kill_after: Callable[[int], None], monkeypatch: pytest.MonkeyPatch,
    whole: Callable[[], bytes], damaged: Damage, what: str,
) -> None:  # fmt: skip
    """Of a weight and its scale in two shards either one may have been the damaged one."""
    weight, scale = first_scale_in_another_shard(damaged)
    monkeypatch.setattr("quantkit.run.gguf.publish", lambda parts: (_ for _ in ()).throw(KeyboardInterrupt))
    assert run("--threads", 1).code == 130  # everything is written, nothing published
    monkeypatch.undo()
    damaged.poke(weight if what == "weight" else scale, b"\x38" * 8 if what == "weight" else struct.pack("<f", 0.5))
    result = run("--json")
    assert 0 < result.json()["resumed_items"] < result.json()["items"]
    assert out.read_bytes() == whole()


def test_only_publishing_is_left(
    run: Callable[..., CliResult], out: Path, monkeypatch: pytest.MonkeyPatch, whole: Callable[[], bytes]
) -> None:
    monkeypatch.setattr("quantkit.run.gguf.publish", lambda parts: (_ for _ in ()).throw(KeyboardInterrupt))
    assert run().code == 130
    monkeypatch.undo()
    result = run("--json")
    assert result.json()["resumed_items"] == result.json()["items"]
    assert out.read_bytes() == whole()
    assert left(out) == ["model.gguf"]


def test_another_run_on_the_same_output_is_refused(run: Callable[..., CliResult], out: Path) -> None:
    with out.with_name("model.gguf.journal").open("w") as journal:
        fcntl.flock(journal, fcntl.LOCK_EX)
        for options in ((), ("--force",)):
            result = run(*options)
            assert result.code == 2
            (line,) = result.error_lines
            assert "another run is writing this output" in line
    assert not out.exists()


def test_a_full_disk_is_one_line_and_the_run_goes_on_later(
    damaged: Damage, out: Path, run: Callable[..., CliResult], whole: Callable[[], bytes]
) -> None:
    """The file size limit of a process stands for a disk that fills up; the process has to be another one."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    command = [sys.executable, "-m", "quantkit", "gguf", "q8_0", str(damaged.folder), "-o", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=limit)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert f"{out}.partial: cannot be written" in line
    assert "model.gguf" not in left(out)
    assert run().code == 0
    assert out.read_bytes() == whole()


def test_json_holds_only_json_numbers(run: Callable[..., CliResult]) -> None:
    """No NaN or Infinity, which JSON does not have."""

    def refuse(name: str) -> None:
        raise AssertionError(name)

    json.loads(run("--json").out, parse_constant=refuse)


def test_relative_paths(cli: Cli, damaged: Damage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = cli("gguf", "q8_0", damaged.folder.name, "-o", "x.gguf", "--json")
    assert result.json()["outputs"] == ["x.gguf"]
    assert gguf.GGUFReader("x.gguf").fields["general.name"].contents() == damaged.folder.name
    shutil.rmtree(damaged.folder)
