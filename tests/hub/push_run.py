"""A run that makes files and pushes them, as a conversion does: `python push_run.py REPO FOLDER COUNT BYTES [OPTIONS]`.

OPTIONS is one JSON object: public, tag, identity, small (texts by path), pause (seconds after each file), stop_before
("finalize"). Prints one JSON object. The files' bytes depend on their numbers alone.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from pathlib import Path

from quantkit.errors import QuantkitError
from quantkit.hub import client
from quantkit.hub.upload.push import Push

CARD = "---\nlicense: other\nlicense_name: minimax-m2.7-non-commercial\nlicense_link: LICENSE\n---\n# Model\n"


def content(number: int, size: int) -> bytes:
    return random.Random(number).randbytes(size)


def names(count: int) -> list[str]:
    return [f"M-Q4_K_M-{number:05d}-of-{count:05d}.gguf" for number in range(1, count + 1)]


def main(repo: str, folder: Path, count: int, size: int, options: dict) -> dict:
    made, most = [], 0
    with Push(repo, folder / "M.push", name="M-Q4_K_M.gguf", identity=options.get("identity", "same")) as push:
        planned = {folder / name: size for name in names(count)}
        lines = push.preflight(planned)
        for number, path in enumerate(planned):
            if push.held(path):
                continue
            partial = path.with_name(path.name + ".partial")
            push.wait_for_room(path)
            if not (partial.exists() and partial.stat().st_size == size):
                made.append(path.name)
                aside = path.with_name(path.name + ".made")
                aside.write_bytes(content(number, size))
                os.replace(aside, partial)
            most = max(most, len(list(folder.glob("*.partial"))))
            push.take(path, partial)
            time.sleep(options.get("pause", 0))
        push.finish()
        if options.get("stop_before") == "finalize":
            raise QuantkitError("stopped by the test")
        small = {name: text.encode() for name, text in options.get("small", {}).items()}
        small = {"README.md": CARD.encode(), "LICENSE": b"the licence\n"} | small
        commit = push.finalize(small, "Add Q4_K_M", tag=options.get("tag"), public=options.get("public", False))
    return {"commit": commit, "made": made, "most": most, "sent": push.sent_bytes, "lines": lines}


if __name__ == "__main__":
    client.FIRST_WAIT = 0.02
    _, repo, folder, count, size, *rest = sys.argv
    try:
        print(json.dumps(main(repo, Path(folder), int(count), int(size), json.loads(rest[0]) if rest else {})))
    except QuantkitError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
