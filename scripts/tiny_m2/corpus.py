"""Training text: sources and documentation of the Python standard library of the running interpreter."""

from __future__ import annotations

import ast
import random
import sysconfig
from pathlib import Path

_SKIP = {"test", "tests", "idlelib", "lib2to3", "site-packages", "__pycache__", "turtledemo", "encodings", "ensurepip"}
_MAXIMUM_BYTES = 120_000


def source_files() -> list[Path]:
    """Return the library's source files in a fixed order."""
    root = Path(sysconfig.get_path("stdlib"))
    files = [p for p in sorted(root.rglob("*.py")) if not _SKIP & set(p.relative_to(root).parts)]
    return [path for path in files if path.stat().st_size <= _MAXIMUM_BYTES and "pydoc_data" not in path.parts]


def _docstrings(source: str) -> list[str]:
    """Return the longer docstrings of a module, its classes and functions."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            text = ast.get_docstring(node)
            if text and len(text) > 200:
                found.append(text)
    return found


def language_topics() -> list[str]:
    """Return the language reference texts that `help()` shows."""
    from pydoc_data.topics import topics

    return [topics[name] for name in sorted(topics)]


def load_texts(seed: int) -> list[str]:
    """Return code files and documentation texts (topics twice, as there are few), shuffled."""
    code, prose = [], []
    for path in source_files():
        source = path.read_text(encoding="utf-8", errors="ignore")
        code.append(source)
        try:
            prose += _docstrings(source)
        except SyntaxError:
            continue
    texts = code + prose + 2 * language_topics()
    random.Random(seed).shuffle(texts)
    return texts
