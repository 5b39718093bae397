"""embedding_2d on its CUDA kernels."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from glm_ext import ops
from glm_ext.ops import reference

from ..ops.test_embedding_2d import CASES, glm_batch, make_ids, make_tables, twice
from ..ops.tolerance import check_op
from .backend import SCHEDULES, Simt
from .checks import GPU_DTYPES, NO_COPIES, access_costs, forward_and_backward, same_under


@pytest.mark.parametrize("dropout_p", [0.0, 0.1, 1.0])
@pytest.mark.parametrize(("shape", "rows", "width"), CASES, ids=str)
@pytest.mark.parametrize("dtype", GPU_DTYPES, ids=str)
def test_matches_reference(
    simt: Simt,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    rows: tuple[int, ...],
    width: int,
    dropout_p: float,
) -> None:
    inputs = [*make_ids(shape, rows), *make_tables(rows, width, dtype)]
    simt.configure(SCHEDULES[0])
    with simt.in_place_of_C():
        check_op(ops.embedding_2d, reference.embedding_2d, inputs, dropout_p=dropout_p)


@pytest.mark.parametrize("dtype", GPU_DTYPES, ids=str)
def test_glm_batch(simt: Simt, dtype: torch.dtype) -> None:
    """Several blocks of the sort, two steps of it, and an id with more than half of all places."""
    inputs = [*glm_batch(3, 801, 700), *make_tables((50, 801, 801), 48, dtype)]
    simt.configure(SCHEDULES[0])
    with simt.in_place_of_C():
        check_op(ops.embedding_2d, reference.embedding_2d, inputs, dropout_p=0.1)


@pytest.mark.parametrize("width", [24, 13])
def test_backward_has_the_same_bits_under_every_schedule(simt: Simt, width: int) -> None:
    inputs = [*glm_batch(2, 301, 256), *make_tables((50, 301, 301), width)]
    with simt.in_place_of_C():
        same_under(simt, NO_COPIES, lambda: forward_and_backward(ops.embedding_2d, inputs, dropout_p=0.3))


def test_backward_of_some_tables_alone(simt: Simt) -> None:
    ids, tables = glm_batch(2, 101, 80), make_tables((50, 101, 101), 16)
    simt.configure(SCHEDULES[0])
    for which in range(3):
        leaves = [t.clone().requires_grad_(i == which) for i, t in enumerate(tables)]
        grads = []
        for backend in (simt.in_place_of_C, nullcontext):
            with backend():
                torch.manual_seed(5)
                grads += torch.autograd.grad(
                    ops.embedding_2d(*ids, *leaves, dropout_p=0.3).square().sum(), leaves[which]
                )
        torch.testing.assert_close(*grads)


@pytest.mark.parametrize("width", [520, 131])
def test_same_bits_as_the_cpu_under_every_schedule(simt: Simt, width: int) -> None:
    inputs = [*make_ids((3, 5), (7, 5, 2)), *make_tables((7, 5, 2), width)]

    def run() -> list[torch.Tensor | None]:
        torch.manual_seed(5)
        return [ops.embedding_2d(*inputs, dropout_p=0.3)]

    on_cpu = run()
    with simt.in_place_of_C():
        same_under(simt, NO_COPIES, run)
        on_gpu = run()
    assert torch.equal(on_cpu[0], on_gpu[0])  # type: ignore[arg-type]


def test_an_id_outside_its_table_gives_nan_and_reads_nothing(simt: Simt) -> None:
    tokens, positions, block_positions = make_ids((5,), (7, 5, 2))
    tokens[1], positions[2], block_positions[4] = 7, -1, 10**12
    simt.configure(SCHEDULES[0])
    with simt.in_place_of_C():
        out = ops.embedding_2d(tokens, positions, block_positions, *make_tables((7, 5, 2), 40), dropout_p=0.5)
    assert out.isnan().all(-1).tolist() == out.isnan().any(-1).tolist() == [False, True, True, False, True]


def test_an_id_that_fills_whole_slots(simt: Simt) -> None:
    """From 1 to 200 places of one id, beginning anywhere in a slot: each way that a sum can be cut."""
    simt.configure(SCHEDULES[0])
    table = torch.zeros(3, 8)
    for before in (0, 1, 63, 64, 65):
        for count in (1, 63, 64, 65, 128, 200):
            ids = torch.cat([torch.zeros(before), torch.ones(count), torch.full((7,), 2)]).long()
            grad = torch.randn(len(ids), 8)
            with simt.in_place_of_C():
                found = torch.ops.glm_ext.embedding_2d_backward(
                    grad, ids, ids, ids, None, 0.0, [3, 3, 3], [True, False, False]
                )[0]
            torch.testing.assert_close(found, table.index_add(0, ids, grad), rtol=1e-5, atol=1e-5)


def test_the_gradient_of_an_id_outside_its_table_goes_nowhere(simt: Simt) -> None:
    ids, tables = glm_batch(1, 200, 150), make_tables((50, 200, 200), 16)
    inside = torch.ones(3, 200, dtype=torch.bool)
    for which, places in enumerate(([3, 4, 190], [0, 199], range(40, 120))):
        inside[which, list(places)] = False
    outside = [
        t.masked_fill(~ok, 10**12 if i else -1) for i, (t, ok) in enumerate(zip(ids, inside, strict=True))
    ]
    grad = torch.randn(1, 200, 16)
    simt.configure(SCHEDULES[0])
    with simt.in_place_of_C():
        grads = torch.ops.glm_ext.embedding_2d_backward(
            grad, *outside, None, 0.0, [50, 200, 200], [True, True, True]
        )
    for found, index, ok, table in zip(grads, ids, inside, tables, strict=True):
        expected = torch.zeros_like(table).index_add(0, index[0, ok], grad[0, ok])
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("dtype", GPU_DTYPES, ids=str)
def test_memory_accesses_of_backward(simt: Simt, dtype: torch.dtype) -> None:
    """Rows move in whole sectors, and the ids that sorting picks out are few beside them."""
    inputs = [*glm_batch(1, 300, 256), *make_tables((50, 300, 300), 512, dtype)]
    simt.configure(SCHEDULES[0], count_accesses=True)
    simt.module.take_counts()
    with simt.in_place_of_C():
        forward_and_backward(ops.embedding_2d, inputs, dropout_p=0.1)
    cost, ideal = access_costs(simt)
    assert ideal["global"] <= cost["global"] <= 1.25 * ideal["global"]


@pytest.mark.parametrize("dtype", GPU_DTYPES, ids=str)
def test_memory_accesses_are_whole_sectors(simt: Simt, dtype: torch.dtype) -> None:
    inputs = [*make_ids((3, 5), (7, 5, 2)), *make_tables((7, 5, 2), 512, dtype)]
    simt.configure(SCHEDULES[0], count_accesses=True)
    simt.module.take_counts()
    with simt.in_place_of_C():
        ops.embedding_2d(*inputs, dropout_p=0.1)
    cost, ideal = access_costs(simt)
    assert cost["global"] == ideal["global"] > 0


@pytest.mark.parametrize("dtype", GPU_DTYPES, ids=str)
def test_a_tied_table(simt: Simt, dtype: torch.dtype) -> None:
    """Sums of one slot, and of several: both are added to the gradient of the other use."""
    inputs = [*glm_batch(2, 301, 256), *make_tables((50, 301, 301), 48, dtype)]
    inputs[0].flatten()[100:400] = 7
    simt.configure(SCHEDULES[0])
    with simt.in_place_of_C():
        check_op(twice(ops), twice(reference), inputs, dropout_p=0.1)
