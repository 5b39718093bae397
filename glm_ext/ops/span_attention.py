"""Attention under GLM's mask: a prefix that sees itself both ways, then a causal part; no mask tensor."""

from __future__ import annotations

from typing import Any, TypeAlias

from torch import Tensor

from glm_ext.ops._arguments import check_floating, check_lengths
from glm_ext.ops._library import autocast_dtype, cast_for_autocast, draw_seed
from glm_ext.ops._span_attention import attend, check_heads, check_options

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

    >>> import torch
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
    """What `attend` takes, for a dense batch."""
    scale = check_options(query, scale, dropout_p)
    check_heads(query, key, value, 4)
    batch, keys = query.shape[0], key.shape[2]
    prefix = check_lengths("prefix_len", prefix_len, batch, keys, query.device)
    length = None if seq_len is None else check_lengths("seq_len", seq_len, batch, keys, query.device)
    first = None if start is None else check_lengths("start", start, batch, keys, query.device)

    seed = draw_seed(dropout_p)
    return query, key, value, prefix, length, first, None, seed, scale, dropout_p
