"""The story of an audit: list the files, read headers and small files, apply the tables of checks, sort."""

from __future__ import annotations

from collections import Counter

from quantkit.audit.checks import (
    calibration,
    configuration,
    damage,
    gguf_files,
    gguf_keys,
    gguf_tensors,
    leftovers,
    licence,
    packing,
    rules,
    sidecars,
    tensors,
)
from quantkit.audit.files import AuditFiles, folder_of, open_files
from quantkit.audit.findings import Finding, Judged, Report, run_checks, sort_findings
from quantkit.audit.folder import Folder, read_folder
from quantkit.audit.gguf_model import GGUFModel, find_gguf_models
from quantkit.audit.repository import Repository
from quantkit.errors import BadInput

FOLDER_CHECKS = (
    *damage.CHECKS,
    packing.NOT_JUDGED,
    *configuration.CHECKS,
    *sidecars.CHECKS,
    *calibration.CHECKS,
)
PACKING_CHECKS = (*tensors.NAMES, *packing.CHECKS)
GGUF_CHECKS = (*gguf_tensors.CHECKS, *gguf_keys.CHECKS)
REPOSITORY_CHECKS = (*licence.CHECKS, *leftovers.CHECKS)


def audit(source: str) -> Report:
    """Judge the model or models at `source`: a folder, a GGUF, or `owner/name[@revision]` on the Hub.

    Raises BadInput where there is nothing to judge or it cannot be reached, RunFailed where the network stays away.
    """
    files = open_files(source)
    ggufs = find_gguf_models(files)
    folders = [read_folder(files, path) for path in _checkpoint_folders(files)]
    if not ggufs and not folders:
        raise BadInput(f"{files.source}: holds neither .safetensors nor .gguf files; name a quantized model")
    findings: list[Finding] = []
    for folder in folders:
        findings += _folder_findings(folder)
    for model in ggufs:
        findings += run_checks(gguf_files.CHECKS, model, model.path)
        findings += run_checks(GGUF_CHECKS if model.is_judged else gguf_keys.NOT_JUDGED, model, model.path)
    findings += run_checks(REPOSITORY_CHECKS, Repository(files, folders, ggufs), "")
    return Report(
        source=files.source,
        commit=files.commit,
        judged=(*map(_judged_folder, folders), *map(_judged_gguf, ggufs)),
        findings=sort_findings(findings),
        total_bytes=sum(files.sizes.values()),
        bytes_read=files.bytes_read,
    )


def _folder_findings(folder: Folder) -> list[Finding]:
    """MLX has other names of tensors; packings that are not known are left alone."""
    findings = run_checks(FOLDER_CHECKS, folder, folder.path)
    if not packing.is_mlx(folder):
        findings += run_checks(tensors.CHECKS, folder, folder.path)
    if not packing.is_foreign(folder):
        findings += run_checks(PACKING_CHECKS, folder, folder.path)
        findings += run_checks(rules.CHECKS, rules.outcomes(folder), folder.path)
    return findings


def _checkpoint_folders(files: AuditFiles) -> list[str]:
    """Folders with shards, and those whose index promises some."""
    marks = (".safetensors", ".safetensors.index.json")
    return sorted({folder_of(path) for path in files.sizes if path.endswith(marks)})


def _judged_folder(folder: Folder) -> Judged:
    quantization = folder.quantization
    facts = {} if quantization is None else {"bits": [grid.bits for grid in quantization.grids]}
    if quantization is not None:
        facts["group_size"] = [grid.group_size for grid in quantization.grids]
    stored = Counter(entry.dtype for entry in folder.tensors.values())
    return Judged(
        kind="safetensors",
        path=folder.path,
        format=quantization.method
        if quantization is not None
        else (stored.most_common(1)[0][0] if stored else "nothing"),
        files=len(folder.shards),
        nbytes=sum(shard.size for shard in folder.shards.values()),
        facts=facts,
    )


def _judged_gguf(model: GGUFModel) -> Judged:
    weights: Counter[str] = Counter()
    for tensor in model.tensors.values():
        weights[tensor.type] += tensor.nbytes
    return Judged(
        kind="gguf",
        path=model.path,
        format=weights.most_common(1)[0][0] if weights else "nothing",
        files=len(model.parts),
        nbytes=sum(part.size for part in model.parts),
        facts={"types": dict(Counter(tensor.type for tensor in model.tensors.values()))},
    )
