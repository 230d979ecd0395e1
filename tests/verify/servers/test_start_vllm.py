"""vLLM: its command line, where it is looked for, and one real start (about 20 s of processor time)."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import httpx
import pytest
from server_processes import runs, with_words

from quantkit.errors import BadInput
from quantkit.verify.servers import environments, sglang, vllm
from quantkit.verify.servers.environments import Environment, visible_gpus
from quantkit.verify.servers.start import ServerSettings, running

SETTINGS = ServerSettings(context=512, concurrency=2, top=64)


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A build for GPUs on a machine with four of them."""
    monkeypatch.setattr(
        vllm, "find_environment", lambda *arguments: Environment(Path("/gpu/bin/python"), "0.32.0", False)
    )
    monkeypatch.setattr(vllm, "visible_gpus", lambda: 5)


def option(command: tuple[str, ...], name: str) -> str:
    return command[command.index(name) + 1]


@pytest.mark.full  # whole verifications start it too
def test_a_real_server_scores_prompts_and_leaves_nothing(tiny_m2: Path, tmp_path: Path) -> None:
    model = tmp_path / "a model"
    model.symlink_to(tiny_m2)
    with running("vllm", model, tmp_path, SETTINGS) as server:
        assert (server.engine, server.version, server.model, server.context) == ("vllm", "0.32.0", "tiny-m2", 512)
        body = {"model": server.model, "prompt": [1, 2, 3], "max_tokens": 1, "prompt_logprobs": SETTINGS.top}
        with httpx.Client(trust_env=False, timeout=120) as client:
            reply = client.post(f"{server.url}/v1/completions", json=body)
        assert reply.status_code == 200, reply.text
        assert len(reply.json()["choices"][0]["prompt_logprobs"][1]) >= SETTINGS.top
        left = with_words(str(model))
        assert left
    assert not any(map(runs, left))
    assert with_words(str(model)) == []


def test_options_of_a_build_for_cpus(tiny_m2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm, "find_environment", lambda *arguments: Environment(Path("/cpu/python"), "0.32.0", True))
    launch = vllm.launch(tiny_m2, SETTINGS)
    # Not `vllm serve`, which the CPU build cannot.
    assert launch.command[:3] == ("/cpu/python", "-m", "vllm.entrypoints.openai.api_server")
    expected = {
        "--model": str(tiny_m2),
        "--dtype": "bfloat16",
        "--tool-call-parser": "minimax_m2",
        "--reasoning-parser": "minimax_m2",
        "--chat-template-content-format": "string",
        "--max-logprobs": "64",
        "--max-num-batched-tokens": "2048",
        "--max-model-len": "512",
        "--gpu-memory-utilization": "0.3",
        "--port": str(launch.port),
    }
    assert {name: option(launch.command, name) for name in expected} == expected
    assert "--enable-auto-tool-choice" in launch.command
    assert "--tensor-parallel-size" not in launch.command
    assert launch.environment["VLLM_CPU_KVCACHE_SPACE"] == "1"
    # 131072 tokens x 4 requests x 4 layers x 2 heads x 64 x keys and values x 2 bytes = 1 GiB to the byte.
    assert vllm.launch(tiny_m2, ServerSettings(131_072, 4, 1)).environment["VLLM_CPU_KVCACHE_SPACE"] == "1"
    assert vllm.launch(tiny_m2, ServerSettings(131_073, 4, 1)).environment["VLLM_CPU_KVCACHE_SPACE"] == "2"


@pytest.mark.usefixtures("gpus")
def test_options_on_gpus(tiny_m2: Path) -> None:
    command = vllm.launch(tiny_m2, ServerSettings(None, 2, 20, arguments=("--tool-call-parser", "hermes"))).command
    # Five cannot share eight heads; the experts' 256 columns in FP8 blocks of 128 are no quarters.
    assert option(command, "--tensor-parallel-size") == "4"
    assert "--enable-expert-parallel" in command
    assert "--max-model-len" not in command
    assert not {"--gpu-memory-utilization", "--enforce-eager"} & set(command)
    # The last word is the user's.
    assert command[-2:] == ("--tool-call-parser", "hermes")


