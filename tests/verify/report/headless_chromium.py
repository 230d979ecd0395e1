"""A real browser without a window, driven through its DevTools protocol over a pipe; no further packages."""

import base64
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
_SECONDS = 60
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-pipe",
)
# Chromium reads commands from descriptor 3 and writes to 4; a program between puts the pipes there.
_ON_3_AND_4 = (
    "import fcntl, os, sys; ends = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 10) for end in sys.argv[1:3]]; "
    "os.dup2(ends[0], 3); os.dup2(ends[1], 4); [os.close(end) for end in ends]; os.execv(sys.argv[3], sys.argv[3:])"
)


def find_chromium() -> str | None:
    """The first browser of this kind on PATH, or None."""
    return next((found for name in PROGRAMS if (found := shutil.which(name))), None)


@dataclass
class View:
    """What one visit to a page showed."""

    screenshot: bytes  # PNG of the whole page
    values: list[Any]  # of the expressions that were asked for
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)  # console messages, uncaught errors, refusals by the policy


class Chromium:
    """A running browser; one command at a time."""

    def __init__(self, commands: int, answers: int) -> None:
        self._commands, self._answers = commands, answers
        self._unread = b""
        self._number = 0
        self._events: list[dict[str, Any]] = []

    def visit(
        self, page: Path, *, width: int, height: int = 900, dark: bool = False, ask: tuple[str, ...] = ()
    ) -> View:
        """Load a file at a window size, wait until it is there, evaluate expressions and take a picture."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable", session)
        mobile = width < 600
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile}
        self.call("Emulation.setDeviceMetricsOverride", session, **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", session, features=[scheme])
        self._events.clear()
        self.call("Page.navigate", session, url=page.as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self._events):
            self._events.append(self._read())
        values = [
            self.call("Runtime.evaluate", session, expression=expression, returnByValue=True)["result"].get("value")
            for expression in ask
        ]
        shot = self.call(
            "Page.captureScreenshot", session, format="png", captureBeyondViewport=True, clip=self._all(session)
        )
        view = View(base64.b64decode(shot["data"]), values)
        for event in self._events:
            _note(view, event)
        self.call("Target.closeTarget", targetId=target)
        return view

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """Send a command and return its result; events that come meanwhile are kept."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return dict(answer["result"])
            self._events.append(answer)

    def _all(self, session: str) -> dict[str, Any]:
        size = self.call("Page.getLayoutMetrics", session)["cssContentSize"]
        return {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}

    def _read(self) -> dict[str, Any]:
        deadline = time.monotonic() + _SECONDS
        while b"\0" not in self._unread:
            ready, _, _ = select.select([self._answers], [], [], max(deadline - time.monotonic(), 0))
            assert ready, f"the browser said nothing for {_SECONDS} s"
            more = os.read(self._answers, 1 << 20)
            assert more, "the browser ended"
            self._unread += more
        message, _, self._unread = self._unread.partition(b"\0")
        answer: dict[str, Any] = json.loads(message)
        return answer


@contextmanager
def running_chromium(program: str, profile: Path) -> Iterator[Chromium]:
    """Start a browser with an empty profile folder; it and its children are gone afterwards."""
    read_commands, commands = os.pipe()
    answers, write_answers = os.pipe()
    ends = (read_commands, write_answers)
    command = [sys.executable, "-c", _ON_3_AND_4, *map(str, ends), program, *_FLAGS, f"--user-data-dir={profile}"]
    with (profile.parent / "chromium.log").open("wb") as log:
        process = subprocess.Popen(command, pass_fds=ends, stdout=log, stderr=log, start_new_session=True)
    for end in ends:
        os.close(end)
    try:
        yield Chromium(commands, answers)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        os.close(commands)
        os.close(answers)


def _note(view: View, event: dict[str, Any]) -> None:
    method, parameters = event["method"], event.get("params", {})
    if method == "Network.requestWillBeSent":
        view.requests.append(parameters["request"]["url"])
    elif method == "Runtime.consoleAPICalled":
        view.complaints.append(json.dumps(parameters["args"]))
    elif method == "Runtime.exceptionThrown":
        view.complaints.append(json.dumps(parameters["exceptionDetails"]))
    elif method == "Log.entryAdded":
        view.complaints.append(parameters["entry"]["text"])
