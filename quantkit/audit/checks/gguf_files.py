"""Checks of a GGUF's files: parts, counts, places of tensors."""

from __future__ import annotations

from collections.abc import Iterator

from quantkit.audit.findings import Check, Severity, listed
from quantkit.audit.gguf_model import GGUFModel

# The Hub's advice; larger parts fail more often on the way.
LARGE_PART = 50 * 10**9


def _missing(model: GGUFModel) -> Iterator[str]:
    if model.missing:
        yield f"{len(model.missing)} parts are missing: {listed(model.missing)}"


def _damaged(model: GGUFModel) -> Iterator[str]:
    for part in model.parts:
        if part.damage is not None:
            yield part.damage
        problems = part.header.problems if part.header else ()
        if problems:
            more = f" and {len(problems) - 1} problems more" if len(problems) > 1 else ""
            yield problems[0] + more


def _twice(model: GGUFModel) -> Iterator[str]:
    holders: dict[str, list[str]] = {}
    for part in model.parts:
        for tensor in {tensor.name for tensor in part.header.tensors} if part.header else ():
            holders.setdefault(tensor, []).append(part.path)
    if twice := [f"{name} ({' and '.join(paths)})" for name, paths in holders.items() if len(paths) > 1]:
        yield f"{len(twice)} tensors are in several parts: {listed(twice)}"


def _split_keys(model: GGUFModel) -> Iterator[str]:
    """A file alone may be the only part of a split, as llama.cpp's own splitter writes it."""
    count = len(model.parts) + len(model.missing)
    for number, part in enumerate(model.parts):
        keys = part.header.keys if part.header else None
        if keys is None or (count == 1 and "split.count" not in keys):
            continue
        if keys.get("split.count") != count:
            yield f"{part.path}: split.count is {keys.get('split.count')}, by the names there are {count} parts"
        elif not model.missing and keys.get("split.no") != number:
            yield f"{part.path}: split.no is {keys.get('split.no')}, by its name it is {number}"


def _tensor_count(model: GGUFModel) -> Iterator[str]:
    if not model.is_readable:
        return
    held = sum(len(part.header.tensors) for part in model.parts if part.header)
    for part in model.parts:
        stated = part.header.keys.get("split.tensors.count") if part.header else None
        if stated is not None and stated != held:
            yield f"{part.path}: split.tensors.count is {stated}, the parts hold {held} tensors"
            return


def _large(model: GGUFModel) -> Iterator[str]:
    if names := [part.path for part in model.parts if part.size > LARGE_PART]:
        yield f"{len(names)} files are larger than 50 GB: {listed(names)}"


AGAIN = "upload it again, or download it again where the original is sound"
CHECKS = (
    Check("part-missing", Severity.ERROR, _missing, "upload them; llama.cpp needs all parts in one folder"),
    Check("gguf-damaged", Severity.ERROR, _damaged, AGAIN),
    Check("tensor-twice", Severity.ERROR, _twice, "the parts are of different splits; take all from one"),
    Check("split-count", Severity.ERROR, _split_keys,
          "the parts were renamed or are of different splits; take all from one"),
    Check("split-tensors", Severity.ERROR, _tensor_count, "the parts are of different splits; take all from one"),
    Check("file-large", Severity.NOTE, _large, "split it: the Hub advises against files of more than 50 GB"),
)  # fmt: skip
