"""Checks of a source's list of files: what uploads and interrupted runs leave, and models that lie on each other."""

from __future__ import annotations

import re
from collections.abc import Iterator

from quantkit.audit.files import folder_of
from quantkit.audit.findings import Check, Severity, listed
from quantkit.audit.repository import Repository

LEFT = re.compile(r".*(\.partial|\.incomplete|\.journal|\.lock|\.tmp|\.part|~)|(.*/)?[^/]*\.(partial|layers)/.*")
LFS_POINTER_BYTES = 200


def _left(repository: Repository) -> Iterator[str]:
    if names := [path for path in sorted(repository.files.sizes) if LEFT.fullmatch(path)]:
        yield f"{len(names)} files of an unfinished run or upload: {listed(names)}"


def _empty(repository: Repository) -> Iterator[str]:
    weights = (".safetensors", ".gguf")
    if names := [path for path, size in sorted(repository.files.sizes.items()) if size == 0 and path.endswith(weights)]:
        yield f"{len(names)} files of weights are empty: {listed(names)}"


def _mixed(repository: Repository) -> Iterator[str]:
    """A GGUF beside shards is another quantization in the same folder: tools that take the folder take both."""
    folders = {folder.path for folder in repository.folders}
    if names := [model.path for model in repository.ggufs if folder_of(model.path) in folders]:
        yield f"GGUF files lie in the folder of a safetensors checkpoint: {listed(names)}"


def _split_twice(repository: Repository) -> Iterator[str]:
    """The same name split twice: into three and into four parts, say."""
    seen: dict[str, list[str]] = {}
    for model in repository.ggufs:
        prefix = re.sub(r"(-\d{5}-of-\d{5})?\.gguf$", "", model.path)
        seen.setdefault(prefix, []).append(model.path)
    for paths in seen.values():
        if len(paths) > 1:
            yield f"several splits under one name: {listed(paths)}"


CHECKS = (
    Check("leftover", Severity.WARNING, _left, "finish the run, or delete them"),
    Check("weights-empty", Severity.ERROR, _empty, "upload or download them again"),
    Check("models-mixed", Severity.WARNING, _mixed, "give every quantization a folder, or a repository, of its own"),
    Check("splits-mixed", Severity.WARNING, _split_twice, "delete what an earlier upload left"),
)  # fmt: skip
