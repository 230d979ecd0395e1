"""Whatever stands in the small files of a stranger, an audit ends in findings."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from planting import INT4, Models

from quantkit.audit.audit import audit
from quantkit.errors import BadInput
from quantkit.model.config import hparams_from_config
from quantkit.verify.servers.parallel import legal_counts

ODD: list[Any] = [None, 7, -1, 1.5, "x", "", True, [], [1], [None], ["a", 3], {}, {"a": 1}, {"": []}, "re:(", 10**30]
GROUPED = ("weights", "targets", "format", "input_activations")


def edited(source: Path, folder: Path) -> Path:
    """A copy without weights' bytes of its own: links are enough where only small files change."""
    shutil.copytree(source, folder, copy_function=lambda old, new: Path(new).hardlink_to(old))
    return folder


def replace(folder: Path, name: str, value: object) -> None:
    (folder / name).unlink()
    (folder / name).write_text(value if isinstance(value, str) else json.dumps(value))


@pytest.mark.parametrize("name", ["awq", "gptq", "compressed"])
def test_odd_values_in_the_quantization(little: Models, tmp_path: Path, name: str) -> None:
    folder = edited(little(name), tmp_path / "odd")
    config = json.loads((folder / "config.json").read_text())
    keys = [*config["quantization_config"], "dynamic", "modules_to_not_convert", "weight_block_size", "iters", "meta"]
    for key in keys:
        for value in ODD[::2] if name != "compressed" else ODD[1::2]:
            changed = config | {"quantization_config": config["quantization_config"] | {key: value}}
            replace(folder, "config.json", changed)
            assert audit(str(folder)).findings, (key, value)


def test_odd_groups(little: Models, tmp_path: Path) -> None:
    folder = edited(little("compressed"), tmp_path / "odd")
    config = json.loads((folder / "config.json").read_text())
    group = config["quantization_config"]["config_groups"]["group_0"]
    changes = [{key: value} for key in GROUPED for value in ODD]
    keys = ("num_bits", "group_size", "actorder")
    changes += [{"weights": group["weights"] | {key: value}} for key in keys for value in ODD]
    for change in changes:
        quantization = config["quantization_config"] | {"config_groups": {"group_0": group | change}}
        replace(folder, "config.json", config | {"quantization_config": quantization})
        assert audit(str(folder)).findings, change


@pytest.mark.parametrize(
    "name",
    ["config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json", "quantkit.json",
     "model.safetensors.index.json"],
)  # fmt: skip
def test_odd_small_files(little: Models, tmp_path: Path, name: str) -> None:
    folder = edited(little("gptq"), tmp_path / "odd")
    whole = json.loads((folder / name).read_text())
    for value in (*ODD, "{", "[" * 50_000, '{"a": 1' + "0" * 5_000 + "}"):
        replace(folder, name, value)
        assert audit(str(folder)).findings, value
    for key in [
        *whole,
        "chat_template",
        "added_tokens_decoder",
        "auto_map",
        "rope_parameters",
        "eos_token_id",
        "dtype",
    ]:
        for value in ODD[::3]:
            replace(folder, name, whole | {key: value})
            assert audit(str(folder)).findings, (key, value)


@pytest.mark.parametrize(
    "front", ["", "---\n", "---\n[\n---\n", "---\n- a\n---\n", "---\nlicense: [other]\nbase_model: 7\n---\n"]
)
def test_odd_cards(little: Models, tmp_path: Path, front: str) -> None:
    folder = edited(little("awq"), tmp_path / "odd")
    replace(folder, "README.md", front + "text")
    replace(folder, "LICENSE", "\x00\xff")
    (folder / "recipe.yaml").write_text("a: [*b, &b {")
    assert audit(str(folder)).findings


def test_nothing_to_judge(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"neither \.safetensors nor \.gguf"):
        audit(str(tmp_path))
    (tmp_path / "model.bin").write_bytes(b"x")
    with pytest.raises(BadInput, match="neither a folder nor a GGUF"):
        audit(str(tmp_path / "model.bin"))
    with pytest.raises(BadInput, match="no such file or folder"):
        audit(str(tmp_path / "away" / "model.gguf"))
    (tmp_path / "x.safetensors").write_bytes(b"")
    assert audit(str(tmp_path)).verdict == "breaks"


def test_mlx_is_told_from_what_is_judged(sound: Models, tmp_path: Path) -> None:
    folder = edited(sound("awq"), tmp_path / "MiniMax-M2.7-4bit-MLX")
    config = json.loads((folder / "config.json").read_text())
    config.pop("quantization_config")
    replace(folder, "config.json", config | {"quantization": {"group_size": 64, "bits": 4}})
    report = audit(str(folder))
    assert report.verdict == "clean"
    assert [finding.text for finding in report.findings if finding.id == "not-judged"] == [
        "config.json: a checkpoint for MLX"
    ]


@pytest.mark.parametrize("name", [name for name in INT4 if not name.startswith("kept")])
def test_gpus_that_can_share_it_are_those_of_serve(little: Models, tmp_path: Path, name: str) -> None:
    """A model of M2.7's heads, which eight GPUs can share; 49 experts they cannot."""
    folder = edited(little(name), tmp_path / "wide")
    config = json.loads((folder / "config.json").read_text())
    config |= {"num_attention_heads": 48, "num_key_value_heads": 8, "head_dim": 128, "rotary_dim": 64}
    config |= {"hidden_size": 3072, "intermediate_size": 1536, "num_local_experts": 49}
    replace(folder, "config.json", config)
    told = [finding.text for finding in audit(str(folder)).findings if finding.id == "group-size-tp8"]
    scheme = INT4[name]
    unit = {"group_size": None} if scheme.get("group_size") == -1 else {"group_size": scheme.get("group_size", 128)}
    counts = legal_counts(hparams_from_config(config, folder), unit["group_size"])
    if 8 in counts:
        assert told == []
    else:
        (text,) = told
        shown = [int(word) for word in text.rpartition("; ")[2].removesuffix(" can share it").split(", ")]
        assert shown == [count for count in (1, 2, 4, 8, 16) if count in counts]
