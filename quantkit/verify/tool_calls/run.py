"""Ask a model all requests and keep the answers in a capture.

Loop 0 is greedy. There a model is asked on its own history, or, where another capture's is given, every step of it on
that model's history, so that answers can be compared one by one. Loops from 1 on draw tokens as MiniMax recommends and
run on their own; loop 1 of multi-turn requests has a control in which reasoning is not sent back, its first step being
the loop's own. What the capture has is not asked again; a conversation is kept step by step.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from quantkit.errors import BadInput
from quantkit.run.progress import CountProgress
from quantkit.verify.capture_file import FIRST, GREEDY, Capture
from quantkit.verify.client import Client, RequestFailed, run_all
from quantkit.verify.records import Answer, Request
from quantkit.verify.tool_calls.answers import STRIPPED
from quantkit.verify.tool_calls.ask import GREEDY_SAMPLING, RECOMMENDED, ask
from quantkit.verify.tool_calls.dialogue import conversation, is_over

STREAMED_REQUESTS = 32
"""How many single-step requests are also read from a stream."""
MOST_FAILURES = 0.1
"""Share of failed conversations above which a run ends."""
_BYTES_OF_TEMPLATE = 4096  # more than the text of a chat template


@dataclass(frozen=True)
class _Talk:
    """One conversation: a request in a loop, or the control of it."""

    request: Request
    loop: int
    stripped: bool = False
    streamed: bool = False

    @property
    def id(self) -> str:
        return self.request.id + STRIPPED if self.stripped else self.request.id


def capture_answers(
    client: Client,
    requests: Sequence[Request],
    capture: Capture,
    run: str,
    loops: int,
    *,
    limit: int,
    concurrency: int,
    history: Capture | None,
    quiet: bool = False,
) -> None:
    """Ask every request once greedily and `loops` times with recommended sampling, answers of `limit` tokens at most.

    `history` is the capture whose first run's steps are asked in the greedy loop. Raises BadInput for a request that
    the server's context cannot hold, the last RequestFailed when more than MOST_FAILURES of all conversations failed,
    ServerFailed when the server is gone. Failures below that become answers with `error`.
    """
    talks = _talks(requests, loops)
    _check_context(client, requests, limit)
    asker = _Asker(client, capture, run, limit, history, allowed=MOST_FAILURES * len(talks))
    label = "tool calls" if run == FIRST else "tool calls again"
    with CountProgress(label, len(talks), "conversations", quiet=quiet) as progress:
        # A control begins with a step of the conversation it belongs to, so all of those come first.
        for stripped in (False, True):
            some = [talk for talk in talks if talk.stripped == stripped]
            run_all(some, asker.hold, lambda _, __: progress.advance(1), concurrency)


def _talks(requests: Sequence[Request], loops: int) -> list[_Talk]:
    streamed = _streamed(requests)
    talks = [_Talk(request, GREEDY, streamed=request.id in streamed) for request in requests]
    talks += [_Talk(request, loop) for loop in range(1, loops + 1) for request in requests]
    if loops:
        talks += [_Talk(request, 1, stripped=True) for request in requests if request.mock]
    return talks


def _streamed(requests: Sequence[Request]) -> set[str]:
    """Ids of single-step requests chosen by a hash of them: the same whatever stands beside them, of all categories."""
    single = [request.id for request in requests if request.mock is None]
    return set(sorted(single, key=lambda each: hashlib.sha256(each.encode()).digest())[:STREAMED_REQUESTS])


class _Asker:
    """Holds conversations; counts failures over all threads."""

    def __init__(
        self, client: Client, capture: Capture, run: str, limit: int, history: Capture | None, allowed: float
    ) -> None:
        self.client, self.capture, self.run, self.limit, self.history = client, capture, run, limit, history
        self._allowed = allowed
        self._failures = 0
        self._lock = threading.Lock()

    def hold(self, talk: _Talk) -> None:
        """Ask what is missing of a conversation and keep every answer."""
        if talk.loop == GREEDY and self.history is not None:
            self._follow(talk, self.history)
            return
        answers: list[Answer] = []
        while not is_over(talk.request, answers):
            answer = self._known(talk, len(answers))
            if answer is None:
                answer = self._next(talk, answers)
                self.capture.put_answer(self.run, talk.loop, talk.id, len(answers), answer)
            answers.append(answer)

    def _follow(self, talk: _Talk, history: Capture) -> None:
        """Ask every step that the other model was asked, after that model's own answers."""
        answers: list[Answer] = []
        while not is_over(talk.request, answers):
            theirs = history.answer(FIRST, GREEDY, talk.id, len(answers))
            if theirs is None:
                if not answers:
                    raise BadInput(f"{history.path}: has no answer to request {talk.id}; capture the reference again")
                break  # its last step failed
            if self._known(talk, len(answers)) is None:
                answer = self._next(talk, answers)
                self.capture.put_answer(self.run, talk.loop, talk.id, len(answers), answer)
            answers.append(theirs)

    def _known(self, talk: _Talk, step: int) -> Answer | None:
        answer = self.capture.answer(self.run, talk.loop, talk.id, step)
        return answer if answer is not None and answer.error is None else None

    def _next(self, talk: _Talk, answers: Sequence[Answer]) -> Answer:
        step = len(answers)
        if talk.stripped and step == 0:
            shared = self.capture.answer(self.run, talk.loop, talk.request.id, 0)
            if shared is not None:
                return shared
        try:
            return ask(
                self.client,
                conversation(talk.request, answers, with_reasoning=not talk.stripped),
                talk.request,
                sampling=GREEDY_SAMPLING if talk.loop == GREEDY else RECOMMENDED,
                limit=self.limit,
                seed=self._seed(talk, step),
                stream=talk.streamed,
            )
        except RequestFailed as error:
            return self._failed(talk, error)

    def _failed(self, talk: _Talk, error: RequestFailed) -> Answer:
        with self._lock:
            self._failures += 1
            if self._failures > self._allowed:
                error.args = (f"request {talk.id}: {error}",)
                raise error
        remedy = "; start the server with a longer context" if "context" in error.said else ""
        return Answer(error=f"request {talk.id}: {error}{remedy}")

    def _seed(self, talk: _Talk, step: int) -> int:
        """Equal for the same question of the same kind of run; another for each model and for its second run.

        With one seed for all, a model's second run would repeat its first and show no noise.
        """
        kind = "first" if self.history is None else "after"
        key = f"{self.run} {kind} {talk.loop} {talk.id} {step}"
        return int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "little") >> 1


