"""embedding_2d on its CUDA kernel: forward."""

from __future__ import annotations

import pytest
import torch

from glm_ext import ops
from glm_ext.ops import reference

from ..ops.test_embedding_2d import CASES, make_ids, make_tables
from .backend import SCHEDULES, Simt
from .checks import GPU_DTYPES, NO_COPIES, access_costs, check_forward, same_under


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
    check_forward(simt, ops.embedding_2d, reference.embedding_2d, inputs, dropout_p=dropout_p)


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


@pytest.mark.parametrize("dtype", GPU_DTYPES, ids=str)
def test_memory_accesses_are_whole_sectors(simt: Simt, dtype: torch.dtype) -> None:
    inputs = [*make_ids((3, 5), (7, 5, 2)), *make_tables((7, 5, 2), 512, dtype)]
    simt.configure(SCHEDULES[0], count_accesses=True)
    simt.module.take_counts()
    with simt.in_place_of_C():
        ops.embedding_2d(*inputs, dropout_p=0.1)
    cost, ideal = access_costs(simt)
    assert cost["global"] == ideal["global"] > 0
