"""Checks of packed weights against what the configuration says: method, bits, groups, zero points, parallelism."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cache

from quantkit.audit.findings import Check, Severity, listed
from quantkit.audit.folder import Folder
from quantkit.audit.names import COMPRESSED as COMPRESSED_WORDS
from quantkit.audit.names import FP8 as FP8_FORM
from quantkit.audit.names import OTHER, PLAIN, WORDS, Place, place_of, role_shape, storage
from quantkit.audit.quantization import AWQ, COMPRESSED, FP8, GPTQ, PACKED, WHOLE_ROW, Grid, Quantization
from quantkit.checkpoint.header import TensorEntry
from quantkit.model.spec import HParams, Role

# Stored form -> methods that mean it.
METHODS_OF = {WORDS: (AWQ, GPTQ), COMPRESSED_WORDS: (COMPRESSED,), FP8_FORM: (FP8, COMPRESSED)}
# Methods whose files are looked into; others (NVFP4, MXFP4, Quark, bitsandbytes, MLX) are not.
KNOWN = (*PACKED, FP8)
# Tensors of a packed weight that vLLM does without.
OPTIONAL = {"g_idx", "weight_shape"}
# Numbers of GPUs that people have.
USUAL_GPUS = (1, 2, 4, 8, 16)
MANY_GPUS = 8
# Numbers of bits that share a word without a rest.
BITS = (2, 4, 8)
MARLIN_GROUPS = (32, 64, 128, WHOLE_ROW)


def _forms(folder: Folder) -> dict[str, list[str]]:
    """Modules of the model by the form that their weight is stored in."""
    found: dict[str, list[str]] = {}
    for module, parts in folder.modules.items():
        form = storage(parts)
        if form is not None and place_of(module) is not None:
            found.setdefault(form, []).append(module)
    return found


def _packed(folder: Folder) -> Iterator[tuple[str, Place, Mapping[str, TensorEntry]]]:
    """The modules whose weight is packed as the configuration's method packs."""
    method = folder.quantization.method if folder.quantization is not None else ""
    for module, parts in folder.modules.items():
        form = storage(parts)
        if form in (WORDS, COMPRESSED_WORDS) and method in METHODS_OF[form]:
            place = place_of(module)
            if place is not None:
                yield module, place, parts


def _says_nothing(folder: Folder) -> Iterator[str]:
    forms = {form: names for form, names in _forms(folder).items() if form != PLAIN}
    if forms and folder.quantization is None:
        form, names = next(iter(forms.items()))
        place = folder.named("config.json")
        yield f"{place}: no quantization_config, but {len(names)} weights are stored as {form}: {listed(names)}"


def _elsewhere(folder: Folder) -> Iterator[str]:
    quantization = folder.quantization
    if quantization is not None and quantization.file != "config.json":
        yield f"{folder.named(quantization.file)}: describes the quantization, config.json does not"


def _no_method(folder: Folder) -> Iterator[str]:
    quantization = folder.quantization
    if quantization is not None and not quantization.method:
        yield f"{folder.named(quantization.file)}: the quantization has no quant_method"


def is_mlx(folder: Folder) -> bool:
    """Whether it is a checkpoint for MLX, which has names and a packing of its own."""
    return isinstance(folder.config.get("quantization"), dict) or any(
        entry.dtype == "U32" and "biases" in parts for parts in folder.modules.values() for entry in parts.values()
    )


def is_foreign(folder: Folder) -> bool:
    """Whether its packing is none of those that are looked into."""
    method = folder.quantization.method if folder.quantization is not None else ""
    return is_mlx(folder) or (bool(method) and method not in KNOWN)


def _not_judged(folder: Folder) -> Iterator[str]:
    quantization = folder.quantization
    if is_mlx(folder):
        yield f"{folder.named('config.json')}: a checkpoint for MLX"
    elif quantization is not None and is_foreign(folder):
        yield f"{folder.named(quantization.file)}: quant_method {quantization.method!r}"
    others = _forms(folder).get(OTHER)
    if others:
        dtype = next(iter(folder.modules[others[0]].values())).dtype
        yield f"{len(others)} weights are stored in a form ({dtype}) that is not looked into: {listed(others)}"


def _contradicts(folder: Folder) -> Iterator[str]:
    quantization = folder.quantization
    if quantization is None or quantization.method not in KNOWN:
        return
    forms = _forms(folder)
    meant = [form for form, methods in METHODS_OF.items() if quantization.method in methods]
    for form, names in forms.items():
        if form in METHODS_OF and form not in meant:
            yield f"config.json says {quantization.method}, but {len(names)} weights are {form}: {listed(names)}"
    if folder.tensors and not any(storage(parts) in meant for parts in folder.modules.values()):
        yield f"config.json says {quantization.method}, but no weight is stored so: {listed(forms.get(PLAIN, []))}"


