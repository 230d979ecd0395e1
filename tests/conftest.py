"""What many tests share: synthetic checkpoints, the trained fixture, and the command line in this process."""

import importlib.util
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest
from harness import SMALL, SMALL_SHARD_BYTES, TINY, Cli, CliResult, Damage, MakeCheckpoint
from hub_standin.fixtures import hub, xet_hub  # noqa: F401  (fixtures)
from triton_on_cpu import card  # noqa: F401  (a fixture)

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def tiny_m2() -> Path:
    """The trained fixture checkpoint, small enough for the repository."""
    return ROOT / "tests" / "fixtures" / "tiny-m2"


@pytest.fixture(scope="session")
def synthetic() -> ModuleType:
    """The program scripts/make_synthetic.py as a module."""
    spec = importlib.util.spec_from_file_location("make_synthetic", ROOT / "scripts" / "make_synthetic.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def make_checkpoint(synthetic: ModuleType) -> MakeCheckpoint:
    """A factory of synthetic checkpoints in the official layout; dimensions not given are those of SMALL."""
    synthetic.POOL_WEIGHTS = 2_000_000  # enough for these sizes and ten times faster

    def make(
        folder: Path, *, seed: int = 0, bf16: bool = False, shard_bytes: int = SMALL_SHARD_BYTES, **size: int
    ) -> Path:
        synthetic.make(folder, synthetic.Size(**SMALL | size), seed=seed, bf16=bf16, shard_bytes=shard_bytes)
        return folder

    return make


@pytest.fixture(scope="session")
def small_checkpoint(make_checkpoint: MakeCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two FP8 layers in several shards. Tests that write into it take `damaged` instead."""
    return make_checkpoint(tmp_path_factory.mktemp("small") / "checkpoint")


@pytest.fixture(scope="session")
def bf16_small_checkpoint(make_checkpoint: MakeCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model in BF16."""
    return make_checkpoint(tmp_path_factory.mktemp("small-bf16") / "checkpoint", bf16=True)


@pytest.fixture(scope="session")
def tiny_checkpoint(make_checkpoint: MakeCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One FP8 layer with two experts in several shards."""
    return make_checkpoint(tmp_path_factory.mktemp("tiny") / "checkpoint", **TINY)


@pytest.fixture
def damaged(tiny_checkpoint: Path, tmp_path: Path) -> Damage:
    """A copy of `tiny_checkpoint` to spoil."""
    return Damage(Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint")))


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Cli:
    """Run the command line in this process, streams of C libraries included."""
    from quantkit.cli.app import main

    def run(*arguments: object) -> CliResult:
        monkeypatch.setattr(sys, "argv", ["quantkit", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main()
        captured = capfd.readouterr()
        return CliResult(stopped.value.code, captured.out, captured.err)

    return run
