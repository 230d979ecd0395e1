"""What the parts of a verification hand to each other: texts and scores, requests and answers, rates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Message = dict[str, Any]
Tool = dict[str, Any]


@dataclass(frozen=True)
class Passage:
    """Token ids [L] that attend to themselves alone; every token but the first is scored."""

    domain: str  # code, tools, prose, multilingual, or the name of a user's file
    name: str
    ids: NDArray[np.int32]

    @property
    def scored(self) -> int:
        """How many tokens are scored."""
        return len(self.ids) - 1


@dataclass(frozen=True)
class Scores:
    """What a model says of the M = L - 1 scored tokens of one passage, position m about token m + 1; nats.

    `actual` [M] is log p of the token that stands there. `top_ids` [M, K] are the K most probable tokens, the most
    probable first, `top` [M, K] their log p. K may be the whole vocabulary; it is the same for all positions.
    """

    actual: NDArray[np.float64]
    top_ids: NDArray[np.int32]
    top: NDArray[np.float32]


@dataclass(frozen=True)
class Request:
    """One question to a chat model, of a shape that OpenAI-compatible servers take.

    `messages` end with the user's or a tool's turn; arguments of earlier calls in them are JSON text, as clients send
    them. `label` says whether a call is wanted, None where nobody said. `mock` answers calls of the interleaved loop.
    """

    id: str
    messages: Sequence[Message]
    tools: Sequence[Tool]
    category: str
    label: bool | None = None
    expected: Sequence[Call] | None = None  # the right calls, in any order, where they are known
    mock: MockTools | None = None
    language: str | None = None  # ISO 639-1 of what is to be answered in, where it matters
    options: dict[str, Any] = field(default_factory=dict)  # further fields of the body, as a request file gave them


@dataclass(frozen=True)
class Call:
    """A tool call; `arguments` is the text that the server returned, which may be no JSON at all."""

    name: str
    arguments: str


@dataclass(frozen=True)
class MockTools:
    """Results for the calls of a multi-turn loop: the first rule whose name and arguments fit answers."""

    rules: Sequence[MockRule]
    otherwise: str = '{"error": "not found"}'
    turns: int = 6  # assistant turns at most
    goal: str | None = None  # text that the last answer has to hold, for success


@dataclass(frozen=True)
class MockRule:
    """`result` answers a call of the tool `name` whose arguments hold `arguments`."""

    name: str
    arguments: dict[str, Any]
    result: str


@dataclass(frozen=True)
class Answer:
    """What a server made of one request, fields normalized over servers.

    `raw` is the completion as generated, special tokens written out, where the server tells; `error` is set, and the
    rest empty, where it gave no answer. `streamed` is the same request's answer read from a stream, where asked.
    """

    finish_reason: str = ""
    content: str = ""
    reasoning: str = ""
    calls: Sequence[Call] = ()
    raw: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    error: str | None = None
    streamed: Answer | None = None

    @property
    def triggered(self) -> bool:
        """Whether the server says that it ended in tool calls."""
        return self.finish_reason == "tool_calls"


@dataclass(frozen=True)
class Rate:
    """A ratio of sums over units that can be resampled: requests or passages. `counts` [U] over `chances` [U]."""

    counts: NDArray[np.float64]
    chances: NDArray[np.float64]

    @property
    def value(self) -> float:
        """The ratio of the sums; NaN where nothing could be counted."""
        total = float(self.chances.sum())
        return float(self.counts.sum()) / total if total else float("nan")