def _incomplete(folder: Folder) -> Iterator[str]:
    quantization = folder.quantization
    if quantization is None or quantization.method not in PACKED:
        return
    required = {AWQ: ("scales", "qzeros"), GPTQ: ("scales", "qzeros"), COMPRESSED: ("weight_scale",)}[
        quantization.method
    ]
    lacking = [
        f"{module}.{suffix}" for module, _, parts in _packed(folder) for suffix in required if suffix not in parts
    ]
    if lacking and folder.is_complete:
        yield f"{len(lacking)} tensors of packed weights are missing: {listed(lacking)}"


def _zero_points(folder: Folder) -> Iterator[str]:
    if folder.quantization is None or folder.quantization.method != COMPRESSED:
        return
    symmetric = {grid.symmetric for grid in folder.quantization.grids}
    modules = [
        module for module, _, parts in _packed(folder) if ("weight_zero_point" in parts) is (symmetric == {True})
    ]
    if len(symmetric) == 1 and modules:
        says, has = ("symmetric", "have") if symmetric == {True} else ("asymmetric", "lack")
        yield f"config.json says {says}, but {len(modules)} weights {has} zero points: {listed(modules)}"


@cache
def _shapes(method: str, shape: tuple[int, int], grid: Grid) -> dict[str, tuple[int, ...]] | None:
    """Shapes of the tensors that a packed matrix [N, K] has; None where the grid does not divide it."""
    from quantkit.formats.packed import FORMATS
    from quantkit.quantize.integers import IntegerGrid

    rows, columns = shape
    if grid.bits not in BITS or grid.group_size is None or (grid.group_size > 0 and columns % grid.group_size):
        return None
    specs = FORMATS[method].tensors("m", rows, columns, IntegerGrid(grid.bits, grid.group_size, symmetric=False))
    return {spec.name.removeprefix("m."): spec.shape for spec in specs}


def _fits(method: str, parts: Mapping[str, TensorEntry], shape: tuple[int, int], grid: Grid) -> bool:
    shapes = _shapes(method, shape, grid)
    return shapes is not None and all(
        parts[suffix].shape == size for suffix, size in shapes.items() if suffix in parts and suffix not in OPTIONAL
    )


def _matrix(role: Role, hparams: HParams) -> tuple[int, int] | None:
    shape = role_shape(role, hparams)
    return (shape[0], shape[1]) if len(shape) == 2 else None


def _packing(folder: Folder) -> Iterator[str]:
    quantization, hparams = folder.quantization, folder.hparams
    if quantization is None or hparams is None or quantization.method not in PACKED:
        return
    wrong = []
    for module, place, parts in _packed(folder):
        shape = _matrix(place.role, hparams)
        if shape and not any(_fits(quantization.method, parts, shape, grid) for grid in quantization.grids):
            wrong.append(f"{module} {_sizes(parts)}")
    if wrong:
        said = (
            " or ".join(f"{grid.bits} bits in groups of {grid.group_size}" for grid in quantization.grids)
            or "no integers"
        )
        yield f"config.json says {said}, which {len(wrong)} weights do not have: {listed(wrong)}"


def _sizes(parts: Mapping[str, TensorEntry]) -> str:
    return " ".join(
        f"{suffix} {list(entry.shape)}" for suffix, entry in sorted(parts.items()) if suffix not in OPTIONAL
    )


def _order_missing(folder: Folder) -> Iterator[str]:
    if folder.quantization is None or folder.quantization.method != GPTQ:
        return
    if names := [module for module, _, parts in _packed(folder) if "g_idx" not in parts]:
        yield f"{len(names)} weights have no g_idx: {listed(names)}"


def unit_columns(quantization: Quantization) -> int | None:
    """Columns that must stay on one GPU: the integers' group or FP8's block; None where every column is its own."""
    sizes = [grid.group_size for grid in quantization.grids]
    blocks = [quantization.values.get("weight_block_size")]
    blocks += [group["weights"].get("block_structure") for group in quantization.groups.values()]
    sizes += [block[-1] for block in blocks if isinstance(block, list) and block and isinstance(block[-1], int)]
    return max((size for size in sizes if size is not None and size > 0), default=None)


