"""Servers that somebody else started, each kind with a small stand-in."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from quantkit.errors import BadInput
from quantkit.verify.servers.process import free_port
from quantkit.verify.servers.start import ServerSettings, attach

SETTINGS = ServerSettings(context=None, concurrency=1, top=20)


def models(*names: str, **more: Any) -> dict[str, Any]:
    return {"object": "list", "data": [{"id": name, "object": "model", **more} for name in names]}


VLLM = {"/v1/models": models("m2", max_model_len=4096), "/version": {"version": "0.32.0"}}
LLAMA = {
    "/v1/models": models("m2.gguf"),
    "/props": {"default_generation_settings": {"n_ctx": 2048}, "build_info": "b7000-abc", "total_slots": 4},
}
SGLANG = {
    "/v1/models": models("m2", max_model_len=8192),
    "/get_server_info": {"version": "0.5.6", "model_path": "m2", "context_length": 8192},
}
OLD_SGLANG = {"/v1/models": models("m2"), "/get_model_info": {"model_path": "m2"}}
HOSTED = {"/v1/models": models("MiniMax-M2.7")}
KINDS = {
    "vllm": (VLLM, "0.32.0", 4096),
    "llama.cpp": (LLAMA, "b7000-abc", 2048),
    "sglang": (SGLANG, "0.5.6", 8192),
    "old sglang": (OLD_SGLANG, "", None),
    "openai": (HOSTED, "", None),
}
StandIn = Callable[..., str]
Asked = list[tuple[str, str | None]]


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("QUANTKIT_API_KEY", "OPENAI_API_KEY", "QUANTKIT_MODEL", "http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def asked() -> Asked:
    """Paths that were asked for, with the Authorization header."""
    return []


@pytest.fixture
def stand_in(asked: Asked) -> Iterator[StandIn]:
    """A function that starts a server with these answers and returns its address."""
    servers: list[ThreadingHTTPServer] = []

    def start(answers: dict[str, Any], *, status: int = 200, key: str | None = None) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                header = self.headers["Authorization"]
                asked.append((self.path, header))
                code = 404 if self.path not in answers else status
                if key is not None and header != f"Bearer {key}":
                    code = 401
                content = json.dumps(answers.get(self.path, {"error": "not found"})).encode()
                self.send_response(code)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *arguments: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_told_apart(kind: str, stand_in: StandIn) -> None:
    answers, version, context = KINDS[kind]
    url = stand_in(answers)
    server = attach(url, SETTINGS)
    assert (server.engine, server.version, server.context) == (kind.removeprefix("old "), version, context)
    assert server.model == answers["/v1/models"]["data"][0]["id"]
    assert (server.url, server.command, server.log, server.api_key) == (url, (), None, None)
    assert server.is_alive()
    assert server.last_lines() == ""


@pytest.mark.parametrize("end", ["/", "/v1", "/v1/"])
def test_address_with_or_without_v1(end: str, stand_in: StandIn) -> None:
    url = stand_in(VLLM)
    assert attach(url + end, SETTINGS).url == url


def test_address_with_a_folder(stand_in: StandIn) -> None:
    url = stand_in({f"/some/api{path}": answer for path, answer in VLLM.items()})
    assert attach(f"{url}/some/api/v1", SETTINGS).url == f"{url}/some/api"


def test_key_is_sent_and_never_shown(stand_in: StandIn, asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    url = stand_in(HOSTED, key="secret")
    with pytest.raises(BadInput, match=r"wants a key \(401\); give it in \$QUANTKIT_API_KEY"):
        attach(url, SETTINGS)
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    server = attach(url, SETTINGS)
    assert server.api_key == "secret"
    assert "secret" not in repr(server)
    assert ("/v1/models", "Bearer secret") in asked
    monkeypatch.setenv("QUANTKIT_API_KEY", "other")
    with pytest.raises(BadInput, match="refuses the key") as refused:
        attach(url, SETTINGS)
    assert "other" not in str(refused.value)


def test_one_of_many_models_must_be_named(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"model-{number}" for number in range(20)]
    url = stand_in({"/v1/models": models(*names)})
    with pytest.raises(BadInput, match=r"serves 20 models; set \$QUANTKIT_MODEL to one of model-0, model-1,.*…$"):
        attach(url, SETTINGS)
    monkeypatch.setenv("QUANTKIT_MODEL", "model-13")
    assert attach(url, SETTINGS).model == "model-13"
    monkeypatch.setenv("QUANTKIT_MODEL", "model-99")
    with pytest.raises(BadInput, match=r"no model 'model-99'"):
        attach(url, SETTINGS)


def test_server_without_a_list_of_models(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    url = stand_in({})
    with pytest.raises(BadInput, match=r"give the name in \$QUANTKIT_MODEL"):
        attach(url, SETTINGS)
    monkeypatch.setenv("QUANTKIT_MODEL", "MiniMax-M2.7")
    server = attach(url, SETTINGS)
    assert (server.engine, server.model) == ("openai", "MiniMax-M2.7")


def test_context_that_is_too_short(stand_in: StandIn) -> None:
    url = stand_in(LLAMA)
    assert attach(url, ServerSettings(2048, 1, 1)).context == 2048
    with pytest.raises(BadInput, match="takes 2048 tokens of prompt and answer, 2049 are needed"):
        attach(url, ServerSettings(2049, 1, 1))


def test_server_that_is_loading(stand_in: StandIn) -> None:
    with pytest.raises(BadInput, match="answers 503; wait until it has loaded"):
        attach(stand_in(LLAMA, status=503), SETTINGS)


def test_nobody_there() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(BadInput, match=f"{url}: no server answers there"):
        attach(url, SETTINGS)


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://host", "http://", "http://[::1", "", "http://host:port"])
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(BadInput, match="not an address"):
        attach(url, SETTINGS)


def test_password_in_the_address_is_refused_and_not_repeated() -> None:
    with pytest.raises(BadInput, match="password in the address") as refused:
        attach("http://me:hunter2@127.0.0.1:8000", SETTINGS)
    assert "hunter2" not in str(refused.value)
