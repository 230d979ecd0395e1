"""The tools of the generated dialogues: JSON schemas, request phrasings, stand-in results and answers."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tiny_m2.pools import POOLS

Arguments = dict[str, Any]


@dataclass(frozen=True)
class Parameter:
    """One argument of a tool: its name, JSON type and the pool its values come from."""

    name: str
    kind: str
    pool: str = ""
    choices: tuple[str, ...] = ()
    required: bool = True

    def schema(self) -> dict[str, Any]:
        """Return the JSON schema of the argument."""
        return {"type": self.kind, "enum": list(self.choices)} if self.choices else {"type": self.kind}

    def draw(self, rng: random.Random) -> Any:
        """Return a random value of the argument's JSON type."""
        if self.kind == "boolean":
            return rng.random() < 0.5
        text = rng.choice(self.choices) if self.choices else rng.choice(POOLS[self.pool])
        return int(text) if self.kind == "integer" else text


@dataclass(frozen=True)
class Tool:
    """One tool with everything needed to write dialogues about it.

    phrases hold `{name}` placeholders; a boolean argument is written `{name?yes wording|no wording}`. An optional
    argument is passed exactly when the phrase mentions it. clause is the phrase used after "and" in parallel requests.
    """

    name: str
    description: str
    parameters: tuple[Parameter, ...]
    phrases: tuple[str, ...]
    clause: str
    result: Callable[[random.Random, Arguments], Any]
    answer: str

    def schema(self) -> dict[str, Any]:
        """Return the tool in the OpenAI shape that chat templates expect."""
        body = {"type": "object", "properties": {p.name: p.schema() for p in self.parameters},
                "required": [p.name for p in self.parameters if p.required]}  # fmt: skip
        return {"type": "function",
                "function": {"name": self.name, "description": self.description, "parameters": body}}  # fmt: skip

    def draw(self, rng: random.Random, phrase: str) -> Arguments:
        """Return values for the arguments that the phrase mentions, without repeating a value."""
        arguments: Arguments = {}
        for parameter in self.parameters:
            if "{" + parameter.name not in phrase:
                continue
            value = parameter.draw(rng)
            while parameter.kind == "string" and value in arguments.values():
                value = parameter.draw(rng)
            arguments[parameter.name] = value
        return arguments


def fill(phrase: str, arguments: Arguments) -> str:
    """Put argument values into a phrase, booleans through their two wordings."""
    for name, value in arguments.items():
        phrase = phrase.replace("{" + name + "}", str(value))
        start = phrase.find("{" + name + "?")
        if start >= 0:
            end = phrase.index("}", start)
            yes, no = phrase[start + len(name) + 2 : end].split("|")
            phrase = phrase[:start] + (yes if value else no) + phrase[end + 1 :]
    return phrase


def _string(name: str, pool: str, required: bool = True) -> Parameter:
    return Parameter(name, "string", pool, required=required)


def _integer(name: str, pool: str, required: bool = True) -> Parameter:
    return Parameter(name, "integer", pool, required=required)


def _choice(name: str, *choices: str, required: bool = True) -> Parameter:
    return Parameter(name, "string", choices=choices, required=required)


def _done(_: random.Random, __: Arguments) -> Any:
    return {"status": "ok"}


