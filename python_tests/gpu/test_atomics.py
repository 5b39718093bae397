"""Backward of attention on a GPU, where the order of sums is free."""

from __future__ import annotations

import pytest
import torch

from ..simt import test_span_attention as attention
from ..simt import test_span_attention_tiles as attention_tiles
from ..simt.backend import assert_same_bits
from ..simt.test_span_attention_atomics import CASES, DTYPES, atomics
from .test_ops import attention_twice, check_attention, check_packed_attention, packed_inputs

__all__ = ["atomics"]  # a fixture of every test here
pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("dropout_p", [0.0, 0.1])
@pytest.mark.parametrize(
    "case", [*CASES, *map(attention_tiles.long_case, (64, 128))], ids=lambda c: str(c[0])
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_attention(dtype: torch.dtype, case: attention.Case, dropout_p: float) -> None:
    check_attention(dtype, case, dropout_p)


@pytest.mark.parametrize(("cu_seqlens", "prefix_len"), attention.PACKED, ids=str)
def test_packed_attention(cu_seqlens: list[int], prefix_len: list[int]) -> None:
    check_packed_attention(packed_inputs(cu_seqlens, prefix_len), 0.1)


@pytest.mark.parametrize("head_dim", [64, 128])
def test_small(head_dim: int) -> None:
    """What compute-sanitizer watches: the same bits twice, but for the gradient of the query."""
    found = attention_twice(head_dim)
    assert_same_bits("the second time", *([*tensors[:2], *tensors[3:]] for tensors in found))
