"""A calibration that stopped goes on at the layer that was not finished; what does not belong to it is refused."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from imatrix_runs import NAMES, left, outputs, token_set

from quantkit.calibration.layer_store import LayerStore
from quantkit.calibration.tokens import TokenSet
from quantkit.errors import BadInput
from quantkit.run import imatrix as pipeline
from quantkit.run.imatrix import make_imatrix

LAYERS = 5

# Runs that stop between two layers, in this process


class Stop(Exception):
    """Raised in the middle of a run."""


@dataclass(frozen=True)
class Case:
    """A checkpoint of LAYERS layers and where its importance matrix goes."""

    source: Path
    out: Path

    @property
    def layers(self) -> Path:
        return self.out.with_name("i.gguf.layers")

    def run(self, *, tokens: TokenSet | None = None, source: Path | None = None, **options: object) -> int:
        """Run to the end; how many layers need not be run."""
        arguments = {"min_tokens": 32, "precision": "float32", "quiet": True} | options
        return make_imatrix(source or self.source, self.out, tokens or token_set(), **arguments).resumed_layers

    def matches(self, expected: list[bytes]) -> None:
        assert outputs(self.out.parent) == expected
        assert left(self.out.parent) == NAMES


@pytest.fixture(scope="module")
def layers5(make_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("layers5") / "checkpoint", layers=LAYERS)


@pytest.fixture
def case(layers5: Path, tmp_path: Path) -> Case:
    (tmp_path / "out").mkdir()
    return Case(layers5, tmp_path / "out" / "i.gguf")


@pytest.fixture(scope="module")
def expected(layers5: Path, tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    whole = Case(layers5, tmp_path_factory.mktemp("whole") / "i.gguf")
    assert whole.run() == 0
    return outputs(whole.out.parent)


@pytest.fixture
def stop_after(case: Case, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Let a run of `case` end when so many layers are on disk."""

    def stop(layers: int) -> None:
        save = LayerStore.save

        def counted(self: LayerStore, layer: int, *rest: object) -> None:
            if layer == layers:
                raise Stop
            save(self, layer, *rest)  # type: ignore[arg-type]

        with monkeypatch.context() as patch:
            patch.setattr(LayerStore, "save", counted)
            with pytest.raises(Stop):
                case.run()

    return stop


StopAfter = Callable[[int], None]


@pytest.mark.parametrize("layers", [0, 1, 3, LAYERS - 1])
def test_goes_on_where_it_was(case: Case, stop_after: StopAfter, expected: list[bytes], layers: int) -> None:
    stop_after(layers)
    assert not case.out.exists()
    assert case.run() == layers
    case.matches(expected)


def test_stopped_more_than_once(case: Case, stop_after: StopAfter, expected: list[bytes]) -> None:
    for layers in (1, 2, 4):
        stop_after(layers)
    assert case.run() == 4
    case.matches(expected)


def test_only_the_latest_states_are_kept(case: Case, stop_after: StopAfter) -> None:
    stop_after(3)
    assert [path.name for path in case.layers.glob("hidden*")] == ["hidden-0002"]
    assert list(case.layers.glob("*.partial")) == []


@pytest.mark.parametrize("moment", ["_write_imatrix", "_write_report"])
def test_stopped_while_the_output_is_written(
    case: Case, expected: list[bytes], monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """All layers are done then, and perhaps a part of the files has its name."""
    write = getattr(pipeline, moment)

    def written_and_stopped(*arguments: object) -> None:
        write(*arguments)
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, moment, written_and_stopped)
        with pytest.raises(Stop):
            case.run()
    assert case.run() == LAYERS
    case.matches(expected)


def test_excluded_tokens_are_remembered(
    case: Case, stop_after: StopAfter, layers5: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from quantkit.forward.tokens import TokenStates

    clear = TokenStates.clear_excluded

    def two_break(self: TokenStates) -> None:
        if not self.excluded:
            import torch

            self.exclude(torch.tensor([3, 70]), 0, 2)
        clear(self)

    monkeypatch.setattr(TokenStates, "clear_excluded", two_break)
    whole = Case(layers5, tmp_path / "i.gguf")
    whole.run()
    stop_after(2)
    case.run()
    assert outputs(case.out.parent) == outputs(tmp_path)
    report = json.loads((tmp_path / "i.coverage.json").read_text())
    assert report["excluded_tokens"] == [{"layer": 0, "expert": 2, "tokens": 2}]
    assert sum(report["coverage"]["layers"][1]["routed"]) == 2 * (token_set().starts[-1] - 2)


# Another run's folder


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"tokens": token_set(seed=1)}, "tokens"),
        ({"tokens": token_set(lengths=(512,))}, "tokens"),
        ({"min_tokens": 33}, "min-tokens-per-expert"),
        ({"precision": "bfloat16"}, "precision"),
    ],
)
def test_other_arguments_are_refused_and_forced(
    case: Case, stop_after: StopAfter, tmp_path: Path, options: dict[str, object], word: str
) -> None:
    stop_after(2)
    with pytest.raises(BadInput, match=rf"unfinished run with other {word};.*--force") as refused:
        case.run(**options)
    assert refused.value.exit_code == 2
    assert case.run(**options, force=True) == 0
    fresh = Case(case.source, tmp_path / "i.gguf")
    fresh.run(**options)
    case.matches(outputs(tmp_path))


