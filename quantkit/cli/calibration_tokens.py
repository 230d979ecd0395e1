"""Which tokens a command calibrates with: those of a file, or of a corpus rendered for the checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from quantkit.errors import BadInput

if TYPE_CHECKING:
    from quantkit.calibration.tokens import TokenSet
    from quantkit.model.spec import HParams

DEFAULT_CALIBRATION = "agentic"


@dataclass(frozen=True)
class CalibrationOptions:
    """What --tokens, --calibration, --samples and --sequence-length were given as; None where they were not."""

    tokens: Path | None
    calibration: str | None
    samples: int | None
    sequence_length: int | None

    @property
    def files(self) -> dict[str, Path | None]:
        """The input files that these options may name, for checks of the output."""
        return {"--tokens": self.tokens, "--calibration": Path(self.calibration) if self.calibration else None}

    @property
    def origin(self) -> str:
        """The option that decides, with its value, for messages."""
        return f"--tokens {self.tokens}" if self.tokens else f"--calibration {self.calibration or DEFAULT_CALIBRATION}"

    def load(self, source: Path, hparams: HParams) -> TokenSet:
        """The token ids for the checkpoint in `source`; rejected rows of a corpus are told on stderr.

        Raises BadInput for options that exclude each other, for a file of another tokenizer, and for everything that
        makes a corpus or a token file unusable.
        """
        from quantkit.calibration.corpora.build import describe_rejections, tokens_for

        if self.tokens is not None:
            return self._load_file(self.tokens, source, hparams)
        tokens = tokens_for(
            self.calibration or DEFAULT_CALIBRATION,
            source,
            samples=self.samples,
            sequence_length=self.sequence_length,
            context=hparams.context,
            vocab=hparams.vocab,
        )
        for line in describe_rejections(tokens.provenance):
            typer.echo(line, err=True)
        return tokens

    def _load_file(self, path: Path, source: Path, hparams: HParams) -> TokenSet:
        from quantkit.calibration.corpora.render import TOKENIZER_FILES, tokenizer_hash
        from quantkit.calibration.tokens import load_tokens

        given = {
            "--calibration": self.calibration,
            "--samples": self.samples,
            "--sequence-length": self.sequence_length,
        }
        for option, value in given.items():
            if value is not None:
                raise BadInput(f"{option} does not go with --tokens, whose file says which tokens to use; drop one")
        # A checkpoint without tokenizer does not contradict the file.
        sha256 = tokenizer_hash(source) if (source / TOKENIZER_FILES[0]).is_file() else None
        return load_tokens(path, vocab=hparams.vocab, context=hparams.context, tokenizer_sha256=sha256)
