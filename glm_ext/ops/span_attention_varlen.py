"""`span_attention` on sequences packed end to end: no padding is computed."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from glm_ext.ops._arguments import check_bounds, check_floating, check_lengths
from glm_ext.ops._library import autocast_dtype, cast_for_autocast, draw_seed
from glm_ext.ops._span_attention import attend, check_heads, check_options
from glm_ext.ops.span_attention import Lengths


def span_attention_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: Tensor,
    prefix_len: Lengths,
    *,
    dropout_p: float = 0.0,
    scale: float | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    r"""`span_attention` within each of B sequences that lie one after the other in N rows.

    Row ``i`` of a sequence sees its keys ``0 <= j < max(prefix_len, i + 1)``.

    Args:
        query: ``[N, H, D]``, float32, float64, bfloat16 or float16; 1 <= D <= 256.
        key, value: ``[N, Hkv, D]`` where Hkv divides H. Any strides with a contiguous last dimension.
        cu_seqlens: int tensor ``[B + 1]``: sequence b is rows ``cu_seqlens[b]`` to ``cu_seqlens[b + 1]``.
            Starts at 0, never falls, ends at N or below.
        prefix_len: an int or an int tensor ``[B]``, at most the length of its sequence.
        dropout_p, scale: as in `span_attention`. The mask counts rows and columns within the sequence, so
            that a packed and a padded batch drop the same elements.
        return_lse: also return the log-sum-exp of the scaled scores, ``[H, N]``.

    Returns:
        ``[N, H, D]`` in the dtype of ``query``. Rows past ``cu_seqlens[-1]`` give 0, lse -inf and zero
        gradients.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came. On a GPU nobody looks at
            the values of tensors: bounds out of range are clamped, and where they fall a sequence is empty.

    >>> import torch
    >>> x = torch.randn(5, 2, 8, dtype=torch.float64)
    >>> packed = span_attention_varlen(x, x, x, torch.tensor([0, 2, 5]), prefix_len=torch.tensor([1, 2]))
    >>> second = x[2:].transpose(0, 1)[None]
    >>> from glm_ext.ops import span_attention
    >>> torch.allclose(packed[2:], span_attention(second, second, second, prefix_len=2)[0].transpose(0, 1))
    True
    """
    check_floating("query", query)
    query, key, value = cast_for_autocast(autocast_dtype(query.device.type), query, key, value)
    return attend(packed_arguments(query, key, value, cu_seqlens, prefix_len, dropout_p, scale), return_lse)


def packed_arguments(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: Tensor,
    prefix_len: Lengths,
    dropout_p: float,
    scale: float | None,
) -> tuple[Any, ...]:
    """What `_forward` of span_attention takes, for a packed batch."""
    scale = check_options(query, scale, dropout_p)
    check_heads(query, key, value, 3)
    batch = check_bounds(cu_seqlens, query.device)
    prefix = check_lengths("prefix_len", prefix_len, batch, query.shape[0], query.device)

    seed = draw_seed(dropout_p)
    bounds = cu_seqlens.long().contiguous()
    return query, key, value, prefix, None, None, bounds, seed, scale, dropout_p
