"""A conversion with the searches of our own: the same bytes however it runs, not worse than ggml, and named as such."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import gguf
import numpy as np
import pytest
from ggml_oracle import Source

from quantkit import __version__
from quantkit.errors import BadInput
from quantkit.quantize.kquants.quantize import TYPES
from quantkit.quantize.rows import GGML, OWN
from quantkit.recipe.recipe import Recipe, recipe_from_options
from quantkit.run.gguf.convert import write_gguf

every_type = pytest.mark.parametrize("kind", sorted(TYPES))


def everywhere(kind: str) -> Recipe:
    """All matrices of type `kind`."""
    return recipe_from_options("bf16", tensor_types=[f".={kind}"])


def matrices(out: Path, kind: str) -> dict[str, np.ndarray]:
    """What a reader makes of the matrices of type `kind`, float32."""
    wanted = gguf.GGMLQuantizationType[kind]
    return {
        tensor.name: gguf.quants.dequantize(tensor.data, wanted)
        for tensor in gguf.GGUFReader(out).tensors
        if tensor.tensor_type == wanted
    }


@every_type
@pytest.mark.parametrize("source", ["small_checkpoint", "bf16_small_checkpoint"])
def test_bytes_depend_on_nothing_but_the_source(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str, source: str
) -> None:
    folder: Path = request.getfixturevalue(source)
    written, runs = [], ({"threads": 1}, {"threads": 2}, {"threads": 3}, {"threads": 3}, {"memory": 10**10})
    for number, options in enumerate(runs):
        out = tmp_path / f"{number}" / "m.gguf"
        out.parent.mkdir()
        write_gguf(folder, out, everywhere(kind), **options)
        written.append(out.read_bytes())
    assert len(matrices(out, kind)) >= 2 * 7
    assert len(set(written)) == 1


def test_no_matrix_of_the_fixture_is_worse_than_by_ggml(tiny_m2: Path, tmp_path: Path) -> None:
    original = Source(tiny_m2)
    errors = {}
    for kquants in (OWN, GGML):
        out = tmp_path / f"{kquants}.gguf"
        write_gguf(tiny_m2, out, recipe_from_options("q4_k_m"), kquants=kquants)
        errors[kquants] = {
            name: float(np.square(values - original.gguf_tensor(name), dtype=np.float64).sum())
            for kind in ("Q4_K", "Q6_K")
            for name, values in matrices(out, kind).items()
        }
    assert errors[OWN].keys() == errors[GGML].keys()
    worse = [name for name, error in errors[OWN].items() if error > errors[GGML][name]]
    assert not worse


def quantizer(out: Path) -> str:
    return str(gguf.GGUFReader(out).fields["quantkit.quantizer"].contents())


def test_the_file_and_the_result_say_who_searched(small_checkpoint: Path, tmp_path: Path) -> None:
    found = {}
    for mix, kquants in (("q4_k_m", OWN), ("q4_k_m", GGML), ("q5_1", OWN), ("bf16", OWN)):
        out = tmp_path / f"{mix}-{kquants}.gguf"
        result = write_gguf(small_checkpoint, out, recipe_from_options(mix), kquants=kquants)
        found[mix, kquants] = quantizer(out)
        assert result.quantizer == quantizer(out)
    ours, theirs = f"quantkit {__version__}", f"xllamacpp {version('xllamacpp')}"
    assert found["q4_k_m", OWN] == found["bf16", OWN] == ours
    assert found["q4_k_m", GGML] == theirs
    # ggml makes what we have no search for.
    assert found["q5_1", OWN] == f"{ours}, {theirs}"


def test_an_unfinished_run_does_not_go_on_with_another_search(
    small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from quantkit.run.gguf import quantize_item as pipeline

    class Stop(Exception):
        pass

    def stop(*arguments: object) -> object:
        raise Stop

    out, recipe = tmp_path / "m.gguf", recipe_from_options("q4_k_s")
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "quantize_rows", stop)
        with pytest.raises(Stop):
            write_gguf(small_checkpoint, out, recipe, threads=1)
    with pytest.raises(BadInput, match="unfinished run with other arguments"):
        write_gguf(small_checkpoint, out, recipe, kquants=GGML)
    write_gguf(small_checkpoint, out, recipe)


def test_another_word_is_refused(small_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="--kquants 'fast': choose own or ggml"):
        write_gguf(small_checkpoint, tmp_path / "m.gguf", recipe_from_options("q4_k_m"), kquants="fast")
    assert not list(tmp_path.iterdir())
