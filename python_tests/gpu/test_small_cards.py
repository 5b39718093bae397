"""Attention as a GPU runs it whose blocks have 99 KB of shared memory, on any GPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from glm_ext import _C

from ..simt import test_small_cards as small_cards
from ..simt import test_span_attention as attention
from ..simt.backend import assert_same_bits
from ..simt.checks import GPU_DTYPES
from ..simt.test_span_attention_tiles import long_case
from .test_ops import attention_twice, check_attention, check_packed_attention, packed_inputs

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def small_card() -> Iterator[None]:
    _C.limit_shared_bytes(99 * 1024)
    yield
    _C.limit_shared_bytes(2**62)


@pytest.mark.parametrize("dropout_p", [0.0, 0.1])
@pytest.mark.parametrize("case", [*small_cards.CASES, long_case(128)], ids=lambda c: str(c[0]))
@pytest.mark.parametrize("dtype", GPU_DTYPES, ids=str)
def test_attention(dtype: torch.dtype, case: attention.Case, dropout_p: float) -> None:
    if dtype == torch.float32 and case[0][5] > 128:
        pytest.skip("gradients find no room")
    check_attention(dtype, case, dropout_p)


@pytest.mark.parametrize(("cu_seqlens", "prefix_len"), attention.PACKED, ids=str)
def test_packed_attention(cu_seqlens: list[int], prefix_len: list[int]) -> None:
    check_packed_attention(packed_inputs(cu_seqlens, prefix_len), 0.1)


@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_small(head_dim: int) -> None:
    """What compute-sanitizer watches: the same bits twice."""
    assert_same_bits("the second time", *attention_twice(head_dim))
