"""Attention under GLM's mask: a prefix that sees itself both ways, then a causal part; no mask tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from glm_ext import _C
from glm_ext.ops._arguments import (
    check_finite,
    check_floating,
    check_integer,
    check_lengths,
    check_like,
    check_probability,
    check_shape,
)
from glm_ext.ops._library import (
    autocast_dtype,
    cast_for_autocast,
    draw_seed,
    first_order_only,
    register,
    seed_value,
    short_path,
    target,
    watched,
)

Lengths: TypeAlias = int | Tensor  # one for the whole batch, or an int tensor [B]


def span_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prefix_len: Lengths,
    seq_len: Lengths | None = None,
    *,
    start: Lengths | None = None,
    dropout_p: float = 0.0,
    scale: float | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    r"""Softmax attention in which each query sees one interval of keys.

    .. math:: out = dropout(softmax(scale \; Q K^T)) \, V

    Row ``i`` stands at place ``r = seq_len - S + i`` when S < T (decoding with a cache), else at ``i``, and
    sees the keys ``start <= j < min(seq_len, max(prefix_len, r + 1))`` (Du et al., "GLM", 2022, section 2.1).
    So ``prefix_len=0`` is causal attention, ``prefix_len=T`` is full attention. Keys that no row sees are
    never read. A NaN or an infinity in a value that one row sees may reach rows beside it that do not, as
    ``0 * NaN``; torch's masked softmax does that too.

    Args:
        query: ``[B, H, S, D]``, float32, float64, bfloat16 or float16; 1 <= D <= 256.
        key, value: ``[B, Hkv, T, D]`` where Hkv divides H: query head ``h`` reads head ``h // (H / Hkv)``.
            All three may have any strides as long as the last dimension is contiguous: a packed QKV
            projection is read in place.
        prefix_len: keys that every row sees, an int or an int tensor ``[B]`` in [0, T].
        seq_len: keys at and after this are padding; T by default.
        start: keys before this are padding; 0 by default.
        dropout_p: probability that a softmax weight is dropped; kept ones are scaled by
            ``1 / (1 - dropout_p)``. The mask is drawn from torch's default generator and never stored. A
            recorded CUDA graph replays one mask for ever.
        scale: of the scores; ``D ** -0.5`` by default.
        return_lse: also return the log-sum-exp of the scaled scores, ``[B, H, S]`` in float32 (float64 for
            float64); it is differentiable.

    Returns:
        ``[B, H, S, D]`` in the dtype of ``query``, a transpose of contiguous memory ``[B, S, H, D]``, so that
        joining the heads costs nothing. Rows that see nothing give 0, lse -inf and zero gradients.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came. On a GPU, where to look
            at the values of a tensor would be to wait for the device, lengths are clamped instead.

    >>> q, k, v = torch.randn(3, 1, 2, 4, 8, dtype=torch.float64)
    >>> out = span_attention(q, k, v, prefix_len=1)
    >>> torch.allclose(out[:, :, 0], v[:, :, 0])  # the first row sees one key: its value passes unchanged
    True
    >>> full = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    >>> torch.allclose(span_attention(q, k, v, prefix_len=4), full)
    True
    """
    check_floating("query", query)
    query, key, value = cast_for_autocast(autocast_dtype(query.device.type), query, key, value)
    return attend(
        checked_arguments(query, key, value, prefix_len, seq_len, start, dropout_p, scale), return_lse
    )


def checked_arguments(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prefix_len: Lengths,
    seq_len: Lengths | None,
    start: Lengths | None,
    dropout_p: float,
    scale: float | None,
) -> tuple[Any, ...]:
    """What `_forward` takes, for a dense batch."""
    scale = check_options(query, scale, dropout_p)
    check_heads(query, key, value, 4)
    batch, keys = query.shape[0], key.shape[2]
    prefix = check_lengths("prefix_len", prefix_len, batch, keys, query.device)
    length = None if seq_len is None else check_lengths("seq_len", seq_len, batch, keys, query.device)
    first = None if start is None else check_lengths("start", start, batch, keys, query.device)

    seed = draw_seed(dropout_p)
    return query, key, value, prefix, length, first, None, seed, scale, dropout_p


def check_options(query: Tensor, scale: float | None, dropout_p: float) -> float:
    """The scale, given or not."""
    check_probability("dropout_p", dropout_p)
    if scale is None:
        return query.shape[-1] ** -0.5 if query.dim() > 0 and query.shape[-1] > 0 else 1.0
    check_finite("scale", scale)
    return float(scale)


def check_heads(query: Tensor, key: Tensor, value: Tensor, rank: int) -> None:
    """What the dense op (rank 4) and the packed one (3) ask of their tensors: dtype, layout, head counts."""
    check_like("key", key, "query", query)
    check_like("value", value, "query", query)
    of_query, axes = ("B, H, S, D", "B, Hkv, T, D") if rank == 4 else ("N, H, D", "N, Hkv, D")
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if tensor.dim() != rank:
            wanted = of_query if name == "query" else axes
            raise ValueError(f"{name}: expected {rank} dimensions ({wanted}), got shape {list(tensor.shape)}")
    width, heads, kv_heads = query.shape[-1], query.shape[1], key.shape[1]
    if not 1 <= width <= 256:
        raise ValueError(f"query: expected a head dimension D in [1, 256], got {width}")
    if kv_heads == 0 or heads % kv_heads != 0:
        raise ValueError(
            f"key: expected a head count that divides the {heads} heads of query, got {kv_heads}"
        )
    check_shape("key", key, (query.shape[0], *(-1,) * (rank - 2), width), axes)
    check_shape("value", value, key.shape, "as key")
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if tensor.stride(-1) != 1 and width > 1 and tensor.numel() > 0:
            raise ValueError(
                f"{name}: expected a contiguous last dimension (stride 1), got stride {tensor.stride(-1)}; "
                f"call {name}.contiguous()"
            )


def attend(arguments: tuple[Any, ...], return_lse: bool) -> Tensor | tuple[Tensor, Tensor]:
    """Run the op, by the short path where nothing watches."""
    if watched(*arguments[:7]):
        out, lse = torch.ops.glm_ext.span_attention(*arguments)
    else:
        out, lse = short_path(_SpanAttention, *arguments)
    return (out, lse) if return_lse else out


# The registered op serves both: with cu_seqlens, query is [N, H, D], and the lse [H, N].


def _check(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prefix_len: Tensor,
    seq_len: Tensor | None,
    start: Tensor | None,
    cu_seqlens: Tensor | None,
    seed: Tensor | None,
    scale: float,
    dropout_p: float,
) -> None:
    check_floating("query", query)
    check_options(query, scale, dropout_p)
    check_heads(query, key, value, 4 if cu_seqlens is None else 3)
    if cu_seqlens is not None and (cu_seqlens.dim() != 1 or len(cu_seqlens) == 0):
        raise ValueError(f"cu_seqlens: expected shape [B + 1], got {list(cu_seqlens.shape)}")
    batch = query.shape[0] if cu_seqlens is None else len(cu_seqlens) - 1
    lengths = {"prefix_len": prefix_len, "seq_len": seq_len, "start": start, "cu_seqlens": cu_seqlens}
    for name, tensor in lengths.items():
        if tensor is None:
            continue
        check_integer(name, tensor, query.device)
        check_shape(name, tensor, (batch + 1,) if name == "cu_seqlens" else (batch,), "of the batch")
        if tensor.dtype != torch.int64 or not tensor.is_contiguous():
            raise TypeError(
                f"{name}: expected contiguous int64, got {tensor.dtype}; use .long().contiguous()"
            )


def _forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prefix_len: Tensor,
    seq_len: Tensor | None,
    start: Tensor | None,
    cu_seqlens: Tensor | None,
    seed: Tensor | None,
    scale: float,
    dropout_p: float,
) -> tuple[Tensor, Tensor]:
    out, lse = _forward_fake(
        query, key, value, prefix_len, seq_len, start, cu_seqlens, seed, scale, dropout_p
    )
    where = target("span_attention", query)
    workspace = _workspace(False, query, key, prefix_len, cu_seqlens, where)
    _C.span_attention_forward(
        query, key, value, prefix_len, seq_len, start, cu_seqlens, out, lse, workspace,
        scale, dropout_p, seed_value(seed), where,
    )  # fmt: skip
    return out, lse


def _workspace(
    backward: bool,
    query: Tensor,
    key: Tensor,
    prefix_len: Tensor,
    cu_seqlens: Tensor | None,
    where: int | tuple[int, int],
) -> Tensor | None:
    packed = cu_seqlens is not None
    rows, keys = (query.shape[0], key.shape[0]) if packed else (query.shape[2], key.shape[2])
    size = _C.span_attention_workspace(
        backward, prefix_len.shape[0], query.shape[1], query.shape[-1], rows, keys, packed, where
    )
    return None if size == 0 else query.new_empty(size, dtype=torch.float32)


def _forward_fake(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prefix_len: Tensor,
    seq_len: Tensor | None,
    start: Tensor | None,
    cu_seqlens: Tensor | None,
    seed: Tensor | None,
    scale: float,
    dropout_p: float,
) -> tuple[Tensor, Tensor]:
    statistics = torch.float64 if query.dtype == torch.float64 else torch.float32
    if cu_seqlens is not None:
        N, H, _ = query.shape
        return query.new_empty(query.shape), query.new_empty((H, N), dtype=statistics)
    return _heads_last(query), query.new_empty(query.shape[:3], dtype=statistics)


def _heads_last(x: Tensor) -> Tensor:
    """A new [B, H, S, D] that lies in memory as [B, S, H, D]."""
    B, H, S, D = x.shape
    return x.new_empty((B, S, H, D)).transpose(1, 2)


def _backward(
    grad_out: Tensor, grad_lse: Tensor | None, *saved_and_options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    grads = _backward_fake(grad_out, grad_lse, *saved_and_options)
    write_gradients(grads, grad_out, grad_lse, *saved_and_options)
    return grads


def write_gradients(
    grads: Sequence[Tensor], grad_out: Tensor, grad_lse: Tensor | None, *saved_and_options: Any
) -> None:
    """Fill `grads`, of query, key and value; unit last stride. The rest as `_backward_fake`."""
    *tensors, seed, scale, dropout_p = saved_and_options  # query to lse
    query, key, _, prefix_len, _, _, cu_seqlens, *_ = tensors
    where = target("span_attention_backward", query)
    workspace = _workspace(True, query, key, prefix_len, cu_seqlens, where)
    if grad_out.stride(-1) != 1 or (workspace is not None and not _is_aligned(grad_out)):
        grad_out = grad_out.clone(memory_format=torch.contiguous_format)
    options = (workspace, scale, dropout_p, seed_value(seed), where)
    arguments = (*tensors, grad_out, grad_lse, *grads, *options)
    _C.span_attention_backward(*arguments)


def _is_aligned(x: Tensor) -> bool:
    """Whether rows begin at multiples of 16 bytes, as the CUDA kernels ask. Strides of one row count too."""
    return x.data_ptr() % 16 == 0 and all(s * x.element_size() % 16 == 0 for s in x.stride()[:-1])


def _backward_fake(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prefix_len: Tensor,
    seq_len: Tensor | None,
    start: Tensor | None,
    cu_seqlens: Tensor | None,
    out: Tensor,
    lse: Tensor,
    seed: Tensor | None,
    scale: float,
    dropout_p: float,
) -> tuple[Tensor, Tensor, Tensor]:
    if cu_seqlens is not None:
        return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)
    return _heads_last(query), _heads_last(key), _heads_last(value)


class _SpanAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        out, lse = _forward(*arguments)
        _setup_context(ctx, arguments, (out, lse))
        return out, lse

    @staticmethod
    @first_order_only
    def backward(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None) -> tuple[Tensor | None, ...]:
        return _gradients(_backward, ctx, grad_out, grad_lse)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, seed, ctx.scale, ctx.dropout_p = inputs
    ctx.save_for_backward(*tensors, *output, seed)
    ctx.set_materialize_grads(False)


def _gradients(
    backward: Any, ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None
) -> tuple[Tensor | None, ...]:
    if grad_out is None and grad_lse is None:
        return (None,) * 10
    if grad_out is None:
        grad_out = torch.zeros_like(ctx.saved_tensors[7])
    grads = backward(grad_out, grad_lse, *ctx.saved_tensors, ctx.scale, ctx.dropout_p)
    return (*grads, None, None, None, None, None, None, None)


# ------------------------------------------------------------------------------------------ torch.ops.glm_ext


def _autocast(device: str, query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> tuple[Any, ...]:
    return (*cast_for_autocast(autocast_dtype(device), query, key, value), *rest)


@first_order_only
def _registered_backward(
    ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None
) -> tuple[Tensor | None, ...]:
    return _gradients(torch.ops.glm_ext.span_attention_backward, ctx, grad_out, grad_lse)


register(
    "span_attention(Tensor query, Tensor key, Tensor value, Tensor prefix_len, Tensor? seq_len, "
    "Tensor? start, Tensor? cu_seqlens, Tensor? seed, float scale, float dropout_p) "
    "-> (Tensor out, Tensor lse)",
    _forward,
    _forward_fake,
    check=_check,
    autocast=_autocast,
)
register(
    "span_attention_backward(Tensor grad_out, Tensor? grad_lse, Tensor query, Tensor key, Tensor value, "
    "Tensor prefix_len, Tensor? seq_len, Tensor? start, Tensor? cu_seqlens, Tensor out, Tensor lse, "
    "Tensor? seed, float scale, float dropout_p) -> (Tensor, Tensor, Tensor)",
    _backward,
    _backward_fake,
)
torch.library.register_autograd("glm_ext::span_attention", _registered_backward, setup_context=_setup_context)
