"""What the tests of the commands share: spoilt checkpoints, killed runs."""

from collections.abc import Callable
from pathlib import Path

import pytest
from harness import Cli, CliResult, Damage
from refusals import Refused

from quantkit.run.output import OutputFiles


@pytest.fixture
def refused(cli: Cli, damaged: Damage, tmp_path: Path) -> Refused:
    (tmp_path / "out").mkdir()
    return Refused(cli, damaged.folder, tmp_path / "out" / "model.gguf")


# Shards, headers, index


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "model.gguf"


@pytest.fixture
def run(cli: Cli, damaged: Damage, out: Path) -> Callable[..., CliResult]:
    """`quantkit gguf MIX` on the copy of the tiny checkpoint."""
    return lambda *options, mix="q8_0": cli("gguf", mix, damaged.folder, "-o", out, *options)


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
