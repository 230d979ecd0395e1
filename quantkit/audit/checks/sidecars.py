"""Checks of the small files beside the weights: tokenizer, chat template, generation defaults."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from quantkit.audit.findings import Check, Severity
from quantkit.audit.folder import Folder
from quantkit.inspect.checkpoint import SIDECARS

END_OF_TURN, ROLE_MARK = "[e~[", "]~b]"
TOOL_CALL = "<minimax:tool_call>"
# What MiniMax gives with M2.7.
SAMPLING = {"temperature": 1.0, "top_p": 0.95, "top_k": 40}


def end_of_turn_ids(folder: Folder) -> set[int]:
    """Ids of the token that ends a turn, out of the tokenizer's files; empty where they do not tell."""
    found = set()
    added = folder.json.get("tokenizer_config.json", {}).get("added_tokens_decoder")
    for number, token in added.items() if isinstance(added, dict) else ():
        if isinstance(token, dict) and token.get("content") == END_OF_TURN and number.isdigit():
            found.add(int(number))
    for token in _list(folder.json.get("tokenizer.json", {}).get("added_tokens")):
        if isinstance(token, dict) and token.get("content") == END_OF_TURN and isinstance(token.get("id"), int):
            found.add(token["id"])
    return found


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _missing(name: str) -> Any:
    def find(folder: Folder) -> Iterator[str]:
        if not folder.has(name):
            yield f"{folder.named(name)}: missing; {SIDECARS[name]}"

    return find


def _template(folder: Folder) -> str | None:
    """The chat template: a file of its own, or a key of tokenizer_config.json (one text, or several with names)."""
    if "chat_template.jinja" in folder.texts:
        return folder.texts["chat_template.jinja"]
    stated = folder.json.get("tokenizer_config.json", {}).get("chat_template")
    if isinstance(stated, list):
        return "\n".join(str(entry.get("template", "")) for entry in stated if isinstance(entry, dict))
    return stated if isinstance(stated, str) else None


def _template_missing(folder: Folder) -> Iterator[str]:
    if not (_template(folder) or "").strip():
        yield f"{folder.named('chat_template.jinja')}: no chat template; tool calls and chats will not work"


def template_problem(template: str) -> str | None:
    """What MiniMax-M2's template has and `template` has not."""
    lacking = [mark for mark in (ROLE_MARK, END_OF_TURN, TOOL_CALL) if mark not in template]
    return f"the chat template has no {' and no '.join(lacking)}: it is another model's" if lacking else None


def _template_wrong(folder: Folder) -> Iterator[str]:
    template = (_template(folder) or "").strip()
    problem = template_problem(template) if template else None
    if problem:
        yield f"{folder.named('chat_template.jinja')}: {problem}"


def _generation_eos(folder: Folder) -> Iterator[str]:
    config, right = folder.json.get("generation_config.json"), end_of_turn_ids(folder)
    if config is None or not right:
        return
    stated = config.get("eos_token_id")
    if not right & {value for value in (_list(stated) or [stated]) if isinstance(value, int)}:
        yield f"{folder.named('generation_config.json')}: eos_token_id is {stated}, the end of a turn is {min(right)}"


def _tokenizer_eos(folder: Folder) -> Iterator[str]:
    config = folder.json.get("tokenizer_config.json")
    if config is None:
        return
    stated = config.get("eos_token")
    text = stated.get("content") if isinstance(stated, dict) else stated
    if text != END_OF_TURN:
        yield f"{folder.named('tokenizer_config.json')}: eos_token is {text!r}, a turn ends with {END_OF_TURN!r}"


def _sampling(folder: Folder) -> Iterator[str]:
    config = folder.json.get("generation_config.json", {})
    other = [f"{key} {config.get(key)}" for key, value in SAMPLING.items() if config.get(key) != value]
    if config and other:
        place, right = (
            folder.named("generation_config.json"),
            ", ".join(f"{key} {value}" for key, value in SAMPLING.items()),
        )
        yield f"{place}: {', '.join(other)}; MiniMax gives {right}"


def _vocabulary(folder: Folder) -> Iterator[str]:
    tokenizer = folder.json.get("tokenizer.json", {})
    model = tokenizer.get("model")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    ids = list(vocab.values()) if isinstance(vocab, dict) else []
    ids += [token.get("id") for token in _list(tokenizer.get("added_tokens")) if isinstance(token, dict)]
    largest = max((number for number in ids if isinstance(number, int)), default=None)
    size = folder.hparams.vocab if folder.hparams is not None else None
    if largest is not None and size is not None and largest >= size:
        yield f"{folder.named('tokenizer.json')}: has a token {largest}, config.json's vocab_size is {size}"


COPY = "copy it from the original, byte for byte"
CHECKS = (
    Check("generation-config-missing", Severity.ERROR, _missing("generation_config.json"), COPY),
    Check("tokenizer-missing", Severity.ERROR, _missing("tokenizer.json"), COPY),
    Check("tokenizer-config-missing", Severity.WARNING, _missing("tokenizer_config.json"), COPY),
    Check("chat-template-missing", Severity.ERROR, _template_missing, COPY),
    Check("chat-template-wrong", Severity.ERROR, _template_wrong, COPY),
    Check("generation-eos", Severity.ERROR, _generation_eos, "generation would not stop at the end of a turn; " + COPY),
    Check("tokenizer-eos", Severity.ERROR, _tokenizer_eos, "generation would not stop at the end of a turn; " + COPY),
    Check("vocabulary", Severity.ERROR, _vocabulary, "tokenizer and weights are of different models; " + COPY),
    Check("generation-sampling", Severity.NOTE, _sampling, COPY),
)  # fmt: skip
