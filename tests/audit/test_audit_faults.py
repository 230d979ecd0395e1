"""Every planted fault is found by its id and nothing else is; sound models have no errors and no warnings."""

import shutil
from pathlib import Path

import pytest
from faults import FAULTS
from planting import GGUF, INT4, Fault, Models, publish

from quantkit.audit.audit import audit
from quantkit.audit.findings import Report, Severity, Verdict


def loud(report: Report) -> set[str]:
    """Ids of errors and warnings."""
    return {finding.id for finding in report.findings if finding.severity is not Severity.NOTE}


@pytest.mark.parametrize("name", [*INT4, *GGUF])
def test_what_quantkit_writes_is_clean(sound: Models, name: str) -> None:
    report = audit(str(sound(name)))
    assert loud(report) == set()
    assert report.verdict is Verdict.CLEAN
    (model,) = report.judged
    assert model.kind == ("gguf" if name in GGUF else "safetensors")


def test_the_original_in_fp8_is_clean(tiny_m2: Path, tmp_path: Path) -> None:
    """Its own card is that of a fixture, which is no quantized model."""
    folder = tmp_path / "MiniMax-M2.7"
    shutil.copytree(tiny_m2, folder, ignore=shutil.ignore_patterns("heldout"))
    report = audit(str(publish(folder)))
    assert loud(report) == set()
    assert report.judged[0].format == "fp8"


def test_a_bf16_checkpoint_is_clean(bf16_small_checkpoint: Path) -> None:
    report = audit(str(bf16_small_checkpoint))
    # It has no licence, and a template of one line.
    assert loud(report) == {"licence-missing", "chat-template-wrong"}
    assert report.judged[0].format == "BF16"


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_planted_fault(sound: Models, tmp_path: Path, fault: Fault) -> None:
    source = sound(fault.base)
    folder = Path(shutil.copytree(source, tmp_path / (fault.rename or source.name)))
    fault.plant(folder)
    report = audit(str(folder))
    found = loud(report)
    assert fault.id in found
    assert found - {fault.id} <= fault.also
    for finding in report.findings:
        assert finding.text
        assert finding.remedy
        assert "\n" not in finding.text
