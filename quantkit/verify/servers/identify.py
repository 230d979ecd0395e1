"""Which engine answers at an address, its version, the model's name there and how long a context it takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx

from quantkit.errors import BadInput
from quantkit.verify.servers.running import Server
from quantkit.verify.servers.runtimes import LLAMA_CPP, SGLANG, VLLM

OPENAI = "openai"
REQUEST_SECONDS = 30.0
SHOWN_MODELS = 8


@dataclass(frozen=True)
class _Kind:
    """An engine by a path that it alone answers with such an object."""

    engine: str
    path: str
    is_it: Callable[[dict[str, Any]], bool]
    version: Callable[[dict[str, Any]], Any]
    context: Callable[[dict[str, Any]], Any] = lambda answer: None


# In this order: llama.cpp and SGLang have paths of their own, a version alone is little to go by.
_KINDS = (
    _Kind(
        LLAMA_CPP,
        "/props",
        lambda answer: "default_generation_settings" in answer,
        lambda answer: answer.get("build_info"),
        # That of one slot.
        lambda answer: answer["default_generation_settings"].get("n_ctx"),
    ),
    _Kind(
        SGLANG,
        "/get_server_info",
        lambda answer: "version" in answer or "model_path" in answer,
        lambda answer: answer.get("version"),
        lambda answer: answer.get("context_length"),
    ),
    _Kind(SGLANG, "/get_model_info", lambda answer: "model_path" in answer, lambda answer: answer.get("version")),
    _Kind(VLLM, "/version", lambda answer: "version" in answer, lambda answer: answer.get("version")),
)


def identified(url: str, *, api_key: str | None, model: str | None, is_local: bool) -> Server:
    """Return the server at `url`; `model` is its name there, None takes the only one.

    `is_local` goes past proxies. Raises BadInput where nobody answers, and for a `model` that is not served.
    """
    base = _base(url)
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    with httpx.Client(
        base_url=base, headers=headers, timeout=REQUEST_SECONDS, trust_env=not is_local, follow_redirects=False
    ) as client:
        listed = _models(client, base, api_key is not None)
        found, answer = _kind(client)
    entry = _chosen(listed, model, base)
    context = entry.get("max_model_len") or (found.context(answer) if found else None)
    return Server(
        engine=found.engine if found else OPENAI,
        url=base,
        model=entry["id"],
        version=str(found.version(answer) or "") if found else "",
        context=context if isinstance(context, int) and context > 0 else None,
        api_key=api_key,
    )


def _base(url: str) -> str:
    base = url.strip().rstrip("/").removesuffix("/v1").rstrip("/")
    try:
        parts = httpx.URL(base)
    except httpx.InvalidURL:
        parts = httpx.URL()
    if parts.userinfo:
        raise BadInput("--server: a password in the address would end up in reports; give it in $QUANTKIT_API_KEY")
    if parts.scheme not in ("http", "https") or not parts.host:
        raise BadInput(f"--server {url}: not an address; write for example http://127.0.0.1:8000")
    return base


def _models(client: httpx.Client, base: str, has_key: bool) -> list[dict[str, Any]]:
    try:
        reply = client.get("/v1/models")
    except httpx.HTTPError as error:
        raise BadInput(f"{base}: no server answers there ({error}); start it, or mend the address") from None
    if reply.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        wrong = "refuses the key" if has_key else "wants a key"
        raise BadInput(f"{base}: the server {wrong} ({reply.status_code}); give it in $QUANTKIT_API_KEY")
    if reply.is_server_error:
        raise BadInput(f"{base}: the server answers {reply.status_code}; wait until it has loaded, or see its log")
    listed = (_object(reply) or {}).get("data")
    if not isinstance(listed, list):
        # Hosted APIs need not have this list.
        return []
    return [entry for entry in listed if isinstance(entry, dict) and isinstance(entry.get("id"), str)]


def _kind(client: httpx.Client) -> tuple[_Kind | None, dict[str, Any]]:
    for kind in _KINDS:
        try:
            answer = _object(client.get(kind.path))
        except httpx.HTTPError:
            continue
        if answer is not None and kind.is_it(answer):
            return kind, answer
    return None, {}


def _object(reply: httpx.Response) -> dict[str, Any] | None:
    """The JSON object of a reply that went well; None for anything else."""
    if reply.status_code != httpx.codes.OK:
        return None
    try:
        answer = reply.json()
    except ValueError:
        return None
    return answer if isinstance(answer, dict) else None


def _chosen(listed: list[dict[str, Any]], model: str | None, base: str) -> dict[str, Any]:
    names = [entry["id"] for entry in listed]
    shown = ", ".join(names[:SHOWN_MODELS]) + (", …" if len(names) > SHOWN_MODELS else "")
    if model is not None:
        if names and model not in names:
            raise BadInput(f"{base}: serves no model {model!r}; set $QUANTKIT_MODEL to one of {shown}")
        return next((entry for entry in listed if entry["id"] == model), {"id": model})
    if not names:
        raise BadInput(f"{base}: does not say which models it has; give the name in $QUANTKIT_MODEL")
    if len(names) > 1:
        raise BadInput(f"{base}: serves {len(names)} models; set $QUANTKIT_MODEL to one of {shown}")
    return listed[0]
