"""Attention in float32 by FFMA (csrc/cuda/attention/product_ffma.cuh)."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from glm_ext import ops

from . import test_span_attention as attention
from . import test_span_attention_tiles as attention_tiles
from .backend import SCHEDULES, Schedule, Simt, assert_same_bits
from .checks import forward_and_backward
from .test_span_attention import CASES, PACKED, Case, make_inputs
from .test_span_attention_tiles import DECODING, DELTA, count_accesses

LN2 = torch.tensor(math.log(2.0))


@pytest.fixture(autouse=True)
def ffma(simt: Simt) -> Iterator[None]:
    simt.module.use_ffma(True)
    yield
    simt.module.use_ffma(False)


@pytest.mark.parametrize("dropout_p", [0.0, 0.1])
@pytest.mark.parametrize("case", CASES, ids=lambda c: str(c[0]))
def test_matches_reference(simt: Simt, case: Case, dropout_p: float) -> None:
    simt.configure(SCHEDULES[0])
    attention.check(simt, case, torch.float32, dropout_p=dropout_p)


@pytest.mark.parametrize("scale", [-0.2, 0.0, 0.5])
def test_scale(simt: Simt, scale: float) -> None:
    simt.configure(SCHEDULES[0])
    attention.check(simt, CASES[4], torch.float32, scale=scale)


@pytest.mark.parametrize("case", [CASES[4], CASES[7], CASES[10], CASES[12]], ids=lambda c: str(c[0]))
def test_same_bits_under_every_schedule(simt: Simt, case: Case) -> None:
    attention.check_schedules(simt, case, torch.float32)


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("packed", PACKED, ids=str)
def test_packed_matches_reference(simt: Simt, packed: tuple[list[int], list[int]], head_dim: int) -> None:
    simt.configure(Schedule("random", 5, deferred=True))
    attention.check_packed(simt, *packed, head_dim, 0.1, torch.float32)


@pytest.mark.parametrize("bounds", [[0, 70, -5], [0, 40, 20]], ids=str)
def test_packed_bounds_that_fall_reach_nothing_outside(simt: Simt, bounds: list[int]) -> None:
    attention.test_packed_bounds_out_of_range_are_clamped(simt, bounds, None, torch.float32)


@pytest.mark.parametrize("case", DECODING, ids=lambda c: str(c[0]))
def test_split_keys_match_reference(simt: Simt, case: Case) -> None:
    attention_tiles.test_split_keys_match_reference(simt, torch.float32, case)


def test_what_padding_holds_reaches_nothing(simt: Simt) -> None:
    attention.test_what_padding_holds_reaches_nothing(simt, torch.float32, False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_other_dtypes_keep_their_kernels(simt: Simt, dtype: torch.dtype) -> None:
    inputs, options = make_inputs(CASES[11], dtype)
    simt.configure(SCHEDULES[0])
    with simt.in_place_of_C():
        found = forward_and_backward(ops.span_attention, inputs, **options)
        ops.use_ffma(False)
        assert_same_bits("", forward_and_backward(ops.span_attention, inputs, **options), found)


@pytest.mark.parametrize(("head_dim", "dropout_p"), [(64, 0.0), (64, 0.1), (128, 0.1), (256, 0.1)])
def test_memory_accesses(simt: Simt, head_dim: int, dropout_p: float) -> None:
    """No bank conflicts and whole sectors, but for the two accesses that cost double without FFMA too."""
    inputs, _ = make_inputs(((1, 1, 1, 128, 128, head_dim), [40], None, None), torch.float32)
    files, found = count_accesses(
        simt, lambda: forward_and_backward(ops.span_attention, inputs, dropout_p=dropout_p)
    )
    assert "product_ffma.cuh" in files
    assert "product.cuh" not in files
    assert found == {DELTA, ("shared", "tile.cuh", 2.0)}


# ------------------------------------------------------------------------------------------------- every bit


def fma(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """a b + c rounded once: the product is exact in float64, and the sum rounded to odd, then to float."""
    product, c = a.double() * b.double(), c.double()
    sum = product + c
    rest = (product - (sum - (sum - product))) + (c - (sum - product))  # what the sum lost
    even = sum.view(torch.int64) % 2 == 0
    return torch.where((rest != 0) & even, torch.nextafter(sum, rest.sign() * torch.inf), sum).float()


def chains(a: Tensor, b: Tensor, length: int) -> Tensor:
    """Sum of a b over the last dimension, by chains of fmaf of so many products, which are added in order."""
    a, b = torch.broadcast_tensors(a, b)
    sum = torch.zeros(a.shape[:-1])
    for x, y in zip(a.split(length, -1), b.split(length, -1), strict=True):
        link = torch.zeros_like(sum)
        for k in range(x.shape[-1]):
            link = fma(x[..., k], y[..., k], link)
        sum = sum + link
    return sum


def over_columns(a: Tensor, b: Tensor) -> Tensor:
    return chains(a, b, 32)


def over_rows(a: Tensor, b: Tensor) -> Tensor:
    return chains(a, b, 16)


def check_scores(head_dim: int, rows: int, keys: int, device: str = "cpu") -> None:
    """The lse of a row that sees one key is its score; with a scale of ln 2, times ln 2 in float32."""
    torch.manual_seed(0)
    seen = torch.tensor([0, 1, 6, 15, 23, 40, keys - 2, keys - 1])
    query, key = torch.randn(8, 1, rows, head_dim), torch.randn(8, 1, keys, head_dim)
    expected = over_columns(query[:, 0], key[torch.arange(8), 0, seen][:, None]) * LN2
    inputs = [t.to(device) for t in (query, key, key, seen + 1, seen + 1)]
    for wanted in (True, False):
        ops.use_ffma(wanted)
        lse = ops.span_attention(*inputs, start=seen.to(device), scale=math.log(2.0), return_lse=True)[1]
        assert torch.equal(lse.cpu()[:, 0], expected) == wanted


def check_what_rounding_takes(device: str = "cpu") -> None:
    """(x, x) times (x, -x) is what x x loses when it is rounded. For 3xTF32 the two products cancel."""
    x = 1.0 + 2.0**-12  # x x = 1 + 2^-11 + 2^-24, to even
    query, key = torch.zeros(2, 1, 1, 1, 64, device=device)
    query[..., :2], key[..., :2] = x, torch.tensor([x, -x])
    for wanted, score in ((True, -(2.0**-24)), (False, 0.0)):
        ops.use_ffma(wanted)
        _, lse = ops.span_attention(query, key, key, 1, scale=math.log(2.0), return_lse=True)
        assert lse.item() == (torch.tensor(score) * LN2).item()


def check_gradients(head_dim: int, zero: str, device: str = "cpu") -> None:
    """Rows see two keys with scores of 0: probabilities are 1/2, and every other step can be followed."""
    S, first = 70, 30
    torch.manual_seed(0)
    query, key, value, grad = torch.randn(4, S, head_dim)
    (query if zero == "query" else key).zero_()
    keys, values = key[first : first + 2], value[first : first + 2]
    out = (values[0] + values[1]) * 0.5
    grad_score = 0.5 * (over_columns(grad[:, None], values) - over_columns(grad, out)[:, None])
    zeros = [torch.zeros(S, head_dim) for _ in range(3)]
    expected = [out.expand(S, -1), *zeros]
    expected[1] = over_rows(grad_score[:, None], keys.T)
    expected[2][first : first + 2] = over_rows(grad_score.T[:, None], query.T)
    expected[3][first : first + 2] = over_rows(torch.full((S,), 0.5), grad.T)

    leaves = [t[None, None].to(device).requires_grad_() for t in (query, key, value)]
    for wanted in (True, False):
        ops.use_ffma(wanted)
        found = ops.span_attention(*leaves, first + 2, first + 2, start=first, scale=1.0)
        grads = torch.autograd.grad(found, leaves, grad[None, None].to(device))
        same = [torch.equal(a.cpu()[0, 0], b) for a, b in zip((found, *grads), expected, strict=True)]
        assert all(same) == wanted


@pytest.mark.parametrize(("rows", "keys"), [(70, 70), (3, 600)], ids=["rows", "split keys"])
@pytest.mark.parametrize("head_dim", [40, 64, 128, 256])
def test_scores_are_chains_of_fmaf(simt: Simt, head_dim: int, rows: int, keys: int) -> None:
    simt.configure(SCHEDULES[0])
    with simt.in_place_of_C():
        check_scores(head_dim, rows, keys)


def test_what_rounding_takes_is_there(simt: Simt) -> None:
    simt.configure(SCHEDULES[0])
    with simt.in_place_of_C():
        check_what_rounding_takes()


@pytest.mark.parametrize("zero", ["query", "key"])
@pytest.mark.parametrize("head_dim", [40, 64, 128, 256])
def test_gradients_are_chains_of_fmaf(simt: Simt, head_dim: int, zero: str) -> None:
    simt.configure(SCHEDULES[0])
    with simt.in_place_of_C():
        check_gradients(head_dim, zero)


def test_one_key_passes_unchanged(simt: Simt) -> None:
    attention.test_one_key_passes_unchanged(simt)
