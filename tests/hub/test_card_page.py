"""Facts and cards of really made quantizations: every figure is the report's, and nothing of this machine is told."""

import importlib.util
import io
import json
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from PIL import Image

from quantkit.cli.app import main
from quantkit.errors import BadInput
from quantkit.formats.gguf.read import read_gguf
from quantkit.hub.card import (
    QuantFacts,
    ReportFacts,
    SourceFacts,
    build_card,
    check_card,
    facts_of,
    license_findings,
    license_of,
    public_report,
    read_report,
    report_matches,
)
from quantkit.hub.card.facts import GpuFacts
from quantkit.hub.card.files_table import PICTURE
from quantkit.hub.card.reproduce import reproducing_command
from quantkit.verify.models import describe_model
from quantkit.verify.report.figures import ABSENT, figure
from quantkit.verify.report.write import write_report
from quantkit.verify.servers.runtimes import RUNTIMES

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SOURCE = SourceFacts("me/tiny-m2", "main", COMMIT)
LICENCE = "NON-COMMERCIAL LICENSE\n\nCopyright 2026 MiniMax\n\nUsers show “Built with MiniMax M2.7”.\n"
TOKENS = ("--calibration", "smoke", "--samples", "4", "--sequence-length", "256")


@dataclass(frozen=True)
class Made:
    """What the command line made of the fixture."""

    folder: Path
    gptq: Path
    small: Path
    large: Path
    split: Path
    compensated: Path
    imatrix: Path