def test_environment_is_found_in_order(tiny_m2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named, other = tmp_path / "named", tmp_path / "other"
    for folder in (named, other):
        (folder / "bin").mkdir(parents=True)
        python = folder / "bin" / "python"
        python.write_text(f"#!/bin/sh\necho '{json.dumps({'vllm': '0.33.0'})}'\n")
        python.chmod(0o755)
    monkeypatch.setenv("QUANTKIT_VLLM", str(other / "bin" / "python"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with_programs = ServerSettings(None, 1, 1, programs=named)
    assert vllm.launch(tiny_m2, with_programs).command[0] == str(named / "bin" / "python")
    assert vllm.launch(tiny_m2, SETTINGS).command[0] == str(other / "bin" / "python")
    # Neither a build for CPUs nor a GPU: nothing is assumed of the machine.
    assert not {"--gpu-memory-utilization", "--tensor-parallel-size"} & set(vllm.launch(tiny_m2, SETTINGS).command)


def test_without_vllm_the_remedy_is_named(tiny_m2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QUANTKIT_VLLM", raising=False)
    monkeypatch.setattr(environments.quantkit, "__file__", str(tmp_path / "quantkit" / "__init__.py"))
    monkeypatch.setattr(environments.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BadInput, match=r"vllm is not installed here; .*setup_vllm_cpu.*\$QUANTKIT_VLLM"):
        vllm.launch(tiny_m2, SETTINGS)
    with pytest.raises(BadInput, match=r"sglang is not installed here; .*\$QUANTKIT_SGLANG"):
        sglang.launch(tiny_m2, SETTINGS)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no interpreter there"),
        ("#!/bin/sh\nexit 1\n", "does not run as a Python interpreter"),
        (f'#!/bin/sh\nexec {sys.executable} "$@"\n', "vllm is not installed in this environment"),
    ],
)
def test_environment_without_vllm_is_refused(content: str | None, said: str, tiny_m2: Path, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "bin").mkdir()
        (tmp_path / "bin" / "python").write_text(content)
        (tmp_path / "bin" / "python").chmod(0o755)
    with pytest.raises(BadInput, match=said) as refused:
        vllm.launch(tiny_m2, ServerSettings(None, 1, 1, programs=tmp_path))
    assert str(tmp_path) in str(refused.value)


def test_options_of_sglang(tiny_m2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sglang, "find_environment", lambda *arguments: Environment(Path("/s/python"), "0.5.5", False))
    monkeypatch.setattr(sglang, "visible_gpus", lambda: 4)
    command = sglang.launch(tiny_m2, SETTINGS).command
    assert command[:3] == ("/s/python", "-m", "sglang.launch_server")
    expected = {
        "--model-path": str(tiny_m2),
        "--context-length": "512",
        "--tp-size": "4",
        "--ep-size": "4",
        "--dtype": "bfloat16",
        "--tool-call-parser": "minimax-m2",
        "--reasoning-parser": "minimax",
    }
    assert {name: option(command, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("chosen", "listed", "count"),
    [
        ("0,1,3", "", 3),
        ("", "GPU 0: X\n", 0),
        ("0,-1,1", "", 1),
        (None, "GPU 0: H100 (UUID: GPU-1)\n  MIG 1g.10gb Device 0: (UUID: MIG-1)\nGPU 1: H100 (UUID: GPU-2)\n", 2),
        (None, None, 0),
    ],
)
def test_visible_gpus(
    chosen: str | None, listed: str | None, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if listed is not None:
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{shutil.which('cat')} <<'END'\n{listed}END\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if chosen is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
    assert visible_gpus() == count
