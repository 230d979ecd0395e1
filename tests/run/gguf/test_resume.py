"""A killed run goes on where it was and ends in the bytes of an undisturbed one."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from quantkit.errors import BadInput
from quantkit.recipe.recipe import recipe_from_options
from quantkit.run.gguf.convert import write_gguf
from quantkit.run.output import partial_path

KILLS = 20


def start(source: Path, out: Path, mix: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "quantkit", "gguf", mix, str(source), "-o", str(out), "--threads", "2", "--json"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def kill_after(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """SIGKILL `process` after `seconds`; return whether it was still running then."""
    try:
        process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        return True
    return False


@pytest.fixture(scope="module")
def undisturbed(layers62: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, float]:
    """The bytes of a run that nobody disturbed, and how long it took."""
    out = tmp_path_factory.mktemp("undisturbed") / "m.gguf"
    written = set()
    for _ in range(2):  # the first time ever, compiling takes longer than everything else
        out.unlink(missing_ok=True)
        began = time.monotonic()
        process = start(layers62, out, "q6_k")
        _, err = process.communicate()
        duration = time.monotonic() - began
        assert process.returncode == 0, err.decode()
        assert list(out.parent.iterdir()) == [out], "working files are left beside the output"
        written.add(out.read_bytes())
    assert len(written) == 1
    return written.pop(), duration


@pytest.mark.parametrize("wanted", [6, pytest.param(KILLS, marks=pytest.mark.full)])
def test_kills_at_random_moments_end_in_the_same_bytes(
    layers62: Path, undisturbed: tuple[bytes, float], tmp_path: Path, wanted: int
) -> None:
    expected, duration = undisturbed
    moments = random.Random(20)
    out = tmp_path / "m.gguf"
    journal = out.with_name("m.gguf.journal")
    kills = 0
    while kills < wanted:
        process = start(layers62, out, "q6_k")
        if kill_after(process, moments.uniform(0.2, duration)):
            kills += 1
        else:
            assert process.returncode == 0
        if out.exists() and not journal.exists():
            assert out.read_bytes() == expected
            out.unlink()
    answer, err = start(layers62, out, "q6_k").communicate()
    assert json.loads(answer)["items"] > 0, err.decode()
    assert out.read_bytes() == expected
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.full
@pytest.mark.timeout(1800)
def test_twenty_separate_runs_killed_once_each(
    layers62: Path, undisturbed: tuple[bytes, float], tmp_path: Path
) -> None:
    expected, duration = undisturbed
    moments = random.Random(62)
    kills = resumed = 0
    while kills < KILLS:
        out = tmp_path / f"{kills}" / "m.gguf"
        out.parent.mkdir(exist_ok=True)
        if not kill_after(start(layers62, out, "q6_k"), moments.uniform(0.2, duration)):
            shutil.rmtree(out.parent)
            continue
        kills += 1
        if not out.exists():
            answer, _ = start(layers62, out, "q6_k").communicate()
            resumed += json.loads(answer)["resumed_items"] > 0
        assert out.read_bytes() == expected
        shutil.rmtree(out.parent)
    # Items are written down every two seconds, so a kill soon after the start leaves nothing to go on with.
    assert resumed >= 1


class Stop(Exception):
    """Raised in the middle of a run."""


def interrupt(source: Path, out: Path, monkeypatch: pytest.MonkeyPatch, after: int, **options: object) -> None:
    """Run until `after` items are quantized, then fail."""
    from quantkit.run.gguf import quantize_item as pipeline

    count = 0
    quantize = pipeline.quantize_rows

    def counted(*arguments: object) -> object:
        nonlocal count
        count += 1
        if count > after:
            raise Stop
        return quantize(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "quantize_rows", counted)
        with pytest.raises(Stop):
            write_gguf(source, out, recipe_from_options("q4_k_m"), threads=1, **options)


@pytest.fixture
def reference(small_checkpoint: Path, tmp_path: Path) -> bytes:
    out = tmp_path / "reference" / "m.gguf"
    out.parent.mkdir()
    write_gguf(small_checkpoint, out, recipe_from_options("q4_k_m"))
    return out.read_bytes()


def test_rerun_does_only_what_is_missing(
    small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reference: bytes
) -> None:
    out = tmp_path / "m.gguf"
    interrupt(small_checkpoint, out, monkeypatch, after=30)
    assert not out.exists()
    assert partial_path(out).exists()
    result = write_gguf(small_checkpoint, out, recipe_from_options("q4_k_m"))
    assert result.resumed_items == 30
    assert out.read_bytes() == reference


def test_other_arguments_are_refused_and_forced(
    small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reference: bytes
) -> None:
    out = tmp_path / "m.gguf"
    interrupt(small_checkpoint, out, monkeypatch, after=10)
    with pytest.raises(BadInput, match="unfinished run with other arguments"):
        write_gguf(small_checkpoint, out, recipe_from_options("q8_0"))
    with pytest.raises(BadInput, match="unfinished run"):
        write_gguf(small_checkpoint, out, recipe_from_options("q4_k_m", tensor_types=["attn_q=Q8_0"]))
    assert write_gguf(small_checkpoint, out, recipe_from_options("q4_k_m"), force=True).resumed_items == 10
    assert out.read_bytes() == reference


def test_another_source_is_refused(small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / small_checkpoint.name
    shutil.copytree(small_checkpoint, copy)  # same names and headers, other files
    out = tmp_path / "m.gguf"
    interrupt(small_checkpoint, out, monkeypatch, after=10)
    for shard in copy.glob("*.safetensors"):
        os.utime(shard)
    with pytest.raises(BadInput, match="another source"):
        write_gguf(copy, out, recipe_from_options("q4_k_m"))


def test_a_replaced_shard_redoes_its_items_only(
    small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / small_checkpoint.name
    shutil.copytree(small_checkpoint, source)
    out = tmp_path / "m.gguf"
    interrupt(source, out, monkeypatch, after=40)
    shard = min(source.glob("*.safetensors"))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1  # another last weight, as if the first download had been damaged
    shard.write_bytes(content)
    os.utime(shard, (1, 1))
    result = write_gguf(source, out, recipe_from_options("q4_k_m"))
    assert 0 < result.resumed_items < 40
    fresh = tmp_path / "fresh.gguf"
    write_gguf(source, fresh, recipe_from_options("q4_k_m"))
    assert out.read_bytes() == fresh.read_bytes()


@pytest.mark.parametrize("tail", [b"", b"7", b"\0\0\0\0", b"\xff\xfe\n", b"99999999\n"])
def test_a_torn_journal_is_read_up_to_the_tear(
    small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reference: bytes, tail: bytes
) -> None:
    out = tmp_path / "m.gguf"
    interrupt(small_checkpoint, out, monkeypatch, after=20)
    journal = out.with_name("m.gguf.journal")
    journal.write_bytes(journal.read_bytes() + tail)
    write_gguf(small_checkpoint, out, recipe_from_options("q4_k_m"))
    assert out.read_bytes() == reference


def test_without_its_partial_output_everything_is_done_again(
    small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reference: bytes
) -> None:
    out = tmp_path / "m.gguf"
    interrupt(small_checkpoint, out, monkeypatch, after=20)
    partial_path(out).unlink()
    assert write_gguf(small_checkpoint, out, recipe_from_options("q4_k_m")).resumed_items == 0
    assert out.read_bytes() == reference


def test_killed_between_renames(small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from quantkit.run.gguf import convert as pipeline

    fresh = write_gguf(small_checkpoint, tmp_path / "f.gguf", recipe_from_options("q4_k_m"), split_max_size=500_000)
    with monkeypatch.context() as patch:

        def first_only(parts: list[object]) -> None:
            os.replace(partial_path(parts[0].path), parts[0].path)
            raise Stop

        patch.setattr(pipeline, "publish", first_only)
        with pytest.raises(Stop):
            write_gguf(small_checkpoint, tmp_path / "g.gguf", recipe_from_options("q4_k_m"), split_max_size=500_000)
    result = write_gguf(small_checkpoint, tmp_path / "g.gguf", recipe_from_options("q4_k_m"), split_max_size=500_000)
    assert result.resumed_items == result.items
    assert [path.read_bytes() for path in result.outputs] == [path.read_bytes() for path in fresh.outputs]
    assert not list(tmp_path.glob("*.partial"))
    assert not list(tmp_path.glob("*.journal"))


def test_two_runs_on_one_output_exclude_each_other(small_checkpoint: Path, tmp_path: Path) -> None:
    from quantkit.run.gguf.plan import Target, make_plan
    from quantkit.run.journal import Journal

    out = tmp_path / "m.gguf"
    plan = make_plan(small_checkpoint, [Target(out, recipe_from_options("q4_k_m"))])
    other = Journal(out.with_name("m.gguf.journal"), plan.identity, restart=False)
    with pytest.raises(BadInput, match="another run is writing"):
        write_gguf(small_checkpoint, out, recipe_from_options("q4_k_m"))
    other.close(remove=True)
    write_gguf(small_checkpoint, out, recipe_from_options("q4_k_m"))
