"""The fixture checkpoint as GGUF files, a server for its Q8_0 file, and a summary of what was measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from gguf_files import GGUFFiles
from held_out import CHECKPOINT, Prompt, prompts
from llama_cpp import LlamaServer, serve
from transformers import AutoTokenizer, PreTrainedTokenizerBase

MEASURED = pytest.StashKey[list[str]]()


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Small products on a shared machine: more threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(CHECKPOINT)


@pytest.fixture(scope="session")
def held_out_prompts(tokenizer: PreTrainedTokenizerBase) -> list[Prompt]:
    return prompts(tokenizer)


@pytest.fixture(scope="session")
def gguf_files(tmp_path_factory: pytest.TempPathFactory) -> GGUFFiles:
    return GGUFFiles(tmp_path_factory.mktemp("gguf"))


@pytest.fixture(scope="session")
def q8_0_server(gguf_files: GGUFFiles, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaServer]:
    with serve(gguf_files.write("q8_0")[0], tmp_path_factory.mktemp("server") / "q8_0") as server:
        yield server


@pytest.fixture
def report(pytestconfig: pytest.Config) -> Callable[[str], None]:
    """A function that adds a line to the summary which pytest prints at its end."""
    return pytestconfig.stash.setdefault(MEASURED, []).append


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    lines = terminalreporter.config.stash.get(MEASURED, [])
    if lines:
        terminalreporter.section("measured on the servers")
        for line in lines:
            terminalreporter.line(line)
