"""Write quantkit/verify/shipped/: `PYTHONPATH=scripts python -m make_verification`.

The requests and texts are written by hand in tools/, requests/ and texts/ beside this file; here they only get the
shape that chat clients send. The same sources give the same bytes.
"""

from __future__ import annotations

from pathlib import Path

from make_verification.requests import request_rows
from make_verification.rows import as_lines
from make_verification.texts import DOMAINS, text_rows

OUT = Path(__file__).resolve().parents[2] / "quantkit" / "verify" / "shipped"


def main() -> None:
    """Write requests.jsonl and one file of texts per domain."""
    (OUT / "texts").mkdir(parents=True, exist_ok=True)
    (OUT / "requests.jsonl").write_text(as_lines(request_rows()), "utf-8")
    for domain in DOMAINS:
        (OUT / "texts" / f"{domain}.jsonl").write_text(as_lines(text_rows(domain)), "utf-8")


if __name__ == "__main__":
    main()
