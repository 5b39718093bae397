"""The kernels of warpgroups on a Hopper GPU: attention, and the ops that multiply matrices, once more."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch

from glm_ext import _C, ops
from glm_ext.ops import _gelu_mlp_library

from ..ops import test_gelu_mlp as mlp
from ..simt import test_hopper as hopper
from ..simt import test_span_attention as attention
from ..simt import test_span_attention_tiles as attention_tiles
from ..simt.backend import assert_same_bits
from ..simt.checks import forward_and_backward
from .test_ops import (
    attention_twice,
    check_attention,
    check_gelu_mlp,
    check_linear_cross_entropy,
    check_packed_attention,
    on_gpu,
)

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


@pytest.fixture
def many_tiles() -> int:
    """More than the GPU holds blocks: each block takes several."""
    return 4 * torch.cuda.get_device_properties().multi_processor_count


@pytest.mark.parametrize("head_dim", [64, 128])
def test_tiles_of_all_kinds_one_after_the_other(many_tiles: int, head_dim: int) -> None:
    """The forward of a batch has the bits of its sequences alone, each of which is one tile to a block."""
    B, H, S = many_tiles // 8 + 1, 4, 300  # three tiles a head
    lengths = torch.tensor([(300, 0, 1, 65, 130, 256, 299)[b % 7] for b in range(B)])
    torch.manual_seed(0)
    query, key, value = (torch.randn(B, H, S, head_dim).bfloat16().cuda() for _ in range(3))
    prefix_len, seq_len = (lengths // 3).cuda(), lengths.cuda()
    whole = ops.span_attention(query, key, value, prefix_len, seq_len, return_lse=True)
    for b in range(B):
        one = slice(b, b + 1)
        alone = ops.span_attention(
            query[one], key[one], value[one], prefix_len[one], seq_len[one], return_lse=True
        )
        assert_same_bits(f"sequence {b}", alone, [x[one] for x in whole])


def test_many_packed_sequences(many_tiles: int) -> None:
    lengths = [(70, 0, 200, 1, 129)[i % 5] for i in range(many_tiles)]
    bounds = [0, *itertools.accumulate(lengths)]
    check_packed_attention(hopper.packed_inputs(bounds, [n // 2 for n in lengths]), 0.1)


@pytest.mark.parametrize(("cu_seqlens", "prefix_len"), hopper.PACKED, ids=str)
def test_packed_attention(cu_seqlens: list[int], prefix_len: list[int]) -> None:
    check_packed_attention(hopper.packed_inputs(cu_seqlens, prefix_len), 0.1)


@pytest.mark.parametrize("recompute", ["none", "activation", "all"])
@pytest.mark.parametrize("sizes", [*hopper.MLP, (1000, 768, 3072, 768)], ids=str)
@pytest.mark.parametrize("dtype", hopper.DTYPES, ids=str)
def test_gelu_mlp(
    dtype: torch.dtype, sizes: tuple[int, int, int, int], recompute: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_gelu_mlp(monkeypatch, False, dtype, sizes, recompute=recompute)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("shape", [*hopper.LOSSES, (2100, 256, 5003)], ids=str)
@pytest.mark.parametrize("dtype", hopper.DTYPES, ids=str)
def test_linear_cross_entropy(dtype: torch.dtype, shape: tuple[int, int, int], reduction: str) -> None:
    check_linear_cross_entropy(dtype, shape, label_smoothing=0.1, reduction=reduction)


@pytest.mark.parametrize("head_dim", [64, 128])
def test_small(head_dim: int) -> None:
    """What compute-sanitizer watches: the same bits twice."""
    assert_same_bits("the second time", *attention_twice(head_dim))


def test_small_tiles_one_after_the_other(many_tiles: int) -> None:
    query, key, value = torch.randn(3, 1, many_tiles, 70, 64).bfloat16().cuda()
    twice = [ops.span_attention(query, key, value, 30, 66, return_lse=True) for _ in range(2)]
    assert_same_bits("the second time", *twice)


def test_small_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_gelu_mlp_library, "is_better", lambda x: False)
    inputs = mlp.make_inputs(*hopper.MLP[2], torch.bfloat16)
    twice = [forward_and_backward(ops.gelu_mlp, on_gpu(inputs)) for _ in range(2)]
    assert_same_bits("the second time", *twice)
