"""HTTP to a model server: JSON in and out, patient with a busy server, at once done with a dead one."""

from __future__ import annotations

import email.utils
import ipaddress
import json
import queue
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from types import TracebackType
from typing import Any, TypeVar

import httpx

from quantkit.errors import QuantkitError
from quantkit.verify.servers.running import Server, ServerFailed

Item = TypeVar("Item")
Result = TypeVar("Result")
# What threads say: an item and its result, an error, None at the end.
_Finished = queue.SimpleQueue[tuple[Item, Result] | BaseException | None]

# What may pass: a timeout, a conflict of slots, too many requests, anything that is the server's own fault.
PASSING = frozenset({408, 425, 429, *range(500, 600)})
# Said with a passing status, and no use to repeat: llama.cpp on a completion that its own parser does not understand.
LASTING = ("does not match the expected",)
FIRST_DELAY, LONGEST_DELAY = 0.5, 60.0  # seconds; doubled from attempt to attempt, then within [1/2, 1] of that
LONGEST_RETRY_AFTER = 600.0  # seconds that a server may ask us to wait
WATCH_SECONDS = 0.5  # how often a wait looks whether the server's process still runs
SAID_CHARACTERS = 600  # of the server's words in a message
CONNECT_SECONDS = 30.0


class RequestFailed(QuantkitError):
    """A request that got no useful answer. `status` is None where there was no HTTP answer at all."""

    def __init__(self, path: str, status: int | None, said: str, log: str = "", attempts: int = 1) -> None:
        answered = "no answer" if status is None else f"status {status}"
        tries = f" after {attempts} attempts" if attempts > 1 else ""
        tail = f"; the end of its log: {log}" if log else ""
        super().__init__(f"{path}: {answered} from the server{tries}: {said}{tail}")
        self.path, self.status, self.said = path, status, said


