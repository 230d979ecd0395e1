"""The stand-in Hub as a program, to try things by hand and for benchmarks.

    PYTHONPATH=tests python -m hub_standin --folder FOLDER [--port N] [--xet] [--add ORG/NAME=FOLDER]...

Its first line on stdout is JSON: `url` and `content_url`, and the tokens `write` and `read`. It serves until it is
ended; contents stay in FOLDER, repositories are forgotten.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from pathlib import Path

from hub_standin.hub import Hub
from hub_standin.server import serve
from hub_standin.xet_store import XetStore

# As large as a store on the real Hub hands out, so that a benchmark is not one of small requests.
PART_BYTES = 16 << 20


def main() -> None:
    parser = argparse.ArgumentParser(description="stand-in Hugging Face Hub for tests")
    parser.add_argument("--folder", type=Path, required=True, help="where contents are kept")
    parser.add_argument("--port", type=int, default=0, help="default: any free one")
    parser.add_argument("--xet", action="store_true", help="large files through hf_xet; default: LFS")
    parser.add_argument("--add", action="append", default=[], metavar="ORG/NAME=FOLDER", help="a public repository")
    arguments = parser.parse_args()
    folder = arguments.folder.absolute()
    store = XetStore(folder / "xet") if arguments.xet else None
    hub = Hub(folder, store, multipart_over=PART_BYTES, chunk_size=PART_BYTES)
    for text in arguments.add:
        repo_id, _, source = text.partition("=")
        hub.add_repo(repo_id, Path(source))
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit(0))
    with serve(hub, arguments.port):
        tokens = {"write": hub.write_token, "read": hub.read_token}
        print(json.dumps({"url": hub.url, "content_url": hub.content_url, **tokens}), flush=True)
        signal.pause()


if __name__ == "__main__":
    main()