def _tensor_parallel(hparams: HParams, group_size: int, gpus: int) -> bool:
    """Whether so many GPUs can share every matrix, by the rule that quantizing with --tp goes by."""
    from quantkit.errors import BadInput
    from quantkit.quantize.integers import IntegerGrid
    from quantkit.run.int4.settings import Int4Settings, Method, check_against_model

    settings = Int4Settings(Method.RTN, COMPRESSED, IntegerGrid(4, group_size, symmetric=True))
    try:
        check_against_model(settings, hparams, gpus, group_size_given=True)
    except BadInput:
        return False
    return True


def _gpus(folder: Folder) -> Iterator[str]:
    quantization, hparams = folder.quantization, folder.hparams
    unit = unit_columns(quantization) if quantization is not None else None
    if quantization is None or hparams is None or unit is None:
        return
    if _tensor_parallel(hparams, unit, MANY_GPUS) or not _tensor_parallel(hparams, WHOLE_ROW, MANY_GPUS):
        return
    fitting = [str(gpus) for gpus in USUAL_GPUS if _tensor_parallel(hparams, unit, gpus)]
    part = hparams.expert_width // MANY_GPUS
    outcome = {AWQ: "vLLM falls back to a slow kernel", GPTQ: "vLLM falls back to a slow kernel"}
    yield (
        f"groups of {unit} columns: {MANY_GPUS} GPUs with tensor parallelism would hold {part} columns of an expert "
        f"each ({outcome.get(quantization.method, 'vLLM stops')}); {', '.join(fitting) or 'none'} can share it"
    )


def _odd_groups(folder: Folder) -> Iterator[str]:
    for grid in folder.quantization.grids if folder.quantization else ():
        if grid.group_size is not None and grid.group_size not in MARLIN_GROUPS:
            yield f"groups of {grid.group_size}: runtimes have fast kernels for 32, 64, 128 and whole rows"


def _last_layer(folder: Folder) -> Iterator[str]:
    last = folder.hparams.n_layers - 1 if folder.hparams else -1
    forms = Counter(
        storage(parts)
        for _, place, parts in _packed(folder)
        if place.layer == last and place.role.name == "ffn_down_exps"
    )
    if forms:
        yield f"the down projections (w2) of layer {last} are integers"


def _half_blocks(folder: Folder) -> Iterator[str]:
    names = [
        entry.name
        for parts in folder.modules.values()
        if storage(parts) == FP8_FORM
        for suffix, entry in parts.items()
        if suffix in ("weight_scale", "weight_scale_inv") and entry.dtype == "F16"
    ]
    if names:
        yield f"{len(names)} block scales of FP8 weights are F16, which loses small and large ones: {listed(names)}"


def _fp8_scales(folder: Folder) -> Iterator[str]:
    names = [
        module
        for module, parts in folder.modules.items()
        if storage(parts) == FP8_FORM and not {"weight_scale", "weight_scale_inv"} & parts.keys()
    ]
    if names and folder.is_complete:
        yield f"{len(names)} FP8 weights have no scales: {listed(names)}"


NOT_JUDGED = Check(
    "not-judged", Severity.NOTE, _not_judged, "how weights are packed is judged in awq, gptq, compressed-tensors, fp8"
)
ONE_RUN = "config.json and weights are of different runs; take both from one"
CHECKS = (
    Check("quantization-config-missing", Severity.ERROR, _says_nothing,
          "add the quantization_config of the run that made it; runtimes take the weights for unquantized"),
    Check("quantization-config-elsewhere", Severity.WARNING, _elsewhere,
          "put it into config.json as quantization_config; not every runtime looks elsewhere"),
    Check("quantization-method-missing", Severity.ERROR, _no_method, "say quant_method"),
    Check("quantization-contradicts", Severity.ERROR, _contradicts, ONE_RUN),
    Check("packing-incomplete", Severity.ERROR, _incomplete, "make or download the checkpoint again"),
    Check("packing", Severity.ERROR, _packing, ONE_RUN),
    Check("zero-points", Severity.ERROR, _zero_points, ONE_RUN),
    Check("fp8-scales-missing", Severity.ERROR, _fp8_scales, "FP8 cannot be read without scales; download it again"),
    Check("fp8-scales-half", Severity.WARNING, _half_blocks, "keep the original's F32 scales"),
    Check("group-size-odd", Severity.WARNING, _odd_groups, "quantize with groups of 32, 64 or 128"),
    Check("group-size-tp8", Severity.NOTE, _gpus,
          "add --enable-expert-parallel on 8 GPUs, or quantize with --tp 8 (groups of 64)"),
    Check("order-missing", Severity.NOTE, _order_missing, "vLLM does without g_idx; GPTQModel and transformers do not"),
    Check("last-layer-integers", Severity.NOTE, _last_layer,
          "activations there overflow half precision: serve with --dtype bfloat16"),
)  # fmt: skip