class Client:
    """Requests to one server; used by many threads. `timeout` is for one attempt, in seconds.

    Answers of PASSING and broken connections are asked again `retries` times, with growing, randomly shortened pauses
    or when the server's Retry-After says. Raises RequestFailed when that does not help and at once for other statuses,
    ServerFailed as soon as the server's process is gone.
    """

    def __init__(self, server: Server, *, timeout: float = 600, retries: int = 10) -> None:
        self.server = server
        self._retries = retries
        self._http = httpx.Client(
            base_url=server.url,
            headers={"Authorization": f"Bearer {server.api_key}"} if server.api_key else {},
            timeout=httpx.Timeout(timeout, connect=min(timeout, CONNECT_SECONDS)),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
            trust_env=not _is_local(server.url),  # a proxy does not know this machine's addresses
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def get(self, path: str) -> Any:
        """The JSON answer of `GET path`."""
        return self._json("GET", path, None)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """The JSON answer of `POST path`."""
        return self._json("POST", path, body)

    def stream(self, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield the events of `POST path` up to [DONE]; what breaks after the first one is not asked again."""
        with closing(self._asked("POST", path, body | {"stream": True}, streamed=True)) as answer:
            try:
                for line in answer.iter_lines():
                    if not line.startswith("data:"):
                        continue
                    text = line.removeprefix("data:").strip()
                    if text == "[DONE]":
                        return
                    event = self._parsed(path, answer.status_code, text)
                    if not isinstance(event, dict) or event.get("error"):
                        raise RequestFailed(path, answer.status_code, _said(text), self.server.last_lines())
                    yield event
            except httpx.TransportError as error:
                self._check_alive()
                words = f"the stream broke ({_words(error)})"
                raise RequestFailed(path, None, words, self.server.last_lines()) from None

    def _json(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        answer = self._asked(method, path, body, streamed=False)
        return self._parsed(path, answer.status_code, answer.content)

    def _asked(self, method: str, path: str, body: dict[str, Any] | None, *, streamed: bool) -> httpx.Response:
        """The first answer that is a success, read to its end unless `streamed`."""
        content = None if body is None else json.dumps(body).encode()
        headers = {} if body is None else {"Content-Type": "application/json"}
        request = self._http.build_request(method, path, content=content, headers=headers)
        attempts = self._retries + 1
        for attempt in range(1, attempts + 1):
            pause = random.uniform(0.5, 1) * min(FIRST_DELAY * 2 ** (attempt - 1), LONGEST_DELAY)
            try:
                answer = self._http.send(request, stream=True)
                if streamed and answer.is_success:
                    return answer
                answer.read()
                if answer.is_success:
                    return answer
                status, said = answer.status_code, _said(answer.text)
                if status not in PASSING or any(words in said for words in LASTING):
                    raise RequestFailed(path, status, said, attempts=attempt)
                pause = _retry_after(answer) or pause
            except httpx.TransportError as error:
                status, said = None, _words(error)
            except httpx.HTTPError as error:
                raise RequestFailed(path, None, _words(error)) from None
            self._check_alive()
            if attempt < attempts:
                self._wait(pause)
        raise RequestFailed(path, status, said, self.server.last_lines(), attempts)

    def _wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            time.sleep(min(left, WATCH_SECONDS))
            self._check_alive()

    def _check_alive(self) -> None:
        if not self.server.is_alive():
            log = self.server.last_lines()
            tail = f"; the end of its log: {log}" if log else ""
            raise ServerFailed(
                f"{self.server.url}: the {self.server.engine} server ended while it was being asked; if it ran out of "
                f"memory give it a shorter context or fewer requests at a time{tail}"
            )

    def _parsed(self, path: str, status: int, text: str | bytes) -> Any:
        try:
            return json.loads(text)
        except ValueError:
            words = text.decode(errors="replace") if isinstance(text, bytes) else text
            raise RequestFailed(path, status, f"not JSON: {_said(words)}", self.server.last_lines()) from None


def run_all(
    items: Sequence[Item], work: Callable[[Item], Result], keep: Callable[[Item, Result], None], concurrency: int
) -> None:
    """Do `work` on every item in `concurrency` threads and hand each result to `keep`, in this thread, one at a time.

    After an error no further item is begun, what is under way is finished and kept, then the first error is raised.
    Ctrl-C keeps what is finished and waits for nothing: the threads end with the process.
    """
    waiting: queue.SimpleQueue[Item] = queue.SimpleQueue()
    for item in items:
        waiting.put(item)
    finished: _Finished[Item, Result] = queue.SimpleQueue()
    stop = threading.Event()

    def run() -> None:
        while not stop.is_set():
            try:
                item = waiting.get_nowait()
            except queue.Empty:
                break
            try:
                finished.put((item, work(item)))
            except BaseException as error:
                stop.set()
                finished.put(error)
        finished.put(None)

    threads = [threading.Thread(target=run, daemon=True) for _ in range(min(concurrency, len(items)))]
    for thread in threads:
        thread.start()
    try:
        _collect(finished, keep, len(threads))
    finally:
        stop.set()


def _collect(finished: _Finished[Item, Result], keep: Callable[[Item, Result], None], running: int) -> None:
    """Keep results until every thread has said None; raise the first error then."""
    first: BaseException | None = None
    try:
        while running:
            outcome = finished.get()
            if outcome is None:
                running -= 1
            elif isinstance(outcome, BaseException):
                first = first or outcome
            else:
                keep(*outcome)
    except KeyboardInterrupt:
        while not finished.empty():
            outcome = finished.get()
            if isinstance(outcome, tuple):
                keep(*outcome)
        raise
    if first is not None:
        raise first


def _is_local(url: str) -> bool:
    host = httpx.URL(url).host
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _retry_after(answer: httpx.Response) -> float | None:
    """Seconds that the server asks for, given as a number or as a date; None where it does not say."""
    asked = answer.headers.get("Retry-After", "")
    try:
        seconds = float(asked)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(asked).timestamp() - time.time()
        except ValueError:
            return None
    return min(max(seconds, 0.0), LONGEST_RETRY_AFTER)


def _said(text: str) -> str:
    """The message in an error body of any of the engines, else the body, as one line."""
    try:
        body = json.loads(text)
    except ValueError:
        body = None
    while isinstance(body, dict) and (inner := body.get("error") or body.get("message") or body.get("detail")):
        body = inner
    words = " ".join((body if isinstance(body, str) else text).split())
    return words[:SAID_CHARACTERS] or "no words"


def _words(error: httpx.HTTPError) -> str:
    return " ".join(str(error).split()) or type(error).__name__
