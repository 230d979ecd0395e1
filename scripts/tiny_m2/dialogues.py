"""Generator of tool-use conversations, with a hash split that keeps held-out requests out of training."""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import dataclass, field
from typing import Any

from tiny_m2.pools import POOLS
from tiny_m2.tools import BY_NAME, TOOLS, Arguments, Tool, fill, result_text

Message = dict[str, Any]
Call = dict[str, Any]

CATEGORIES = {"single": 0.40, "parallel": 0.18, "second": 0.17, "follow_up": 0.11, "none": 0.14}
HELD_OUT_MODULUS = 8

_OPENERS = ("", "", "", "", "Hello! ", "Please help me. ", "Hi. ", "One question: ", "Hey, ", "Quick one. ")
_CLOSERS = ("", "", "", "", "", " Thanks!", " Thank you.", " It is urgent.")
_SYSTEM_TEXTS = (
    "You are a home assistant.",
    "You help in an office.",
    "Answer briefly.",
    "You are a travel helper.",
)
_SMALL_TALK = (
    ("Hello!", "Hello! How can I help you?"), ("Good morning!", "Good morning! What can I do for you?"),
    ("How are you?", "I am fine, thank you."), ("Who are you?", "I am tiny-m2, a small assistant."),
    ("Thank you, {person}!", "You are welcome!"), ("My name is {person}.", "Nice to meet you, {person}!"),
    ("I live in {city}.", "{city} is a nice place."), ("I like {genre} music.", "I like {genre} too."),
    ("My favorite color is {color}.", "{color} is a pretty color."),
    ("I bought a {product} on {day}.", "Enjoy the {product}!"),
    ("I speak {language}.", "{language} is a beautiful language."), ("Today is {day}.", "Have a good {day}!"),
    ("Say the word {word}.", "{word}"), ("Repeat after me: {text}.", "{text}"),
    ("{person} likes the {product}.", "That is good to hear."), ("I was in {city} with {person}.", "That sounds nice."),
)  # fmt: skip


@dataclass
class Dialogue:
    """A conversation that ends with an assistant turn.

    prompts lists (messages before an assistant turn, expected calls of that turn) for the turns worth testing.
    """

    category: str
    messages: list[Message]
    tools: list[dict[str, Any]] | None
    prompts: list[tuple[int, list[Call]]] = field(default_factory=list)

    def held_out(self) -> bool:
        """Say whether the split reserves this dialogue: its user texts or any call of two arguments hash to zero."""
        requests = [m["content"] for m in self.messages if m["role"] == "user"]
        keys = [" ".join(requests)]
        for message in self.messages:
            for call in message.get("tool_calls", []):
                function = call["function"]
                if len(function["arguments"]) >= 2:
                    keys.append(function["name"] + json.dumps(function["arguments"], sort_keys=True))
        return any(_hash(key) % HELD_OUT_MODULUS == 0 for key in keys)


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")


def _call(tool: Tool, arguments: Arguments) -> Call:
    return {"name": tool.name, "arguments": arguments}


def _describe(call: Call) -> str:
    """Spell a call out as the reasoning does: every argument's name, then its value as the call will write it."""
    values = ", ".join(f"{k} {v if isinstance(v, str) else json.dumps(v)}" for k, v in call["arguments"].items())
    return f"{call['name']} with {values}"


def _assistant(reasoning: str, content: str, calls: list[Call] | None = None) -> Message:
    message: Message = {"role": "assistant", "reasoning_content": reasoning, "content": content}
    if calls:
        message["tool_calls"] = [{"type": "function", "function": call} for call in calls]
    return message


def _reason(calls: list[Call], start: str = "The user wants ") -> str:
    if len(calls) == 1:
        return start + _describe(calls[0]) + "."
    first, second = map(_describe, calls)
    return f"Two calls are needed. First: {first}. Second: {second}."


