"""The licence texts of the packages whose files the corpora quote, for calibration/NOTICE.txt."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from pathlib import Path

from make_calibration.packages import OLDER, PACKAGES, TOOL_SCHEMAS, TRANSLATIONS, licence_files

HEAD = """\
The JSONL files in this folder quote files of the packages below; each row names its package, version and path.
Licence headers at the top of a file were left off the rows, and mail addresses replaced. The licence texts, as the
packages ship them, follow. All other rows were written or generated for quantkit (Apache-2.0, see LICENSE).
"""
_APACHE = re.compile(r"Apache License\s+Version 2\.0, January 2004")
_APACHE_SHORT = "The Apache License, Version 2.0, whose text is the file LICENSE of quantkit."

# Copyright lines of packages that ship no licence file; the MIT text itself is in this notice many times.
_COPYRIGHT = {
    "@openzeppelin/contracts": "MIT License. Copyright (c) 2016-2025 Zeppelin Group Ltd",
    "element-plus": "MIT License. Copyright (c) 2020-PRESENT Element Plus (https://github.com/element-plus)",
    "bfcl-eval": "Apache License 2.0, Berkeley Function Calling Leaderboard (gorilla-llm). " + _APACHE_SHORT,
}


def write_notice(path: Path, folder: Path, names: set[str]) -> None:
    """Write licence texts of the packages `names` (as rows name them); equal texts once, Apache-2.0 by reference."""
    every = [*PACKAGES, *OLDER.values(), TRANSLATIONS, TOOL_SCHEMAS]
    texts: dict[str, list[str]] = defaultdict(list)
    for package in sorted((package for package in every if str(package) in names), key=str):
        found = [text.strip() for text in licence_files(package, folder)]
        whole = "\n\n".join(_APACHE_SHORT if _APACHE.search(text) else text for text in found)
        texts[whole or _COPYRIGHT[package.name]].append(f"{package} ({package.licence})")
    parts = [HEAD]
    for text, packages in sorted(texts.items(), key=lambda item: item[1]):
        parts.append("\n".join(packages) + "\n" + "-" * 60 + "\n" + text)
    path.write_text(("\n" + "=" * 100 + "\n").join(parts) + "\n", encoding="utf-8")


def packages_of(files: list[Path]) -> set[str]:
    """The packages that the rows of `files` name."""
    rows = (json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines())
    return {row["package"] for row in rows if "package" in row}
