"""`quantkit audit`: what it prints, its JSON and its exit codes."""

import json
import shutil
from pathlib import Path

import pytest
from harness import Cli, Damage

from quantkit.recipe.recipe import recipe_from_options
from quantkit.run.gguf.convert import write_gguf


@pytest.fixture(scope="module")
def made(tiny_m2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained fixture as a split Q8_0."""
    out = tmp_path_factory.mktemp("made") / "model.gguf"
    write_gguf(tiny_m2, out, recipe_from_options("q8_0"), split_max_size=10_000_000, quiet=True)
    return out.parent


def test_a_sound_gguf_on_a_terminal(cli: Cli, made: Path) -> None:
    result = cli("audit", made)
    assert (result.code, result.err) == (0, "")
    lines = result.out.splitlines()
    assert lines[0].startswith(f"{made}: ")
    assert lines[-1].startswith("verdict: nothing found that will break")
    assert not any(line.startswith(("error:", "warning:")) for line in lines)


def test_any_part_of_a_split_model_stands_for_it(cli: Cli, made: Path) -> None:
    for part in sorted(made.glob("*.gguf")):
        result = cli("audit", part, "--json")
        assert result.code == 0
        (model,) = result.json()["models"]
        assert model["files"] == len(list(made.glob("*.gguf")))
        assert model["format"] == "Q8_0"


def test_what_breaks_exits_3(cli: Cli, made: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made, tmp_path / "copy"))
    lost = sorted(folder.glob("*.gguf"))[1]
    lost.unlink()
    result = cli("audit", folder)
    assert (result.code, result.err) == (3, "")
    first = next(line for line in result.out.splitlines() if line.startswith("error: "))
    assert lost.name in first
    assert "  part-missing: " in result.out
    assert result.out.splitlines()[-1].startswith("verdict: will break (1 error")


def test_json_has_a_stable_shape(cli: Cli, damaged: Damage) -> None:
    (damaged.folder / "generation_config.json").unlink()
    result = cli("audit", damaged.folder, "--json")
    assert result.code == 3
    found = result.json()
    assert list(found) == ["source", "commit", "verdict", "models", "findings", "total_bytes", "bytes_read"]
    assert found["source"] == str(damaged.folder)
    assert found["commit"] is None
    assert found["verdict"] == "breaks"
    assert 0 < found["bytes_read"] < found["total_bytes"]
    for finding in found["findings"]:
        assert list(finding) == ["id", "severity", "model", "text", "remedy"]
    severities = [finding["severity"] for finding in found["findings"]]
    assert severities == sorted(severities, key=["error", "warning", "note"].index)
    (model,) = found["models"]
    assert list(model) == ["kind", "path", "format", "files", "bytes", "facts"]
    assert json.loads(result.out) == found


def test_unreadable_input_exits_2(cli: Cli, tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "away.gguf"):
        result = cli("audit", path)
        assert (result.code, result.out) == (2, "")
        (line,) = result.error_lines
        assert line.startswith(f"quantkit: error: {path}: ")
    result = cli("audit", "hub:not an address")
    assert result.code == 2
    assert len(result.error_lines) == 1
