"""`quantkit serve`: the flags that M2.7 needs, what it refuses, and that it runs what it prints."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from harness import Cli
from refusals import refusal

GB = 10**9
# config.json of M2.7, as far as serving asks.
M27 = {
    "architectures": ["MiniMaxM2ForCausalLM"],
    "model_type": "minimax_m2",
    "num_hidden_layers": 62,
    "hidden_size": 3072,
    "intermediate_size": 1536,
    "num_local_experts": 256,
    "num_experts_per_tok": 8,
    "num_attention_heads": 48,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "rotary_dim": 64,
    "vocab_size": 200064,
    "max_position_embeddings": 196608,
    "rope_theta": 5000000,
    "rms_norm_eps": 1e-06,
}


def packed(group_size: int, **more: Any) -> dict[str, Any]:
    group = {"targets": ["re:x"], "weights": {"num_bits": 4, "group_size": group_size}}
    return {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"g": group}, **more}


FP8_GROUP = {"targets": ["re:y"], "weights": {"num_bits": 8, "strategy": "block", "block_structure": [128, 128]}}
QUANTIZATIONS: dict[str, tuple[dict[str, Any] | None, int]] = {
    "bf16": (None, 457),
    "fp8": ({"quant_method": "fp8", "weight_block_size": [128, 128]}, 230),
    "awq": ({"quant_method": "awq", "bits": 4, "group_size": 128}, 125),
    "awq-64": ({"quant_method": "awq", "bits": 4, "group_size": 64}, 129),
    "gptq": ({"quant_method": "gptq", "bits": 4, "group_size": 128}, 125),
    "gptq-rows": ({"quant_method": "gptq", "bits": 4, "group_size": -1}, 120),
    "ct-32": (packed(32), 137),
    "ct-fp8": (
        packed(64, format="mixed-precision", config_groups={"a": FP8_GROUP, **packed(64)["config_groups"]}),
        126,
    ),
    "other": ({"quant_method": "mxfp4"}, 125),
}
Model = Callable[[str], Path]


@pytest.fixture(autouse=True)
def _another_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing installed, no GPUs: what this machine has does not matter to what is printed for another."""
    from quantkit.verify.servers import environments

    for name in ("QUANTKIT_VLLM", "QUANTKIT_SGLANG", "QUANTKIT_LLAMA_CPP"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(environments.quantkit, "__file__", str(tmp_path / "quantkit" / "__init__.py"))


@pytest.fixture
def model(tmp_path: Path) -> Model:
    """Writes a folder as large as M2.7 in some quantization: its bytes are a hole in the file."""

    def write(kind: str) -> Path:
        folder = tmp_path / f"M2.7-{kind}"
        folder.mkdir(exist_ok=True)
        quantization, size = QUANTIZATIONS[kind]
        config = M27 | ({"quantization_config": quantization} if quantization else {})
        (folder / "config.json").write_text(json.dumps(config))
        with (folder / "model.safetensors").open("wb") as file:
            file.truncate(size * GB)
        return folder

    return write


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    path = tmp_path / "M2.7-Q4_K_M.gguf"
    path.write_bytes(b"GGUF")
    return path


@pytest.fixture
def split(tmp_path: Path) -> Path:
    for number in (1, 2, 3):
        (tmp_path / f"M2.7-{number:05d}-of-00003.gguf").write_bytes(b"GGUF")
    return tmp_path / "M2.7-00001-of-00003.gguf"


VLLM_M2 = "--dtype bfloat16 --enable-auto-tool-choice --tool-call-parser minimax_m2 --reasoning-parser minimax_m2"
VLLM_M2 += " --chat-template-content-format string"


def test_command_for_vllm(cli: Cli, model: Model) -> None:
    folder = model("awq")
    result = cli("serve", folder, "--engine", "vllm", "--gpus", "4xH100", "--json").json()
    expected = f"python -m vllm.entrypoints.openai.api_server --model {folder} --served-model-name M2.7-awq "
    expected += f"--host 127.0.0.1 --port 8000 --tensor-parallel-size 4 {VLLM_M2}"
    assert result["command"] == shlex.split(expected)
    assert result["kind"] == "AWQ"


def test_command_for_sglang(cli: Cli, model: Model) -> None:
    folder = model("fp8")
    result = cli("serve", folder, "--engine", "sglang", "--gpus", "8xH200", "--json").json()
    expected = f"python -m sglang.launch_server --model-path {folder} --served-model-name M2.7-fp8 "
    expected += "--host 127.0.0.1 --port 30000 --tp-size 8 --dtype bfloat16 "
    expected += "--tool-call-parser minimax-m2 --reasoning-parser minimax --ep-size 8"
    assert result["command"] == shlex.split(expected)


def test_command_for_llama_cpp(cli: Cli, split: Path) -> None:
    # Any part stands for all.
    result = cli("serve", split.with_name("M2.7-00002-of-00003.gguf"), "--json").json()
    expected = f"llama-server --model {split} --alias M2.7 --host 127.0.0.1 --port 8080 --ctx-size 65536 --parallel 1 "
    expected += "--jinja --reasoning-format auto --temp 1.0 --top-p 0.95 --top-k 40"
    assert result["command"] == shlex.split(expected)
    assert result["engine"] == "llama.cpp"


def test_modelfile_for_ollama(cli: Cli, gguf: Path) -> None:
    result = cli("serve", gguf, "--engine", "ollama", "--json").json()
    lines = result["modelfile"].splitlines()
    assert lines[0] == f"FROM {gguf}"
    assert set(lines[1:]) == {
        "PARAMETER temperature 1.0",
        "PARAMETER top_p 0.95",
        "PARAMETER top_k 40",
        "PARAMETER num_ctx 65536",
    }
    assert result["before"] == [["ollama", "create", "m2.7-q4_k_m", "-f", "Modelfile"]]
    assert result["command"] == ["ollama", "run", "m2.7-q4_k_m"]
    assert any("parser" in note for note in result["notes"])


def test_parts_are_merged_for_ollama(cli: Cli, split: Path) -> None:
    result = cli("serve", split, "--engine", "ollama", "--json").json()
    merged = split.with_name("M2.7.gguf")
    assert result["before"][0] == ["llama-gguf-split", "--merge", str(split), str(merged)]
    assert result["modelfile"].startswith(f"FROM {merged}\n")


def test_command_for_ktransformers(cli: Cli, model: Model, split: Path) -> None:
    folder = model("fp8")
    words = cli("serve", folder, "--engine", "ktransformers", "--json").json()["command"]
    assert words[:5] == ["python", "-m", "sglang.launch_server", "--model-path", str(folder)]
    given = dict(zip(words[3::2], words[4::2]))
    assert given["--kt-method"] == "FP8"
    assert given["--kt-weight-path"] == str(folder)
    assert given["--tool-call-parser"] == "minimax-m2"
    words = cli("serve", split, "--engine", "ktransformers", "--json").json()["command"]
    given = dict(zip(words[3::2], words[4::2]))
    assert (given["--kt-method"], given["--kt-weight-path"]) == ("LLAMAFILE", str(split.parent))


@pytest.mark.parametrize(
    ("kind", "gpus", "parallel"),
    [
        # The table of tensor-parallel limits: 1536 columns of an expert, in blocks or groups.
        ("fp8", "4xH200", (4, False)),
        ("fp8", "8xH200", (8, True)),
        ("fp8", "16xH200", (16, True)),
        ("awq", "2xH200", (2, False)),
        ("awq", "8xH100", (8, True)),
        ("awq-64", "8xH100", (8, False)),
        ("awq-64", "16xH100", (16, True)),
        ("gptq", "8", (8, True)),
        ("gptq-rows", "8", (8, False)),
        ("ct-32", "16xH100", (16, False)),
        ("ct-fp8", "8xH100", (8, True)),
        ("bf16", "8xH100", (8, False)),
    ],
)
def test_parallelism(kind: str, gpus: str, parallel: tuple[int, bool], cli: Cli, model: Model) -> None:
    result = cli("serve", model(kind), "--gpus", gpus, "--json")
    words = result.json()["command"]
    assert words[words.index("--tensor-parallel-size") + 1] == str(parallel[0])
    assert ("--enable-expert-parallel" in words) == parallel[1]


@pytest.mark.parametrize(
    ("kind", "gpus", "said"),
    [
        ("fp8", "3xH200", "cannot be shared by 3; give one of 1, 2, 4, 8, 16\n"),
        ("awq", "6", "cannot be shared by 6"),
        ("fp8", "2xH100", "weights take 230 GB, 2 of 80 GB have room for 136; give --gpus 4xH100 or a smaller model"),
        ("bf16", "4xH100", "give --gpus 8xH100"),
        ("awq", "1xRTX 4090", "give --gpus 8xRTX4090 or a smaller model"),
        ("awq", "0", "not a number of GPUs"),
        ("awq", "4x", "not a number of GPUs"),
    ],
)
def test_gpus_that_cannot_serve_it(kind: str, gpus: str, said: str, cli: Cli, model: Model) -> None:
    assert said in refusal(cli("serve", model(kind), "--gpus", gpus, "--print")) + "\n"


def test_gpus_of_a_kind_that_is_not_in_the_table_are_believed(cli: Cli, model: Model) -> None:
    assert cli("serve", model("bf16"), "--gpus", "2xNEW-1", "--print").code == 0


@pytest.mark.parametrize("engine", ["vllm", "sglang", "llama.cpp", "ollama", "ktransformers"])
@pytest.mark.parametrize("kind", ["fp8", "awq", "gptq", "ct-32", "ct-fp8", "gguf"])
def test_what_loads_what(kind: str, engine: str, cli: Cli, model: Model, gguf: Path) -> None:
    loads = {
        "vllm": {"fp8", "awq", "gptq", "ct-32", "ct-fp8"},
        "sglang": {"fp8", "awq", "gptq", "ct-32", "ct-fp8"},
        "llama.cpp": {"gguf"},
        "ollama": {"gguf"},
        "ktransformers": {"fp8", "gguf"},
    }
    path = gguf if kind == "gguf" else model(kind)
    result = cli("serve", path, "--engine", engine, "--gpus", "4xH200", "--json")
    if kind in loads[engine]:
        assert result.code == 0, result.err
    else:
        line = refusal(result)
        assert str(path) in line
        assert "quantkit g" in line or "original" in line  # how to get what it loads


def test_compose_file(cli: Cli, model: Model) -> None:
    folder = model("awq").rename(model("awq").with_name("a $model: 1"))
    result = cli("serve", folder, "--gpus", "4xH100", "--json").json()
    service = yaml.safe_load(result["compose"])["services"]["model"]
    assert service["image"].startswith("vllm/vllm-openai:v")
    assert service["entrypoint"] == ["python3", "-m", "vllm.entrypoints.openai.api_server"]
    (volume,) = service["volumes"]
    # Compose would put a variable in the place of a single $.
    assert volume["source"] == str(folder).replace("$", "$$")
    assert volume["read_only"]
    words = service["command"]
    assert words[words.index("--model") + 1] == volume["target"] == "/models/a $$model: 1"
    assert words[words.index("--host") + 1] == "0.0.0.0"
    assert service["ports"] == ["127.0.0.1:8000:8000"]
    assert service["deploy"]["resources"]["reservations"]["devices"][0]["count"] == 4
    # Otherwise the same as on the machine itself.
    own = result["command"][3:]
    differ = [index for index, (a, b) in enumerate(zip(own, words, strict=True)) if a != b]
    assert [own[index - 1] for index in differ] == ["--model", "--served-model-name", "--host"]


def test_compose_file_for_llama_cpp(cli: Cli, split: Path) -> None:
    for gpus, image in (((), "server"), (("--gpus", "2xH100"), "server-cuda")):
        service = yaml.safe_load(cli("serve", split, *gpus, "--json").json()["compose"])["services"]["model"]
        assert service["image"].endswith(f":{image}")
        assert ("deploy" in service) == bool(gpus)
        # All parts are in the folder.
        assert service["volumes"][0]["source"] == str(split.parent)
        assert service["command"][:2] == ["--model", f"/models/{split.name}"]


def test_printed_command_can_be_copied(cli: Cli, model: Model) -> None:
    folder = model("gptq").rename(model("gptq").with_name("it's a model"))
    result = cli("serve", folder, "--gpus", "4xH100", "--print")
    assert result.code == 0
    assert result.err == ""
    text = result.out.partition("# command\n")[2].partition("\n\n#")[0]
    assert text.startswith("HF_HUB_OFFLINE=1 python ")
    shell = f"python() {{ printf '%s\\n' \"$@\"; }}; {text}"
    words = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=True).stdout.splitlines()
    assert ["python", *words] == cli("serve", folder, "--gpus", "4xH100", "--json").json()["command"]
    assert yaml.safe_load(result.out.partition("# docker-compose.yaml\n")[2])["services"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "no model given"),
        (("{folder}/missing",), "no such file or folder"),
        (("{folder}", "--engine", "tgi"), "--engine tgi: no such engine; choose vllm"),
        (("{folder}/..",), "config.json: missing"),
        (("{folder}/config.json",), "not a GGUF"),
        (("{folder}",), "vllm is not installed here"),
        (("{folder}", "--engine", "sglang", "--print"), "no GPU here"),
        (("{folder}", "--engine", "ktransformers"), "--print"),
        (("{gguf}", "--engine", "ollama"), "--print"),
    ],
)
def test_refused(arguments: tuple[str, ...], said: str, cli: Cli, model: Model, tmp_path: Path) -> None:
    gguf = tmp_path / "ggufs" / "a.gguf"
    gguf.parent.mkdir()
    gguf.write_bytes(b"GGUF")
    words = [word.format(folder=model("fp8"), gguf=gguf) for word in arguments]
    assert said in refusal(cli("serve", *words))
    assert str(gguf) in refusal(cli("serve", gguf.parent))


def test_unknown_quantization_is_refused(cli: Cli, model: Model) -> None:
    assert "quantized with 'mxfp4'" in refusal(cli("serve", model("other"), "--print"))


def test_it_becomes_what_it_prints(gguf: Path, tmp_path: Path) -> None:
    program = tmp_path / "bin" / "llama-server"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\necho $$\nfor word in "$0" "$@"; do echo "$word"; done\nexit 5\n')
    program.chmod(0o755)
    environment = os.environ | {"QUANTKIT_LLAMA_CPP": str(program.parent)}
    command = [sys.executable, "-m", "quantkit", "serve", str(gguf)]
    printed = subprocess.run([*command, "--json"], capture_output=True, text=True, env=environment, check=True)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as running:
        output = running.communicate(timeout=60)[0].splitlines()
    assert running.returncode == 5
    assert output[0] == str(running.pid)  # no process between
    assert output[1:] == json.loads(printed.stdout)["command"]
