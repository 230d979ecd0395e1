"""Client processes of a stand-in Hub: the Hub's client reads its settings at import, so tests start their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

from hub_standin.hub import Hub
from hub_standin.xet_store import XetStore

ROOT = Path(__file__).resolve().parents[2]
# Settings of the person who runs the tests that must not reach the client.
FOREIGN = ("HF_", "HUGGINGFACE_", "HUGGING_FACE_", "MODEL_ENDPOINT", "LLAMA_CACHE", "LLAMA_ARG_")
HEAD = """
import json, sys
from huggingface_hub import *
from huggingface_hub import errors, hf_api
api = HfApi()
def say(value): print(json.dumps(value))
def status(action, *arguments, **options):  # None, or how the Hub refused it: exception, status, message
    try:
        action(*arguments, **options)
    except Exception as error:
        known = error if isinstance(error, errors.HfHubHTTPError) else error.__cause__  # uploads wrap it
        if not isinstance(known, errors.HfHubHTTPError):
            return [type(error).__name__]
        return [type(known).__name__, known.response.status_code, known.server_message]
"""


class TestHub(Hub):
    """A stand-in Hub with the client processes of one test."""

    __test__ = False
    home: Path

    def environment(self, token: str | None = "", **more: str) -> dict[str, str]:
        """Variables for a client process; `token` is `write_token` if not given, None for no token at all."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
        kept = {name: value for name, value in kept.items() if not name.lower().endswith("_proxy")}
        settings = {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(self.home),
            "HF_XET_CACHE": str(self.home / "xet"),
            "HF_HUB_DISABLE_XET": "0" if self.xet else "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
        }
        used = self.write_token if token == "" else token
        return kept | settings | ({"HF_TOKEN": used} if used else {}) | more

    def run(self, *arguments: object, token: str | None = "", timeout: float = 300, **more: str) -> Completed:
        """`python -m quantkit ARGUMENTS`; `more` are environment variables. The exit code is not checked."""
        return self._start(["-m", "quantkit", *map(str, arguments)], token, timeout, more)

    def python(
        self,
        code: str,
        *arguments: object,
        token: str | None = "",
        timeout: float = 300,
        check: bool = True,
        **more: str,
    ) -> Completed:
        """A snippet in a client process, with huggingface_hub's names and `api`. If `check`, it must exit with 0."""
        done = self._start(["-c", HEAD + textwrap.dedent(code), *map(str, arguments)], token, timeout, more)
        if check and done.returncode:
            raise AssertionError(f"the snippet ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
        return done

    def ask(self, code: str, *arguments: object, **settings: Any) -> Any:
        """What a snippet says with `say(value)`: JSON, once."""
        return json.loads(self.python(code, *arguments, **settings).stdout)

    def _start(self, arguments: list[str], token: str | None, timeout: float, more: dict[str, str]) -> Completed:
        return subprocess.run(
            [sys.executable, *arguments],
            env=self.environment(token, **more),
            cwd=self.home.parent,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )


Completed = subprocess.CompletedProcess[str]


def make_hub(folder: Path, *, xet: bool) -> TestHub:
    """A stand-in Hub for a test, all of it under a folder: hub/ is the server's, home/ the clients'."""
    hub = TestHub(folder / "hub", XetStore(folder / "hub" / "xet") if xet else None)
    hub.home = folder / "home"
    hub.home.mkdir()
    return hub
