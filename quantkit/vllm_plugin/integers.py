"""INT4 and INT8 weights: linear layers and experts of AWQ, GPTQ and compressed-tensors checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor
from vllm.model_executor.kernels import linear as kernels
from vllm.model_executor.kernels.linear.mixed_precision.MPLinearKernel import MPLinearKernel
from vllm.model_executor.layers.fused_moe.experts.cpu_moe import CPUUnquantizedExperts
from vllm.model_executor.layers.fused_moe.oracle.int_wna16 import WNA16MoEBackend, _unpack_and_dequant_int4_awq
from vllm.model_executor.layers.quantization import auto_awq, auto_gptq
from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors_moe import (
    compressed_tensors_moe_wna16 as compressed_tensors,
)
from vllm.model_executor.layers.quantization.utils.quant_utils import unpack_quantized_values_into_int32 as unpack
from vllm.platforms import PlatformEnum

from quantkit.vllm_plugin.hand_over import hand_over_experts, hand_over_linear

Matrices = Callable[[Any, Any, str], Iterator[Tensor]]


def dequantized(codes: Tensor, zeros: Tensor | int, scales: Tensor) -> Tensor:
    """Return `(codes - zeros) * scales` [N, K] in the type of `scales`, rounded once.

    `codes` is [N, K], `scales` and `zeros` are [N, K / g]; one number for `zeros` is the zero of all groups.
    """
    rows, width = codes.shape
    grouped = codes.reshape(rows, scales.shape[1], -1)
    difference = grouped - (zeros[..., None] if isinstance(zeros, Tensor) else zeros)
    return (difference.float() * scales[..., None].float()).to(scales.dtype).reshape(rows, width)


def middle(weight_type: Any) -> int:
    """Return the zero of symmetric codes.

    It is never read from a file: GPTQ stores zeros less one, which readers of compatible files disagree about.
    """
    return 1 << (int(weight_type.size_bits) - 1)


class DequantizedIntegerKernel(MPLinearKernel):
    """Takes the place of vLLM's integer kernels: on CPUs they are 4-bit only and may round activations to 8 bits."""

    @classmethod
    def get_min_capability(cls) -> int:
        return -1

    @classmethod
    def can_implement(cls, c: Any) -> tuple[bool, str | None]:
        return c.weight_type.size_bits in (4, 8), "its weights have neither 4 nor 8 bits"

    def process_weights_after_loading(self, layer: Any) -> None:
        weight, scales, zeros = self._get_weight_params(layer)
        weight_type = self.config.weight_type
        codes = unpack(weight.data, weight_type, weight.packed_dim)
        zero: Tensor | int = middle(weight_type)
        if self.config.zero_points:
            zero = _rows_first(unpack(zeros.data, weight_type, zeros.packed_dim), zeros)
        hand_over_linear(layer, dequantized(_rows_first(codes, weight), zero, _rows_first(scales.data, scales)))

    def apply_weights(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        raise AssertionError("the layer was handed over when its weights were loaded")


def _rows_first(values: Tensor, parameter: Any) -> Tensor:
    """Return `values` of a parameter, [N, …] or […, N], as [N, …]."""
    return values if parameter.output_dim == 0 else values.t()


def awq_matrices(method: Any, layer: Any, name: str) -> Iterator[Tensor]:
    """Yield the experts' matrices [N, K] of an AWQ layer, `name` w13 or w2."""
    stored = zip(*(getattr(layer, f"{name}_{part}").data for part in ("qweight", "scales", "qzeros")), strict=True)
    for weight, scales, zeros in stored:
        # vLLM's reader of the interleaved order; it always takes the stored zeros, as its CUDA kernels do.
        yield _unpack_and_dequant_int4_awq(
            weight[None], scales[None], zeros[None], transpose_output=True, output_dtype=scales.dtype
        )[0]


def gptq_matrices(method: Any, layer: Any, name: str) -> Iterator[Tensor]:
    """Yield the experts' matrices [N, K] of a GPTQ layer, `name` w13 or w2."""
    weight_type = method.quant_config.quant_type
    for weight, scales in zip(
        getattr(layer, f"{name}_qweight").data, getattr(layer, f"{name}_scales").data, strict=True
    ):
        yield dequantized(unpack(weight, weight_type, 0).t(), middle(weight_type), scales.t())


def compressed_matrices(method: Any, layer: Any, name: str) -> Iterator[Tensor]:
    """Yield the experts' matrices [N, K] of a symmetric pack-quantized layer, `name` w13 or w2."""
    if not method.symmetric:
        raise NotImplementedError("quantkit's CPU plugin reads symmetric compressed-tensors experts only")
    weights, scales = (getattr(layer, f"{name}_weight_{part}").data for part in ("packed", "scale"))
    for packed, scale in zip(weights, scales, strict=True):
        yield dequantized(unpack(packed, method.quant_type, 1), middle(method.quant_type), scale)


def convert_with(matrices: Matrices) -> Callable[[Any, Any], None]:
    """Return a stand-in for the process_weights_after_loading of experts that `matrices` reads."""

    def process_weights_after_loading(method: Any, layer: Any) -> None:
        hand_over_experts(layer, matrices(method, layer, "w13"), matrices(method, layer, "w2"))

    return process_weights_after_loading


def hook() -> None:
    """Put the kernel before vLLM's own, and the conversions in the place of the experts' own."""
    kernels._POSSIBLE_KERNELS[PlatformEnum.CPU].insert(0, DequantizedIntegerKernel)
    # GPTQ's linear layers ask for a CUDA kernel of their type, whichever kernel will be chosen; it knows 4 bits only.
    auto_gptq.verify_marlin_supported = lambda **_: None
    for module, method, matrices in (
        (auto_awq, auto_awq.AutoAWQMoEMethod, awq_matrices),
        (auto_gptq, auto_gptq.AutoGPTQMoEMethod, gptq_matrices),
        (compressed_tensors, compressed_tensors.CompressedTensorsWNA16MoEMethod, compressed_matrices),
    ):
        # The experts choose a kernel before they are loaded, and the layer is handed over whichever it is. As Marlin's
        # they also take groups of a whole row.
        module.select_wna16_moe_backend = lambda *_, **__: (WNA16MoEBackend.MARLIN, CPUUnquantizedExperts)
        method.process_weights_after_loading = convert_with(matrices)
