"""GLM's input layer: a token's vector plus those of its two positions, with dropout, in one pass."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from glm_ext import _C
from glm_ext.ops import _kept_memory
from glm_ext.ops._arguments import (
    check_floating,
    check_integer,
    check_like,
    check_probability,
    check_shape,
)
from glm_ext.ops._library import (
    autocast_dtype,
    draw_seed,
    first_order_only,
    register,
    seed_value,
    short_path,
    target,
    watched,
)

IDS = ("tokens", "positions", "block_positions")
TABLES = ("token_table", "position_table", "block_table")


def embedding_2d(
    tokens: Tensor,
    positions: Tensor,
    block_positions: Tensor,
    token_table: Tensor,
    position_table: Tensor,
    block_table: Tensor,
    *,
    dropout_p: float = 0.0,
) -> Tensor:
    r"""Embed tokens with two positions each: the place in Part A, and the place inside the span.

    .. math:: out = dropout(token\_table[tokens] + position\_table[positions]
                            + block\_table[block\_positions])

    (Du et al., "GLM", arXiv 2103.10360, section 2.1). The gradients of the tables are dense, each row the
    sum of its places in their order: the same bits on every run, however often an id comes.

    Args:
        tokens, positions, block_positions: ids, all of one shape ``[...]``; int64, or int32 (converted).
        token_table: ``[V, E]``, float32, float64, bfloat16 or float16.
        position_table, block_table: ``[P, E]`` and ``[P', E]``, in the dtype of ``token_table``.
        dropout_p: probability that an element of the sum is dropped; kept ones are scaled by
            ``1 / (1 - dropout_p)``. The mask is drawn from torch's default generator and never stored. A
            recorded CUDA graph replays one mask for ever.

    Returns:
        ``[..., E]`` in the dtype of the tables. Sums are taken in float32 (float64 for float64) and
        rounded once. Under autocast tables of different dtypes are promoted to the widest.

    Raises:
        IndexError: an id outside its table, naming the first one, on a CPU. On a GPU, where to look would be
            to wait for the device, it gives a row of NaN and no gradient.
        TypeError, ValueError: naming the argument, what was expected and what came.

    >>> table = torch.tensor([[0.0, 1.0], [2.0, 3.0]])
    >>> embedding_2d(torch.tensor([0, 1]), torch.tensor([1, 0]), torch.tensor([0, 0]), table, table, table)
    tensor([[2., 5.],
            [2., 5.]])
    """
    ids, tables = (tokens, positions, block_positions), (token_table, position_table, block_table)
    return _embed(_prepare(ids, tables, dropout_p))


def tied_embedding_2d(*ids_and_tables: Tensor, dropout_p: float = 0.0) -> tuple[Tensor, Tensor]:
    """`embedding_2d`, and its token_table for a second use: the weight of `linear_cross_entropy`.

    Backward adds the rows of the first use to the gradient of the second, where it lies. Autograd would fill
    another [V, E] with zeros and add all of it. So that gradient must be no one else's, and this is no public
    op.

    >>> table = torch.zeros(3, 2, requires_grad=True)
    >>> ids = torch.tensor([1])
    >>> out, weight = tied_embedding_2d(ids, ids, ids, table, table.detach(), table.detach())
    >>> (out.sum() + (2.0 * weight).sum()).backward()
    >>> table.grad
    tensor([[2., 2.],
            [3., 3.],
            [2., 2.]])
    """
    arguments, token_table = _prepare(ids_and_tables[:3], ids_and_tables[3:], dropout_p), ids_and_tables[3]
    # Autocast may have made another table of it, for the lookup alone.
    promoted = arguments[3] is not token_table
    if watched(*arguments[:6]) or promoted or not token_table.requires_grad:
        return _embed(arguments), token_table
    return short_path(_TiedEmbedding2D, *arguments)  # type: ignore[no-any-return]


def _prepare(ids: tuple[Tensor, ...], tables: tuple[Tensor, ...], dropout_p: float) -> tuple[Any, ...]:
    """The arguments of the registered op, from three ids and three tables."""
    check_floating("token_table", tables[0])
    if autocast_dtype(tables[0].device.type) is not None:
        tables = _promote(*tables)
    checked: list[Any] = [*ids, *tables, None, dropout_p]
    _check(*checked)
    return (*ids, *tables, draw_seed(dropout_p), dropout_p)


def _embed(arguments: tuple[Any, ...]) -> Tensor:
    if watched(*arguments[:6]):
        return torch.ops.glm_ext.embedding_2d(*arguments)  # type: ignore[no-any-return]
    return short_path(_Embedding2D, *arguments)  # type: ignore[no-any-return]


def _check(
    tokens: Tensor,
    positions: Tensor,
    block_positions: Tensor,
    token_table: Tensor,
    position_table: Tensor,
    block_table: Tensor,
    seed: Tensor | None,
    dropout_p: float,
) -> None:
    check_floating("token_table", token_table)
    check_probability("dropout_p", dropout_p)
    _check_ids(tokens, positions, block_positions, token_table.device)
    for name, table in zip(TABLES[1:], (position_table, block_table), strict=True):
        check_like(name, table, "token_table", token_table)
    check_shape("token_table", token_table, (-1, -1), "V, E")
    if token_table.shape[1] == 0:
        raise ValueError(f"token_table: expected [V, E] with E >= 1, got {list(token_table.shape)}")
    check_shape("position_table", position_table, (-1, token_table.shape[1]), "P, E")
    check_shape("block_table", block_table, (-1, token_table.shape[1]), "P', E")


def _check_ids(tokens: Tensor, positions: Tensor, block_positions: Tensor, device: torch.device) -> None:
    for name, index in zip(IDS, (tokens, positions, block_positions), strict=True):
        check_integer(name, index, device)
        check_shape(name, index, tokens.shape, "as tokens")


def _check_backward(*arguments: Any) -> None:
    grad, tokens, positions, block_positions, _, dropout_p, table_rows, _ = arguments  # of _backward
    check_floating("grad", grad)
    check_probability("dropout_p", dropout_p)
    _check_ids(tokens, positions, block_positions, grad.device)
    check_shape("grad", grad, (*tokens.shape, -1), "as tokens, then E")
    if grad.shape[-1] == 0 or min(table_rows) < 0:
        raise ValueError(
            f"grad, table_rows: expected E >= 1 and counts of rows, got {list(grad.shape)}, {table_rows}"
        )


def _promote(*tables: Tensor) -> tuple[Tensor, ...]:
    dtype = functools.reduce(torch.promote_types, (table.dtype for table in tables))
    return tuple(table.to(dtype) for table in tables)


def _forward(
    tokens: Tensor,
    positions: Tensor,
    block_positions: Tensor,
    token_table: Tensor,
    position_table: Tensor,
    block_table: Tensor,
    seed: Tensor | None,
    dropout_p: float,
) -> Tensor:
    tokens, positions, block_positions = _int64(tokens, positions, block_positions)
    out = token_table.new_empty((*tokens.shape, token_table.shape[1]))
    fault = _C.embedding_2d_forward(
        tokens, positions, block_positions,
        token_table.contiguous(), position_table.contiguous(), block_table.contiguous(), out,
        dropout_p, seed_value(seed), target("embedding_2d", token_table),
    )  # fmt: skip
    if fault is not None:
        rows = [table.shape[0] for table in (token_table, position_table, block_table)]
        _raise_out_of_range(fault, (tokens, positions, block_positions), rows)
    return out


def _forward_fake(
    tokens: Tensor,
    positions: Tensor,
    block_positions: Tensor,
    token_table: Tensor,
    position_table: Tensor,
    block_table: Tensor,
    seed: Tensor | None,
    dropout_p: float,
) -> Tensor:
    return token_table.new_empty((*tokens.shape, token_table.shape[1]))


def _backward(
    grad: Tensor,
    tokens: Tensor,
    positions: Tensor,
    block_positions: Tensor,
    seed: Tensor | None,
    dropout_p: float,
    table_rows: list[int],
    wanted: list[bool],
    onto: Tensor | None = None,
) -> list[Tensor]:
    """The gradients of the wanted tables, in order; that of the tokens added to `onto`, if there is one."""
    tokens, positions, block_positions = _int64(tokens, positions, block_positions)
    rows, width = tokens.numel(), grad.shape[-1]
    grad, where = grad.contiguous(), target("embedding_2d_backward", grad)
    begun = (onto, None, None)
    grads = [
        _gradient(n, width, grad, where) if there is None else there
        for n, want, there in zip(table_rows, wanted, begun, strict=True)
        if want
    ]
    given = iter(grads)
    grad_token, grad_position, grad_block = (next(given) if want else None for want in wanted)
    token_rows, position_rows, block_rows = table_rows

    workspace = tokens.new_empty(
        _C.embedding_2d_workspace(rows, width, sum(table_rows), grad.dtype == torch.float64, where)
    )
    fault = _C.embedding_2d_backward(
        grad, tokens, positions, block_positions, token_rows, position_rows, block_rows,
        grad_token, grad_position, grad_block, onto is not None,
        workspace, dropout_p, seed_value(seed), where,
    )  # fmt: skip
    if fault is not None:
        _raise_out_of_range(fault, (tokens, positions, block_positions), table_rows)
    return grads


def _backward_fake(
    grad: Tensor,
    tokens: Tensor,
    positions: Tensor,
    block_positions: Tensor,
    seed: Tensor | None,
    dropout_p: float,
    table_rows: list[int],
    wanted: list[bool],
) -> list[Tensor]:
    width = grad.shape[-1]
    return [grad.new_empty((rows, width)) for rows, want in zip(table_rows, wanted, strict=True) if want]


def _gradient(rows: int, width: int, like: Tensor, where: int | tuple[int, int]) -> Tensor:
    """Memory for a table's gradient: a CPU writes all its rows, a GPU those that were looked up."""
    if _C.embedding_2d_finds_zeros(where):
        return like.new_zeros((rows, width))
    return _kept_memory.new_empty(like, (rows, width))


def _int64(*ids: Tensor) -> tuple[Tensor, ...]:
    return tuple(index.to(torch.int64).contiguous() for index in ids)


def _raise_out_of_range(fault: tuple[int, int], ids: tuple[Tensor, ...], table_rows: list[int]) -> None:
    which, row = fault
    index = ids[which]
    value = int(index.flatten()[row])
    place = [int(i) for i in torch.unravel_index(torch.tensor(row), index.shape)]
    raise IndexError(
        f"{IDS[which]}: expected ids from 0 to {table_rows[which] - 1}, the last row of {TABLES[which]}, "
        f"got {value} at {place}"
    )


class _Embedding2D(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        out = _forward(*inputs)
        _setup_context(ctx, inputs, out)
        return out

    @staticmethod
    @first_order_only
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _gradients(_backward, ctx, grad)


class _TiedEmbedding2D(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        out = _forward(*inputs)
        _setup_context(ctx, inputs, out)
        ctx.set_materialize_grads(False)
        return out, inputs[3].detach()

    @staticmethod
    @first_order_only
    def backward(ctx: Any, grad: Tensor | None, weight_grad: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None, None, None, weight_grad, None, None, None, None)
        if weight_grad is None:
            return _gradients(_backward, ctx, grad)
        # Who differentiates again may meet this gradient again.
        last = not torch._C._autograd._get_current_graph_task_keep_graph()
        onto = weight_grad.contiguous() if last else weight_grad.clone(memory_format=torch.contiguous_format)
        return _gradients(functools.partial(_backward, onto=onto), ctx, grad)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *ids_and_tables, seed, ctx.dropout_p = inputs
    ctx.table_rows = [table.shape[0] for table in ids_and_tables[3:]]
    ctx.save_for_backward(*ids_and_tables[:3], seed)


def _gradients(backward: Any, ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    wanted = list(ctx.needs_input_grad[3:6])
    grads = iter(backward(grad, *ctx.saved_tensors, ctx.dropout_p, ctx.table_rows, wanted))
    return (None, None, None, *(next(grads) if want else None for want in wanted), None, None)


# ------------------------------------------------------------------------------------------ torch.ops.glm_ext


def _autocast(device: str, *args: Any) -> tuple[Any, ...]:
    return (*args[:3], *_promote(*args[3:6]), *args[6:])


@first_order_only
def _registered_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return _gradients(torch.ops.glm_ext.embedding_2d_backward, ctx, grad)


register(
    "embedding_2d(Tensor tokens, Tensor positions, Tensor block_positions, Tensor token_table, "
    "Tensor position_table, Tensor block_table, Tensor? seed, float dropout_p) -> Tensor",
    _forward,
    _forward_fake,
    check=_check,
    autocast=_autocast,
)
register(
    "embedding_2d_backward(Tensor grad, Tensor tokens, Tensor positions, Tensor block_positions, "
    "Tensor? seed, float dropout_p, SymInt[3] table_rows, bool[3] wanted) -> Tensor[]",
    _backward,
    _backward_fake,
    check=_check_backward,
)
torch.library.register_autograd("glm_ext::embedding_2d", _registered_backward, setup_context=_setup_context)
