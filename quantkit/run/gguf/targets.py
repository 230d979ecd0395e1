"""Which files are asked for: one, or one per type in a folder or under names that the type completes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from quantkit.errors import BadInput
from quantkit.recipe.recipe import Recipe, recipe_from_options
from quantkit.run.gguf.plan import Target

SUFFIX = ".gguf"


def recipes_from_options(
    types: str, file: Path | None = None, tensor_types: Sequence[str] = (), overflow_guard: bool | None = None
) -> list[Recipe]:
    """The recipes of one command line, one for each of the mixes that `types` names, "q4_k_m" or "q4_k_m,q3_k_m".

    Raises BadInput for a mix that is named twice, and for a recipe `file` with several: it has one base.
    """
    names = types.split(",")
    if file is not None and len(names) > 1:
        raise BadInput(f"--recipe {file}: has one base, and {types} are {len(names)} types; give one of them")
    recipes = [recipe_from_options(name, file, tensor_types, overflow_guard) for name in names]
    bases = [recipe.base for recipe in recipes]
    for base in bases:
        if bases.count(base) > 1:
            raise BadInput(f"type {base.lower()} is named twice in {types}; name it once")
    return recipes


def name_targets(out: Path | None, source: Path, recipes: Sequence[Recipe]) -> list[Target]:
    """Name the output of every recipe: one is `out` itself.

    Of several, `out` is a name into which the type is put, M2.7.gguf becoming M2.7-Q4_K_M.gguf, or without that suffix
    a folder for files named after `source`. Without `out` they are named so in the present folder. Raises BadInput when
    such a name is in a folder that does not exist.
    """
    if out is None:
        return [Target(Path(f"{source.resolve().name}-{recipe.base}{SUFFIX}"), recipe) for recipe in recipes]
    if len(recipes) == 1:
        return [Target(out, recipes[0])]
    if out.suffix == SUFFIX:
        if not out.parent.is_dir():
            raise BadInput(f"{out.parent}: folder of the output does not exist; create it")
        return [Target(out.with_name(f"{out.stem}-{recipe.base}{SUFFIX}"), recipe) for recipe in recipes]
    return [Target(out / f"{source.resolve().name}-{recipe.base}{SUFFIX}", recipe) for recipe in recipes]


@contextmanager
def folder_of(targets: Sequence[Target]) -> Iterator[None]:
    """Make the folder of several `targets` where it is missing; it goes again when nothing was written into it."""
    folder = targets[0].path.parent
    if len(targets) == 1 or folder.is_dir():
        yield
        return
    if folder.exists():
        raise BadInput(f"{folder}: is a file; for several types name a folder, or a file that ends in {SUFFIX}")
    try:
        folder.mkdir()
    except FileNotFoundError:
        raise BadInput(f"{folder.parent}: folder of the output does not exist; create it") from None
    except OSError as error:
        raise BadInput(f"{folder}: cannot be made a folder ({error.strerror})") from None
    try:
        yield
    finally:
        with suppress(OSError):  # it is not empty
            folder.rmdir()
