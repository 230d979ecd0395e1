"""Sound models of every format that quantkit writes, published as repositories are."""

from pathlib import Path

import pytest
from planting import GGUF, INT4, Models, publish, reshard


@pytest.fixture(scope="session")
def little(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Models:
    """The same of one layer with two experts, for tests of many audits."""
    folder = tmp_path_factory.mktemp("little")
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            made[name] = _int4(tiny_checkpoint, folder, name)
        return made[name]

    return make


@pytest.fixture(scope="session")
def sound(tiny_m2: Path, tmp_path_factory: pytest.TempPathFactory) -> Models:
    """Make a sound model by its name in INT4 or GGUF, once."""
    folder = tmp_path_factory.mktemp("sound")
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            made[name] = _int4(tiny_m2, folder, name) if name in INT4 else _gguf(tiny_m2, folder, name)
        return made[name]

    return make


def _int4(source: Path, folder: Path, name: str) -> Path:
    from dataclasses import replace

    from quantkit.run.int4.quantize import quantize_int4
    from quantkit.run.int4.settings import Method, choose_settings

    options = dict(INT4[name])
    kept = options.pop("kept_layers", ())
    settings = replace(choose_settings(Method.RTN, **options), kept_layers=kept)
    out = folder / f"MiniMax-M2.7-RTN-{name}"
    quantize_int4(source, out, settings, None, quiet=True)
    return publish(reshard(out, 3))


def _gguf(source: Path, folder: Path, name: str) -> Path:
    from quantkit.recipe.recipe import recipe_from_options
    from quantkit.run.gguf.convert import write_gguf

    out = folder / f"MiniMax-M2.7-GGUF-{name}"
    out.mkdir()
    mix = "q4_k_m" if name == "split" else name
    write_gguf(source, out / f"MiniMax-M2.7-{mix.upper()}.gguf", recipe_from_options(mix), quiet=True, **GGUF[name])
    return publish(out)
