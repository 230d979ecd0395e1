"""Checks of a safetensors checkpoint's files: shards, headers and the index that ties them."""

from __future__ import annotations

import re
from collections.abc import Iterator

from quantkit.audit.findings import Check, Severity, listed
from quantkit.audit.folder import Folder
from quantkit.audit.names import COMPRESSED, WORDS, storage
from quantkit.checkpoint.index import INDEX_NAME, SINGLE_NAME

SHARD_NUMBER = re.compile(r".*-(\d{5})-of-(\d{5})\.safetensors")


def _config(folder: Folder) -> Iterator[str]:
    if not folder.has("config.json"):
        yield f"{folder.named('config.json')}: missing"


def _unreadable(folder: Folder) -> Iterator[str]:
    yield from folder.unreadable.values()


def _index_missing(folder: Folder) -> Iterator[str]:
    if folder.weight_map is None and not folder.has(INDEX_NAME) and set(folder.shards) != {SINGLE_NAME}:
        shards = list(folder.shards)
        yield f"{folder.named(INDEX_NAME)}: missing, and the weights are in {len(shards)} files ({listed(shards)})"


def _index_empty(folder: Folder) -> Iterator[str]:
    if INDEX_NAME in folder.json and folder.weight_map is None:
        yield f"{folder.named(INDEX_NAME)}: weight_map is missing or empty"


def _shard_missing(folder: Folder) -> Iterator[str]:
    weight_map = folder.weight_map or {}
    missing = sorted(set(weight_map.values()) - set(folder.shards))
    if missing:
        tensors = [name for name, shard in weight_map.items() if shard == missing[0]]
        yield (
            f"{INDEX_NAME} names {len(missing)} shards that are not there: {listed(missing)} "
            f"({len(tensors)} tensors in the first, such as {tensors[0]})"
        )


def _shard_damaged(folder: Folder) -> Iterator[str]:
    for shard in folder.shards.values():
        if shard.damage is not None:
            yield shard.damage


def _shard_unlisted(folder: Folder) -> Iterator[str]:
    names = sorted(set(folder.shards) - set(folder.loaded))
    if names:
        yield f"{len(names)} files are in no index: {listed(names)}"


def _sets_mixed(folder: Folder) -> Iterator[str]:
    """The original's own "-of-" number is wrong, but the same everywhere."""
    counts: dict[str, list[str]] = {}
    for name in folder.shards:
        match = SHARD_NUMBER.fullmatch(name)
        if match:
            counts.setdefault(match[2], []).append(name)
    if len(counts) > 1:
        yield "shards of several sets in one folder: " + listed([names[0] for names in counts.values()])


def _tensor_absent(folder: Folder) -> Iterator[str]:
    weight_map, shards = folder.weight_map or {}, folder.shards
    absent = [
        f"{name} ({shard})"
        for name, shard in weight_map.items()
        if shard in shards and shards[shard].tensors and name not in shards[shard].tensors
    ]
    if absent:
        yield f"{INDEX_NAME} lists {len(absent)} tensors that their shard does not hold: {listed(absent)}"


def _tensor_unlisted(folder: Folder) -> Iterator[str]:
    if folder.weight_map is None:
        return
    extra = [
        f"{name} ({shard})"
        for shard, held in folder.loaded.items()
        for name in held.tensors
        if name not in folder.weight_map
    ]
    if extra:
        yield f"{len(extra)} tensors are not listed in {INDEX_NAME}: {listed(extra)}"


def _tensor_twice(folder: Folder) -> Iterator[str]:
    holders: dict[str, list[str]] = {}
    for shard, held in folder.loaded.items():
        for name in held.tensors:
            holders.setdefault(name, []).append(shard)
    twice = [f"{name} ({' and '.join(shards)})" for name, shards in holders.items() if len(shards) > 1]
    if twice:
        yield f"{len(twice)} tensors are in several shards: {listed(twice)}"


def _layouts_mixed(folder: Folder) -> Iterator[str]:
    first: dict[str, str] = {}
    for module, parts in folder.modules.items():
        form = storage(parts)
        if form in (WORDS, COMPRESSED):
            first.setdefault(form, module)
    if len(first) > 1:
        yield "two packed layouts in one checkpoint: " + ", ".join(
            f"{module} has {form}" for form, module in first.items()
        )


def _total_size(folder: Folder) -> Iterator[str]:
    metadata = folder.json.get(INDEX_NAME, {}).get("metadata")
    stated = metadata.get("total_size") if isinstance(metadata, dict) else None
    stored = sum(entry.nbytes for entry in folder.tensors.values())
    if stated is not None and stated != stored:
        yield f"{folder.named(INDEX_NAME)}: metadata.total_size says {stated}, the tensors take {stored} bytes"


AGAIN = "upload it again, or download it again where the original is sound"
CHECKS = (
    Check("config-missing", Severity.ERROR, _config, "copy the original's config.json and add quantization_config"),
    Check("json-damaged", Severity.ERROR, _unreadable, AGAIN),
    Check("index-missing", Severity.ERROR, _index_missing, "write the index; runtimes find tensors by it"),
    Check("index-damaged", Severity.ERROR, _index_empty, AGAIN),
    Check("shard-missing", Severity.ERROR, _shard_missing, AGAIN),
    Check("shard-damaged", Severity.ERROR, _shard_damaged, AGAIN),
    Check("tensor-not-in-shard", Severity.ERROR, _tensor_absent,
          "index and shards are of different runs; take both from one"),
    Check("tensor-twice", Severity.ERROR, _tensor_twice, "which one counts is up to the runtime; keep one"),
    Check("layouts-mixed", Severity.ERROR, _layouts_mixed, "two quantizations lie in one folder; keep one"),
    Check("shard-not-indexed", Severity.WARNING, _shard_unlisted,
          "no runtime loads them; delete what an earlier upload left, or mend the index"),
    Check("shard-sets-mixed", Severity.WARNING, _sets_mixed, "delete what an earlier upload left"),
    Check("tensor-not-indexed", Severity.WARNING, _tensor_unlisted, "some runtimes will not find them; mend the index"),
    Check("index-total-size", Severity.NOTE, _total_size, "harmless; the official index has it too"),
)  # fmt: skip
