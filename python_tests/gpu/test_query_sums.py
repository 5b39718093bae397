"""Backward of attention by one kernel for all gradients, on a GPU."""

from __future__ import annotations

import pytest
import torch

from glm_ext import ops

from ..simt import test_span_attention as attention
from ..simt import test_span_attention_tiles as attention_tiles
from ..simt.backend import assert_same_bits
from ..simt.checks import forward_and_backward
from ..simt.test_span_attention_query_sums import CASES, DTYPES, way
from .test_ops import attention_twice, check_attention, check_packed_attention, on_gpu, packed_inputs

__all__ = ["way"]  # a fixture of every test here
pytestmark = pytest.mark.gpu
MANY_HEADS: list[attention.Case] = [
    ((64, 2, 2, 200, 300, 40), [100] * 64, None, None),  # sums in shared memory, where there are 163 KB
    ((64, 2, 2, 512, 512, 64), [100] * 64, [511] * 64, [3] * 64),  # where there are 227 KB
    ((64, 2, 2, 600, 600, 64), [100] * 64, None, None),  # in memory
    ((64, 2, 2, 300, 300, 128), [100] * 64, None, None),
]


@pytest.mark.parametrize("dropout_p", [0.0, 0.1])
@pytest.mark.parametrize(
    "case", [*CASES, *MANY_HEADS, *map(attention_tiles.long_case, (64, 128))], ids=lambda c: str(c[0])
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_attention(dtype: torch.dtype, case: attention.Case, dropout_p: float) -> None:
    check_attention(dtype, case, dropout_p)


@pytest.mark.parametrize(("cu_seqlens", "prefix_len"), attention.PACKED, ids=str)
def test_packed_attention(cu_seqlens: list[int], prefix_len: list[int]) -> None:
    check_packed_attention(packed_inputs(cu_seqlens, prefix_len), 0.1)


@pytest.mark.parametrize("head_dim", [64, 128])
def test_small(head_dim: int, way: str) -> None:
    """What compute-sanitizer watches: the same bits twice, but for sums in any order."""
    found = attention_twice(head_dim)
    if way == "atomics":
        found = [[*tensors[:2], *tensors[3:]] for tensors in found]
    assert_same_bits("the second time", *found)


@pytest.mark.parametrize("way", ["five_products"], indirect=True)
@pytest.mark.parametrize("case", MANY_HEADS, ids=lambda c: str(c[0]))
def test_sums_in_order_are_the_same_every_time(case: attention.Case) -> None:
    inputs, _ = attention.make_inputs(case, torch.bfloat16)
    first, *others = (forward_and_backward(ops.span_attention, on_gpu(inputs)) for _ in range(5))
    for other in others:
        assert_same_bits("five runs", first, other)
