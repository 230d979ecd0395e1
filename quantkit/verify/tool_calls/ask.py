"""One question to a chat server, and its answer in one form for all engines.

The completion as generated (`raw`) comes from token ids that vLLM's /detokenize writes out, and from the bytes of
llama.cpp's and SGLang's token log-probabilities: there special tokens are visible, whatever the server's parsers made
of them. Blanks around content and thinking are dropped, since parsers differ in what they keep of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from quantkit.verify.client import Client, RequestFailed
from quantkit.verify.records import Answer, Call, Message, Request
from quantkit.verify.tool_calls.raw_text import END_THINK, THINK

CHAT = "/v1/chat/completions"

PARSER_ERROR = "parser_error"
"""The finish reason, no server's own, of a completion that llama.cpp refuses to answer with as it cannot parse it."""
_LLAMA_CPP_REFUSAL = "does not match the expected"

# Fields that make a server tell the completion's tokens.
_TELL: dict[str, dict[str, Any]] = {
    "vllm": {"return_token_ids": True},
    "llama.cpp": {"logprobs": True, "top_logprobs": 1},
    "sglang": {"logprobs": True},
}
# llama.cpp refuses log-probabilities in a stream with tools.
_TELL_STREAMED = {"vllm": _TELL["vllm"], "sglang": _TELL["sglang"]}


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. `top_k` None: all; a plain OpenAI server is not told, it might refuse the field."""

    temperature: float
    top_p: float = 1.0
    top_k: int | None = None


GREEDY_SAMPLING = Sampling(temperature=0.0)
RECOMMENDED = Sampling(temperature=1.0, top_p=0.95, top_k=40)


def ask(
    client: Client,
    messages: Sequence[Message],
    request: Request,
    *,
    sampling: Sampling,
    limit: int,
    seed: int,
    stream: bool = False,
) -> Answer:
    """The answer to `messages` with the tools and further fields of `request`, in at most `limit` tokens.

    With `stream` it is asked a second time and the answer read from the stream is `streamed`. Raises RequestFailed and
    ServerFailed as the client does.
    """
    body = _body(client, messages, request, sampling, limit, seed)
    try:
        reply = client.post(CHAT, body | _TELL.get(client.server.engine, {}))
    except RequestFailed as error:
        if _LLAMA_CPP_REFUSAL not in error.said:
            raise
        return Answer(finish_reason=PARSER_ERROR)
    answer = _understood(lambda: _from_reply(client, reply))
    if not stream:
        return answer
    body |= _TELL_STREAMED.get(client.server.engine, {}) | {"stream_options": {"include_usage": True}}
    try:
        streamed = _understood(lambda: _from_events(client, client.stream(CHAT, body)))
    except RequestFailed as error:
        streamed = Answer(error=str(error))
    return replace(answer, streamed=streamed)


def _body(
    client: Client, messages: Sequence[Message], request: Request, sampling: Sampling, limit: int, seed: int
) -> dict[str, Any]:
    body = dict(request.options) | {
        "model": client.server.model,
        "messages": [_outgoing(message) for message in messages],
        "max_tokens": limit,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "seed": seed,
    }
    if request.tools:
        body["tools"] = list(request.tools)
    if client.server.engine != "openai":
        body["min_p"] = 0.0  # llama.cpp's default is 0.05, the others' 0
        if sampling.top_k is not None:
            body["top_k"] = sampling.top_k
    return body


def _outgoing(message: Message) -> Message:
    """vLLM reads what was thought from `reasoning` or `reasoning_content`, llama.cpp and SGLang from the latter."""
    if "reasoning_content" not in message:
        return message
    return message | {"reasoning": message["reasoning_content"]}


def _understood(read: Callable[[], Answer]) -> Answer:
    """What `read` makes of a server's JSON; RequestFailed where that has another shape than OpenAI's."""
    try:
        return read()
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise RequestFailed(CHAT, 200, f"an answer of another shape than OpenAI's ({error})") from None


def _from_reply(client: Client, reply: Any) -> Answer:
    choice = _choice(reply)
    message = choice.get("message") or {}
    calls = tuple(_call(each.get("function") or {}) for each in message.get("tool_calls") or ())
    tokens = (choice.get("logprobs") or {}).get("content") or ()
    return _answer(
        message.get("content") or "",
        message.get("reasoning_content") or message.get("reasoning") or "",
        calls,
        choice.get("finish_reason") or "",
        reply.get("usage") or {},
        _raw(client, choice.get("token_ids"), tokens),
    )


def _choice(reply: Any) -> dict[str, Any]:
    choices = reply.get("choices") if isinstance(reply, dict) else None
    if not choices:
        raise RequestFailed(CHAT, 200, "an answer without choices")
    return dict(choices[0])


def _call(function: dict[str, Any]) -> Call:
    arguments = function.get("arguments") or ""
    return Call(function.get("name") or "", arguments if isinstance(arguments, str) else json.dumps(arguments))


def _from_events(client: Client, events: Iterable[dict[str, Any]]) -> Answer:
    """Put the pieces of a stream together."""
    content: list[str] = []
    reasoning: list[str] = []
    calls: dict[int, list[str]] = {}
    ids: list[int] = []
    tokens: list[dict[str, Any]] = []
    finish_reason = ""
    usage: dict[str, Any] = {}
    for event in events:
        usage = event.get("usage") or usage
        for choice in event.get("choices") or ():
            delta = choice.get("delta") or {}
            content.append(delta.get("content") or "")
            reasoning.append(delta.get("reasoning_content") or delta.get("reasoning") or "")
            for piece in delta.get("tool_calls") or ():
                function = piece.get("function") or {}
                call = calls.setdefault(piece.get("index") or 0, ["", ""])
                call[0] += function.get("name") or ""
                call[1] += function.get("arguments") or ""
            ids += choice.get("token_ids") or ()
            tokens += (choice.get("logprobs") or {}).get("content") or ()
            finish_reason = choice.get("finish_reason") or finish_reason
    found = tuple(Call(name, arguments) for _, (name, arguments) in sorted(calls.items()))
    return _answer("".join(content), "".join(reasoning), found, finish_reason, usage, _raw(client, ids, tokens))


def _answer(
    content: str, reasoning: str, calls: Sequence[Call], finish_reason: str, usage: dict[str, Any], raw: str | None
) -> Answer:
    if not reasoning and END_THINK in content:  # parsers named append_think leave it there
        reasoning, _, content = content.partition(END_THINK)
        reasoning = reasoning.replace(THINK, "", 1)
    return Answer(
        finish_reason=finish_reason,
        content=content.strip(),
        reasoning=reasoning.strip(),
        calls=tuple(calls),
        raw=raw,
        prompt_tokens=usage.get("prompt_tokens"),
        completion_tokens=usage.get("completion_tokens"),
    )


def _raw(client: Client, ids: Sequence[int] | None, tokens: Sequence[dict[str, Any]]) -> str | None:
    """The completion written out, None where the server tells no tokens or (a proxy may) refuses to write them out."""
    if ids:
        try:
            text = client.post("/detokenize", {"model": client.server.model, "tokens": list(ids)}).get("prompt")
        except RequestFailed:
            return None
        return text if isinstance(text, str) else None
    if not tokens:
        return None
    return b"".join(_token_bytes(token) for token in tokens).decode("utf-8", errors="replace")


def _token_bytes(token: dict[str, Any]) -> bytes:
    given = token.get("bytes")
    return bytes(given) if given is not None else str(token.get("token", "")).encode()