def _check_context(client: Client, requests: Sequence[Request], limit: int) -> None:
    """Raise BadInput for a request that is too long, where server and engine tell."""
    context = client.server.context
    if context is None:
        return
    for request in requests:
        # No token is shorter than a byte.
        size = len(repr((request.messages, request.tools)).encode(errors="replace")) + _BYTES_OF_TEMPLATE
        if size + limit <= context:
            continue
        tokens = _prompt_tokens(client, request)
        if tokens is not None and tokens + limit > context:
            raise BadInput(
                f"request {request.id}: its prompt of {tokens} tokens and an answer of {limit} exceed the server's "
                f"context of {context}; start the server with at least {tokens + limit}, or leave the request out"
            )


def _prompt_tokens(client: Client, request: Request) -> int | None:
    """Length of a request's prompt by the server's own tokenizer, None where it has no way to tell."""
    chat: dict[str, Any] = {"model": client.server.model, "messages": list(request.messages)}
    chat |= {"tools": list(request.tools)} if request.tools else {}
    try:
        if client.server.engine == "vllm":
            return int(client.post("/tokenize", chat)["count"])
        if client.server.engine == "llama.cpp":
            prompt = client.post("/apply-template", chat)["prompt"]
            return len(client.post("/tokenize", {"content": prompt, "parse_special": True})["tokens"])
    except RequestFailed:
        return None
    return None