def run(*arguments: object) -> None:
    """The command line in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["quantkit", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
    assert stopped.value.code == 0


@pytest.fixture(scope="module")
def made(tiny_m2: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("made")
    gptq, imatrix = folder / "tiny-m2-GPTQ", folder / "tiny-m2-imatrix.gguf"
    run("gptq", tiny_m2, "-o", gptq, "--group-size", 32, *TOKENS)
    run("imatrix", tiny_m2, "-o", imatrix, *TOKENS)
    run("gguf", "q2_k,q8_0", tiny_m2, "-o", folder / "tiny-m2.gguf", "--imatrix", imatrix)
    run(
        "gguf", "q4_k_m", tiny_m2, "-o", folder / "tiny-m2-Q4_K_M.gguf", "--split-max-size", "6M", "--no-overflow-guard"
    )
    compensated = folder / "one" / "tiny-m2-Q2_K-compensated.gguf"
    compensated.parent.mkdir()
    run("gguf", "q2_k", tiny_m2, "-o", compensated, "--compensate", *TOKENS)
    split = sorted(folder.glob("tiny-m2-Q4_K_M-*.gguf"))[0]
    return Made(folder, gptq, folder / "tiny-m2-Q2_K.gguf", folder / "tiny-m2-Q8_0.gguf", split, compensated, imatrix)


@pytest.fixture(scope="module")
def sample() -> Callable[[], dict[str, Any]]:
    """The complete report that tests of the report's pages are made with."""
    path = Path(__file__).resolve().parents[1] / "verify" / "report" / "sample_report.py"
    spec = importlib.util.spec_from_file_location("sample_report_for_cards", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.sample_report  # type: ignore[no-any-return]


@pytest.fixture
def write(sample: Callable[[], dict[str, Any]], tmp_path: Path) -> Callable[..., Path]:
    """Writes a report about a model, with the writer of `quantkit verify`; keywords replace parts of it."""

    def report_about(model: Path, **parts: Any) -> Path:
        report = sample() | {"reference_metrics": {}} | parts
        report["models"]["quantized"] |= describe_model(model).as_json()
        folder = tmp_path / f"report-{model.name}"
        write_report(folder, report)
        return folder

    return report_about


def metadata(text: str) -> dict[str, Any]:
    return yaml.safe_load(text.split("---\n", 2)[1])  # type: ignore[no-any-return]


def row_of(text: str, name: str) -> list[str]:
    """The cells of a quantization's row in the table of files."""
    section = text.split("## Files\n")[1].split("\n## ", maxsplit=1)[0]
    line = next(line for line in section.splitlines() if line.startswith(f"| `{name}`"))
    return [cell.strip() for cell in line.strip("|").split(" | ")]


def test_facts_of_gguf_are_those_of_its_headers(made: Made) -> None:
    facts = facts_of([made.split])
    parts = read_gguf(made.split)
    assert (facts.name, facts.model, facts.loads) == ("Q4_K_M", "tiny-m2", "GGUF")
    assert [file.path for file in facts.files] == [part.name for part in parts.parts]
    assert facts.size == sum(part.stat().st_size for part in parts.parts)
    assert sum(role.nbytes for role in facts.roles) == sum(tensor.nbytes for tensor in parts.tensors)
    assert facts.overflow is not None
    assert not facts.overflow.guard
    assert facts_of(list(parts.parts[1:])) == facts


def test_facts_of_checkpoint_count_weights_and_not_scales(made: Made, tiny_m2: Path) -> None:
    facts = facts_of([made.gptq], source=SOURCE)
    assert (facts.kind, facts.loads, facts.model) == ("int4", "GPTQ", "tiny-m2")
    experts = [role for role in facts.roles if role.role.startswith("experts")]
    assert [role.types for role in experts] == [{"INT4, groups of 32": 64}] * 3
    # 64 experts in all of 256 x 256; 4 bits, a scale of 16, zeros of 4 per 32 weights, and 32 bits per column's group.
    assert {role.weights for role in experts} == {64 * 256 * 256}
    report = json.loads((made.gptq / "quantkit.json").read_text())
    assert facts.coverage["routed_min"] == report["coverage"]["routed_min"]
    assert facts.calibration is not None
    assert facts.calibration.tokens_sha256 == report["tokens_sha256"]
    assert facts.error_to == {"rounding the same weights": report["relative_error"]}
    # All linear weights and embeddings of the original, which describe_model counts; router and norms come on top.
    assert sum(role.weights for role in facts.roles) - describe_model(tiny_m2).weights == 16_448 + 4_864


def test_importance_matrix_tells_the_calibration_set(made: Made) -> None:
    alone, beside = facts_of([made.small]), facts_of([made.small], imatrix=made.imatrix)
    assert alone.imatrix is not None
    assert alone.imatrix.sha256 is not None
    assert alone.calibration is None
    assert beside.calibration is not None
    assert beside.calibration.corpus == "smoke"
    assert "not recorded" in build_card([replace(alone, source=SOURCE)], "me/M", LICENCE).text
    with pytest.raises(BadInput, match="not the importance matrix"):
        facts_of([made.split], imatrix=made.imatrix)


def test_records_survive_json(made: Made, write: Callable[..., Path]) -> None:
    for facts in (facts_of([made.gptq], [write(made.gptq)]), facts_of([made.compensated]), facts_of([made.small])):
        again = QuantFacts.from_json(json.loads(json.dumps(facts.as_json())))
        assert again == facts
    with pytest.raises(BadInput, match=r"record\.json"):
        QuantFacts.from_json({"format": "quantkit quantization 1", "name": 3}, "record.json")
    with pytest.raises(BadInput, match=r"record\.json"):
        QuantFacts.from_json([], "record.json")


def test_reports_belong_to_their_weights(made: Made, write: Callable[..., Path]) -> None:
    folder = write(made.small)
    assert report_matches(read_report(folder), [made.small])
    with pytest.raises(BadInput, match="other weights"):
        facts_of([made.large], [folder])
    with pytest.raises(BadInput, match="another GGUF"):
        facts_of([made.small, made.large])


def test_what_is_not_finished_or_not_ours_is_refused(made: Made, tiny_m2: Path, tmp_path: Path) -> None:
    partial = Path(shutil.copy(made.small, tmp_path / "M-Q2_K.gguf.partial"))
    with pytest.raises(BadInput, match=r"M-Q2_K\.gguf\.partial.*unfinished"):
        facts_of([partial])
    with pytest.raises(BadInput, match=r"quantkit\.json"):
        facts_of([tiny_m2])
    with pytest.raises(BadInput, match="architecture"):
        facts_of([made.imatrix])


@pytest.mark.parametrize("verdict", ["PASS", "INCONCLUSIVE", "FAIL"])
def test_every_figure_is_the_reports(made: Made, write: Callable[..., Path], verdict: str) -> None:
    folder = write(made.gptq, verdict=verdict)
    report = json.loads((folder / "report.json").read_text())
    facts = facts_of([made.gptq], [folder], source=SOURCE)
    text = build_card([facts], "me/tiny-m2-GPTQ", LICENCE).text
    metrics = report["metrics"]
    shown = [metrics["ppl"]["quantized"], metrics["kld"]["mean"], metrics["kld"]["p999"], metrics["same_top1"]]
    shown.append(metrics["tool_calls"]["match_rate"])
    assert row_of(text, facts.name)[4:] == [*map(figure, shown), f"**{verdict}**"]
    results = ModelCard(text).data.eval_results
    values = {result.metric_type: result.metric_value for result in results}
    assert values["perplexity"] == metrics["ppl"]["quantized"]
    assert values["kl_divergence"] == metrics["kld"]["mean"]
    assert values["kl_divergence_p999"] == metrics["kld"]["p999"]
    assert values["same_top1"] == metrics["same_top1"]
    assert values["tool_call_trigger_f1"] == metrics["tool_calls"]["trigger_f1"]
    low, high = report["intervals"]["kld.mean"]["low"], report["intervals"]["kld.mean"]["high"]
    assert f"{figure(low)} … {figure(high)}" in text
    for line in report["not_measured"]:
        assert line.split(":")[0] in text.split("## Not measured")[1].split("\n## ")[0]
    assert check_card(text) == []


def test_metadata_is_what_the_hub_wants(made: Made, tmp_path: Path) -> None:
    text = build_card([facts_of([made.gptq], source=SOURCE)], "me/tiny-m2-GPTQ", LICENCE).text
    data = metadata(text)
    assert data["base_model"] == "me/tiny-m2"
    assert (data["base_model_relation"], data["quantized_by"]) == ("quantized", "me")
    assert (data["license"], data["license_link"]) == ("other", "LICENSE")
    assert data["license_name"] == "minimax-m2.7-non-commercial"
    assert data["pipeline_tag"] == "text-generation"
    assert {"gptq", "int4", "vllm"} <= set(data["tags"])
    assert "model-index" not in data
    assert str(ModelCard(text)) == text
    (tmp_path / "LICENSE").write_text(LICENCE)
    assert license_findings(tmp_path / "LICENSE", card=text) == []
    top = text.split("---\n")[2].split("\n## ")[0]
    assert "Non-commercial" in top
    assert "Built with MiniMax M2.7" in top


def test_what_was_not_measured_is_said(made: Made) -> None:
    text = build_card([facts_of([made.small], source=SOURCE)], "me/M", LICENCE).text
    assert row_of(text, "Q2_K")[4:] == [ABSENT] * 6
    assert "**Nothing was measured.**" in text
    assert "no perplexity, no divergence, no tool call" in text


def test_figures_that_are_not_finite_are_no_dashes(made: Made, write: Callable[..., Path]) -> None:
    kld = {"mean": float("nan"), "p999": 1.5}
    folder = write(made.small, metrics={"kld": kld, "ppl": {"quantized": 4.5}}, verdict="FAIL")
    text = build_card([facts_of([made.small], [folder], source=SOURCE)], "me/M", LICENCE).text
    assert row_of(text, "Q2_K")[4:] == ["4.5", "not finite", "1.5", ABSENT, ABSENT, "**FAIL**"]


def test_several_quantizations_share_a_table_and_a_picture(made: Made, write: Callable[..., Path]) -> None:
    facts = [facts_of([path], [write(path)], source=SOURCE) for path in (made.large, made.split)]
    facts.append(facts_of([made.small], source=SOURCE, imatrix=made.imatrix))
    facts[1] = facts[1].placed([f"tiny-m2-Q4_K_M/{file.path}" for file in facts[1].files])
    facts[0] = replace(facts[0], report=_other(facts[0].report, "kld.mean", 0.001))
    card = build_card(facts, "me/tiny-m2-GGUF", LICENCE)
    table = card.text.split("## Files\n")[1]
    assert re.findall(r"^\| `(\w+)`", table.split("\n## ")[0], re.MULTILINE) == ["Q2_K", "Q4_K_M", "Q8_0"]
    assert "tiny-m2-Q4_K_M/tiny-m2-Q4_K_M-00001-of-0000" in table
    assert list(card.pictures) == [PICTURE]
    assert f"]({PICTURE})" in card.text
    assert Image.open(io.BytesIO(card.pictures[PICTURE])).size == (900, 420)
    assert len({result.dataset_config for result in ModelCard(card.text).data.eval_results}) == 2
    assert check_card(card.text) == []
    assert build_card(facts[1:], "me/tiny-m2-GGUF", LICENCE).pictures == {}


def test_commands_come_from_the_table_of_runtimes(made: Made) -> None:
    card = build_card([facts_of([made.gptq], source=SOURCE)], "me/tiny-m2-GPTQ", LICENCE).text
    words = " ".join(card.replace("\\\n", " ").split())
    for name in ("vllm", "sglang"):
        assert " ".join(RUNTIMES[name].fixed) in words
        assert f"{RUNTIMES[name].options['model']} me/tiny-m2-GPTQ" in words
    assert "llama.cpp does not load these files" in words
    card = build_card([facts_of([made.split], source=SOURCE)], "me/tiny-m2-GGUF", LICENCE).text
    assert "-hf me/tiny-m2-GGUF:Q4_K_M" in card
    assert "llama-gguf-split --merge" in card
    assert "vLLM does not load these files" in card


def test_gpus_that_cannot_cut_the_groups_share_out_experts(made: Made) -> None:
    facts = replace(facts_of([made.gptq], source=SOURCE), gpus=GpuFacts((1, 2, 4), (8, 16)))
    text = build_card([facts], "me/tiny-m2-GPTQ", LICENCE).text
    words = " ".join(text.replace("\\\n", " ").split())
    assert "--tensor-parallel-size 4 --dtype" in words
    assert "--tensor-parallel-size 8" in words
    assert "--enable-expert-parallel" in words
    assert "--ep-size 8" in words
    assert "1, 2 or 4 GPUs cut every matrix" in text
    assert "8 or 16 GPUs: groups would be cut through" in text


@pytest.mark.parametrize(
    ("which", "wanted"),
    [
        ("gptq", f"quantkit gptq hub:me/tiny-m2@{COMMIT} -o tiny-m2-GPTQ --bits 4 --group-size 32 --attention bf16"),
        ("small", f"quantkit gguf q2_k hub:me/tiny-m2@{COMMIT} -o tiny-m2-Q2_K.gguf --imatrix tiny-m2-imatrix.gguf"),
        ("split", f"quantkit gguf q4_k_m hub:me/tiny-m2@{COMMIT} -o tiny-m2-Q4_K_M.gguf --no-overflow-guard"),
        ("compensated", "--compensate --calibration smoke --samples 4 --sequence-length 256"),
    ],
)
def test_command_to_repeat_is_shown(made: Made, which: str, wanted: str) -> None:
    facts = facts_of([getattr(made, which)], source=SOURCE)
    assert wanted in build_card([facts], "me/M", LICENCE).text


@pytest.mark.parametrize(
    ("quantizer", "words"),
    [("quantkit 1, xllamacpp 2", ""), ("xllamacpp 2", " --kquants ggml"), ("quantkit 1, CUDA", " --device cuda")],
)
def test_command_to_repeat_names_the_search_that_was_taken(made: Made, quantizer: str, words: str) -> None:
    facts = facts_of([made.large])
    plain = reproducing_command(replace(facts, versions={}))
    assert reproducing_command(replace(facts, versions={"quantizer": quantizer})) == plain + words


def test_a_command_that_is_known_is_shown_with_bare_names(made: Made) -> None:
    given = f"quantkit gguf q2_k {made.folder}/src -o {made.small}"
    facts = facts_of([made.small], source=SOURCE, command=given)
    assert "quantkit gguf q2_k src -o tiny-m2-Q2_K.gguf\n" in build_card([facts], "me/M", LICENCE).text


def test_nothing_of_this_machine_is_told(made: Made, write: Callable[..., Path], tmp_path: Path) -> None:
    token = "hf_" + "x9Y8" * 8
    notes = [f"{tmp_path}/a/b.capture: odd", f"Bearer {token}", "http://10.1.2.3:8000/v1: gives nothing"]
    folder = write(made.gptq, notes=notes, not_measured=notes, reasons=notes, command=f"quantkit verify {made.gptq}")
    facts = facts_of([made.gptq], [folder], source=SOURCE)
    texts = [build_card([facts], "me/M", LICENCE).text, json.dumps(facts.as_json())]
    texts += [raw.decode() for raw in public_report(folder).values()]
    for text in texts:
        for secret in (str(tmp_path), str(made.folder), token, "10.1.2.3", "/models/MiniMax"):
            assert secret not in text
        assert "b.capture" in text
    assert json.loads(public_report(folder)["report.json"])["metrics"] == json.loads(
        (folder / "report.json").read_text()
    ).get("metrics")


def test_hostile_names_stay_text(made: Made) -> None:
    hostile = "<img src=x onerror=alert(1)>|**bold**`]({evil}) ``` $x$"
    facts = facts_of([made.small], source=SOURCE)
    facts = replace(facts, name=hostile, model=hostile, method=hostile, scheme=hostile, fallbacks={hostile: 1})
    text = build_card([facts], "me/M", LICENCE).text
    assert check_card(text) == []
    page = MarkdownIt("commonmark").enable("table").render(text.split("---\n", 2)[2])
    assert "<img" not in page
    tables = re.findall(r"<tr>(.*?)</tr>", page.split("<h2>Files")[1].split("</table>")[0], re.DOTALL)
    assert {len(re.findall("<t[hd]>", row)) for row in tables} == {10}


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda facts: [facts, facts], "two quantizations are called"),
        (lambda facts: [facts, replace(facts, name="x", source=SourceFacts("me/other"))], "different models"),
        (lambda facts: [facts, replace(facts, name="x", kind="int4")], "do not go into one repo"),
        (lambda facts: [], "no quantization"),
    ],
)
def test_what_does_not_go_together_is_refused(
    made: Made, spoil: Callable[[QuantFacts], Sequence[QuantFacts]], why: str
) -> None:
    facts = facts_of([made.small], source=SOURCE)
    with pytest.raises(BadInput, match=why):
        build_card(spoil(facts), "me/M", LICENCE)


