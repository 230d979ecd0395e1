"""A stand-in for a chat server: answers are what a function makes of the request's body."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from quantkit.verify.servers.running import Server

Script = Callable[[str, dict[str, Any]], tuple[int, Any]]
"""Path and body to status and reply; a list is a stream of events."""


class ScriptedChat:
    """A running stand-in; `asked` holds (path, body) of all requests."""

    def __init__(self, url: str, asked: list[tuple[str, dict[str, Any]]]) -> None:
        self.url, self.asked = url, asked

    def server(self, engine: str = "openai", context: int | None = None) -> Server:
        return Server(engine=engine, url=self.url, model="scripted", context=context)


@contextmanager
def scripted_chat(script: Script) -> Iterator[ScriptedChat]:
    """Serve on 127.0.0.1 for the length of a with-block."""
    asked: list[tuple[str, dict[str, Any]]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append((self.path, body))
            status, reply = script(self.path, body)
            self.send_response(status)
            self.end_headers()
            if isinstance(reply, list):
                lines = [f"data: {json.dumps(event)}\n\n" for event in reply] + ["data: [DONE]\n\n"]
                self.wfile.write("".join(lines).encode())
            else:
                self.wfile.write(json.dumps(reply).encode())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield ScriptedChat(f"http://127.0.0.1:{server.server_address[1]}", asked)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def reply(
    *calls: tuple[str, dict[str, Any]], content: str = "", reasoning: str = "Thinking.", prompt_tokens: int = 10
) -> dict[str, Any]:
    """A chat completion as vLLM writes it."""
    message: dict[str, Any] = {"role": "assistant", "content": content or None, "reasoning": reasoning}
    if calls:
        message["tool_calls"] = [
            {"id": f"x{number}", "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
            for number, (name, arguments) in enumerate(calls)
        ]
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls" if calls else "stop"}
    return {"choices": [choice], "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": 5}}