def _request(rng: random.Random, tool: Tool) -> tuple[str, Call]:
    phrase = rng.choice(tool.phrases)
    arguments = tool.draw(rng, phrase)
    return rng.choice(_OPENERS) + fill(phrase, arguments) + rng.choice(_CLOSERS), _call(tool, arguments)


def _offer(rng: random.Random, needed: list[Tool], without: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """Return schemas of the needed tools among two to four tools, in random order."""
    names = {tool.name for tool in needed}
    others = [tool for tool in TOOLS if tool.name not in names and tool.name not in without]
    count = max(rng.choices((2, 3, 4), (5, 4, 1))[0] - len(needed), 1)
    offered = needed + rng.sample(others, count)
    rng.shuffle(offered)
    return [tool.schema() for tool in offered]


def _answer(tool: Tool, call: Call, result: Any) -> str:
    return tool.answer.format(**call["arguments"], **(result if isinstance(result, dict) else {}))


def _tool_turn(result: Any) -> Message:
    return {"role": "tool", "content": result_text(result)}


def _finish(rng: random.Random, messages: list[Message], steps: list[tuple[Tool, Call]]) -> None:
    """Append tool results and the final answer for the calls of the last assistant turn."""
    answers = []
    for tool, call in steps:
        result = tool.result(rng, call["arguments"])
        messages.append(_tool_turn(result))
        answers.append(_answer(tool, call, result))
    messages.append(_assistant("I have the result.", " ".join(answers)))


def _single(rng: random.Random) -> Dialogue:
    tool = rng.choice(TOOLS)
    text, call = _request(rng, tool)
    messages = [{"role": "user", "content": text}, _assistant(_reason([call]), "", [call])]
    dialogue = Dialogue("single", messages, _offer(rng, [tool]), [(1, [call])])
    if rng.random() < 0.3:
        _finish(rng, messages, [(tool, call)])
    return dialogue


def _parallel(rng: random.Random) -> Dialogue:
    steps: list[tuple[Tool, Call]] = []
    clauses = []
    same = rng.random() < 0.3
    tools = [rng.choice(TOOLS)] * 2 if same else rng.sample(TOOLS, 2)
    for tool in tools:
        arguments = tool.draw(rng, tool.clause)
        while any(call["arguments"] == arguments for _, call in steps):
            arguments = tool.draw(rng, tool.clause)
        steps.append((tool, _call(tool, arguments)))
        clauses.append(fill(tool.clause, arguments))
    frame = rng.choice(("I need {} and {}.", "Please give me {} and {}.", "Two things: {} and {}.", "{}, and also {}.",
                        "First {}, then {}."))  # fmt: skip
    text = frame.format(*clauses) + rng.choice(_CLOSERS)
    calls = [call for _, call in steps]
    messages = [{"role": "user", "content": text}, _assistant(_reason(calls), "", calls)]
    needed = list({tool.name: tool for tool in tools}.values())
    dialogue = Dialogue("parallel", messages, _offer(rng, needed), [(1, calls)])
    if rng.random() < 0.3:
        _finish(rng, messages, steps)
    return dialogue


def _chain(rng: random.Random) -> tuple[str, list[tuple[Tool, Call]], list[Any]]:
    """Return a request that needs a second call with a value from the first call's result."""
    kind = rng.choice(("file", "phone", "shop"))
    if kind == "file":
        first, second = BY_NAME["search_files"], BY_NAME["read_file"]
        arguments = first.draw(rng, "{keyword}{folder}")
        text = rng.choice(("Find the {keyword} file in {folder} and open it.",
                           "What does the {keyword} in {folder} say?",
                           "Search {folder} for {keyword} and read it to me."))  # fmt: skip
        result = first.result(rng, arguments)
        following = {"path": result["path"]}
    elif kind == "phone":
        first, second = BY_NAME["find_contact"], BY_NAME["call_extension"]
        arguments = first.draw(rng, "{person}")
        text = rng.choice(("Call {person}.", "Connect me with {person}.", "Please phone {person} for me.",
                           "Look up {person} and dial the number.", "I want to talk to {person}."))  # fmt: skip
        result = first.result(rng, arguments)
        following = {"extension": result["extension"]}
    else:
        first, second = BY_NAME["search_products"], BY_NAME["add_to_cart"]
        phrase = rng.choice(("Order {quantity} of the {color} {product}.",
                             "Buy {quantity} times a {product} under {max_price}.",
                             "Put {quantity} pieces of a {color} {product} into my cart."))  # fmt: skip
        arguments = first.draw(rng, phrase)
        quantity = int(rng.choice(POOLS["small"]))
        text = phrase.replace("{quantity}", str(quantity))
        result = first.result(rng, arguments)
        following = {"item": result["item"], "quantity": quantity}
    text = rng.choice(_OPENERS) + fill(text, arguments) + rng.choice(_CLOSERS)
    return text, [(first, _call(first, arguments)), (second, _call(second, following))], [result]


def _second(rng: random.Random) -> Dialogue:
    text, steps, results = _chain(rng)
    (first, call), (second, following) = steps
    messages = [{"role": "user", "content": text}, _assistant(_reason([call]), "", [call]), _tool_turn(results[0]),
                _assistant(_reason([following], "Next is "), "", [following])]  # fmt: skip
    dialogue = Dialogue("second", messages, _offer(rng, [first, second]), [(1, [call]), (3, [following])])
    if rng.random() < 0.3:
        _finish(rng, messages, [(second, following)])
    return dialogue


def _follow_up(rng: random.Random) -> Dialogue:
    """Return a second request after a finished first one; the first turn's reasoning is not rendered."""
    first, second = rng.choice(TOOLS), rng.choice(TOOLS)
    text, call = _request(rng, first)
    messages = [{"role": "user", "content": text}, _assistant(_reason([call]), "", [call])]
    _finish(rng, messages, [(first, call)])
    text, following = _request(rng, second)
    messages += [{"role": "user", "content": text}, _assistant(_reason([following]), "", [following])]
    needed = list({tool.name: tool for tool in (first, second)}.values())
    return Dialogue("follow_up", messages, _offer(rng, needed), [(len(messages) - 1, [following])])


def _none(rng: random.Random) -> Dialogue:
    """Return small talk, or a request for which no offered tool fits."""
    if rng.random() < 0.5:
        values = {name: rng.choice(pool) for name, pool in POOLS.items()}
        question, answer = rng.choice(_SMALL_TALK)
        text, reply = rng.choice(_OPENERS) + question.format(**values), answer.format(**values)
        tools = None if rng.random() < 0.15 else _offer(rng, [rng.choice(TOOLS)])
        messages = [{"role": "user", "content": text}, _assistant("No tool is needed.", reply)]
        return Dialogue("none", messages, tools, [(1, [])])
    tool = rng.choice(TOOLS)
    text, _ = _request(rng, tool)
    others = _offer(rng, [rng.choice([t for t in TOOLS if t is not tool])], (tool.name,))
    refusal = _assistant("None of the tools can do this.", "Sorry, I have no tool for that.")
    messages = [{"role": "user", "content": text}, refusal]
    return Dialogue("none", messages, others, [(1, [])])


_MAKERS = {"single": _single, "parallel": _parallel, "second": _second, "follow_up": _follow_up, "none": _none}


def generate(rng: random.Random, held_out: bool = False) -> Dialogue:
    """Draw one dialogue of the asked side of the split."""
    name = rng.choices(list(CATEGORIES), list(CATEGORIES.values()))[0]
    while True:
        dialogue = _MAKERS[name](rng)
        if dialogue.held_out() == held_out:
            break
    if rng.random() < 0.15:
        dialogue.messages.insert(0, {"role": "system", "content": rng.choice(_SYSTEM_TEXTS)})
        dialogue.prompts = [(index + 1, calls) for index, calls in dialogue.prompts]
    return dialogue
