"""What every refused command line has in common."""

from dataclasses import dataclass
from pathlib import Path

from harness import Cli, CliResult

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


def left(out: Path) -> list[str]:
    return sorted(path.name for path in out.parent.iterdir())
