"""llama.cpp's server: the embedded one for real, and the command line of a given llama-server."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from server_processes import runs, wait_until, with_words

from quantkit.errors import BadInput
from quantkit.verify.servers.running import Server, ServerFailed
from quantkit.verify.servers.start import ServerSettings, running

SETTINGS = ServerSettings(context=512, concurrency=2, top=20)
QUESTION = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8, "temperature": 0}


def chat(server: Server) -> dict[str, object]:
    with httpx.Client(trust_env=False, timeout=60) as client:
        reply = client.post(f"{server.url}/v1/chat/completions", json={"model": server.model, **QUESTION})
    assert reply.status_code == 200, reply.text
    return dict(reply.json())


def props(server: Server) -> dict[str, object]:
    with httpx.Client(trust_env=False, timeout=60) as client:
        return dict(client.get(f"{server.url}/props").json())


def test_starts_answers_and_leaves_nothing(tiny_gguf: Path, tmp_path: Path) -> None:
    with running("llama.cpp", tiny_gguf, tmp_path, SETTINGS) as server:
        assert (server.engine, server.model, server.context) == ("llama.cpp", "tiny", 512)
        assert server.version.startswith("xllamacpp ")
        assert server.is_alive()
        assert chat(server)["usage"]["completion_tokens"] == 8  # type: ignore[index]
        assert server.log == tmp_path / "server.log"
        assert server.last_lines()
        left = with_words(str(tiny_gguf))
        assert left
    assert not server.is_alive()
    assert not any(map(runs, left))
    with pytest.raises(httpx.ConnectError):
        chat(server)


def test_proxies_are_not_asked(tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with running("llama.cpp", tiny_gguf, tmp_path, SETTINGS) as server:
        assert server.model == "tiny"


def test_every_slot_has_the_whole_context(tiny_gguf: Path, tmp_path: Path) -> None:
    settings = ServerSettings(context=700, concurrency=3, top=20)
    with running("llama.cpp", tiny_gguf, tmp_path, settings) as server:
        assert props(server)["total_slots"] == 3
        # llama.cpp rounds it up to whole blocks.
        assert server.context is not None
        assert 700 <= server.context < 700 + 256
        with httpx.Client(trust_env=False, timeout=60) as client:
            body = {"prompt": [5] * 650, "n_predict": 1, "temperature": 0}
            assert client.post(f"{server.url}/completion", json=body).status_code == 200


def test_any_part_of_a_split_model_stands_for_all(split_gguf: tuple[Path, ...], tmp_path: Path) -> None:
    assert len(split_gguf) > 2
    with running("llama.cpp", split_gguf[-1], tmp_path, SETTINGS) as server:
        assert str(split_gguf[0]) in server.command


def test_another_template_is_used(tiny_gguf: Path, tmp_path: Path) -> None:
    template = tmp_path / "other.jinja"
    template.write_text("{% for message in messages %}OTHER {{ message.content }}{% endfor %}")
    settings = ServerSettings(512, 1, 20, arguments=("--chat-template-file", str(template)))
    with (
        running("llama.cpp", tiny_gguf, tmp_path, settings) as server,
        httpx.Client(trust_env=False, timeout=60) as client,
    ):
        body = {"messages": QUESTION["messages"]}
        assert "OTHER Hello" in client.post(f"{server.url}/apply-template", json=body).json()["prompt"]


def test_nothing_is_left_after_an_exception(tiny_gguf: Path, tmp_path: Path) -> None:
    left: list[int] = []

    def interrupted() -> None:
        with running("llama.cpp", tiny_gguf, tmp_path, SETTINGS):
            left.extend(with_words(str(tiny_gguf)))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert left
    assert not any(map(runs, left))


PARENT = """
import sys, time
from pathlib import Path
from quantkit.verify.servers.start import ServerSettings, running
with running("llama.cpp", Path(sys.argv[1]), Path(sys.argv[2]), ServerSettings(512, 1, 20)) as server:
    print(server.url, flush=True)
    time.sleep(1000)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_is_left_after_a_signal(how: signal.Signals, tiny_gguf: Path, tmp_path: Path) -> None:
    model = Path(shutil.copy(tiny_gguf, tmp_path / f"{how.name}.gguf"))
    command = [sys.executable, "-c", PARENT, str(model), str(tmp_path / "log")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline().startswith(b"http://127.0.0.1:")
        assert len(with_words(str(model))) >= 3  # the parent, the keeper, the server
        parent.send_signal(how)
    wait_until(lambda: with_words(str(model)) == [])


def test_server_that_is_killed_is_not_alive(tiny_gguf: Path, tmp_path: Path) -> None:
    with running("llama.cpp", tiny_gguf, tmp_path, SETTINGS) as server:
        (pid,) = [pid for pid in with_words("embedded_llama.py", str(tiny_gguf)) if b"keeper" not in _command_line(pid)]
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not server.is_alive())


def _command_line(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def test_damaged_model_is_named_by_the_log(tiny_gguf: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(tiny_gguf.read_bytes()[:2_000_000])
    begun = time.monotonic()
    with (
        pytest.raises(ServerFailed, match=r"llama\.cpp ended with status 1 while loading; .*server\.log, ends: .*load"),
        running("llama.cpp", damaged, tmp_path, SETTINGS),
    ):
        pytest.fail("it was taken for healthy")
    assert time.monotonic() - begun < 20


def test_missing_part_is_named(split_gguf: tuple[Path, ...], tmp_path: Path) -> None:
    lonely = Path(shutil.copy(split_gguf[0], tmp_path))
    with (
        pytest.raises(BadInput, match=rf"{split_gguf[1].name}: missing"),
        running("llama.cpp", lonely, tmp_path, SETTINGS),
    ):
        pass


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (ServerSettings(512, 1, 20, arguments=("--no-such-thing",)), "does not take this.*QUANTKIT_LLAMA_CPP"),
        (ServerSettings(512, 1, 20, programs=Path("/nowhere")), "/nowhere: no llama-server there"),
    ],
)
def test_what_cannot_be_started_is_refused(
    settings: ServerSettings, said: str, tiny_gguf: Path, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match=said), running("llama.cpp", tiny_gguf, tmp_path, settings):
        pass


@pytest.mark.parametrize(
    ("engine", "model", "said"),
    [
        ("ollama", ".", "--engine ollama: no server of that name.*vllm, llama.cpp, sglang"),
        ("llama.cpp", "missing.gguf", "missing.gguf: no such file"),
        ("llama.cpp", ".", "not a file; llama.cpp loads a GGUF"),
    ],
)
def test_engines_and_models_that_are_not_there(engine: str, model: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=said), running(engine, tmp_path / model, tmp_path, SETTINGS):
        pass


def test_a_given_llama_server_gets_the_same_options(
    tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a script in its place that serves with the embedded one: what it is asked for is what that understands."""
    from quantkit.verify.servers import embedded_llama

    program = tmp_path / "bin" / "llama-server"
    program.parent.mkdir()
    program.write_text(
        f'#!/bin/sh\necho variable "[$LLAMA_ARG_PARALLEL]"\n{sys.executable} {embedded_llama.__file__} "$@"\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("LLAMA_ARG_PARALLEL", "7")
    monkeypatch.setenv("QUANTKIT_LLAMA_CPP", str(program.parent))
    with running("llama.cpp", tiny_gguf, tmp_path, SETTINGS) as server:
        assert server.command[0] == str(program)
        assert props(server)["total_slots"] == 2
        assert "variable []" in (tmp_path / "server.log").read_text()
