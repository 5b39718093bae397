from __future__ import annotations

import pytest
import torch
from torch.library import opcheck

from glm_ext import ops
from glm_ext.ops import reference

from .tolerance import DTYPES, check_op

SHAPES = [(1, 1), (3, 7), (2, 5, 128), (17, 131), (0, 8), (70, 768), (1025, 16)]


def make_inputs(shape: tuple[int, ...], dtype: torch.dtype) -> list[torch.Tensor]:
    torch.manual_seed(0)
    x, residual = torch.randn(2, *shape).to(dtype)
    weight, bias = torch.randn(2, shape[-1]).to(dtype)
    return [x, residual, weight, bias]


@pytest.mark.parametrize("dropout_p", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_matches_reference(dtype: torch.dtype, shape: tuple[int, ...], dropout_p: float) -> None:
    check_op(
        ops.dropout_add_layer_norm,
        reference.dropout_add_layer_norm,
        make_inputs(shape, dtype),
        dropout_p=dropout_p,
    )
