"""With an importance matrix every byte of tensor data equals ggml's result for the expert's own importance."""

from __future__ import annotations

import shutil
from pathlib import Path

import gguf
import imatrix_files
import numpy as np
import pytest
from ggml_oracle import Source, ggml_bytes
from imatrix_files import MadeUp

from quantkit.errors import BadInput
from quantkit.quantize.rows import GGML
from quantkit.recipe.recipe import recipe_from_options
from quantkit.run.gguf.convert import write_gguf
from quantkit.run.gguf.plan import Target, make_plan

DOWN = "blk.1.ffn_down_exps.weight"


@pytest.fixture(scope="module")
def imatrix(small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> MadeUp:
    """Complete, with other counts for every expert."""
    return imatrix_files.for_checkpoint(tmp_path_factory.mktemp("imatrix") / "imatrix.gguf", small_checkpoint)


def stacked_means(made: MadeUp, name: str) -> np.ndarray | None:
    if name not in made.values:
        return None
    sums, counts = made.values[name]
    return np.ascontiguousarray(sums / counts[:, None])


def assert_equals_ggml(out: Path, source: Path, made: MadeUp) -> None:
    original = Source(source)
    for tensor in gguf.GGUFReader(out).tensors:
        expected = ggml_bytes(original.gguf_tensor(tensor.name), tensor.tensor_type, stacked_means(made, tensor.name))
        assert np.ascontiguousarray(tensor.data).tobytes() == expected, tensor.name


@pytest.mark.parametrize(
    "mix", ["q4_k_m", "q3_k_m", "q2_k_s", "q5_0", "q5_1", "iq4_xs", "iq3_xs", "iq3_xxs", "iq2_m", "iq2_xxs", "iq1_m"]
)
def test_every_expert_is_weighed_by_its_own_importance(
    small_checkpoint: Path, imatrix: MadeUp, tmp_path: Path, mix: str
) -> None:
    out = tmp_path / "m.gguf"
    result = write_gguf(small_checkpoint, out, recipe_from_options(mix), imatrix=imatrix.path, kquants=GGML)
    assert_equals_ggml(out, small_checkpoint, imatrix)
    assert result.importance is not None
    assert len(result.importance.guided) == 2 * 7
    assert set(result.importance.without) == {"token_embd.weight", "output.weight"}


def test_importance_changes_the_bytes(small_checkpoint: Path, imatrix: MadeUp, tmp_path: Path) -> None:
    """Or the tests above would compare nothing."""
    for name, path in (("plain", None), ("guided", imatrix.path)):
        write_gguf(small_checkpoint, tmp_path / f"{name}.gguf", recipe_from_options("q4_k_m"), imatrix=path)
    plain, guided = (
        {tensor.name: tensor.data.tobytes() for tensor in gguf.GGUFReader(tmp_path / f"{name}.gguf").tensors}
        for name in ("plain", "guided")
    )
    changed = {name for name in plain if plain[name] != guided[name]}
    assert changed == {name for name in imatrix.values if "gate_inp" not in name}


def test_output_weight_is_guided_where_there_is_data(small_checkpoint: Path, tmp_path: Path) -> None:
    made = imatrix_files.write(
        tmp_path / "imatrix.gguf",
        imatrix_files.make_up(imatrix_files.shapes(small_checkpoint) | {"output.weight": (1, 256)}),
    )
    write_gguf(small_checkpoint, tmp_path / "m.gguf", recipe_from_options("q4_k_m"), imatrix=made.path, kquants=GGML)
    assert_equals_ggml(tmp_path / "m.gguf", small_checkpoint, made)


def test_bytes_do_not_depend_on_threads_or_memory(small_checkpoint: Path, imatrix: MadeUp, tmp_path: Path) -> None:
    written = set()
    for threads, memory in ((1, None), (5, 3 * 10**9)):
        out = tmp_path / f"{threads}" / "m.gguf"
        out.parent.mkdir()
        recipe = recipe_from_options("iq4_xs")
        write_gguf(small_checkpoint, out, recipe, imatrix=imatrix.path, threads=threads, memory=memory)
        written.add(out.read_bytes())
    assert len(written) == 1


def test_experts_without_data_use_the_mean_of_the_others(
    small_checkpoint: Path, imatrix: MadeUp, tmp_path: Path
) -> None:
    sums, counts = (array.copy() for array in imatrix.values[DOWN])
    sums[2], counts[2] = 0, 0
    holed = imatrix_files.write(tmp_path / "imatrix.gguf", imatrix.values | {DOWN: (sums, counts)})
    out = tmp_path / "m.gguf"
    result = write_gguf(small_checkpoint, out, recipe_from_options("q4_k_m"), imatrix=holed.path, kquants=GGML)
    assert result.importance is not None
    assert [str(missing) for missing in result.importance.missing] == [f"{DOWN}: 1 of 4"]
    filled, ones = sums.copy(), counts.copy()
    filled[2] = sums.astype(np.float64).sum(axis=0) / counts.sum()
    ones[2] = 1
    expected = MadeUp(holed.path, imatrix.values | {DOWN: (filled, ones)})
    assert_equals_ggml(out, small_checkpoint, expected)
    fields = gguf.GGUFReader(out).fields
    assert fields["quantkit.imatrix.missing_experts"].contents() == [f"{DOWN}: 1 of 4"]


def test_a_dat_file_gives_the_same(small_checkpoint: Path, imatrix: MadeUp, tmp_path: Path) -> None:
    dat = imatrix_files.write_dat(tmp_path / "imatrix.dat", imatrix.values, calls=4)  # exact in float32
    for name, path in (("a", imatrix.path), ("b", dat)):
        write_gguf(small_checkpoint, tmp_path / f"{name}.gguf", recipe_from_options("iq4_xs"), imatrix=path)
    first, second = (
        [tensor.data.tobytes() for tensor in gguf.GGUFReader(tmp_path / f"{name}.gguf").tensors] for name in "ab"
    )
    assert first == second


def test_an_unfinished_run_goes_on_with_its_own_importance_only(
    small_checkpoint: Path, imatrix: MadeUp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from quantkit.run.gguf import quantize_item as pipeline

    recipe, quantize, done = recipe_from_options("iq4_xs"), pipeline.quantize_rows, []

    class Stop(Exception):
        pass

    def ten_only(*arguments: object) -> object:
        done.append(None)
        if len(done) > 10:
            raise Stop
        return quantize(*arguments)

    out, copy = tmp_path / "m.gguf", tmp_path / "same" / "imatrix.gguf"
    copy.parent.mkdir()
    shutil.copyfile(imatrix.path, copy)
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "quantize_rows", ten_only)
        with pytest.raises(Stop):
            write_gguf(small_checkpoint, out, recipe, imatrix=imatrix.path, kquants=GGML, threads=1)
    other = imatrix_files.for_checkpoint(tmp_path / "imatrix.gguf", small_checkpoint, seed=1)
    for path in (other.path, None):
        with pytest.raises(BadInput, match="unfinished run with other arguments"):
            write_gguf(small_checkpoint, out, recipe, imatrix=path, kquants=GGML)
    assert write_gguf(small_checkpoint, out, recipe, imatrix=copy, kquants=GGML).resumed_items == 10
    assert_equals_ggml(out, small_checkpoint, imatrix)


def test_items_know_their_expert(small_checkpoint: Path, tmp_path: Path) -> None:
    plan = make_plan(small_checkpoint, [Target(tmp_path / "m.gguf", recipe_from_options("q8_0"))])
    experts = [(item.source, item.matrix) for item in plan.items if item.tensor == DOWN]
    assert sorted(experts) == [(f"model.layers.1.block_sparse_moe.experts.{i}.w2.weight", i) for i in range(4)]
    assert {item.matrix for item in plan.items if "_exps" not in item.tensor} == {0}
