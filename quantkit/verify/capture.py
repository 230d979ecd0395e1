"""The story of a capture: one model is asked everything, on a server or in the streamed pass; every answer is kept."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit import __version__
from quantkit.errors import BadInput
from quantkit.run.progress import CountProgress
from quantkit.verify.capture_file import AGAIN, FIRST, Capture, begin_capture, finish_capture, is_finished
from quantkit.verify.client import Client
from quantkit.verify.divergence.scoring import ENGINES as SCORING
from quantkit.verify.divergence.scoring import default_top, score_passages
from quantkit.verify.divergence.texts import spread
from quantkit.verify.models import ModelFacts
from quantkit.verify.questions import Questions
from quantkit.verify.servers.running import Server
from quantkit.verify.servers.start import ServerSettings, attach, running
from quantkit.verify.tokenizers import check_server_tokenizer

STREAMED = "streamed"
ENGINES = ("vllm", "llama.cpp", "sglang", STREAMED)
# Requests and passages under way at a time.
CONCURRENCY = {"vllm": 32, "sglang": 32, "llama.cpp": 4, "openai": 8}
# llama.cpp scores by decoding token after token: so many are enough for a figure with an interval.
SCORED_TOKENS = {"llama.cpp": 8192}
# Tokens that the reference scores a second time, for its noise.
NOISE_TOKENS = 4096


@dataclass(frozen=True)
class Means:
    """How a model is measured: an engine, or the address of a server that runs already, and what belongs to it."""

    engine: str
    server: str | None = None
    programs: Path | None = None
    arguments: tuple[str, ...] = ()
    device: str = "cpu"
    precision: str = "float32"
    memory: int | None = None
    quiet: bool = False
    # llama-perplexity takes the place of scoring through the server.
    by_program: bool = False


def capture_model(
    path: Path | None,
    facts: ModelFacts,
    out: Path,
    questions: Questions,
    means: Means,
    *,
    history: Capture | None = None,
    extra: dict[str, Any] | None = None,
    converted: Callable[[], AbstractContextManager[Path]] | None = None,
    force: bool = False,
) -> None:
    """Ask the model at `path` (None: only a server knows it) all questions and write the capture `out`.

    Without `history` the model is a reference: it is measured a second time, for its noise. With it, steps of
    multi-turn requests are asked on what the reference did before. `extra` is kept in the capture as it is; `converted`
    makes the file that is served in the model's place. A rerun asks only what is missing. Raises BadInput where it
    cannot start, QuantkitError where a server failed on the way.
    """
    identity = {
        "model": facts.as_json(),
        # Not the address: a server that is started again may have another.
        "engine": "server" if means.server else means.engine,
        "arguments": list(means.arguments),
        "precision": means.precision if means.engine == STREAMED else None,
        "by_program": means.by_program,
        "questions": questions.sha256(),
        "history": None if history is None else history.about("id"),
    }
    if not force and is_finished(out, identity):
        return
    with begin_capture(out, identity, force=force) as capture:
        for key, value in (("questions", questions.as_json()), ("versions", versions()), *(extra or {}).items()):
            capture.set_about(key, value)
        if means.engine == STREAMED and means.server is None:
            assert path is not None
            _score_streamed(path, capture, questions, means)
        else:
            with (
                converted() if converted is not None else nullcontext(path) as served,
                _server(served, out, questions, means, facts) as server,
            ):
                _ask_server(server, capture, questions, means, history)
        finish_capture(capture)


def versions() -> dict[str, str]:
    """What ran here: programs, libraries and the machine."""
    found = {"quantkit": __version__, "python": platform.python_version(), "machine": hardware()}
    return found | {name: importlib.metadata.version(name) for name in ("torch", "transformers", "xllamacpp")}


def hardware() -> str:
    """The processors, and the graphics cards that torch sees."""
    import torch

    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    except OSError:
        pass
    cards = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return ", ".join([f"{os.cpu_count()} x {name}", *cards])


def _score_streamed(path: Path, capture: Capture, questions: Questions, means: Means) -> None:
    from quantkit.verify.divergence import streamed

    capture.set_about("server", {"engine": STREAMED, "version": __version__, "command": []})
    if not questions.passages:
        raise BadInput("--engine streamed: scores texts only, and --text none leaves none; choose another engine")
    if len(capture.scored_passages(FIRST)) == len(questions.passages):
        return
    vocab = int(capture.about("identity")["model"]["dimensions"]["vocab"])
    scores = streamed.score_streamed(
        path,
        questions.passages,
        top=streamed.default_top(vocab),
        device=means.device,
        precision=means.precision,
        memory=means.memory,
        quiet=means.quiet,
    )
    for number, found in enumerate(scores):
        capture.put_scores(FIRST, number, found)


@contextmanager
def _server(path: Path | None, out: Path, questions: Questions, means: Means, facts: ModelFacts) -> Iterator[Server]:
    vocab = facts.dimensions.get("vocab", 0)
    settings = ServerSettings(
        context=min(questions.context(), facts.context) if facts.context else questions.context(),
        concurrency=CONCURRENCY.get(means.engine, 8),
        top=default_top(means.engine, vocab) if means.engine in SCORING else 0,
        programs=means.programs,
        arguments=means.arguments,
    )
    if means.server is not None:
        yield attach(means.server, settings)
        return
    assert path is not None
    with running(means.engine, path, out.with_name(out.name + ".server"), settings) as server:
        yield server


def _ask_server(server: Server, capture: Capture, questions: Questions, means: Means, history: Capture | None) -> None:
    from quantkit.verify.tool_calls.run import capture_answers

    engine = server.engine
    capture.set_about(
        "server", {"engine": engine, "version": server.version, "command": list(server.command), "model": server.model}
    )
    concurrency = CONCURRENCY[engine]
    with Client(server) as client:
        check_server_tokenizer(client, questions.probes)
        if questions.passages and engine not in SCORING:
            capture.set_about("not_measured", [f"{server.url}: gives no log-probabilities of prompts: no divergence"])
        elif questions.passages and not means.by_program:
            chosen = spread(questions.passages, SCORED_TOKENS.get(engine, 1 << 62))
            again = spread(questions.passages, NOISE_TOKENS) if history is None else []
            again = [number for number in again if number in chosen]
            for run, numbers, at_once in ((FIRST, chosen, concurrency), (AGAIN, again, 1)):
                _score(client, capture, questions, run, numbers, at_once, means)
        if questions.requests:
            for run in (FIRST, AGAIN) if history is None else (FIRST,):
                capture_answers(
                    client,
                    questions.requests,
                    capture,
                    run,
                    questions.loops,
                    limit=questions.max_tokens,
                    concurrency=concurrency,
                    history=history if history is not None else (capture if run == AGAIN else None),
                    quiet=means.quiet,
                )


def _score(
    client: Client,
    capture: Capture,
    questions: Questions,
    run: str,
    numbers: list[int],
    concurrency: int,
    means: Means,
) -> None:
    """Score the passages that have no scores yet; a second run has another batch size, which is where noise is."""
    done = set(capture.scored_passages(run))
    waiting = [number for number in numbers if number not in done]
    vocab = int(capture.about("identity")["model"]["dimensions"].get("vocab", 0))
    label = "scoring" if run == FIRST else "scoring again"
    total = sum(questions.passages[number].scored for number in waiting)
    with CountProgress(label, total, "tokens", quiet=means.quiet) as progress:

        def keep(number: int, scores: Any) -> None:
            capture.put_scores(run, number, scores)
            progress.advance(questions.passages[number].scored)

        score_passages(
            client,
            questions.passages,
            waiting,
            vocab=vocab,
            top=default_top(client.server.engine, vocab),
            keep=keep,
            concurrency=concurrency,
        )


def engine_for(facts: ModelFacts) -> str:
    """The engine that serves a model of this kind."""
    return "llama.cpp" if facts.is_gguf else "vllm"


def check_engine(engine: str, facts: ModelFacts, path: Path) -> None:
    """Raise BadInput where the engine cannot load this kind of file."""
    if engine not in ENGINES:
        raise BadInput(f"--engine {engine}: unknown; choose one of {', '.join(ENGINES)}")
    if engine in ("vllm", "sglang") and facts.is_gguf:
        raise BadInput(f"{path}: a GGUF; {engine} does not load it; give --engine llama.cpp or streamed")
    if engine == "llama.cpp" and not facts.is_gguf:
        raise BadInput(f"{path}: llama.cpp loads GGUFs only; convert it with `quantkit gguf`, or give --engine vllm")
