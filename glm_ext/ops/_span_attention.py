"""The registered op behind `span_attention` and its two packed forms.

With cu_seqlens, query is [N, H, D] and the lse [H, N]; without, [B, H, S, D] and [B, H, S].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from glm_ext import _C
from glm_ext.ops import _cuda
from glm_ext.ops._arguments import (
    check_finite,
    check_floating,
    check_integer,
    check_like,
    check_probability,
    check_result,
    check_shape,
    statistics_dtype,
)
from glm_ext.ops._library import (
    autocast_dtype,
    cast_for_autocast,
    first_order_only,
    register,
    seed_value,
    short_path,
    target,
    watched,
)


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
        _check_last_stride(name, tensor)


def _check_last_stride(name: str, tensor: Tensor) -> None:
    if tensor.stride(-1) != 1 and tensor.shape[-1] > 1 and tensor.numel() > 0:
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


def _check_backward(*arguments: Any) -> None:
    grad_out, grad_lse, *inputs, out, lse, _, _, _ = arguments  # of _backward
    _check(*inputs, *arguments[-3:])
    query, cu_seqlens = inputs[0], inputs[6]
    of_rows = query.shape[:3] if cu_seqlens is None else query.shape[1::-1]
    for name, tensor in (("out", out), ("grad_out", grad_out)):
        check_result(name, tensor, query.shape, query.dtype, query)
    _check_last_stride("out", out)
    for name, statistic in (("lse", lse), ("grad_lse", grad_lse)):
        if statistic is not None:
            check_result(name, statistic, of_rows, statistics_dtype(query.dtype), query)


def forward(
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
    workspace = _workspace(False, query, key, prefix_len, cu_seqlens, _cuda.GradQuery.OWN_KERNEL, where)
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
    way: _cuda.GradQuery,
    where: int | tuple[int, int],
) -> Tensor | None:
    packed = cu_seqlens is not None
    batch, kv_heads, keys = prefix_len.shape[0], key.shape[1], key.shape[0 if packed else 2]
    size = _C.span_attention_workspace(backward, query, batch, kv_heads, keys, packed, way, where)
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
    statistics = statistics_dtype(query.dtype)
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
    where, way = target("span_attention_backward", query), _cuda.way_to_grad_query()
    workspace = _workspace(True, query, key, prefix_len, cu_seqlens, way, where)
    if grad_out.stride(-1) != 1 or (workspace is not None and not _is_aligned(grad_out)):
        grad_out = grad_out.clone(memory_format=torch.contiguous_format)
    options = (workspace, scale, dropout_p, seed_value(seed), way, where)
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
        out, lse = forward(*arguments)
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
    forward,
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
    check=_check_backward,
)
torch.library.register_autograd("glm_ext::span_attention", _registered_backward, setup_context=_setup_context)
