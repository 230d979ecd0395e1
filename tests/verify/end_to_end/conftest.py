"""What whole verifications share: short texts and requests that the fixture can answer, quantized copies of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import Cli
from held_out_requests import held_out_rows, write_requests

CHARACTERS = 700  # of a text
DIALOGUES = 2

Report = dict[str, Any]


@pytest.fixture(scope="session")
def texts(tiny_m2: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Options that name held-out code and dialogues."""
    folder = tmp_path_factory.mktemp("texts")
    code, tools = folder / "code.txt", folder / "tools.jsonl"
    code.write_text((tiny_m2 / "heldout" / "text_code.txt").read_text()[:CHARACTERS])
    tools.write_text("".join(json.dumps(row) + "\n" for row in held_out_rows("dialogues.jsonl")[:DIALOGUES]))
    return ["--text", str(code), "--text", str(tools)]


@pytest.fixture(scope="session")
def requests(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Options that name the requests the fixture answers best, asked greedily and in one sampling loop."""
    path = write_requests(tmp_path_factory.mktemp("requests") / "requests.jsonl", {"single": 12, "second": 12})
    return ["--requests", str(path), "--loops", "1", "--max-tokens", "160"]


@pytest.fixture
def verify(cli: Cli, tmp_path: Path) -> Iterator[Callable[..., tuple[int, Report]]]:
    """Run `quantkit verify` and return its exit code and report.json."""

    def run(*arguments: object) -> tuple[int, Report]:
        folder = tmp_path / "report"
        done = cli("verify", *arguments, "-o", folder)
        assert done.code in (0, 3, 4), done.err
        return done.code, json.loads((folder / "report.json").read_text())

    return run
