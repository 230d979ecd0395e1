"""quantkit's BF16 file against convert_hf_to_gguf.py's: same keys, same tensors, same bytes."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from reference_programs import CHECKPOINT, run_quantkit

pytestmark = pytest.mark.full

# Keys that say who wrote a file, from what and under which name; everything else has to be equal.
PROVENANCE = (
    "general.name",
    "general.basename",
    "general.version",
    "general.finetune",
    "general.organization",
    "general.quantized_by",
    "general.license",
    "general.base_model.",
    "general.tags",
    "general.languages",
    "quantkit.",
    "GGUF.",  # the reader's own view of counts and version
)


def pairs(reader: gguf.GGUFReader) -> dict[str, tuple[list[str], Any]]:
    """Every key that is not provenance: the types of its value (arrays name their element type too) and the value."""
    return {
        name: ([kind.name for kind in field.types], field.contents())
        for name, field in reader.fields.items()
        if not name.startswith(PROVENANCE)
    }


@pytest.fixture(scope="module")
def readers(converted: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[gguf.GGUFReader, gguf.GGUFReader]:
    ours = tmp_path_factory.mktemp("quantkit") / "bf16.gguf"
    run_quantkit("gguf", "bf16", CHECKPOINT, "-o", ours)
    return gguf.GGUFReader(ours), gguf.GGUFReader(converted)


def test_model_tokenizer_and_sampling_keys_are_the_converters(
    readers: tuple[gguf.GGUFReader, gguf.GGUFReader],
) -> None:
    ours, theirs = (pairs(reader) for reader in readers)
    assert ours.keys() == theirs.keys()
    assert {name for name in theirs if ours[name] != theirs[name]} == set()


def test_tensors_have_the_converters_names_types_and_shapes(
    readers: tuple[gguf.GGUFReader, gguf.GGUFReader],
) -> None:
    ours, theirs = (
        {tensor.name: (tensor.tensor_type.name, tensor.shape.tolist()) for tensor in reader.tensors}
        for reader in readers
    )
    assert ours == theirs


def test_tensors_have_the_converters_bytes(readers: tuple[gguf.GGUFReader, gguf.GGUFReader]) -> None:
    ours, theirs = ({tensor.name: tensor.data for tensor in reader.tensors} for reader in readers)
    assert [name for name in theirs if not np.array_equal(ours[name].view(np.uint8), theirs[name].view(np.uint8))] == []
