"""Several types in one run: the first leads, the others share what they can, and each is a file of its own."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from compensated_runs import EXPERTS, Case, contents, keys, left, tensors

from quantkit.quantize import compensate
from quantkit.recipe.recipe import recipe_from_options
from quantkit.run.gguf import matrices
from quantkit.run.gguf.convert import write_gguf, write_ggufs
from quantkit.run.gguf.plan import Target

MIXES = ("q4_k_m", "q3_k_m", "q2_k")


@pytest.fixture
def together(case: Case) -> Case:
    case.run(*MIXES)
    return case


def test_the_first_one_is_as_if_alone(together: Case, tmp_path: Path) -> None:
    alone = Case(together.source, tmp_path / "alone")
    alone.folder.mkdir()
    alone.run(MIXES[0])
    assert together.path(MIXES[0]).read_bytes() == alone.path().read_bytes()
    name = f"M-{MIXES[0].upper()}.quantkit.json"
    assert (together.folder / name).read_bytes() == (alone.folder / "M.quantkit.json").read_bytes()


def test_the_others_follow_the_first_ones_layers(together: Case, tmp_path: Path) -> None:
    """From the embedding on, what enters a matrix is behind the first type's; the embedding itself has no inputs."""
    alone = Case(together.source, tmp_path / "alone")
    alone.folder.mkdir()
    alone.run(MIXES[1])
    found, expected = tensors(together.path(MIXES[1])), tensors(alone.path())
    assert found.keys() == expected.keys()
    differing = [name for name, raw in found.items() if raw != expected[name]]
    assert "token_embd.weight" not in differing
    assert {"blk.0.attn_q.weight", "blk.0.ffn_gate_exps.weight", "blk.1.attn_q.weight", "output.weight"} <= set(
        differing
    )
    assert keys(together.path(MIXES[1]))["quantkit.compensation.led_by"] == "Q4_K_M"
    assert keys(alone.path())["quantkit.compensation.led_by"] == "Q3_K_M"


def test_what_several_want_is_solved_once(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Q4_K_M and Q4_K_S share all but some w2 and attn_v; their Hessians are factorized once for both."""
    factorized, solved = [], []
    monkeypatch.setattr(matrices, "factorize", lambda hessian: (factorized.append(1), compensate.factorize(hessian))[1])
    solve_blocks = matrices.solve_blocks

    def counted(*arguments: object) -> object:
        solved.append(arguments[3])
        return solve_blocks(*arguments)

    monkeypatch.setattr(matrices, "solve_blocks", counted)
    case.run("q4_k_m")
    alone = len(factorized), len(solved)
    factorized.clear()
    solved.clear()
    case.run("q4_k_m", "q4_k_s")
    assert len(factorized) == alone[0]
    first, second = tensors(case.path("q4_k_m")), tensors(case.path("q4_k_s"))
    other = [name for name, raw in first.items() if raw != second[name]]
    assert other
    matrices_of = {name: EXPERTS if "_exps" in name else 1 for name in other}
    assert len(solved) == alone[1] + sum(matrices_of.values())


def test_everything_has_its_name_and_nothing_else_is_there(together: Case) -> None:
    files = [f"M-{mix.upper()}.{kind}" for mix in MIXES for kind in ("gguf", "quantkit.json")]
    assert left(together.folder) == sorted(files)


def test_plain_ones_are_as_if_alone(layers3: Path, tmp_path: Path) -> None:
    targets = [Target(tmp_path / f"{mix}.gguf", recipe_from_options(mix)) for mix in MIXES]
    results = write_ggufs(layers3, targets, split_max_size=900_000)
    assert len(results[0].outputs) > 1
    (tmp_path / "alone").mkdir()
    for mix, result in zip(MIXES, results, strict=True):
        alone = write_gguf(
            layers3, tmp_path / "alone" / f"{mix}.gguf", recipe_from_options(mix), split_max_size=900_000
        )
        assert [path.name for path in result.outputs] == [path.name for path in alone.outputs]
        assert [path.read_bytes() for path in result.outputs] == [path.read_bytes() for path in alone.outputs]
        assert (result.types, result.output_bytes, result.weights) == (alone.types, alone.output_bytes, alone.weights)


@pytest.mark.parametrize("items", [0, 25, 60])
def test_plain_ones_go_on(layers3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, items: int) -> None:
    from quantkit.run.gguf import quantize_item

    class Stop(Exception):
        pass

    quantize, calls = quantize_item.quantize_rows, iter(range(10**9))

    def stopping(*arguments: object) -> object:
        if next(calls) == items:
            raise Stop
        return quantize(*arguments)

    def run(folder: Path) -> int:
        targets = [Target(folder / f"{mix}.gguf", recipe_from_options(mix)) for mix in MIXES]
        return write_ggufs(layers3, targets, threads=1)[0].resumed_items

    whole, out = tmp_path / "whole", tmp_path / "out"
    for folder in (whole, out):
        folder.mkdir()
    assert run(whole) == 0
    with monkeypatch.context() as patch:
        patch.setattr(quantize_item, "quantize_rows", stopping)
        with pytest.raises(Stop):
            run(out)
    assert not list(out.glob("*.gguf"))
    assert run(out) == items
    assert contents(out) == contents(whole)


def test_a_file_of_another_run_is_not_taken_for_ones_own(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Q3_K_M alone and as one of several: the same partial file, and what is in it counts for one of them only."""
    from quantkit.calibration.layer_store import LayerStore
    from quantkit.errors import BadInput

    class Stop(Exception):
        pass

    save = LayerStore.save

    def stopping(self: LayerStore, layer: int, *arguments: object) -> None:
        if layer == 2:
            raise Stop
        save(self, layer, *arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(LayerStore, "save", stopping)
        with pytest.raises(Stop):
            case.run("q4_k_m", "q3_k_m")
    target = Target(case.path("q3_k_m"), recipe_from_options("q3_k_m"))
    write_ggufs(case.source, [target])
    shutil.move(target.path, target.path.with_name("M-Q3_K_M.gguf.partial"))
    with pytest.raises(BadInput, match=r"M-Q3_K_M\.gguf\.partial: was removed or changed.*--force"):
        case.run("q4_k_m", "q3_k_m")
