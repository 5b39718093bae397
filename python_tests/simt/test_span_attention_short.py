"""Backward of short sequences by one kernel, which keeps the sums of dQ in shared memory."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from glm_ext import ops
from glm_ext.ops import _cuda

from . import test_span_attention as attention
from .backend import SCHEDULES, Schedule, Simt, assert_same_bits
from .checks import excesses, forward_and_backward, same_under
from .test_span_attention import Case, make_inputs
from .test_span_attention_tiles import DELTA, count_accesses

CASES: list[Case] = [  # 128 heads in a batch, as many as it takes
    ((16, 8, 8, 2, 2, 64), [1] * 16, None, None),
    ((128, 1, 1, 130, 130, 40), [70] * 128, [128] * 128, [3] * 128),  # two tiles of keys, padded head dims
    ((128, 1, 1, 3, 200, 8), [0] * 128, [0, 200] * 64, None),  # some rows see nothing
]
LONGEST: Case = ((128, 1, 1, 256, 40, 64), [30] * 128, [30] * 128, None)


@pytest.fixture(autouse=True)
def in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cuda, "five_products", True)


@pytest.fixture
def short_kernel(simt: Simt) -> Iterator[None]:
    """In a test: backward was this kernel and no other."""
    simt.configure(SCHEDULES[0], count_accesses=True)
    simt.module.take_counts()
    yield
    files, _ = excesses(simt)
    assert "grad_short.cu" in files
    assert "grad_query.cu" not in files


@pytest.mark.usefixtures("short_kernel")
@pytest.mark.parametrize("case", CASES, ids=lambda c: str(c[0]))
def test_matches_reference(simt: Simt, case: Case) -> None:
    attention.check(simt, case, torch.bfloat16, dropout_p=0.1)


@pytest.mark.usefixtures("short_kernel")
def test_as_many_rows_as_there_is_room_for(simt: Simt) -> None:
    attention.check(simt, LONGEST, torch.float16)


def test_same_bits_under_three_schedules(simt: Simt) -> None:
    inputs, options = make_inputs(CASES[1], torch.bfloat16)
    schedules = [Schedule("skewed"), Schedule("reversed", deferred=True), Schedule("random", 1)]
    with simt.in_place_of_C():
        same_under(
            simt,
            schedules,
            lambda: forward_and_backward(ops.span_attention, inputs, dropout_p=0.1, **options),
        )


def test_only_the_gradient_of_the_query_differs(simt: Simt, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, options = make_inputs(CASES[1], torch.bfloat16)
    simt.configure(SCHEDULES[0])
    with simt.in_place_of_C():
        found = forward_and_backward(ops.span_attention, inputs, dropout_p=0.1, **options)
        monkeypatch.setattr(_cuda, "five_products", False)
        expected = forward_and_backward(ops.span_attention, inputs, dropout_p=0.1, **options)
    assert_same_bits("all but dQ", expected[:1] + expected[2:], found[:1] + found[2:])


@pytest.mark.parametrize(
    ("dtype", "sizes", "card", "short"),
    [
        (torch.bfloat16, (128, 1, 1, 256, 64), "", True),
        (torch.bfloat16, (128, 1, 1, 257, 64), "", False),
        (torch.bfloat16, (128, 1, 1, 512, 64), "hopper", True),
        (torch.bfloat16, (128, 1, 1, 513, 64), "hopper", False),
        (torch.bfloat16, (128, 1, 1, 64, 64), "ada", False),
        (torch.bfloat16, (127, 1, 1, 64, 64), "", False),
        (torch.bfloat16, (128, 2, 1, 64, 64), "", False),
        (torch.bfloat16, (128, 1, 1, 64, 72), "", False),
        (torch.float32, (128, 1, 1, 64, 64), "", False),
    ],
    ids=str,
)
def test_which_sequences_are_short(
    simt: Simt, dtype: torch.dtype, sizes: tuple[int, int, int, int, int], card: str, short: bool
) -> None:
    """The workspace says: it holds sums of dQ, or in float32 no sums either way, but for short sequences."""
    B, H, Hkv, S, D = sizes
    simt.configure(SCHEDULES[0], **({card: True} if card else {}))
    query = torch.empty(B, H, S, D, dtype=dtype)

    def floats(way: _cuda.GradQuery) -> int:
        return int(simt.module.span_attention_workspace(True, query, B, Hkv, S, False, way, 1))

    own, in_order = floats(_cuda.GradQuery.OWN_KERNEL), floats(_cuda.GradQuery.SUMS_IN_ORDER)
    assert (own == in_order) == (short or dtype == torch.float32)


def test_memory_accesses(simt: Simt) -> None:
    """No bank conflicts and whole sectors, but where 32 columns of dQ leave through tiles that have 64."""
    inputs, _ = make_inputs(((128, 1, 1, 128, 128, 64), [70] * 128, None, None), torch.bfloat16)
    files, found = count_accesses(simt, lambda: forward_and_backward(ops.span_attention, inputs))
    assert "grad_short.cu" in files
    assert {(space, file) for space, file, _ in found - {DELTA}} == {("shared", "tile.cuh")}
