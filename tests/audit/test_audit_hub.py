"""Audits of repositories on the stand-in Hub: the same findings as from a folder, from a hundredth of the bytes."""

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
from faults import FAULTS
from hub_standin import TestHub
from planting import CARD, LICENCE, Fault, Models

from quantkit.audit.audit import audit

AUDIT = """
from quantkit.audit.audit import audit
say({repo: audit("hub:" + repo).as_json() for repo in sys.argv[1:]})
"""
# One of a kind, of every table of checks.
CHOSEN = {
    "router-quantized", "norm-quantized", "bias-missing", "experts-missing", "experts-renamed", "not-ignored",
    "quantized-but-ignored", "rules-refused", "packing", "quantization-config-missing", "config-eos",
    "rotary-dim-missing",
    "generation-config-missing", "generation-eos", "chat-template-missing", "licence-missing", "licence-mislabelled",
    "shard-missing", "tensor-not-in-shard", "shard-damaged", "plain-rounding", "down-experts-unsafe", "part-missing",
    "split-tensors", "gguf-eos", "gguf-damaged",
}  # fmt: skip


def loud(report: Any) -> set[str]:
    return {finding["id"] for finding in report["findings"] if finding["severity"] != "note"}


def one_of_each() -> list[Fault]:
    return list({fault.id: fault for fault in FAULTS if fault.id in CHOSEN}.values())


def test_planted_faults_are_found_on_the_hub(hub: TestHub, sound: Models, tmp_path: Path) -> None:
    faults = one_of_each()
    assert {fault.id for fault in faults} == CHOSEN
    repos = {}
    for fault in faults:
        name = fault.rename or f"{sound(fault.base).name}-{fault.id}"
        folder = Path(shutil.copytree(sound(fault.base), tmp_path / name))
        fault.plant(folder)
        hub.add_repo(f"me/{name}", folder)
        repos[f"me/{name}"] = fault
    for base in ("awq", "gptq", "compressed", "q4_k_m", "split"):
        hub.add_repo(f"me/clean-RTN-{base}", sound(base))
    clean = [f"me/clean-RTN-{base}" for base in ("awq", "gptq", "compressed", "q4_k_m", "split")]
    reports = hub.ask(AUDIT, *repos, *clean)
    for repo, fault in repos.items():
        found = loud(reports[repo])
        assert fault.id in found, repo
        assert found - {fault.id} <= fault.also, repo
    for repo in clean:
        assert loud(reports[repo]) == set(), repo
        assert reports[repo]["commit"] == hub.repos[repo].at("main").oid


def test_the_hub_and_a_folder_are_judged_alike(hub: TestHub, sound: Models) -> None:
    hub.add_repo("me/MiniMax-M2.7-RTN-awq", sound("awq"))
    there = hub.ask(AUDIT, "me/MiniMax-M2.7-RTN-awq")["me/MiniMax-M2.7-RTN-awq"]
    here = audit(str(sound("awq"))).as_json()
    assert there["findings"] == here["findings"]
    assert there["models"] == here["models"]
    assert there["source"] == "hub:me/MiniMax-M2.7-RTN-awq"


def test_a_repository_without_card_and_an_older_revision(hub: TestHub, sound: Models, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(sound("gptq"), tmp_path / "gptq"))
    hub.add_repo("me/RTN", folder)
    first = hub.repos["me/RTN"].at("main").oid
    (folder / "README.md").unlink()
    (folder / "generation_config.json").unlink()
    hub.add_repo("me/RTN", folder)
    reports = hub.ask(AUDIT, "me/RTN", f"me/RTN@{first}")
    assert loud(reports["me/RTN"]) == {"card-missing", "generation-config-missing"}
    assert loud(reports[f"me/RTN@{first}"]) == set()
    assert reports[f"me/RTN@{first}"]["commit"] == first


