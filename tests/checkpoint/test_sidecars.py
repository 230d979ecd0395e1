"""Files that go along with a quantized copy, and the one key of config.json that changes."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantkit.checkpoint.sidecars import replace_quantization_config, sidecars
from quantkit.errors import BadInput

VALUE = {"quant_method": "awq", "modules_to_not_convert": ["lm_head", "ü"], "meta": {"empty": {}}}


def test_files_of_the_fixture(tiny_m2: Path) -> None:
    assert [path.name for path in sidecars(tiny_m2)] == [
        "LICENSE",
        "chat_template.jinja",
        "generation_config.json",
        "merges.txt",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.json",
    ]


def test_code_and_licences_go_along_weights_and_model_card_do_not(tmp_path: Path) -> None:
    along = ["LICENSE-MODEL", "NOTICE.md", "modeling_minimax_m2.py", "tokenizer.model", "x.tiktoken", "merges.txt"]
    others = [
        "README.md",
        "config.json",
        "model.safetensors",
        "model.safetensors.index.json",
        "pytorch_model.bin.index.json",
        "quantize_config.json",
        "hf_quant_config.json",
        ".gitattributes",
        ".hidden.json",
        "figure.png",
    ]
    for name in along + others:
        (tmp_path / name).write_text(name)
    (tmp_path / "docs.json").mkdir()
    assert [path.name for path in sidecars(tmp_path)] == sorted(along)


def test_links_of_a_download_cache(tmp_path: Path) -> None:
    (tmp_path / "blob").write_text("{}")
    folder = tmp_path / "snapshot"
    folder.mkdir()
    (folder / "tokenizer.json").symlink_to(tmp_path / "blob")
    assert sidecars(folder) == [folder / "tokenizer.json"]
    (folder / "vocab.json").symlink_to(tmp_path / "missing")
    with pytest.raises(BadInput, match=r"vocab\.json: a link to a file that is missing"):
        sidecars(folder)


def test_fixture_changes_in_one_key_only(tiny_m2: Path, tmp_path: Path) -> None:
    text = (tiny_m2 / "config.json").read_text()
    edited = replace_quantization_config(text, VALUE)
    config = json.loads(text)
    old = json.dumps(config["quantization_config"], indent=2).replace("\n", "\n  ")
    new = json.dumps(VALUE, indent=2).replace("\n", "\n  ")
    assert edited == text.replace(old, new)
    assert json.loads(edited) == config | {"quantization_config": VALUE}
    # transformers reads the rest as before.
    from transformers import AutoConfig

    before = AutoConfig.from_pretrained(tiny_m2).to_dict()
    shutil.copytree(tiny_m2, tmp_path / "copy", ignore=shutil.ignore_patterns("*.safetensors"))
    (tmp_path / "copy" / "config.json").write_text(edited)
    after = AutoConfig.from_pretrained(tmp_path / "copy").to_dict()
    assert {key for key in before if before[key] != after.get(key)} == {"_name_or_path", "quantization_config"}


@pytest.mark.parametrize(
    ("text", "edited"),
    [
        ('{\n\t"a" : 1\n}\n', '{\n\t"a" : 1,\n\t"quantization_config" : {\n\t\t"x" : [\n\t\t\t1\n\t\t]\n\t}\n}\n'),
        (
            '{\r\n  "quantization_config": 5,\r\n  "a": 1.50\r\n}',
            '{\r\n  "quantization_config": {\r\n    "x": [\r\n      1\r\n    ]\r\n  },\r\n  "a": 1.50\r\n}',
        ),
        ('{"a":1,"quantization_config":{"y":"}"},"b":2}', '{"a":1,"quantization_config":{"x":[1]},"b":2}'),
        ('{"a": 1, "b": 1e3}', '{"a": 1, "b": 1e3, "quantization_config": {"x": [1]}}'),
        ("{ }", '{"quantization_config": {"x": [1]} }'),
        (
            '{"a": {"quantization_config": 1}, "b": "\\"quantization_config\\": 2"}',
            '{"a": {"quantization_config": 1}, "b": "\\"quantization_config\\": 2", "quantization_config": {"x": [1]}}',
        ),
        # Of two equal keys parsers take the last.
        (
            '{"quantization_config":1,"quantization_config":2}',
            '{"quantization_config":1,"quantization_config":{"x":[1]}}',
        ),
        (' {\n"a": 1}', ' {\n"a": 1,\n"quantization_config": {\n"x": [\n1\n]\n}}'),
    ],
)
def test_style_of_the_file_is_kept(text: str, edited: str) -> None:
    assert replace_quantization_config(text, {"x": [1]}) == edited


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(
    config=st.dictionaries(st.sampled_from(["a", "b", '"', "ü", ":", "quantization_config"]), values),
    indent=st.sampled_from([None, 0, 1, 4, "\t"]),
    ascii_only=st.booleans(),
)
def test_any_object_keeps_everything_else(config: dict[str, Any], indent: int | str | None, ascii_only: bool) -> None:
    text = json.dumps(config, indent=indent, ensure_ascii=ascii_only)
    edited = replace_quantization_config(text, VALUE)
    read = json.loads(edited)
    assert read == config | {"quantization_config": VALUE}
    assert list(read) == list(config | {"quantization_config": VALUE})
    if config and indent and ascii_only:  # then the edit is what a fresh dump would be
        assert edited == json.dumps(config | {"quantization_config": VALUE}, indent=indent)


@pytest.mark.parametrize("text", ["[1]", '{"a": 1,}', "", "5"])
def test_what_is_not_a_json_object_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - json's own messages
        replace_quantization_config(text, VALUE)
