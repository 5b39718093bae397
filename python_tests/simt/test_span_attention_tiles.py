"""How CUDA attention cuts its work: split keys, lists of tiles, tiles of 128 rows."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from glm_ext import ops
from glm_ext.ops import reference

from ..ops.tolerance import check_op
from .backend import SCHEDULES, Schedule, Simt, assert_same_bits
from .checks import GPU_DTYPES, access_costs, excesses, forward_and_backward
from .test_span_attention import Case, make_inputs

# ------------------------------------------------------------------------------------------------ split keys

DECODING: list[Case] = [
    ((2, 2, 1, 1, 8200, 64), [0, 8000], [8200, 300], [8000, 0]),  # 32 splits, most of which see nothing
    ((1, 2, 2, 64, 800, 128), [100], None, [3]),  # as many rows as a tile has
    ((2, 1, 1, 7, 520, 256), [0, 0], [520, 0], [516, 0]),  # the first rows see nothing; nor does a sequence
]


@pytest.mark.parametrize("case", DECODING, ids=lambda c: str(c[0]))
@pytest.mark.parametrize("dtype", GPU_DTYPES, ids=str)
def test_split_keys_match_reference(simt: Simt, dtype: torch.dtype, case: Case) -> None:
    inputs, options = make_inputs(case, dtype)
    simt.configure(Schedule("random", 3))
    with simt.in_place_of_C():
        check_op(ops.span_attention, reference.span_attention, inputs, return_lse=True, **options)


def test_split_keys_drop_what_whole_ones_drop(simt: Simt) -> None:
    """65 rows make two tiles, whose keys are not split: rows of the same coordinates drop the same keys."""
    torch.manual_seed(0)
    query, key = torch.randn(2, 1, 1, 600, 64).bfloat16()

    def kept(rows: int, first: int) -> Tensor:
        value = torch.zeros_like(key)
        value[0, 0, first : first + 64] = torch.eye(64)
        torch.manual_seed(7)
        return ops.span_attention(query[:, :, :rows], key, value, 600, dropout_p=0.3) != 0

    simt.configure(SCHEDULES[0])
    with simt.in_place_of_C():
        for first in (0, 250, 536):
            split, whole = kept(64, first), kept(65, first)
            assert torch.equal(split, whole[:, :, :64])
            assert 0.65 < split.float().mean() < 0.75


# --------------------------------------------------------------------------------------------- lists of tiles


def tile_list(
    simt: Simt, cu_seqlens: list[int], prefix_len: list[int], rows: int, tile_rows: int, keys: bool
) -> list[tuple[int, int]]:
    """(sequence, tile) in the order in which blocks take them; (-1, 0): none."""
    pairs = torch.full((rows // tile_rows + len(cu_seqlens),), -2, dtype=torch.int64)  # two int32 each
    simt.configure(SCHEDULES[0])
    arguments = torch.tensor(cu_seqlens), torch.tensor(prefix_len, dtype=torch.int64), pairs
    simt.fenced(simt.module.testing.tile_list)(*arguments, rows, tile_rows, keys)
    return [(b, first // tile_rows) for b, first in pairs.view(torch.int32).view(-1, 2).tolist()]


def random_batch(sequences: int) -> tuple[list[int], list[int], int]:
    rng = random.Random(sequences)
    lengths = [rng.choice([0, 1, 64, 128, rng.randint(1, 400)]) for _ in range(sequences)]
    bounds = [sum(lengths[:b]) for b in range(sequences + 1)]
    return bounds, [rng.choice([0, n, rng.randint(0, n)]) for n in lengths], bounds[-1] + rng.choice([0, 130])


@pytest.mark.parametrize("sequences", [0, 1, 5, 31, 32, 33, 70])
@pytest.mark.parametrize("tile_rows", [64, 128])
@pytest.mark.parametrize("keys", [False, True], ids=["rows", "keys"])
def test_the_dearest_tiles_come_first(simt: Simt, sequences: int, tile_rows: int, keys: bool) -> None:
    cu_seqlens, prefix_len, rows = random_batch(sequences)
    counts = [-(-(end - begin) // tile_rows) for begin, end in pairwise([*cu_seqlens, rows])]
    found = tile_list(simt, cu_seqlens, prefix_len, rows, tile_rows, keys)
    tiles = [place for place in found if place[0] >= 0]
    assert sorted(tiles) == [(b, t) for b, count in enumerate(counts) for t in range(count)]
    assert found == tiles + [(-1, 0)] * (len(found) - len(tiles))

    def cost(b: int, tile: int) -> int:
        if b == sequences:
            return 0
        prefix_tiles = -(-prefix_len[b] // tile_rows)
        if keys:
            return counts[b] - (0 if tile < prefix_tiles else tile)
        return max(prefix_tiles, tile + 1)

    costs = [cost(*place) for place in tiles]
    assert costs == sorted(costs, reverse=True)


@pytest.mark.parametrize(
    ("cu_seqlens", "prefix_len"),
    [([0, 640, 0, 640, 0], [0, 0, 0, 0]), ([-(2**40), 2**40, 3], [2**62, -5]), ([640, 0], [2**62])],
    ids=str,
)
@pytest.mark.parametrize("keys", [False, True], ids=["rows", "keys"])
def test_a_list_of_bounds_out_of_range(
    simt: Simt, cu_seqlens: list[int], prefix_len: list[int], keys: bool
) -> None:
    """Every place is written, with tiles of the batch."""
    bounds = [min(max(bound, 0), 640) for bound in cu_seqlens] + [640]
    counts = [-(-max(0, end - begin) // 64) for begin, end in pairwise(bounds)]
    found = tile_list(simt, cu_seqlens, prefix_len, 640, 64, keys)
    tiles = [place for place in found if place[0] >= 0]
    assert len(tiles) == len(set(tiles)) == min(len(found), sum(counts))
    assert all(0 <= tile < counts[b] for b, tile in tiles)
    assert found == tiles + [(-1, 0)] * (len(found) - len(tiles))


@pytest.mark.parametrize("dtype", GPU_DTYPES, ids=str)
def test_one_long_sequence_and_many_short_ones(simt: Simt, dtype: torch.dtype) -> None:
    lengths = [3] * 20 + [150] + [1, 0] * 10
    bounds = torch.tensor([0, *lengths]).cumsum(0)
    torch.manual_seed(0)
    query = torch.randn(int(bounds[-1]) + 5, 2, 64).to(dtype)
    key, value = torch.randn(2, len(query), 1, 64).to(dtype)
    simt.configure(Schedule("random", 4, deferred=True))
    with simt.in_place_of_C():
        check_op(
            ops.span_attention_varlen,
            reference.span_attention_varlen,
            [query, key, value, bounds, torch.tensor([n // 3 for n in lengths])],
            return_lse=True,
        )


# ------------------------------------------------------------------------------------------ tiles of 128 rows


def long_case(head_dim: int) -> Case:
    return (1, 1, 1, 1031, 1031, head_dim), [300], [1030], [5]


@pytest.mark.parametrize(
    ("dtype", "head_dim", "schedule"),
    [(torch.bfloat16, 64, Schedule("skewed")), (torch.float16, 72, Schedule("random", 1, deferred=True))],
    ids=str,
)
def test_long_sequences_match_reference(
    simt: Simt, dtype: torch.dtype, head_dim: int, schedule: Schedule
) -> None:
    inputs, options = make_inputs(long_case(head_dim), dtype)
    simt.configure(schedule)
    with simt.in_place_of_C():
        check_op(
            ops.span_attention,
            reference.span_attention,
            inputs,
            dropout_p=0.1,
            return_lse=True,
            **options,
        )


@pytest.mark.parametrize("prefix_len", [0, 127, 128, 129, 1031])
def test_tiles_of_128_rows_have_the_bits_of_64(simt: Simt, prefix_len: int) -> None:
    """A row's keys come in the same tiles; 1023 rows are too few for tiles of 128."""
    query, key, value = torch.randn(3, 1, 1, 1031, 64).bfloat16()
    simt.configure(SCHEDULES[0])
    with simt.in_place_of_C():
        long = ops.span_attention(query, key, value, prefix_len, return_lse=True)
        short = ops.span_attention(query[:, :, 8:], key, value, prefix_len, return_lse=True)
    assert_same_bits("rows from 8 on", short, [long[0][:, :, 8:], long[1][:, :, 8:]])