def sparse_checkpoint(folder: Path, sample: Path, experts: int) -> int:
    """A GPTQ checkpoint of M2.7's matrices, `experts` of them in one layer, with holes for weights; its bytes."""
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        shutil.copy(sample / name, folder / name)
    (folder / "README.md").write_text(CARD)
    (folder / "LICENSE").write_text(LICENCE)
    config = json.loads((sample / "config.json").read_text())
    config |= {"num_hidden_layers": 1, "num_local_experts": experts, "hidden_size": 3072, "intermediate_size": 1536}
    config |= {
        "num_attention_heads": 48,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "rotary_dim": 64,
        "num_mtp_modules": 0,
    }
    config["quantization_config"]["group_size"] = 64
    (folder / "config.json").write_text(json.dumps(config))
    shapes: dict[str, tuple[str, list[int]]] = {
        "model.embed_tokens.weight": ("BF16", [4096, 3072]),
        "model.norm.weight": ("BF16", [3072]),
        "lm_head.weight": ("BF16", [4096, 3072]),
    }
    layer, moe = "model.layers.0.", "model.layers.0.block_sparse_moe."
    for norm, size in {"input_layernorm": 3072, "post_attention_layernorm": 3072}.items():
        shapes[f"{layer}{norm}.weight"] = ("BF16", [size])
    for norm, size in {"q_norm": 6144, "k_norm": 1024}.items():
        shapes[f"{layer}self_attn.{norm}.weight"] = ("BF16", [size])
    for name, shape in {"q": [6144, 3072], "k": [1024, 3072], "v": [1024, 3072], "o": [3072, 6144]}.items():
        shapes[f"{layer}self_attn.{name}_proj.weight"] = ("BF16", shape)
    shapes[moe + "gate.weight"] = ("F32", [experts, 3072])
    shapes[moe + "e_score_correction_bias"] = ("F32", [experts])
    for expert in range(experts):
        for name, rows, columns in (("w1", 1536, 3072), ("w2", 3072, 1536), ("w3", 1536, 3072)):
            prefix = f"{moe}experts.{expert}.{name}."
            shapes[prefix + "qweight"] = ("I32", [columns // 8, rows])
            shapes[prefix + "qzeros"] = ("I32", [columns // 64, rows // 8])
            shapes[prefix + "scales"] = ("F16", [columns // 64, rows])
            shapes[prefix + "g_idx"] = ("I32", [columns])
    return _write_sparse(folder / "model.safetensors", shapes)


def _write_sparse(path: Path, shapes: dict[str, tuple[str, list[int]]]) -> int:
    header, offset = {}, 0
    for name, (dtype, shape) in shapes.items():
        size = {"BF16": 2, "F16": 2}.get(dtype, 4)
        for length in shape:
            size *= length
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    raw = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        file.truncate(8 + len(raw) + offset)
    return 8 + len(raw) + offset


def test_less_than_a_hundredth_of_the_bytes_is_read(hub: TestHub, sound: Models, tmp_path: Path) -> None:
    folder = tmp_path / "MiniMax-M2.7-RTN-GPTQ"
    nbytes = sparse_checkpoint(folder, sound("gptq"), experts=24)
    assert nbytes > 200_000_000
    hub.add_repo("me/large-RTN", folder)
    hub.log.clear()
    before = hub.downloaded_bytes
    report = hub.ask(AUDIT, "me/large-RTN")["me/large-RTN"]
    assert loud(report) == set()
    assert hub.downloaded_bytes - before < nbytes / 100
    assert report["bytes_read"] < nbytes / 100
    assert report["total_bytes"] >= nbytes
    weights = [request for request in hub.requests("model.safetensors") if request.method == "GET"]
    assert weights
    assert all(request.range is not None for request in weights)


@pytest.mark.parametrize("mode", ["hub", "xet_hub"])
def test_the_command_judges_a_repository(request: pytest.FixtureRequest, sound: Models, mode: str) -> None:
    hub: TestHub = request.getfixturevalue(mode)
    hub.add_repo("me/RTN", sound("split"), private=True)
    done = hub.run("audit", "me/RTN", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["verdict"] == "clean"
    refused = hub.run("audit", "hub:me/RTN", token=None)
    assert refused.returncode == 2
    assert "me/RTN" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    assert hub.write_token not in done.stdout + refused.stderr
