"""The HTTP client against a server that fails in every way a script can say, and one whose process dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from email.utils import formatdate
from pathlib import Path

import httpx
import pytest
from faulty_server import RESET, Script, serving

from quantkit.verify import client as client_module
from quantkit.verify.client import Client, RequestFailed, run_all
from quantkit.verify.servers.running import Server, ServerFailed

OK = (200, {}, {"ok": True})


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "FIRST_DELAY", 0.01)


def failing(status: int, body: object = "", **headers: str) -> tuple[int, dict[str, str], object]:
    return status, {name.replace("_", "-"): value for name, value in headers.items()}, body


def test_post_sends_json_and_returns_json() -> None:
    script = Script([(200, {}, {"answer": "é"})])
    with serving(script) as server, Client(server) as client:
        assert client.post("/v1/x", {"a": [1, 2]}) == {"answer": "é"}
        assert client.get("/health") == {"ok": True}
    assert [(a.method, a.path, a.body) for a in script.asked] == [
        ("POST", "/v1/x", {"a": [1, 2]}),
        ("GET", "/health", None),
    ]
    assert "Authorization" not in script.asked[0].headers


def test_key_goes_out_as_bearer_and_into_no_message() -> None:
    script = Script([failing(400, "no")])
    with serving(script, api_key="geheim") as server, Client(server) as client:
        with pytest.raises(RequestFailed) as failed:
            client.post("/x", {})
        assert "geheim" not in str(failed.value)
        assert "geheim" not in repr(server)
    assert script.asked[0].headers["Authorization"] == "Bearer geheim"


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503])
def test_what_may_pass_is_asked_again(status: int) -> None:
    script = Script([failing(status), failing(status), OK])
    with serving(script) as server, Client(server) as client:
        assert client.post("/x", {"n": 1}) == {"ok": True}
    assert [asked.body for asked in script.asked] == [{"n": 1}] * 3


@pytest.mark.parametrize("status", [302, 400, 401, 404, 413, 422])
def test_what_will_not_pass_is_said_at_once(status: int) -> None:
    script = Script([failing(status, {"error": {"message": "too\n  long", "code": status}}), OK])
    with serving(script) as server, Client(server) as client, pytest.raises(RequestFailed) as failed:
        client.post("/v1/completions", {})
    assert len(script.asked) == 1
    assert (failed.value.path, failed.value.status, failed.value.said) == ("/v1/completions", status, "too long")
    assert str(failed.value) == f"/v1/completions: status {status} from the server: too long"


def test_a_completion_that_llama_cpp_cannot_parse_is_not_generated_again() -> None:
    said = "The model produced output that does not match the expected peg-native format"
    script = Script([failing(500, {"error": {"message": said}}), OK])
    with serving(script) as server, Client(server) as client, pytest.raises(RequestFailed, match="does not match"):
        client.post("/v1/chat/completions", {})
    assert len(script.asked) == 1


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"error": "plain"}, "plain"),
        ({"message": "m", "object": "error"}, "m"),
        ({"detail": "Not Found"}, "Not Found"),
        ("<html>\nBad  gateway</html>", "<html> Bad gateway</html>"),
        ("", "no words"),
        ("x" * 5000, "x" * client_module.SAID_CHARACTERS),
    ],
)
def test_servers_words_are_found_in_any_shape(body: object, said: str) -> None:
    script = Script([failing(400, body)])
    with serving(script) as server, Client(server) as client, pytest.raises(RequestFailed) as failed:
        client.get("/x")
    assert failed.value.said == said


def test_retries_end_and_the_message_has_the_log(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    log.write_text("loading\nCUDA out of memory\n")
    script = Script(otherwise=lambda asked: failing(500, {"error": {"message": "boom"}}))
    with (
        serving(script, log=log) as server,
        Client(server, retries=2) as client,
        pytest.raises(RequestFailed) as failed,
    ):
        client.post("/x", {})
    assert len(script.asked) == 3
    assert "\n" not in str(failed.value)
    for part in ("/x", "500", "boom", "3 attempts", "CUDA out of memory"):
        assert part in str(failed.value)


@pytest.mark.parametrize("how", ["seconds", "date"])
def test_retry_after_is_waited_for(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(Client, "_wait", lambda self, seconds: waited.append(seconds))
    asked_for = "7" if how == "seconds" else formatdate(time.time() + 7, usegmt=True)
    script = Script([failing(429, "slow down", Retry_After=asked_for), failing(429, "slow down"), OK])
    with serving(script) as server, Client(server) as client:
        client.post("/x", {})
    assert waited[0] == pytest.approx(7, abs=1.1)  # a date has whole seconds
    assert waited[1] <= 0.02


def test_pauses_double_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(Client, "_wait", lambda self, seconds: waited.append(seconds))
    monkeypatch.setattr(client_module, "LONGEST_DELAY", 0.05)
    script = Script(otherwise=lambda asked: failing(503))
    with serving(script) as server, Client(server, retries=5) as client, pytest.raises(RequestFailed):
        client.get("/x")
    assert len(waited) == 5
    for pause, longest in zip(waited, [0.01, 0.02, 0.04, 0.05, 0.05], strict=True):
        assert longest / 2 <= pause <= longest


def test_reset_connection_is_asked_again() -> None:
    script = Script([RESET, RESET, OK])
    with serving(script) as server, Client(server) as client:
        assert client.post("/x", {}) == {"ok": True}
    assert len(script.asked) == 3


def test_nothing_listening_fails_after_the_retries() -> None:
    with serving(Script()) as server:
        pass
    with Client(server, retries=1) as client, pytest.raises(RequestFailed) as failed:
        client.get("/x")
    assert failed.value.status is None
    assert "no answer from the server after 2 attempts" in str(failed.value)


def test_too_slow_an_answer_is_asked_again() -> None:
    slow = threading.Event()

    def answer(asked: object) -> tuple[int, dict[str, str], object]:
        if not slow.is_set():
            slow.set()
            time.sleep(0.5)
        return OK

    script = Script(otherwise=answer)
    with serving(script) as server, Client(server, timeout=0.2) as client:
        assert client.get("/x") == {"ok": True}
    assert len(script.asked) == 2


def test_success_without_json_is_a_failure() -> None:
    script = Script([(200, {}, "<html>login</html>")])
    match = "not JSON: <html>login"
    with serving(script) as server, Client(server) as client, pytest.raises(RequestFailed, match=match):
        client.get("/x")


def test_dead_process_is_said_at_once(tmp_path: Path) -> None:
    """The server is killed between two requests; ten retries would take minutes with the usual pauses."""
    program = (
        "import http.server, sys\n"
        "class H(http.server.BaseHTTPRequestHandler):\n"
        "    def do_GET(self): self.send_response(200); self.end_headers(); self.wfile.write(b'{}')\n"
        "server = http.server.HTTPServer(('127.0.0.1', 0), H)\n"
        "print(server.server_port, flush=True)\n"
        "server.serve_forever()\n"
    )
    log = tmp_path / "log"
    log.write_text("terminate called\n")
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        url = f"http://127.0.0.1:{int(process.stdout.readline())}"
        server = Server(engine="vllm", url=url, model="m", log=log, running=lambda: process.poll() is None)
        with Client(server) as client:
            assert client.get("/x") == {}
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            started = time.monotonic()
            with pytest.raises(ServerFailed, match=r"ended while it was being asked.*terminate called") as failed:
                client.get("/x")
    assert time.monotonic() - started < 1
    assert "\n" not in str(failed.value)


def test_death_during_a_pause_ends_the_pause() -> None:
    script = Script([failing(503, "busy", Retry_After="60")])
    with serving(script) as server, Client(server) as client:
        until = time.monotonic() + 0.2
        server.running = lambda: time.monotonic() < until
        with pytest.raises(ServerFailed):
            client.get("/x")
    assert time.monotonic() - until < 2 * client_module.WATCH_SECONDS + 0.5


def test_stream_yields_events_up_to_done() -> None:
    events = 'data: {"n": 1}\n\n: comment\n\nevent: x\ndata: {"n": 2}\n\ndata: [DONE]\n\ndata: {"n": 3}\n\n'
    script = Script([failing(503), (200, {}, events)])
    with serving(script) as server, Client(server) as client:
        assert list(client.stream("/x", {"a": 1})) == [{"n": 1}, {"n": 2}]
    assert script.asked[1].body == {"a": 1, "stream": True}


def test_stream_error_event_and_refusal_are_failures() -> None:
    script = Script([(200, {}, 'data: {"n": 1}\n\ndata: {"error": {"message": "died"}}\n\n'), failing(400, "bad")])
    with serving(script) as server, Client(server) as client:
        events = client.stream("/x", {})
        assert next(events) == {"n": 1}
        with pytest.raises(RequestFailed, match="died"):
            next(events)
        with pytest.raises(RequestFailed, match="bad"):
            next(client.stream("/x", {}))


@pytest.mark.parametrize(
    ("url", "proxied"),
    [
        ("http://127.0.0.1:1", False),
        ("http://localhost:1", False),
        ("http://[::1]:1", False),
        ("https://api.example.com", True),
    ],
)
def test_proxies_are_for_remote_servers_only(url: str, proxied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    build = httpx.Client

    def spy(**settings: object) -> httpx.Client:
        seen.append(bool(settings["trust_env"]))
        return build(**settings)  # type: ignore[arg-type]

    monkeypatch.setattr(client_module.httpx, "Client", spy)
    with Client(Server(engine="openai", url=url, model="m")):
        assert seen == [proxied]


def test_run_all_keeps_every_result_in_the_calling_thread() -> None:
    here, kept = threading.current_thread(), {}
    together = threading.Barrier(3)

    def work(item: int) -> int:
        together.wait(5)  # breaks unless three run at the same time
        return item * item

    def keep(item: int, result: int) -> None:
        assert threading.current_thread() is here
        kept[item] = result

    run_all(range(9), work, keep, 3)
    assert kept == {item: item * item for item in range(9)}
    run_all([], work, keep, 3)


def test_run_all_stops_at_the_first_error_and_keeps_what_was_under_way() -> None:
    kept: list[int] = []
    begun: list[int] = []
    failed = threading.Event()

    def work(item: int) -> int:
        begun.append(item)
        if item == 1:
            failed.set()
            raise RuntimeError("item 1")
        assert failed.wait(5)
        time.sleep(0.1)
        return item

    with pytest.raises(RuntimeError, match="item 1"):
        run_all(range(100), work, lambda item, result: kept.append(item), 2)
    assert sorted(begun) == [0, 1]
    assert kept == [0]


def test_run_all_error_of_keep_stops_it() -> None:
    begun: list[int] = []

    def keep(item: int, result: int) -> None:
        raise OSError("disk full")

    def work(item: int) -> int:
        begun.append(item)
        time.sleep(0.01)
        return item

    with pytest.raises(OSError, match="disk full"):
        run_all(range(1000), work, keep, 2)
    time.sleep(0.1)
    assert len(begun) < 100


def test_ctrl_c_keeps_what_is_finished_and_waits_for_nothing(tmp_path: Path) -> None:
    program = (
        "import sys, time\n"
        "from quantkit.verify.client import run_all\n"
        "def work(item):\n"
        "    time.sleep(0.01 if item < 3 else 600)\n"
        "    return item\n"
        "run_all(range(9), work, lambda item, result: print(result, flush=True), 2)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        kept = [process.stdout.readline() for _ in range(3)]
        process.send_signal(signal.SIGINT)
        started = time.monotonic()
        _, said = process.communicate(timeout=20)
    assert sorted(kept) == ["0\n", "1\n", "2\n"]
    assert "KeyboardInterrupt" in said
    assert time.monotonic() - started < 5
