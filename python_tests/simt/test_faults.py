"""The host execution finds the mistakes that kernels make: a small matrix product, broken in one way at a
time (csrc/simt/tests/matmul.cuh). Where a check and a wrong result can both find one, both are shown."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from .backend import SCHEDULES, Schedule, Simt
from .build import ROOT

EAGER_SKEWED = Schedule("skewed")
SHAPES = [(1, 1, 8), (16, 16, 16), (37, 21, 40), (70, 16, 72)]


def matmul(
    simt: Simt, fault: str, shape: tuple[int, int, int] = (37, 21, 40)
) -> tuple[torch.Tensor, torch.Tensor]:
    m, n, k = shape
    torch.manual_seed(0)
    a, b = torch.randn(m, k).bfloat16(), torch.randn(n, k).bfloat16()
    c = torch.full((m, n), float("nan"))
    simt.fenced(getattr(simt.module.testing, f"matmul_{fault}"))(a, b, c)
    return c, a.float() @ b.float().T


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_right_kernel_is_right(simt: Simt, shape: tuple[int, int, int], schedule: Schedule) -> None:
    simt.configure(schedule)
    torch.testing.assert_close(*matmul(simt, "none", shape))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (
            "missing_barrier",
            r"race: thread \d+ copies over what others read at matmul.cuh:\d+ without a barrier",
        ),
        ("weak_wait", r"race: reads what the cp.async of matmul.cuh:\d+ may not have written yet"),
        ("shared_race", r"race: thread \d+ (reads what thread \d+ wrote|writes over what others read)"),
        (
            "out_of_bounds",
            r"global memory: 16 bytes at \S+ are outside of every tensor of the call, at matmul.cuh",
        ),
        ("divergent_barrier", r"deadlock: .* 32 have returned; 32 wait at __syncthreads matmul.cuh"),
    ],
)
def test_a_fault_is_an_error(simt: Simt, fault: str, message: str, schedule: Schedule) -> None:
    simt.configure(schedule)
    with pytest.raises(RuntimeError, match=message):
        matmul(simt, fault)


@pytest.mark.parametrize("fault", ["missing_barrier", "weak_wait", "shared_race"])
def test_a_fault_shows_in_results_too(simt: Simt, fault: str) -> None:
    """Without the race check, some schedule gives a wrong result; not every one does: it takes several."""
    wrong = []
    for schedule in SCHEDULES:
        simt.configure(schedule, check_races=False)
        found, expected = matmul(simt, fault)
        if not torch.allclose(found, expected):
            wrong.append(schedule)
    assert wrong
    if fault == "missing_barrier":
        assert EAGER_SKEWED in wrong
        assert not any(s.deferred or s.order == "in_order" for s in wrong)
    if fault == "weak_wait":
        assert wrong == [s for s in SCHEDULES if s.deferred]


def test_unwritten_output_stays_nan(simt: Simt) -> None:
    simt.configure(SCHEDULES[0])
    found, _ = matmul(simt, "unwritten_output")
    assert found[:, -1].isnan().all()
    assert not found[:, :-1].isnan().any()


def test_bank_conflicts_are_counted(simt: Simt) -> None:
    simt.configure(SCHEDULES[0], count_accesses=True)
    ratios = {}
    for fault in ("none", "bank_conflict"):
        simt.module.take_counts()
        torch.testing.assert_close(*matmul(simt, fault, (32, 16, 64)))
        loads = _ldmatrix_lines(simt)
        assert [c.requests for c in loads] == [32, 32]  # 2 warps, 4 steps, 4 matrices
        ratios[fault] = [c.cost / c.ideal for c in loads]
    assert ratios["none"] == [1.0, 1.0]
    assert ratios["bank_conflict"] == [2.0, 2.0]


def _ldmatrix_lines(simt: Simt) -> list[Any]:
    with open(ROOT / "csrc/simt/tests/matmul.cuh") as source:
        lines = [i for i, text in enumerate(source, start=1) if "load_matrices(" in text]
    return [c for c in simt.module.take_counts() if c.space == "shared" and c.line in lines]


def test_uncoalesced_accesses_are_counted(simt: Simt) -> None:
    """Two rows of 16 columns are whole sectors; two of 3 are 24 bytes, at times across two sectors."""
    simt.configure(SCHEDULES[0], count_accesses=True)
    simt.module.take_counts()
    matmul(simt, "none", (32, 16, 16))
    stores = [c for c in simt.module.take_counts() if c.space == "global"][-1]
    assert stores.cost == stores.ideal
    matmul(simt, "none", (32, 3, 16))
    stores = [c for c in simt.module.take_counts() if c.space == "global"][-1]
    assert stores.cost > stores.ideal


def test_a_failed_launch_leaves_no_trace(simt: Simt) -> None:
    simt.configure(SCHEDULES[0])
    with pytest.raises(RuntimeError):
        matmul(simt, "weak_wait")
    torch.testing.assert_close(*matmul(simt, "none"))
