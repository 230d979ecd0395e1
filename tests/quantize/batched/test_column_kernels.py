"""The column loop of a card, in Triton's interpreter: the codes and errors of the CPU's compiled loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from quantkit.quantize.feedback_kernels import round_block

pytest.importorskip("triton")


@pytest.mark.parametrize(("zero", "highest"), [(8, 15), (3, 15), (128, 255)])
def test_codes_and_errors_are_those_of_the_compiled_loop(card: torch.device, zero: int, highest: int) -> None:
    from quantkit.quantize.batched.column_kernels import round_columns

    experts, columns, rows, width, first = 2, 24, 40, 64, 16  # the last program of an expert has eight rows
    generator = np.random.default_rng(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.from_numpy(generator.standard_normal(shape).astype(np.float32))

    block = slice(first, first + columns)
    originals, factors = drawn(experts, width, rows), 0.2 * drawn(experts, width, width)
    scales = (drawn(experts, width, rows).abs() * 0.05 + 0.1 * 16 / (highest + 1)).contiguous()
    zeros = torch.full_like(scales, zero)
    targets = originals[:, block] + 0.1 * drawn(experts, columns, rows)
    given = [tensor.to(card) for tensor in (originals, factors, scales, zeros, targets)]
    errors, codes = torch.zeros_like(given[0]), torch.zeros(given[0].shape, dtype=torch.uint8, device=card)
    round_columns(
        given[4], given[0][:, block], given[1][:, block, block], given[2][:, block], given[3][:, block], highest,
        errors[:, block], codes[:, block],
    )  # fmt: skip
    for expert in range(experts):
        wanted_errors, wanted_codes = np.empty((columns, rows), np.float32), np.empty((columns, rows), np.uint8)
        round_block(
            targets[expert].numpy(),
            originals[expert, block].numpy(),
            factors[expert, block, block].T.contiguous().numpy(),
            scales[expert, block].numpy(),
            zeros[expert, block].numpy(),
            np.arange(columns),
            np.float32(highest),
            wanted_errors,
            wanted_codes,
        )
        assert len(np.unique(wanted_codes)) > 12
        same = codes[expert, block].cpu().numpy() == wanted_codes
        assert same.mean() >= 0.999
        rows_alike = same.all(0)
        found = errors[expert, block].cpu().numpy()
        np.testing.assert_allclose(found[:, rows_alike], wanted_errors[:, rows_alike], atol=1e-4)
    outside = torch.ones(width, dtype=torch.bool)
    outside[block] = False
    assert not codes[:, outside].any()
    assert not errors[:, outside].any()