def test_refusing_leaves_the_unfinished_run_as_it_was(case: Case, stop_after: StopAfter, expected: list[bytes]) -> None:
    stop_after(2)
    with pytest.raises(BadInput):
        case.run(min_tokens=1)
    assert case.run() == 2
    case.matches(expected)


def test_another_source_is_refused(case: Case, stop_after: StopAfter, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(case.source, tmp_path / "copy"))
    for shard in copy.glob("*.safetensors"):
        os.utime(shard)  # same names and headers, other files
    stop_after(2)
    with pytest.raises(BadInput, match="other source"):
        case.run(source=copy)


def test_the_same_source_with_another_config_is_refused(case: Case, stop_after: StopAfter) -> None:
    """Rotation and norm are in no shard."""
    stop_after(2)
    path = case.source / "config.json"
    before = path.read_text()
    path.write_text(json.dumps(json.loads(before) | {"rope_theta": 10_000}))
    try:
        with pytest.raises(BadInput, match="other source"):
            case.run()
    finally:
        path.write_text(before)


def test_force_starts_over(case: Case, stop_after: StopAfter, expected: list[bytes]) -> None:
    stop_after(2)
    assert case.run(force=True) == 0
    case.matches(expected)


def test_a_run_that_still_goes_is_not_disturbed(case: Case, stop_after: StopAfter, expected: list[bytes]) -> None:
    stop_after(2)
    with (case.layers / "lock").open() as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        for force in (False, True):
            with pytest.raises(BadInput, match="another run is writing this output"):
                case.run(force=force)
    assert case.run() == 2
    case.matches(expected)


# A folder that lost something


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [flip, cut, empty])
def test_damaged_states_are_refused_until_forced(
    case: Case, stop_after: StopAfter, expected: list[bytes], damage: Callable[[Path], None]
) -> None:
    stop_after(3)
    damage(case.layers / "hidden-0002")
    with pytest.raises(BadInput, match=r"hidden-0002: damaged; start over with --force"):
        case.run()
    assert not case.out.exists()
    assert case.run(force=True) == 0
    case.matches(expected)


@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("damage", [cut, empty])
def test_damaged_statistics_are_refused(
    case: Case, stop_after: StopAfter, damage: Callable[[Path], None], layer: int
) -> None:
    stop_after(3)
    name = f"layer-000{layer}.safetensors"
    damage(case.layers / name)
    with pytest.raises(BadInput, match=name):
        case.run()
    assert not case.out.exists()


@pytest.mark.parametrize(
    ("lost", "resumed"),
    [
        (["hidden-0002"], 0),
        (["layer-0002.safetensors"], 0),
        (["layer-0001.safetensors"], 0),
        (["layer-0000.safetensors"], 0),
        (["run.json"], 0),
        (["lock"], 3),
        (["hidden-0002", "layer-0002.safetensors", "run.json"], 0),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else str(value),
)
def test_lost_files_cost_time_only(
    case: Case, stop_after: StopAfter, expected: list[bytes], lost: list[str], resumed: int
) -> None:
    stop_after(3)
    for name in lost:
        (case.layers / name).unlink()
    assert case.run() == resumed
    case.matches(expected)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b"null", b"3"])
def test_an_unreadable_identity_is_refused(case: Case, stop_after: StopAfter, content: bytes) -> None:
    stop_after(3)
    (case.layers / "run.json").write_bytes(content)
    with pytest.raises(BadInput, match="unfinished run"):
        case.run()
    assert case.run(force=True) == 0


@pytest.mark.parametrize("extra", ["layer-0009.safetensors.partial", "hidden-0003.partial", "hidden-0000"])
def test_what_a_kill_left_half_written_does_no_harm(
    case: Case, stop_after: StopAfter, expected: list[bytes], extra: str
) -> None:
    stop_after(3)
    (case.layers / extra).write_bytes(b"x" * 100)
    assert case.run() == 3
    case.matches(expected)
