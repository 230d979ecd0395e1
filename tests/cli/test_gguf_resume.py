"""`quantkit gguf` after an interruption: what goes on, what is refused, what is begun again."""

import fcntl
import os
import resource
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import CliResult, Damage
from refusals import left

from quantkit.recipe.recipe import recipe_from_options
from quantkit.run.gguf.plan import Target, make_plan


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
    order = [item.number for item in make_plan(damaged.folder, [Target(out, recipe_from_options("q8_0"))]).items]
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
    monkeypatch.setattr("quantkit.run.gguf.convert.publish", lambda parts: (_ for _ in ()).throw(KeyboardInterrupt))
    assert run("--threads", 1).code == 130  # everything is written, nothing published
    monkeypatch.undo()
    damaged.poke(weight if what == "weight" else scale, b"\x38" * 8 if what == "weight" else struct.pack("<f", 0.5))
    result = run("--json")
    assert 0 < result.json()["resumed_items"] < result.json()["items"]
    assert out.read_bytes() == whole()


def test_only_publishing_is_left(
    run: Callable[..., CliResult], out: Path, monkeypatch: pytest.MonkeyPatch, whole: Callable[[], bytes]
) -> None:
    monkeypatch.setattr("quantkit.run.gguf.convert.publish", lambda parts: (_ for _ in ()).throw(KeyboardInterrupt))
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