def test_long_packed_sequences_match_reference(simt: Simt) -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2100, 1, 64).half()
    simt.configure(SCHEDULES[0])
    with simt.in_place_of_C():
        check_op(
            ops.span_attention_varlen,
            reference.span_attention_varlen,
            [query, key, value, torch.tensor([0, 1900, 2050]), torch.tensor([10, 140])],
            return_lse=True,
        )


# ------------------------------------------------------------------------------------- what accesses cost

DELTA = ("global", "backward.cu", 2.0)  # as in test_span_attention.py


@pytest.mark.parametrize(
    ("rows", "expected"),
    [(1, set()), (8, {DELTA, ("global", "forward.cuh", 4.0)})],
    ids=["a row", "8 rows, whose lse of a split lie 4 splits apart"],
)
def test_memory_accesses_of_split_keys(simt: Simt, rows: int, expected: set[tuple[str, str, float]]) -> None:
    inputs, _ = make_inputs(((1, 2, 1, rows, 1100, 64), [40], None, None), torch.bfloat16)
    files, found = count_accesses(simt, lambda: forward_and_backward(ops.span_attention, inputs))
    assert "combine.cu" in files
    assert found == expected


def test_memory_accesses_of_lists(simt: Simt) -> None:
    query, key, value = torch.randn(3, 256, 2, 64).bfloat16()
    inputs = [query, key, value, torch.tensor([0, 64, 192]), torch.tensor([3, 60])]
    files, found = count_accesses(simt, lambda: forward_and_backward(ops.span_attention_varlen, inputs))
    assert "tile_list.cu" in files
    assert found == {DELTA}


@pytest.mark.parametrize("head_dim", [64, 128])
def test_memory_accesses_of_tiles_of_128_rows(simt: Simt, head_dim: int) -> None:
    """Keys come half as often as for 1023 rows, which take tiles of 64."""
    query = torch.randn(1, 1, 1024, head_dim).bfloat16()
    _, found = count_accesses(simt, lambda: ops.span_attention(query, query, query, 0))
    assert found == set()

    def sectors(rows: int) -> int:
        part = query[:, :, :rows]
        with simt.in_place_of_C():
            ops.span_attention(part, part, part, 0)
        return access_costs(simt)[1]["global"]

    assert sectors(1024) < 0.6 * sectors(1023)


def count_accesses(simt: Simt, run: Callable[[], object]) -> tuple[set[str], set[tuple[str, str, float]]]:
    simt.configure(SCHEDULES[0], count_accesses=True)
    simt.module.take_counts()
    with simt.in_place_of_C():
        run()
    return excesses(simt)
