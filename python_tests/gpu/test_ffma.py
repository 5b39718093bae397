"""Attention in float32 by FFMA, on a GPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from glm_ext import ops

from ..simt import test_span_attention as attention
from ..simt import test_span_attention_ffma as ffma_simt
from ..simt import test_span_attention_tiles as attention_tiles
from ..simt.backend import assert_same_bits
from .test_ops import attention_twice, check_attention, check_packed_attention, packed_inputs

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def ffma() -> Iterator[None]:
    ops.use_ffma()
    yield
    ops.use_ffma(False)


@pytest.mark.parametrize("dropout_p", [0.0, 0.1])
@pytest.mark.parametrize(
    "case",
    [*attention.CASES, *attention_tiles.DECODING, *map(attention_tiles.long_case, (64, 128))],
    ids=lambda c: str(c[0]),
)
def test_attention(case: attention.Case, dropout_p: float) -> None:
    check_attention(torch.float32, case, dropout_p)


@pytest.mark.parametrize(("cu_seqlens", "prefix_len"), attention.PACKED, ids=str)
def test_packed_attention(cu_seqlens: list[int], prefix_len: list[int]) -> None:
    check_packed_attention(packed_inputs(cu_seqlens, prefix_len, torch.float32), 0.1)


@pytest.mark.parametrize(("rows", "keys"), [(70, 70), (3, 600)], ids=["rows", "split keys"])
@pytest.mark.parametrize("head_dim", [40, 64, 128, 256])
def test_scores_are_chains_of_fmaf(head_dim: int, rows: int, keys: int) -> None:
    ffma_simt.check_scores(head_dim, rows, keys, "cuda")


def test_what_rounding_takes_is_there() -> None:
    ffma_simt.check_what_rounding_takes("cuda")


@pytest.mark.parametrize("zero", ["query", "key"])
@pytest.mark.parametrize("head_dim", [40, 64, 128, 256])
def test_gradients_are_chains_of_fmaf(head_dim: int, zero: str) -> None:
    ffma_simt.check_gradients(head_dim, zero, "cuda")


@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_small(head_dim: int) -> None:
    """What compute-sanitizer watches: the same bits twice."""
    assert_same_bits("the second time", *attention_twice(head_dim, torch.float32))
