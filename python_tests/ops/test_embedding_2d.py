from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from glm_ext import ops
from glm_ext.ops import reference

from .tolerance import DTYPES, check_op

# shape of the ids, rows of the three tables, width
CASES = [
    ((1,), (1, 1, 1), 1),
    ((2, 5), (11, 7, 3), 7),
    ((3, 4, 7), (101, 5, 2), 131),
    ((0,), (4, 4, 4), 8),
    ((), (4, 4, 4), 8),
    ((2, 0, 3), (4, 4, 4), 8),
    ((2, 127), (13, 300, 2), 128),
    ((5, 401), (2, 3, 1), 33),  # every id in more than one piece of the backward
    ((63,), (1, 1, 1), 16),
    ((64,), (1, 1, 1), 16),
    ((127,), (1, 1, 1), 16),
    ((128,), (1, 1, 1), 16),
    ((17,), (999, 3, 3), 768),
]


def make_ids(shape: tuple[int, ...], rows: tuple[int, ...]) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randint(0, n, shape) for n in rows]


def make_tables(rows: tuple[int, ...], width: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(n, width).to(dtype) for n in rows]


@pytest.mark.parametrize("dropout_p", [0.0, 0.1, 1.0])
@pytest.mark.parametrize(("shape", "rows", "width"), CASES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_matches_reference(
    dtype: torch.dtype, shape: tuple[int, ...], rows: tuple[int, ...], width: int, dropout_p: float
) -> None:
    inputs = [*make_ids(shape, rows), *make_tables(rows, width, dtype)]
    check_op(ops.embedding_2d, reference.embedding_2d, inputs, dropout_p=dropout_p)


def glm_batch(B: int, S: int, prefix: int) -> list[Tensor]:
    """The ids of GLM: block position 0 throughout Part A, one position throughout a span."""
    torch.manual_seed(2)
    place = torch.arange(S)
    positions = torch.where(place < prefix, place, prefix // 2).repeat(B, 1)
    block_positions = (place - prefix + 1).clamp(min=0).repeat(B, 1)
    return [torch.randint(0, 50, (B, S)), positions, block_positions]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_glm_batch(dtype: torch.dtype) -> None:
    inputs = [*glm_batch(3, 301, 256), *make_tables((50, 301, 301), 48, dtype)]
    check_op(ops.embedding_2d, reference.embedding_2d, inputs, dropout_p=0.1)


def test_same_bits_for_every_thread_count() -> None:
    ids, tables = glm_batch(4, 512, 410), make_tables((50, 512, 512), 96)
    before, results = torch.get_num_threads(), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        torch.manual_seed(3)
        leaves = [t.clone().requires_grad_() for t in tables]
        out = ops.embedding_2d(*ids, *leaves, dropout_p=0.1)
        results.append((out, *torch.autograd.grad(out.square().sum(), leaves)))
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_rows_that_nothing_looks_up_get_no_gradient() -> None:
    tables = [t.requires_grad_() for t in make_tables((9, 5, 5), 4)]
    two = torch.tensor([2])
    ops.embedding_2d(two, two, two, *tables).sum().backward()
    for table in tables:
        expected = torch.zeros_like(table)
        expected[2] = 1.0
        assert table.grad is not None
        assert torch.equal(table.grad, expected)


def test_dropped_elements_are_zero_whatever_they_held() -> None:
    ids, tables = make_ids((2, 3), (4, 4, 4)), make_tables((4, 4, 4), 9)
    tables[0].fill_(torch.nan)
    leaves = [t.requires_grad_() for t in tables]
    out = ops.embedding_2d(*ids, *leaves, dropout_p=1.0)
    assert (out == 0.0).all()
    grads = torch.autograd.grad(out, leaves, torch.full_like(out, torch.nan))
    assert all((t == 0.0).all() for t in grads)


def test_one_table_for_all_three() -> None:
    """As a tied table: the gradients of its three uses add up."""
    table = make_tables((5,), 8)[0].requires_grad_()
    ids = [torch.tensor([0, 1, 1]), torch.tensor([1, 1, 4]), torch.tensor([2, 1, 0])]
    ops.embedding_2d(*ids, table, table, table).sum().backward()
    assert table.grad is not None
    counts = torch.cat(ids).bincount(minlength=5).float()
    assert torch.equal(table.grad, counts[:, None].expand(5, 8))


def test_int32_and_strided_ids() -> None:
    ids, tables = make_ids((4, 6), (11, 7, 3)), make_tables((11, 7, 3), 9)
    expected = ops.embedding_2d(*ids, *tables)
    assert torch.equal(ops.embedding_2d(*(t.int() for t in ids), *tables), expected)
    strided = [torch.stack((t, torch.full_like(t, -1)), dim=-1)[..., 0] for t in ids]
    assert torch.equal(ops.embedding_2d(*strided, *tables), expected)


# -------------------------------------------------------------------------------------------------- bad input


def good() -> dict[str, Any]:
    ids, tables = make_ids((2, 3), (11, 7, 3)), make_tables((11, 7, 3), 9)
    names = ("tokens", "positions", "block_positions", "token_table", "position_table", "block_table")
    return dict(zip(names, [*ids, *tables], strict=True))


@pytest.mark.parametrize(
    ("name", "table", "rows"),
    [
        ("tokens", "token_table", 11),
        ("positions", "position_table", 7),
        ("block_positions", "block_table", 3),
    ],
)
@pytest.mark.parametrize("value", [-1, 1000, -(2**63), 2**63 - 1])
def test_id_out_of_range(name: str, table: str, rows: int, value: int) -> None:
    call = good()
    call[name][1, 2] = value
    message = rf"{name}: expected ids from 0 to {rows - 1}, the last row of {table}, got {value} at \[1, 2\]"
    with pytest.raises(IndexError, match=message):
        ops.embedding_2d(**call)
    call[name][1, 2] = rows
    with pytest.raises(IndexError, match=f"got {rows} at"):
        ops.embedding_2d(**call)


def test_first_bad_id_is_named_and_backward_checks_too() -> None:
    call = good()
    call["positions"][0, 1] = -5
    call["positions"][1, 0] = -6
    with pytest.raises(IndexError, match=r"positions: .* got -5 at \[0, 1\]"):
        ops.embedding_2d(**call)
    ids = [call["tokens"], call["positions"], call["block_positions"]]
    with pytest.raises(IndexError, match=r"positions: .* got -5 at \[0, 1\]"):
        torch.ops.glm_ext.embedding_2d_backward(
            torch.ones(2, 3, 9), *ids, None, 0.0, [11, 7, 3], [True, True, True]
        )


def test_empty_table() -> None:
    call = good() | {"block_table": torch.empty(0, 9)}
    with pytest.raises(IndexError, match="block_positions: expected ids from 0 to -1"):
        ops.embedding_2d(**call)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"tokens": torch.zeros(2, 3)}, TypeError, "tokens: expected int64 or int32, got float32"),
        ({"positions": [[0]]}, TypeError, "positions: expected an integer tensor, got list"),
        ({"block_positions": torch.zeros(2, 3, dtype=torch.bool)}, TypeError, "got bool"),
        (
            {"tokens": torch.zeros(2, 3, dtype=torch.long, device="meta")},
            ValueError,
            "tokens: expected device cpu",
        ),
        (
            {"positions": torch.zeros(3, 2, dtype=torch.long)},
            ValueError,
            r"positions: expected shape \[2, 3\]",
        ),
        (
            {"block_positions": torch.zeros(6, dtype=torch.long)},
            ValueError,
            "block_positions: expected shape",
        ),
        ({"token_table": torch.zeros(11, 9, dtype=torch.long)}, TypeError, "token_table: expected float32"),
        ({"token_table": torch.zeros(11)}, ValueError, r"token_table: expected shape \[any, any\] \(V, E\)"),
        ({"token_table": torch.zeros(11, 0)}, ValueError, "token_table: .* E >= 1"),
        ({"position_table": torch.zeros(7, 8)}, ValueError, r"position_table: expected shape \[any, 9\]"),
        ({"block_table": torch.zeros(3, 10)}, ValueError, "block_table: expected shape"),
        (
            {"block_table": torch.zeros(3, 9).half()},
            TypeError,
            "block_table: expected float32 as token_table",
        ),
        ({"dropout_p": 1.5}, ValueError, r"dropout_p: expected a probability in \[0, 1\], got 1.5"),
        ({"dropout_p": float("nan")}, ValueError, "dropout_p"),
    ],
)
def test_bad_arguments(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ops.embedding_2d(**(good() | change))


def test_saved_ids_changed_before_backward() -> None:
    call = good()
    call["token_table"].requires_grad_()
    out = ops.embedding_2d(**call)
    call["tokens"].zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


# --------------------------------------------------------------------------------------- the tied token table


def twice(backend: Any) -> Callable[..., tuple[Tensor, Tensor]]:
    """The embedding, and a second use of its token table."""

    def run(*inputs: Tensor, dropout_p: float = 0.0) -> tuple[Tensor, Tensor]:
        out, table = backend.tied_embedding_2d(*inputs, dropout_p=dropout_p)
        return out, table.square()

    return run


@pytest.mark.parametrize("dropout_p", [0.0, 0.1])
@pytest.mark.parametrize(("shape", "rows", "width"), CASES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tied_table_matches_reference(
    dtype: torch.dtype, shape: tuple[int, ...], rows: tuple[int, ...], width: int, dropout_p: float
) -> None:
    inputs = [*make_ids(shape, rows), *make_tables(rows, width, dtype)]
    check_op(twice(ops), twice(reference), inputs, dropout_p=dropout_p)


class _Gradient(torch.autograd.Function):
    """Zero, with a given tensor as its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, grad: Tensor) -> Tensor:
        ctx.grad = grad
        return x.new_zeros(())

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor, None]:
        return ctx.grad, None


def test_the_gradients_of_a_tied_table_are_one_tensor() -> None:
    ids, tables = make_ids((2, 3), (11, 7, 3)), [t.requires_grad_() for t in make_tables((11, 7, 3), 9)]
    second = torch.randn(11, 9)
    expected, place = second.index_add(0, ids[0].flatten(), torch.ones(6, 9)), second.data_ptr()
    out, table = ops.tied_embedding_2d(*ids, *tables)
    grad = torch.autograd.grad(out.sum() + _Gradient.apply(table, second), tables[0])[0]
    assert grad.data_ptr() == place
    assert torch.equal(grad, expected)


def test_a_gradient_that_is_asked_for_again_is_left_alone() -> None:
    ids, tables = make_ids((2, 3), (11, 7, 3)), [t.requires_grad_() for t in make_tables((11, 7, 3), 9)]
    second = torch.randn(11, 9)
    before = second.clone()
    out, table = ops.tied_embedding_2d(*ids, *tables)
    loss = out.sum() + _Gradient.apply(table, second)
    first, again = (torch.autograd.grad(loss, tables[0], retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(second, before)


def test_a_gradient_with_other_strides() -> None:
    ids, tables = make_ids((2, 3), (11, 7, 3)), [t.requires_grad_() for t in make_tables((11, 7, 3), 9)]
    second = torch.randn(9, 11).T
    expected = second.index_add(0, ids[0].flatten(), torch.ones(6, 9))
    out, table = ops.tied_embedding_2d(*ids, *tables)
    grad = torch.autograd.grad(out.sum() + _Gradient.apply(table, second), tables[0])[0]
    assert torch.equal(grad, expected)


@pytest.mark.parametrize("which", ["embedding", "table"])
def test_one_use_of_a_tied_table(which: str) -> None:
    ids, tables = make_ids((2, 3), (11, 7, 3)), [t.requires_grad_() for t in make_tables((11, 7, 3), 9)]
    out, table = ops.tied_embedding_2d(*ids, *tables)
    grads = torch.autograd.grad((out if which == "embedding" else table).sum(), tables, allow_unused=True)
    counts = ids[0].flatten().bincount(minlength=11).float() if which == "embedding" else torch.ones(11)
    assert torch.equal(grads[0], counts[:, None].expand(11, 9))
    assert [g is None for g in grads[1:]] == [which == "table"] * 2


def test_a_tied_table_without_gradient() -> None:
    ids, tables = make_ids((2, 3), (11, 7, 3)), make_tables((11, 7, 3), 9)
    tables[1].requires_grad_()
    out, table = ops.tied_embedding_2d(*ids, *tables)
    assert table is tables[0]
    assert out.requires_grad