def test_an_unknown_licence_is_refused(made: Made) -> None:
    assert license_of("mine") is None
    with pytest.raises(BadInput, match="LICENSE"):
        build_card([facts_of([made.small], source=SOURCE)], "me/M", "mine")


def test_check_finds_what_is_wrong_with_a_card(made: Made) -> None:
    text = build_card([facts_of([made.small], source=SOURCE)], "me/M", LICENCE).text
    assert check_card(text) == []
    assert "base_model" in check_card(build_card([facts_of([made.small])], "me/M", LICENCE).text)[0]
    for old, new, found in (
        ("base_model_relation: quantized", "base_model_relation: adapter", "must be quantized"),
        ("license_name: ", "licence_name: ", "without license_name"),
        ("# M\n", "# M\n\n/home/me/M.gguf\n", "path of this machine"),
        ("# M\n", "# M\n\nhf_" + "q" * 34 + "\n", "token"),
        ("# M\n", "# M\r\n", "line ends"),
        ("tags:\n", "model-index:\n- nonsense\ntags:\n", "cannot be read"),
        ("---\nbase", "base", "does not begin"),
    ):
        assert any(found in finding for finding in check_card(text.replace(old, new, 1))), found


def _other(report: ReportFacts | None, metric: str, value: float) -> ReportFacts:
    """The report with another figure."""
    assert report is not None
    return replace(report, metrics=report.metrics | {metric: value})
