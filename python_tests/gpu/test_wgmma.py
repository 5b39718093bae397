"""The kernels of warpgroups on a Hopper GPU: the cases of attention once more."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from glm_ext import _C

from ..simt import test_hopper as hopper
from ..simt import test_span_attention as attention
from ..simt import test_span_attention_tiles as attention_tiles
from ..simt.backend import assert_same_bits
from .test_ops import attention_twice, check_attention, check_packed_attention

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def warpgroups() -> Iterator[None]:
    if "90a" not in _C.cuda_architectures().split() or torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("needs a Hopper GPU, and a build for sm_90a")
    _C.use_wgmma(True)
    yield
    _C.use_wgmma(False)


@pytest.mark.parametrize("dropout_p", [0.0, 0.1])
@pytest.mark.parametrize(
    "case", [*hopper.CASES, *map(attention_tiles.long_case, (64, 128))], ids=lambda c: str(c[0])
)
@pytest.mark.parametrize("dtype", hopper.DTYPES, ids=str)
def test_attention(dtype: torch.dtype, case: attention.Case, dropout_p: float) -> None:
    check_attention(dtype, case, dropout_p)


@pytest.mark.parametrize(("cu_seqlens", "prefix_len"), hopper.PACKED, ids=str)
def test_packed_attention(cu_seqlens: list[int], prefix_len: list[int]) -> None:
    check_packed_attention(hopper.packed_inputs(cu_seqlens, prefix_len), 0.1)


@pytest.mark.parametrize("head_dim", [64, 128])
def test_small(head_dim: int) -> None:
    """What compute-sanitizer watches: the same bits twice."""
    assert_same_bits("the second time", *attention_twice(head_dim))
