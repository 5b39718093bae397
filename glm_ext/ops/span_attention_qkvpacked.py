"""`span_attention` on a packed projection, whose gradient comes back packed: nothing is copied either way."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from glm_ext.ops._arguments import check_floating
from glm_ext.ops._library import autocast_dtype, cast_for_autocast, first_order_only, short_path, watched
from glm_ext.ops._span_attention import attend, forward, write_gradients
from glm_ext.ops.span_attention import Lengths, checked_arguments
from glm_ext.ops.span_attention_varlen import packed_arguments


def span_attention_qkvpacked(
    qkv: Tensor,
    prefix_len: Lengths,
    seq_len: Lengths | None = None,
    *,
    start: Lengths | None = None,
    cu_seqlens: Tensor | None = None,
    dropout_p: float = 0.0,
    scale: float | None = None,
) -> Tensor:
    """Attention of the queries, keys and values that one projection has written side by side.

    ``span_attention(q, k, v, ...)`` with ``q, k, v = qkv.permute(2, 0, 3, 1, 4)``, or, with cu_seqlens,
    ``span_attention_varlen(*qkv.unbind(1), cu_seqlens, ...)``. Its three gradients are written into the
    thirds of one tensor, where autograd would concatenate them.

    Args:
        qkv: ``[B, S, 3, H, D]``, or ``[N, 3, H, D]`` with cu_seqlens; float32, float64, bfloat16 or float16;
            1 <= D <= 256, last dimension contiguous.
        prefix_len, seq_len, start, dropout_p, scale: as in `span_attention`.
        cu_seqlens: the bounds of sequences that lie end to end, as in `span_attention_varlen`. They say all
            about lengths: seq_len and start do not go with them.

    Returns:
        ``[B, H, S, D]`` as `span_attention`: a transpose of contiguous memory ``[B, S, H, D]``; or ``[N, H,
        D]`` as `span_attention_varlen`.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.

    >>> qkv = torch.randn(1, 4, 3, 2, 8, dtype=torch.float64)
    >>> out = span_attention_qkvpacked(qkv, prefix_len=1)
    >>> torch.allclose(out[:, :, 0], qkv[:, 0, 2])  # the first row sees one key: its value passes unchanged
    True
    """
    check_floating("qkv", qkv)
    (qkv,) = cast_for_autocast(autocast_dtype(qkv.device.type), qkv)
    wanted, axes = ("B, S, 3, H, D", 5) if cu_seqlens is None else ("N, 3, H, D", 4)
    if qkv.dim() != axes or qkv.shape[-3] != 3:
        raise ValueError(f"qkv: expected shape ({wanted}), got {list(qkv.shape)}")
    if cu_seqlens is None:
        arguments = checked_arguments(*_thirds(qkv), prefix_len, seq_len, start, dropout_p, scale)
    elif seq_len is None and start is None:
        arguments = packed_arguments(*_thirds(qkv), cu_seqlens, prefix_len, dropout_p, scale)
    else:
        raise ValueError("seq_len, start: expected None where cu_seqlens says where sequences begin and end")
    if watched(qkv, *arguments[3:7]):
        return attend(arguments, return_lse=False)  # type: ignore[return-value]
    return short_path(_QKVPacked, qkv, *arguments[3:])  # type: ignore[no-any-return]


def _thirds(qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value, [B, H, S, D] or [N, H, D] each: views."""
    query, key, value = qkv.unbind(-3)
    if qkv.dim() == 4:
        return query, key, value
    return query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)


class _QKVPacked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, *rest: Any) -> Tensor:
        arguments = (*_thirds(qkv), *rest)
        out, lse = forward(*arguments)
        *lengths, seed, ctx.scale, ctx.dropout_p = rest
        ctx.save_for_backward(qkv, *lengths, out, lse, seed)
        return out

    @staticmethod
    @first_order_only
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        qkv, *saved = ctx.saved_tensors
        grad = qkv.new_empty(qkv.shape)
        write_gradients(_thirds(grad), grad_out, None, *_thirds(qkv), *saved, ctx.scale, ctx.dropout_p)
        return (grad, *(None,) * 7)
