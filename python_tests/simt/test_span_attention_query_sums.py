"""Backward of attention by one kernel for all gradients, which adds its parts of dQ to sums."""

from __future__ import annotations

import pytest
import torch

from glm_ext import ops
from glm_ext.ops import _cuda, reference

from ..ops.tolerance import check_op
from . import test_span_attention as attention
from .backend import SCHEDULES, Schedule, Simt, assert_same_bits
from .checks import excesses, forward_and_backward
from .test_span_attention import PACKED, Case, make_inputs
from .test_span_attention_tiles import DELTA, count_accesses

DTYPES = [torch.bfloat16, torch.float16]
CASES: list[Case] = [
    *(case for case in attention.CASES if case[0][5] <= 128),
    ((1, 4, 2, 200, 200, 128), [90], [190], [5]),  # heads of a group, tiles of all kinds
]
OTHERS = [attention.CASES[2], attention.CASES[10]]


@pytest.fixture(autouse=True, params=["five_products", "atomics"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """In order, where there are few tiles or many heads; in any order."""
    monkeypatch.setattr(_cuda, request.param, True)
    return str(request.param)


@pytest.mark.parametrize("dropout_p", [0.0, 0.1])
@pytest.mark.parametrize("case", CASES, ids=lambda c: str(c[0]))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_matches_reference(simt: Simt, dtype: torch.dtype, case: Case, dropout_p: float) -> None:
    simt.configure(SCHEDULES[0])
    attention.check(simt, case, dtype, dropout_p=dropout_p)


@pytest.mark.parametrize("case", [CASES[4], CASES[7], CASES[10]], ids=lambda c: str(c[0]))
def test_same_bits_under_every_schedule(simt: Simt, case: Case) -> None:
    """Of a block's threads. Blocks come in one order on the host, and so do their sums."""
    attention.test_same_bits_under_every_schedule(simt, case)


@pytest.mark.parametrize(
    ("batch", "rows"), [(128, 66), (64, 130)], ids=["a tile at a time", "two, then the third"]
)
def test_tiles_after_each_other(simt: Simt, batch: int, rows: int) -> None:
    """Where many heads keep a card busy without all tiles of keys at once. Short heads of 64 have a kernel of
    their own."""
    case: Case = (batch, 2, 2, rows, rows, 72), [rows // 3] * batch, None, None
    simt.configure(SCHEDULES[0], count_accesses=True)
    simt.module.take_counts()
    attention.check(simt, case, torch.bfloat16)
    files, _ = excesses(simt)
    assert not files & {"grad_short.cu", "grad_query.cu"}


def test_many_tiles_of_few_heads_keep_their_kernels(simt: Simt, way: str) -> None:
    """In order, they would leave a card idle."""
    inputs, _ = make_inputs(((1, 1, 1, 130, 130, 64), [70], None, None), torch.bfloat16)
    files, _ = count_accesses(simt, lambda: forward_and_backward(ops.span_attention, inputs))
    assert ("grad_query.cu" in files) == (way == "five_products")


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("packed", PACKED, ids=str)
def test_packed_matches_reference(simt: Simt, packed: tuple[list[int], list[int]], head_dim: int) -> None:
    simt.configure(Schedule("random", 5, deferred=True))
    attention.check_packed(simt, *packed, head_dim, 0.1)


def test_only_the_gradient_of_the_query_differs(
    simt: Simt, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs, options = make_inputs(CASES[10], torch.bfloat16)

    def run() -> list[torch.Tensor | None]:
        return forward_and_backward(ops.span_attention, inputs, dropout_p=0.1, return_lse=True, **options)

    simt.configure(SCHEDULES[0])
    with simt.in_place_of_C():
        found = run()
        monkeypatch.setattr(_cuda, way, False)
        expected = run()
    assert_same_bits("all but the gradient of the query", expected[:2] + expected[3:], found[:2] + found[3:])


@pytest.mark.parametrize("case", OTHERS, ids=lambda c: str(c[0]))
def test_others_keep_their_kernels(simt: Simt, case: Case, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """float32, and head dim 256."""
    inputs, options = make_inputs(case, torch.bfloat16 if case[0][5] > 128 else torch.float32)
    simt.configure(SCHEDULES[0])
    with simt.in_place_of_C():
        found = forward_and_backward(ops.span_attention, inputs, **options)
        monkeypatch.setattr(_cuda, way, False)
        assert_same_bits("", forward_and_backward(ops.span_attention, inputs, **options), found)


def test_a_row_whose_scores_are_all_low(simt: Simt) -> None:
    """A key that is padding has score 0, whose probability would be infinite beside an lse of -160."""
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 1, 1, 40, 64)
    query[..., 0], key[..., 0] = 40.0, -32.0  # scores of about -160
    simt.configure(SCHEDULES[0])
    with simt.in_place_of_C():
        check_op(
            ops.span_attention,
            reference.span_attention,
            [query.bfloat16(), key.bfloat16(), value.bfloat16(), torch.tensor([7]), torch.tensor([33])],
        )


@pytest.mark.parametrize("head_dim", [64, 128])
def test_memory_accesses(simt: Simt, head_dim: int) -> None:
    """Sums of dQ move as whole sectors, gradients of scores without bank conflicts, and that is all of dQ."""
    inputs, _ = make_inputs(((1, 2, 1, 128, 128, head_dim), [70], None, None), torch.bfloat16)
    files, found = count_accesses(simt, lambda: forward_and_backward(ops.span_attention, inputs))
    assert "grad_key.cu" in files
    assert "grad_query.cu" not in files
    assert found == {DELTA}


def test_memory_accesses_of_packed_sums(simt: Simt, way: str) -> None:
    """Lists of tiles of any length lie beside sums that begin where a line of memory does."""
    query, key, value = torch.randn(3, 256, 2, 64).bfloat16()
    inputs = [query, key, value, torch.tensor([0, 64, 192]), torch.tensor([3, 60])]
    files, found = count_accesses(simt, lambda: forward_and_backward(ops.span_attention_varlen, inputs))
    assert ("grad_query.cu" in files) == (way == "five_products")
    assert found == {DELTA}


@pytest.mark.parametrize("bounds", [[0, 70, -5], [0, 40, 20]], ids=str)
def test_packed_bounds_that_fall_reach_nothing_outside(simt: Simt, bounds: list[int]) -> None:
    attention.test_packed_bounds_out_of_range_are_clamped(simt, bounds, None, torch.bfloat16)
