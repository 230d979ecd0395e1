"""How the files were made: method, types, calibration, fallbacks, the overflow guard, and the command to repeat it."""

from __future__ import annotations

from collections.abc import Sequence

from quantkit.hub.card.facts import CalibrationFacts, QuantFacts, RoleFacts
from quantkit.hub.card.files_table import gigabytes
from quantkit.hub.card.reproduce import reproducing_command
from quantkit.verify.report.figures import ABSENT, figure
from quantkit.verify.report.markdown_text import bullets, code, fence, plain, section, table

_LINE = 600
# Report key -> what it says, of the coverage of experts by calibration.
COVERAGE = {
    "experts": "experts in all",
    "experts_without_routed_tokens": "to which no token was routed",
    "experts_below_floor": "with fewer routed tokens than the floor",
    "experts_still_below_floor": "still below it after the router's next choices were added",
    "experts_without_tokens": "without any token",
    "routed_median": "routed tokens per expert, median",
    "routed_min": "routed tokens, fewest",
    "routed_max": "routed tokens, most",
}


def making_section(facts: Sequence[QuantFacts]) -> str:
    """A part per quantization."""
    return section("How it was made", *[_one(one) for one in facts])


def calibration_section(facts: Sequence[QuantFacts]) -> str:
    """Every calibration set that was used, once."""
    sets = {one.calibration.tokens_sha256: one.calibration for one in facts if one.calibration is not None}
    users = {
        key: [one.name for one in facts if one.calibration and one.calibration.tokens_sha256 == key] for key in sets
    }
    unknown = [one.name for one in facts if one.imatrix is not None and one.calibration is None]
    lines = [f"{name}: the texts behind its importance matrix are not recorded in the files" for name in unknown]
    if not sets and not lines:
        lines = ["None: no text was used to make these files."]
    return section("Calibration set", *[_set(one, users[key]) for key, one in sets.items()], bullets(lines, _LINE))


def issues_section(facts: Sequence[QuantFacts]) -> str:
    """What is known to go wrong with such files."""
    lines = [line for one in facts for line in _overflow(one)]
    if any(one.gpus is not None and one.gpus.expert_parallel for one in facts):
        lines.append("Plain tensor parallelism over more GPUs than listed above fails while loading; see there.")
    if any(len(one.files) > 1 and one.overflow is not None for one in facts):
        lines.append("Split files are served by their first part. Ollama loads single files only: merge them first.")
    return section("Known issues", bullets(lines, _LINE))


def origin_section(facts: Sequence[QuantFacts]) -> str:
    """Source and versions, by quantization."""
    rows = []
    for one in facts:
        source = one.source
        at = f"{source.revision or 'main'} = {source.commit}" if source and source.commit else "not recorded"
        rows += [
            [code(one.name), "Source", code(source.repo) if source else ABSENT],
            [code(one.name), "Revision", code(at)],
            [
                code(one.name),
                "SHA-256 of config and tensor shapes",
                code(one.source_layout_sha256 or ABSENT),
            ],
        ]
        for what, versions in (("Made with", one.versions), ("Measured with", _measured_with(one))):
            rows += [[code(one.name), what, plain(_versions(versions), _LINE)]] * bool(versions)
    return section("Source and versions", table(["Quantization", "What", "Value"], rows))


def _one(facts: QuantFacts) -> str:
    lines = [f"{facts.scheme}: {facts.method}."]
    lines += [f"Output error left, of that of {than}: {figure(value)}." for than, value in facts.error_to.items()]
    if facts.imatrix is not None:
        lines.append(f"Importance matrix {facts.imatrix.file}, SHA-256 {facts.imatrix.sha256 or 'not recorded'}.")
        lines += [f"Without importance: {', '.join(facts.imatrix.tensors_without)}."] * bool(
            facts.imatrix.tensors_without
        )
        lines += [f"Experts without data: {each}." for each in facts.imatrix.missing_experts]
    if facts.fallbacks:
        went = ", ".join(f"{name.replace('_', ' ')}: {count:,}" for name, count in facts.fallbacks.items())
        lines.append(f"Done otherwise than meant: {went}.")
    else:
        lines.append("Nothing was recorded that had to be done otherwise than meant.")
    coverage = [f"{figure(facts.coverage[key])} {says}" for key, says in COVERAGE.items() if key in facts.coverage]
    lines += [f"Coverage by calibration: {'; '.join(coverage)}."] if coverage else []
    blocks = [
        f"### {plain(facts.name)}",
        bullets(lines, _LINE),
        table(["Tensors", "Types", "Weights", "Bytes", "Bits per weight"], [_role(role) for role in facts.roles]),
        f"The same again:\n\n{fence(reproducing_command(facts))}",
    ]
    return "\n\n".join(block for block in blocks if block)


def _role(role: RoleFacts) -> list[str]:
    types = ", ".join(f"{count:,} x {name}" for name, count in role.types.items())
    return [code(role.role), plain(types), f"{role.weights:,}", gigabytes(role.nbytes), f"{role.bits_per_weight:.2f}"]


def _set(calibration: CalibrationFacts, users: Sequence[str]) -> str:
    tokens = f"{calibration.tokens:,} tokens" if calibration.tokens is not None else "tokens"
    lines = [f"{calibration.corpus or 'unnamed corpus'}: {tokens}, used for {', '.join(users)}"]
    lines.append(f"SHA-256 of the token ids: {calibration.tokens_sha256}")
    if calibration.corpus_sha256:
        lines.append(f"SHA-256 of the corpus: {calibration.corpus_sha256}")
    if calibration.samples and calibration.sequence_length:
        lines.append(f"{calibration.samples} x {calibration.sequence_length} tokens were asked for")
    if calibration.min_tokens_per_expert is not None:
        lines.append(f"Every expert's statistics see at least {calibration.min_tokens_per_expert} tokens, if there are")
    if calibration.precision:
        lines.append(f"Matrix products of the pass in {calibration.precision}")
    rows = [
        [
            plain(source.name),
            plain(source.origin or "") or ABSENT,
            plain(source.licence or "") or "not stated",
            f"{source.share:g} %" if source.share is not None else ABSENT,
            code(source.sha256 or ABSENT),
        ]
        for source in calibration.sources
    ]
    sources = table(["Source", "Origin", "Licence", "Share", "SHA-256"], rows)
    return "\n\n".join(filter(None, [bullets(lines, _LINE), sources]))


def _overflow(facts: QuantFacts) -> list[str]:
    overflow = facts.overflow
    if overflow is None:
        return []
    about = (
        f"{facts.name}: activations into the down experts of layer {overflow.layer} overflow in llama.cpp's CUDA "
        f"kernels for some types; prompts then end in NaN. This file has {overflow.type} there, "
    )
    lines = [about + ("which is safe." if overflow.safe else "which is NOT safe on CUDA. Use it on a CPU only.")]
    if overflow.changes:
        lines.append(f"{facts.name}: changed for that: {', '.join(overflow.changes)}")
    if not overflow.guard:
        lines.append(f"{facts.name}: was made without the overflow guard.")
    return lines


def _measured_with(facts: QuantFacts) -> dict[str, str]:
    return facts.report.versions if facts.report is not None else {}


def _versions(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in sorted(versions.items()))
