"""Options that several commands have, spelt and explained in one way."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Source = Annotated[
    Path | None,
    typer.Argument(
        help="Folder of the FP8 or BF16 checkpoint, or org/name[@revision] (default: MiniMaxAI/MiniMax-M2.7)."
    ),
]
CacheSize = Annotated[str, typer.Option(help="Disk that shards from the Hub may take at once.")]
Push = Annotated[
    str | None,
    typer.Option(metavar="ORG/NAME", help="Upload every finished file to this repo of the Hub and delete it here."),
]
Public = Annotated[bool, typer.Option("--public", help="Show the repo to everybody in the end (default: private).")]
Calibration = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|FILE", help="A shipped corpus (default: agentic), or a .yaml, .txt, .jsonl or .parquet file."
    ),
]
Samples = Annotated[
    int | None, typer.Option(min=1, help="Budget in sequences of that length (default: the corpus says).")
]
SequenceLength = Annotated[int | None, typer.Option(min=2, help="Tokens per sequence, at most.")]
Tokens = Annotated[Path | None, typer.Option(help="Token ids saved by `quantkit calibration build`.")]
MinTokens = Annotated[
    int,
    typer.Option(min=0, max=2**32 - 1, help="Every expert's statistics see so many tokens; 0: only routed ones."),
]
Device = Annotated[str, typer.Option(metavar="cpu|cuda", help="Where to compute.")]
Precision = Annotated[
    str, typer.Option(metavar="auto|bfloat16|float32", help="Of the matrix products; sums are always float32.")
]
Memory = Annotated[str | None, typer.Option(help="Memory for the whole process (default: 60 % of free).")]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing output or unfinished run.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")]
