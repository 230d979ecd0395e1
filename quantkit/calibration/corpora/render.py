"""A checkpoint's own tokenizer and chat template.

Only files of the folder are read: no code of it runs, nothing is downloaded or written. Text that looks like a special
token becomes that token, in chats and in plain text (as `llama-imatrix --parse-special` does), so that text which was
rendered elsewhere works too; no token is added at the beginning or end.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit.calibration.corpora.check import row_problem
from quantkit.calibration.corpora.rows import Row
from quantkit.errors import BadInput

# What decides about the ids of a text.
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


class RejectedRow(Exception):
    """A row that cannot be rendered; the message is the reason, without the place."""


@dataclass(frozen=True)
class ChatTokenizer:
    """transformers' fast tokenizer of a checkpoint folder, with the hashes of what decides about its ids."""

    folder: Path
    tokenizer: Any
    sha256: str
    template_sha256: str | None

    def encode(self, row: Row) -> list[int]:
        """Token ids of a row, a chat or a text; RejectedRow with the reason when there are none."""
        problem = row_problem(row.value)
        if problem:
            raise RejectedRow(problem)
        text = self.render(row) if "messages" in row.value else row.value["text"]
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise RejectedRow("text with half of a surrogate pair") from error
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        if not ids:
            raise RejectedRow("text is empty")
        return ids

    def render(self, row: Row) -> str:
        """The text of a chat, by the checkpoint's template, without a generation prompt."""
        if self.template_sha256 is None:
            raise BadInput(f"{self.folder}: has no chat template, but {row.place} is a chat; add chat_template.jinja")
        value = row.value
        try:
            text: str = self.tokenizer.apply_chat_template(
                value["messages"], tools=value.get("tools") or None, tokenize=False, add_generation_prompt=False
            )
        except Exception as error:  # templates are programs: anything may be raised while one runs
            raise RejectedRow(f"chat template: {' '.join(str(error).split())[:200]}") from error
        return text


def load_tokenizer(folder: Path) -> ChatTokenizer:
    """The tokenizer of a checkpoint folder; BadInput when its files are missing or broken."""
    from transformers import PreTrainedTokenizerFast

    path = folder / TOKENIZER_FILES[0]
    if not path.is_file():
        raise BadInput(f"{path}: missing; the tokenizer of the checkpoint makes the token ids")
    try:
        # Not AutoTokenizer: that also reads config.json, follows its auto_map and warns about its token ids.
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the tokenizers library raises bare Exception for a broken file
        raise BadInput(f"{folder}: cannot load the tokenizer: {' '.join(str(error).split())[:300]}") from error
    template = tokenizer.chat_template
    if isinstance(template, dict):  # several templates by name
        template = template.get("default")
    hashed = hashlib.sha256(template.encode("utf-8")).hexdigest() if template else None
    return ChatTokenizer(folder, tokenizer, tokenizer_hash(folder), hashed)


def tokenizer_hash(folder: Path) -> str:
    """SHA-256 over TOKENIZER_FILES of a checkpoint folder, which a token file states; missing ones count as empty.

    Raises BadInput for one that cannot be read.
    """
    digest = hashlib.sha256()
    for name in TOKENIZER_FILES:
        path = folder / name
        try:
            digest.update(path.read_bytes() if path.is_file() else b"")
        except OSError as error:
            raise BadInput(f"{path}: cannot read ({error.strerror})") from error
    return digest.hexdigest()
