"""vLLM loads what was pushed by the repo's id, from a stand-in Hub that it takes for the real one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from held_out import Prompt
from hub_standin import TestHub
from vllm_server import serve

TEXT = ("--calibration", "smoke", "--samples", "8", "--sequence-length", "256")


@pytest.mark.full
@pytest.mark.parametrize("method", ["awq", "gptq"])
def test_vllm_loads_the_pushed_model_by_its_id(
    method: str, hub: TestHub, tiny_m2: Path, held_out_prompts: list[Prompt], tmp_path: Path
) -> None:
    repo = f"me/tiny-{method}"
    source = shutil.copytree(tiny_m2, tmp_path / "MiniMax-M2.7")  # the card says what it was made of
    for more in (("--push", repo), ("-o", tmp_path / "local")):
        done = hub.run(method, source, *TEXT, *more)
        assert done.returncode == 0, done.stderr
    client = {name: text for name, text in hub.environment().items() if name.startswith("HF_")}
    ids = held_out_prompts[0].ids[:128]
    answers = []
    for model in (repo, tmp_path / "local"):
        with serve(model, tmp_path / f"log-{len(answers)}", environment=client | {"HF_HUB_OFFLINE": "0"}) as server:
            answers.append(server.prompt_logprobs(ids))
    assert answers[0] == pytest.approx(answers[1], abs=1e-6)
    assert hub.requests(rf"GET /{repo}/resolve/.*\.safetensors")
    assert hub.repos[repo].private
