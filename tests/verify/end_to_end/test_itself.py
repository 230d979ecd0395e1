"""The original against itself: answers drawn twice differ, and the gate must know that this is noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from held_out_requests import single_step_requests

from quantkit.verify.capture_file import FIRST, GREEDY, begin_capture, finish_capture, open_capture
from quantkit.verify.client import Client
from quantkit.verify.compare import Answers, compare_answers
from quantkit.verify.gate import Verdict, judge, load_gate, overall
from quantkit.verify.questions import Questions
from quantkit.verify.servers.start import ServerSettings, running
from quantkit.verify.tool_calls.run import capture_answers

SEEDS = 20
DRAWN = 12  # loops, of which every seed takes three disjoint thirds
LOOPS = DRAWN // 3
NO_TROUBLE = (Verdict.PASS, Verdict.SKIPPED)


@pytest.fixture(scope="module")
def answers(tiny_m2: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Questions, Answers]:
    """Greedy answers, and DRAWN loops of sampled ones, of a BF16 GGUF on llama.cpp's server."""
    folder = tmp_path_factory.mktemp("itself")
    from quantkit.recipe.recipe import recipe_from_options
    from quantkit.run.gguf.convert import write_gguf

    write_gguf(tiny_m2, folder / "bf16.gguf", recipe_from_options("bf16"), quiet=True)
    requests = [one for category in ("single", "second") for one in single_step_requests(category, 10)]
    questions = Questions([], requests, LOOPS, 120, [], 400)
    settings = ServerSettings(context=1024, concurrency=4, top=1)
    out = folder / "itself.capture"
    with (
        begin_capture(out, {}) as capture,
        running("llama.cpp", folder / "bf16.gguf", folder / "server", settings) as server,
    ):
        with Client(server) as client:
            capture_answers(client, requests, capture, FIRST, DRAWN, limit=120, concurrency=4, history=None, quiet=True)
        finish_capture(capture)
    with open_capture(out) as capture:
        found = {(loop, name, step): answer for loop, name, step, answer in capture.answers(FIRST)}
    return questions, found


def drawn(found: Answers, loops: np.ndarray) -> Answers:
    """The greedy answers and those of some loops, numbered from 1."""
    number = {int(loop): place for place, loop in enumerate(loops, start=1)} | {GREEDY: GREEDY}
    return {(number[loop], name, step): one for (loop, name, step), one in found.items() if loop in number}


def test_the_original_passes_for_19_of_20_seeds(answers: tuple[Questions, Answers]) -> None:
    questions, found = answers
    gate = load_gate("default")
    verdicts, reasons = [], []
    for seed in range(SEEDS):
        order = np.random.default_rng(seed).permutation(np.arange(1, DRAWN + 1))
        first, again, other = (drawn(found, part) for part in np.split(order, 3))
        figures = compare_answers(questions, first, again, other, seed=seed).figures
        outcomes = judge(gate, figures)
        verdicts.append(overall(outcomes))
        reasons += [f"{seed} {one.check.metric} {one.why}" for one in outcomes if one.verdict not in NO_TROUBLE]
    assert verdicts.count(Verdict.PASS) >= SEEDS - 1, reasons
    assert Verdict.FAIL not in verdicts


def test_draws_do_differ(answers: tuple[Questions, Answers]) -> None:
    """Else the test above would say nothing."""
    _, found = answers
    texts = {
        name: {one.raw for (loop, other, _), one in found.items() if other == name and loop} for _, name, _ in found
    }
    assert sum(len(each) > 1 for each in texts.values()) > len(texts) / 4
