"""Compensated GGUFs are ordinary ones: llama.cpp serves and validates them, gguf-py and `inspect` read them.

All of them come out of one command and one pass, so every file but the first followed another type's layers.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest
from harness import Cli
from held_out_requests import single_step_requests
from llama_cpp_programs import PLAIN, PROGRAMS
from quantkit_program import run_quantkit

from quantkit.quantize.compensate import COMPENSATED_TYPES
from quantkit.quantize.ggml import valid
from quantkit.quantize.ggml_blocks import dequantize
from quantkit.verify.client import Client
from quantkit.verify.servers.running import ServerFailed
from quantkit.verify.servers.start import ServerSettings, running
from quantkit.verify.tool_calls.arguments import same_calls
from quantkit.verify.tool_calls.ask import GREEDY_SAMPLING, ask

MIXES = ("q4_k_m", "q2_k", "iq4_xs", "mxfp4_moe")
SAMPLES, LENGTH = 4, 256  # of dialogues; code and prose are scored
RELATIVE, ABSOLUTE = 0.1, 0.002  # of the mean KLD
FEW, MANY = 300, 1200  # characters of each text
SERVED = ServerSettings(context=1024, concurrency=1, top=1)
DAMAGED = "blk.1.attn_q.weight"  # Q4_K in Q4_K_M: its blocks begin with a scale in half precision
HALF_PRECISION_NAN = 0x7E00


@pytest.fixture(scope="module")
def files(tiny_m2: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A file of every mix."""
    folder = tmp_path_factory.mktemp("compensated")
    text = ("--calibration", tiny_m2 / "heldout" / "dialogues.jsonl", "--samples", SAMPLES, "--sequence-length", LENGTH)
    run_quantkit("gguf", ",".join(MIXES), tiny_m2, "-o", folder, "--compensate", *text)
    return {mix: folder / f"{tiny_m2.name}-{mix.upper()}.gguf" for mix in MIXES}


@pytest.fixture(scope="module")
def damaged(files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the first file in which one scale is NaN."""
    path = Path(shutil.copyfile(files["q4_k_m"], tmp_path_factory.mktemp("damaged") / "damaged.gguf"))
    (tensor,) = (tensor for tensor in gguf.GGUFReader(path).tensors if tensor.name == DAMAGED)
    assert tensor.tensor_type == gguf.GGMLQuantizationType.Q4_K
    with path.open("r+b") as file:
        file.seek(int(tensor.data_offset))
        file.write(HALF_PRECISION_NAN.to_bytes(2, "little"))
    return path


@pytest.mark.parametrize("mix", MIXES)
def test_embedded_server_answers_with_the_expected_call(mix: str, files: dict[str, Path], tmp_path: Path) -> None:
    (request,) = single_step_requests("single", 1)
    with running("llama.cpp", files[mix], tmp_path / "server", SERVED) as server, Client(server, retries=1) as client:
        answer = ask(client, request.messages, request, sampling=GREEDY_SAMPLING, limit=120, seed=0)
    assert answer.triggered
    assert same_calls(answer.calls, request.expected or ())


@pytest.mark.parametrize(
    ("mix", "characters"),
    [("q4_k_m", FEW), ("q2_k", FEW), *(pytest.param(mix, MANY, marks=pytest.mark.full) for mix in MIXES)],
)
def test_divergence_is_the_same_on_llama_cpp_and_streamed(
    mix: str, characters: int, files: dict[str, Path], tiny_m2: Path, cli: Cli, tmp_path: Path
) -> None:
    texts: list[object] = []
    for name in ("code", "docs"):
        path = tmp_path / f"{name}.txt"
        path.write_text((tiny_m2 / "heldout" / f"text_{name}.txt").read_text()[:characters])
        texts += ["--text", path]
    reference = tmp_path / "fp8.capture"
    capture = cli("verify", "capture", tiny_m2, "-o", reference, "--engine", "streamed", "--requests", "none", *texts)
    assert capture.code == 0, capture.err
    found = {}
    for engine in ("streamed", "llama.cpp"):
        done = cli(
            "verify", files[mix], "--reference", reference, "--engine", engine, "-o", tmp_path / engine, "--json"
        )
        assert done.code in (0, 3, 4), done.err
        metrics = done.json()["metrics"]
        assert metrics["finite"] == 1
        found[engine] = metrics["kld"]["mean"]
    print(f"\n{mix}, {characters} characters of a text: mean KLD {found}")
    assert found["llama.cpp"] == pytest.approx(found["streamed"], rel=RELATIVE, abs=ABSOLUTE)


@pytest.mark.parametrize("mix", MIXES)
def test_inspect_finds_no_problem_and_shows_that_it_is_compensated(mix: str, files: dict[str, Path], cli: Cli) -> None:
    done = cli("inspect", files[mix], "--json")
    assert (done.code, done.err) == (0, "")
    found = done.json()
    assert found["problems"] == []
    facts = found["facts"]
    assert facts["quantkit.mix"] == mix.upper()
    assert facts["quantkit.compensated"] is True
    assert facts["quantkit.compensation.led_by"] == MIXES[0].upper()
    assert facts["quantkit.compensation.tensors_without"] == ["token_embd.weight"]
    assert facts["quantkit.calibration.precision"] in ("float32", "bfloat16")


@pytest.mark.parametrize("mix", MIXES)
def test_gguf_py_reads_the_weights_that_ggml_reads(mix: str, files: dict[str, Path], tiny_m2: Path) -> None:
    reader = gguf.GGUFReader(files[mix])
    assert reader.fields["quantkit.compensated"].contents() is True
    assert reader.fields["tokenizer.chat_template"].contents() == (tiny_m2 / "chat_template.jinja").read_text()
    seen = set()
    for tensor in reader.tensors:
        kind = tensor.tensor_type.name
        rows = tensor.data.reshape(-1, tensor.data.shape[-1])
        assert valid(np.ascontiguousarray(rows), kind), tensor.name
        if kind in COMPENSATED_TYPES:
            expected = dequantize(rows, kind, int(tensor.shape[0]))
            np.testing.assert_array_equal(gguf.quants.dequantize(rows, tensor.tensor_type), expected, tensor.name)
            seen.add(kind)
    assert len(seen) >= 2


def test_ggmls_check_finds_a_damaged_scale(damaged: Path) -> None:
    """Else the checks above would say nothing."""
    found = [
        tensor.name
        for tensor in gguf.GGUFReader(damaged).tensors
        if not valid(np.ascontiguousarray(tensor.data), tensor.tensor_type.name)
    ]
    assert found == [DAMAGED]


@pytest.mark.full
@pytest.mark.parametrize("mix", MIXES)
def test_llama_server_takes_it_with_all_tensors_checked(mix: str, files: dict[str, Path], tmp_path: Path) -> None:
    with running("llama.cpp", files[mix], tmp_path / "server", checking()) as server:
        assert server.is_alive()


@pytest.mark.full
def test_llama_server_refuses_a_damaged_one(damaged: Path, tmp_path: Path) -> None:
    with pytest.raises(ServerFailed), running("llama.cpp", damaged, tmp_path / "server", checking()):
        pass
    assert f"tensor '{DAMAGED}' has invalid data" in (tmp_path / "server" / "server.log").read_text()


def checking() -> ServerSettings:
    return ServerSettings(1024, concurrency=1, top=1, programs=PROGRAMS, arguments=("--check-tensors", *PLAIN))