TOOLS: tuple[Tool, ...] = (
    Tool("get_weather", "Current weather in a city.",
         (_string("city", "city"), _choice("unit", "celsius", "fahrenheit", required=False)),
         ("What is the weather in {city}?", "How is the weather in {city} today?", "Weather in {city}, please.",
          "Tell me the weather in {city} in {unit}.", "Is it warm in {city}? Use {unit}.",
          "Give me the {unit} temperature in {city}.", "I travel to {city}. What is the weather there?"),
         "the weather in {city}",
         lambda r, a: {"temperature": r.randint(2, 38), "sky": r.choice(["clear", "cloudy", "rain"])},
         "In {city} it is {temperature} degrees, {sky}."),
    Tool("get_time", "Local time in a city.", (_string("city", "city"),),
         ("What time is it in {city}?", "Tell me the local time in {city}.", "Which hour is it in {city} now?",
          "I need the current time in {city}.", "What does the clock say in {city}?"),
         "the time in {city}",
         lambda r, a: {"time": f"{r.randint(1, 23)}:{r.choice(['05', '15', '30', '45'])}"},
         "The time in {city} is {time}."),
    Tool("convert_currency", "Convert an amount of money.",
         (_integer("amount", "price"), _string("source", "currency"), _string("target", "currency")),
         ("Convert {amount} {source} to {target}.", "How much are {amount} {source} in {target}?",
          "I have {amount} {source}. What is that in {target}?", "Change {amount} {source} into {target}, please.",
          "How many {target} do I get for {amount} {source}?"),
         "{amount} {source} in {target}",
         lambda r, a: {"value": r.randint(100, 999)},
         "{amount} {source} are {value} {target}."),
    Tool("search_files", "Find files by keyword.", (_string("keyword", "stem"), _string("folder", "folder")),
         ("Find the {keyword} file in {folder}.", "Search the {folder} folder for {keyword}.",
          "Look for {keyword} in my {folder} folder.", "Where in {folder} is the {keyword}?"),
         "the {keyword} file in {folder}",
         lambda r, a: {"path": f"{a['folder']}/{a['keyword']}.{r.choice(['txt', 'csv', 'json', 'md', 'pdf', 'log'])}"},
         "I found {path}."),
    Tool("read_file", "Read a text file.", (_string("path", "file"),),
         ("Open {path}.", "Read the file {path}.", "Show me what is in {path}.", "What does {path} say?",
          "Print the content of {path}."),
         "the content of {path}",
         lambda r, a: {"content": r.choice(POOLS["text"])},
         "The file says: {content}."),
    Tool("send_message", "Send a short message to a person.", (_string("person", "person"), _string("text", "text")),
         ("Tell {person}: {text}.", "Send {person} the message: {text}.", "Write to {person}: {text}.",
          "Message {person} that {text}."),
         "a message to {person}: {text}", _done, "The message to {person} is sent."),
    Tool("set_timer", "Start a countdown timer.", (_integer("minutes", "minutes"), _string("label", "task", False)),
         ("Set a timer for {minutes} minutes.", "Start a {minutes} minute timer.",
          "Set a {minutes} minute timer for {label}.", "I need a timer called {label} of {minutes} minutes.",
          "Wake me from {label} in {minutes} minutes."),
         "a timer for {minutes} minutes", _done, "The timer runs for {minutes} minutes."),
    Tool("translate", "Translate a word.", (_string("word", "word"), _string("language", "language")),
         ("Translate {word} into {language}.", "How do you say {word} in {language}?",
          "What is the {language} word for {word}?", "Give me {word} in {language}."),
         "{word} in {language}",
         lambda r, a: {"translation": r.choice(["balo", "kiri", "munta", "sevi", "tolar", "venna"])},
         "In {language} it is {translation}."),
    Tool("search_products", "Search the shop.",
         (_string("product", "product"), _integer("max_price", "price", False), _string("color", "color", False)),
         ("Find me a {product}.", "Search the shop for a {product} under {max_price}.",
          "I want to buy a {color} {product}.", "Show me a {color} {product} for at most {max_price}.",
          "Do you sell a {product} below {max_price}?"),
         "a {product} under {max_price}",
         lambda r, a: {"item": int(r.choice(POOLS["code"])), "price": int(r.choice(POOLS["price"]))},
         "Item {item} costs {price}."),
    Tool("add_to_cart", "Put an item into the cart.", (_integer("item", "code"), _integer("quantity", "small")),
         ("Add {quantity} of item {item} to my cart.", "Put {quantity} pieces of item {item} into the cart.",
          "I take item {item}, {quantity} pieces.", "Order item {item}, quantity {quantity}."),
         "{quantity} of item {item} in the cart", _done, "{quantity} of item {item} are in the cart."),
    Tool("book_table", "Reserve a restaurant table.",
         (_string("city", "city"), _integer("people", "small"), _string("day", "day")),
         ("Book a table for {people} in {city} on {day}.", "Reserve a table in {city} on {day} for {people} people.",
          "We are {people} and want to eat in {city} on {day}.", "On {day} I need a table for {people} in {city}."),
         "a table for {people} in {city} on {day}",
         lambda r, a: {"booking": int(r.choice(POOLS["code"]))}, "The table in {city} is booked, number {booking}."),
    Tool("find_route", "Plan a trip between two cities.",
         (_string("origin", "city"), _string("destination", "city"),
          _choice("mode", "car", "train", "bus", "plane", required=False)),
         ("How do I get from {origin} to {destination}?", "Find a route from {origin} to {destination} by {mode}.",
          "I want to go to {destination} from {origin}.", "Plan a {mode} trip from {origin} to {destination}.",
          "Show the way to {destination}, starting in {origin}, by {mode}."),
         "the way from {origin} to {destination}",
         lambda r, a: {"hours": r.randint(2, 20)}, "The trip takes {hours} hours."),
    Tool("play_music", "Play music of a genre.",
         (_string("genre", "genre"), Parameter("shuffle", "boolean", required=False)),
         ("Play some {genre}.", "Put on {genre} music.",
          "I would like to hear {genre} {shuffle?in random order|in order}.",
          "Play {genre} {shuffle?with|without} shuffle.", "Start my {genre} list, shuffle {shuffle?on|off}."),
         "some {genre} music", _done, "Now playing {genre}."),
    Tool("set_light", "Control the light of a room.",
         (_string("room", "room"), Parameter("on", "boolean"), _integer("brightness", "percent", False)),
         ("Turn {on?on|off} the light in the {room}.", "Switch the {room} light {on?on|off}.",
          "Light {on?on|off} in the {room}, please.", "Turn {on?on|off} the {room} light, brightness {brightness}.",
          "Set the {room} light to {on?on|off} at {brightness} percent."),
         "the {room} light {on?on|off}", _done, "The light in the {room} is set."),
    Tool("add_event", "Add an event to the calendar.",
         (_string("title", "task"), _string("day", "day"), _integer("hour", "hour")),
         ("Add {title} to my calendar on {day} at {hour}.", "I have {title} on {day} at {hour}, note it.",
          "Schedule {title} for {day} at {hour}.", "On {day} at {hour} there is {title}. Save it."),
         "{title} on {day} at {hour} in the calendar", _done, "{title} is in the calendar for {day}."),
    Tool("get_stock", "Price of a stock.", (_string("symbol", "symbol"),),
         ("What is the price of {symbol}?", "How does the {symbol} stock stand?", "Quote for {symbol}, please.",
          "Check the {symbol} share."),
         "the price of {symbol}",
         lambda r, a: {"price": r.randint(10, 99)}, "{symbol} is at {price}."),
    Tool("find_contact", "Look up the extension of a person.", (_string("person", "person"),),
         ("What is the extension of {person}?", "Look up {person}.", "How can I reach {person}?",
          "I need the phone extension of {person}."),
         "the extension of {person}",
         lambda r, a: {"extension": int(r.choice(POOLS["code"]))}, "The extension of {person} is {extension}."),
    Tool("call_extension", "Call a phone extension.", (_integer("extension", "code"),),
         ("Call extension {extension}.", "Dial {extension}.", "Please ring extension {extension}.",
          "Connect me with {extension}."),
         "a call to extension {extension}", _done, "Calling {extension}."),
)  # fmt: skip

BY_NAME: dict[str, Tool] = {tool.name: tool for tool in TOOLS}


def result_text(value: Any) -> str:
    """Return a tool result as the JSON text that goes into a tool message."""
    return json.dumps(value, ensure_ascii=False)
