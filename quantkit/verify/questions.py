"""What both models are asked: passages to score, requests to answer, and a probe of the tokenizer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from quantkit.calibration.corpora.render import ChatTokenizer, load_tokenizer
from quantkit.errors import BadInput
from quantkit.verify.divergence.texts import PASSAGE_TOKENS, passages_of, shipped_texts
from quantkit.verify.models import ModelFacts
from quantkit.verify.records import Call, MockRule, MockTools, Passage, Request
from quantkit.verify.tool_calls.bfcl import bfcl_requests
from quantkit.verify.tool_calls.requests import read_requests, shipped_requests

NONE = "none"
BFCL = "bfcl:"
PROBE_TOKENS = 64
SPARE_TOKENS = 256


@dataclass(frozen=True)
class Questions:
    """Made once, for the reference; a capture carries them. `probes` are texts with the ids that they must become."""

    passages: Sequence[Passage]
    requests: Sequence[Request]
    loops: int
    max_tokens: int
    probes: Sequence[dict[str, Any]]
    # Longest prompt of a request in tokens, as far as the tokenizer can tell.
    longest_prompt: int

    def as_json(self) -> dict[str, Any]:
        """For a capture."""
        return {
            "passages": [{"domain": one.domain, "name": one.name, "ids": one.ids.tolist()} for one in self.passages],
            "requests": [asdict(request) for request in self.requests],
            "loops": self.loops,
            "max_tokens": self.max_tokens,
            "probes": list(self.probes),
            "longest_prompt": self.longest_prompt,
        }

    def sha256(self) -> str:
        """Hash of all questions: captures can be compared when it is equal."""
        return hashlib.sha256(json.dumps(self.as_json(), sort_keys=True).encode()).hexdigest()

    def context(self) -> int:
        """Tokens that a server's context must hold."""
        passage = max((len(one.ids) for one in self.passages), default=0)
        # Servers render tools with keys of their own.
        prompt = self.longest_prompt + self.longest_prompt // 4 + SPARE_TOKENS
        turns = max((request.mock.turns for request in self.requests if request.mock), default=1)
        # Few turns of a conversation are as long as they may be.
        answers = self.max_tokens * (1 + turns // 2)
        return max(passage + 1, prompt + answers if self.requests else 0)


def questions_from_json(data: dict[str, Any]) -> Questions:
    """Undo `Questions.as_json`."""
    return Questions(
        passages=[Passage(one["domain"], one["name"], np.array(one["ids"], np.int32)) for one in data["passages"]],
        requests=[_request(one) for one in data["requests"]],
        loops=data["loops"],
        max_tokens=data["max_tokens"],
        probes=data["probes"],
        longest_prompt=data["longest_prompt"],
    )


def _request(fields: dict[str, Any]) -> Request:
    expected, mock = fields.pop("expected"), fields.pop("mock")
    if mock:
        mock = MockTools(**(mock | {"rules": [MockRule(**rule) for rule in mock["rules"]]}))
    return Request(**fields, expected=[Call(**call) for call in expected] if expected is not None else None, mock=mock)


def ask_what(
    tokenizer_folder: Path,
    facts: ModelFacts,
    *,
    texts: Sequence[str],
    requests: Sequence[str],
    loops: int,
    max_tokens: int,
) -> Questions:
    """Gather the questions for a model: its own tokenizer, the texts and requests asked for or the shipped ones.

    Raises BadInput for files that cannot be used, and where nothing is left to ask.
    """
    for option, given in (("--text", texts), ("--requests", requests)):
        if NONE in given and len(given) > 1:
            raise BadInput(f"{option} none: and {len(given) - 1} more; give none, or those alone")
    tokenizer = load_tokenizer(tokenizer_folder)
    files = [] if list(texts) == [NONE] else [Path(text) for text in texts] or shipped_texts()
    # A model that only a server knows: its tokenizer says how many tokens there are.
    vocab = facts.dimensions.get("vocab", len(tokenizer.tokenizer))
    passages = passages_of(files, tokenizer, context=facts.context or PASSAGE_TOKENS, vocab=vocab)
    chosen = _requests(requests)
    if not passages and not chosen:
        raise BadInput("--text none --requests none: nothing is left to ask; leave one of them out")
    return Questions(
        passages=passages,
        requests=chosen,
        loops=loops,
        max_tokens=max_tokens,
        probes=_probes(passages, tokenizer),
        longest_prompt=_longest_prompt(chosen, tokenizer),
    )


def _requests(wanted: Sequence[str]) -> list[Request]:
    if list(wanted) == [NONE]:
        return []
    found = [] if wanted else shipped_requests()
    for each in wanted:
        if each.startswith(BFCL):
            found += bfcl_requests([name for name in each.removeprefix(BFCL).split(",") if name])
        else:
            found += read_requests(Path(each))
    ids = [request.id for request in found]
    twice = sorted({one for one in ids if ids.count(one) > 1})
    if twice:
        raise BadInput(f"--requests: two requests have the id {twice[0]!r}; rename one of them")
    return found


def _probes(passages: Sequence[Passage], tokenizer: ChatTokenizer) -> list[dict[str, Any]]:
    """One text per domain, with the ids that this tokenizer makes of it."""
    first = {passage.domain: passage for passage in reversed(passages)}
    texts = [tokenizer.tokenizer.decode(passage.ids[:PROBE_TOKENS]) for passage in first.values()]
    return [
        {"text": text, "ids": tokenizer.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]}
        for text in texts
    ]


def _longest_prompt(requests: Sequence[Request], tokenizer: ChatTokenizer) -> int:
    """Tokens of the longest rendered request; templates that refuse one are the server's matter."""
    longest = 0
    for request in requests:
        try:
            text = tokenizer.tokenizer.apply_chat_template(
                _as_template_wants(request.messages),
                tools=list(request.tools) or None,
                tokenize=False,
                add_generation_prompt=True,
            )
            ids = tokenizer.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        except Exception:  # templates are programs: anything may be raised while one runs
            continue
        longest = max(longest, len(ids))
    return longest


def _as_template_wants(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Arguments of calls as objects, which servers parse them to before they render."""
    rendered = []
    for message in messages:
        calls = [
            {**call, "function": {**call["function"], "arguments": json.loads(call["function"]["arguments"])}}
            if isinstance(call.get("function", {}).get("arguments"), str)
            else call
            for call in message.get("tool_calls") or []
        ]
        rendered.append({**message, "tool_calls": calls} if calls else dict(message))
    return rendered
