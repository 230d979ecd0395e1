#!/usr/bin/env python3
"""Runs llama.cpp's convert_hf_to_gguf.py on checkpoints whose tokenizer it does not know.

    scripts/convert_reference.py CHECKPOINT --outfile FILE --outtype bf16 [any other option of convert_hf_to_gguf.py]

The converter recognises a pre-tokenizer by a hash over one encoded text, so it refuses every vocabulary but the
published ones. Fixtures and synthetic checkpoints have MiniMax-M2's pre-tokenizer with small vocabularies of their
own; here the question is answered with `minimax-m2`. Nothing else differs from the converter. Needs the sources that
scripts/setup_llama_cpp unpacks, and torch and transformers.
"""

import importlib
import os
import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    sources = Path(os.environ.get("QUANTKIT_LLAMA_CPP", ROOT / ".cache" / "llama.cpp")) / "src"
    converter = sources / "convert_hf_to_gguf.py"
    if not converter.exists():
        sys.exit(f"{converter} does not exist; run scripts/setup_llama_cpp first")
    # The gguf package that belongs to the converter, before any installed one.
    sys.path[:0] = [str(sources), str(sources / "gguf-py")]
    base = importlib.import_module("conversion.base")
    base.TextModel.get_vocab_base_pre = lambda model, tokenizer: "minimax-m2"
    sys.argv[0] = str(converter)
    runpy.run_path(str(converter), run_name="__main__")


if __name__ == "__main__":
    main()
