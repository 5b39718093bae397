"""Every op of glm_ext in plain torch: what the fused kernels must compute, in the fewest lines that say it.

In float64 this is the oracle of the tests; in any dtype it is the "eager" backend of the layers. Products
keep the dtype of their inputs; softmax and cross-entropy run in float32, or float64 for float64 inputs. Every
function is differentiable, twice. With dropout_p > 0, `seed` picks the mask, bit for bit that of the fused
kernels; None draws one from torch's default generator.

Shape letters: B batch, S query length, T key length, H heads, D head dim, E width, F hidden, V vocabulary, N
rows or packed tokens.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from ._arguments import check_bounds, check_lengths
from ._library import readable
from .philox import attention_keep_mask, draw_seed, row_keep_mask

Lengths: TypeAlias = int | Tensor  # one for the whole batch, or an int tensor [B]


# -------------------------------------------------------------------------------------------------- attention


def visible(
    S: int,
    T: int,
    prefix_len: Lengths,
    seq_len: Lengths | None = None,
    start: Lengths | None = None,
    *,
    device: torch.device | str | None = None,
) -> Tensor:
    """The GLM mask as bool [B, S, T] (B = 1 where all lengths are ints): True where the row sees the key.

    Row i stands at place r = seq_len - S + i when S < T (the last S places: decoding with a cache), else at
    i. It sees keys start <= j < min(seq_len, max(prefix_len, r + 1)). Defaults: seq_len = T, start = 0.

    >>> visible(4, 4, prefix_len=2).int()
    tensor([[[1, 1, 0, 0],
             [1, 1, 0, 0],
             [1, 1, 1, 0],
             [1, 1, 1, 1]]], dtype=torch.int32)
    """
    prefix = _per_sequence(prefix_len, device)
    length = _per_sequence(T if seq_len is None else seq_len, device)
    first = _per_sequence(0 if start is None else start, device)
    place = torch.arange(S, device=device)[:, None] + (length - S if S < T else 0)
    end = torch.minimum(length, torch.maximum(prefix, place + 1))
    j = torch.arange(T, device=device)
    return torch.logical_and(first <= j, j < end)


def _checked(name: str, value: Lengths, batch: int, most: int, device: torch.device) -> Tensor:
    """As [B], with the errors of the fused op and its kernel."""
    lengths = check_lengths(name, value, batch, most, device)
    if readable(lengths):
        for b, length in enumerate(lengths.tolist()):
            if not 0 <= length <= most:
                raise ValueError(
                    f"{name}: expected values in [0, {most}], the number of keys, "
                    f"got {length} for sequence {b}"
                )
    return lengths


def _per_sequence(lengths: Lengths, device: torch.device | str | None) -> Tensor:
    return torch.as_tensor(lengths, device=device).reshape(-1, 1, 1)


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
    seed: int | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """softmax(scale * Q K^T) V under the mask of `visible` (Du et al., "GLM", 2022, section 2.1).

    query [B, H, S, D], key and value [B, Hkv, T, D] where Hkv divides H -> [B, H, S, D]; scale None is
    1/sqrt(D). `return_lse` adds the log-sum-exp of the scaled scores, [B, H, S] in float32 (float64 for
    float64 inputs). Rows that see nothing give 0, lse -inf and zero gradients. ValueError where Hkv does not
    divide H, p is not in [0, 1] or a length not in [0, T] (of a tensor, on a CPU).

    >>> q, k, v = torch.randn(3, 1, 2, 4, 8, dtype=torch.float64)
    >>> out = span_attention(q, k, v, prefix_len=1)
    >>> torch.equal(out[:, :, 0], v[:, :, 0])  # the first row sees one key: its value passes unchanged
    True
    """
    (B, H, S, _), T = query.shape, key.shape[2]
    given = {"prefix_len": prefix_len, "seq_len": seq_len, "start": start}
    lengths = {
        name: _checked(name, value, B, T, query.device) for name, value in given.items() if value is not None
    }
    sees = visible(S, T, **lengths, device=query.device)
    keep = None
    if dropout_p != 0.0:
        keep = attention_keep_mask(draw_seed(seed), dropout_p, B, H, S, T, device=query.device)
    out, lse = _attend(query, key, value, sees, keep, dropout_p, scale)
    return (out, lse) if return_lse else out


def span_attention_qkvpacked(
    qkv: Tensor,
    prefix_len: Lengths,
    seq_len: Lengths | None = None,
    *,
    start: Lengths | None = None,
    cu_seqlens: Tensor | None = None,
    dropout_p: float = 0.0,
    scale: float | None = None,
    seed: int | None = None,
) -> Tensor:
    """`span_attention` of the thirds of qkv [B, S, 3, H, D], as a projection gives them -> [B, H, S, D].

    With cu_seqlens `span_attention_varlen` of the thirds of qkv [N, 3, H, D] -> [N, H, D].

    >>> qkv = torch.randn(1, 4, 3, 2, 8)
    >>> span_attention_qkvpacked(qkv, prefix_len=1).shape
    torch.Size([1, 2, 4, 8])
    """
    if cu_seqlens is not None:
        if seq_len is not None or start is not None:
            raise ValueError(
                "seq_len, start: expected None where cu_seqlens says where sequences begin and end"
            )
        query, key, value = qkv.unbind(1)
        return span_attention_varlen(  # type: ignore[return-value]
            query, key, value, cu_seqlens, prefix_len, dropout_p=dropout_p, scale=scale, seed=seed
        )
    query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    return span_attention(  # type: ignore[return-value]
        query, key, value, prefix_len, seq_len, start=start, dropout_p=dropout_p, scale=scale, seed=seed
    )


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
    seed: int | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """`span_attention` on sequences packed end to end: sequence b is rows cu_seqlens[b] to cu_seqlens[b + 1].

    query [N, H, D], key and value [N, Hkv, D], cu_seqlens int [B + 1] from 0 to at most N -> [N, H, D];
    `return_lse` adds [H, N]. Rows past cu_seqlens[-1] belong to no sequence: 0, lse -inf, zero gradients.
    Dropout counts rows and columns within the sequence, so that a packed and a padded batch drop the same
    elements. ValueError, on a CPU, for bounds that fall or leave the rows, and a prefix longer than its
    sequence.

    >>> x = torch.randn(5, 2, 8, dtype=torch.float64)
    >>> packed = span_attention_varlen(x, x, x, torch.tensor([0, 2, 5]), prefix_len=torch.tensor([1, 2]))
    >>> second = x[2:].transpose(0, 1)[None]
    >>> torch.allclose(packed[2:], span_attention(second, second, second, prefix_len=2)[0].transpose(0, 1))
    True
    """
    N, H, D = query.shape
    batch = check_bounds(cu_seqlens, query.device)
    check_lengths("prefix_len", prefix_len, batch, N, query.device)
    bounds: list[int] = cu_seqlens.tolist()
    prefixes: list[int] = torch.as_tensor(prefix_len).expand(batch).tolist()
    if readable(cu_seqlens):
        _check_packed(bounds, prefixes, N)
    seed = draw_seed(seed) if dropout_p != 0.0 else None

    sequences = []
    for b, (begin, end, prefix) in enumerate(zip(bounds[:-1], bounds[1:], prefixes, strict=True)):
        length = end - begin
        q, k, v = (x[begin:end].transpose(0, 1)[None] for x in (query, key, value))
        sees = visible(length, length, prefix, device=query.device)
        keep = None
        if seed is not None:
            keep = attention_keep_mask(
                seed, dropout_p, 1, H, length, length, first_batch=b, device=query.device
            )
        sequences.append(_attend(q, k, v, sees, keep, dropout_p, scale))

    rest = N - bounds[-1]
    out = torch.cat([s.out[0].transpose(0, 1) for s in sequences] + [query.new_zeros(rest, H, D)])
    dead = query.new_full((H, rest), -torch.inf, dtype=_accumulate_dtype(query))
    lse = torch.cat([s.lse[0] for s in sequences] + [dead], dim=1)
    return (out, lse) if return_lse else out


def _check_packed(bounds: list[int], prefixes: list[int], rows: int) -> None:
    """The errors of the fused op's kernel."""
    if bounds[0] != 0:
        raise ValueError(f"cu_seqlens: expected the first value to be 0, got {bounds[0]}")
    for b, (begin, end, prefix) in enumerate(zip(bounds[:-1], bounds[1:], prefixes, strict=True)):
        if begin > end:
            raise ValueError(f"cu_seqlens: expected values that never fall, got {begin} then {end}")
        length = end - begin
        if not 0 <= prefix <= length:
            raise ValueError(
                f"prefix_len: expected a value in [0, {length}], the length of sequence {b}, got {prefix}"
            )
    if bounds[-1] > rows:
        raise ValueError(f"cu_seqlens: expected at most {rows}, the rows of query, got {bounds[-1]}")


class _Attended(NamedTuple):
    out: Tensor  # [B, H, S, D]
    lse: Tensor  # [B, H, S]


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sees: Tensor,  # [B or 1, S, T]
    keep: Tensor | None,  # [B, H, S, T]
    dropout_p: float,
    scale: float | None,
) -> _Attended:
    H, kv_heads, D = query.shape[1], key.shape[1], query.shape[3]
    if kv_heads == 0 or H % kv_heads != 0:
        raise ValueError(f"key: expected a head count that divides the {H} heads of query, got {kv_heads}")

    # Keys that no row sees and rows that see no key take no part: whatever they hold, NaN included, reaches
    # neither an output nor a gradient. `where` does that; a product with 0 would not.
    row_lives, key_lives = sees.any(dim=2)[:, None], sees.any(dim=1)[:, None]  # [B, 1, S], [B, 1, T]
    query = torch.where(row_lives[..., None], query, 0.0)
    key, value = (
        torch.where(key_lives[..., None], x, 0.0).repeat_interleave(H // kv_heads, dim=1)
        for x in (key, value)
    )

    scores = (query @ key.transpose(2, 3)).to(_accumulate_dtype(query)) * (
        D**-0.5 if scale is None else scale
    )
    # A dead row is filled with 0, not -inf: its softmax stays finite, and so do the derivatives dropped by
    # `where`.
    hidden = torch.where(row_lives, -torch.inf, 0.0).to(scores.dtype)[..., None]
    scores = torch.where(sees[:, None], scores, hidden)
    probs = torch.where(sees[:, None], scores.softmax(dim=3), 0.0)
    lse = torch.where(row_lives, scores.logsumexp(dim=3), -torch.inf)
    if keep is not None:
        probs = _drop(probs, keep, dropout_p)
    return _Attended(probs.to(value.dtype) @ value, lse)


# ----------------------------------------------------------------------------------------------- other layers


def embedding_2d(
    tokens: Tensor,
    positions: Tensor,
    block_positions: Tensor,
    token_table: Tensor,
    position_table: Tensor,
    block_table: Tensor,
    *,
    dropout_p: float = 0.0,
    seed: int | None = None,
) -> Tensor:
    """dropout(token_table[tokens] + position_table[positions] + block_table[block_positions]).

    The input of Du et al., "GLM", 2022, section 2.1. Three id tensors of one shape [...] (int64 or int32),
    tables [V, E], [P, E], [P', E] -> [..., E]. An id outside its table is an IndexError on a CPU.

    >>> one, table = torch.tensor([1]), torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    >>> embedding_2d(one, one, one - 1, table, table, table)
    tensor([[ 7., 10.]])
    """
    total = F.embedding(tokens, token_table) + F.embedding(positions, position_table)
    return _dropout_rows(total + F.embedding(block_positions, block_table), dropout_p, seed)


def tied_embedding_2d(*ids_and_tables: Tensor, dropout_p: float = 0.0) -> tuple[Tensor, Tensor]:
    """`embedding_2d`, and its token_table for a second use: autograd adds the two gradients.

    >>> one, table = torch.tensor([1]), torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    >>> tied_embedding_2d(one, one, one - 1, table, table, table)[0]
    tensor([[ 7., 10.]])
    """
    return embedding_2d(*ids_and_tables, dropout_p=dropout_p), ids_and_tables[3]


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x weight^T + bias: x [..., E], weight [O, E], bias [O] -> [..., O].

    >>> linear(torch.tensor([1.0, 2.0]), torch.tensor([[3.0, 4.0]]), torch.tensor([1.0]))
    tensor([12.])
    """
    return F.linear(x, weight, bias)


def gelu_mlp(
    x: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    *,
    approximate: str = "tanh",
    recompute: str = "activation",
) -> Tensor:
    """gelu(x w1^T + b1) w2^T + b2 (Hendrycks & Gimpel, "Gaussian Error Linear Units", 2016).

    x [..., E], w1 [F, E], b1 [F], w2 [E', F], b2 [E'] -> [..., E']. approximate: "tanh" or "none" (erf).
    recompute says what a fused backward computes again instead of keeping ("none", "activation", "all"): no
    value depends on it.

    >>> x, eye, zero = torch.tensor([[0.0, 1.0]]), torch.eye(2), torch.zeros(2)
    >>> gelu_mlp(x, eye, zero, eye, zero)
    tensor([[0.0000, 0.8412]])
    """
    if recompute not in ("none", "activation", "all"):
        raise ValueError(f'recompute: expected "none", "activation" or "all", got {recompute!r}')
    return F.linear(F.gelu(F.linear(x, w1, b1), approximate=approximate), w2, b2)


def dropout_add_layer_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    eps: float = 1e-5,
    dropout_p: float = 0.0,
    seed: int | None = None,
) -> tuple[Tensor, Tensor]:
    """r = residual + dropout(x), normed = LayerNorm(r) * weight + bias; returns (normed, r).

    x and residual [..., E], weight and bias [E]: the seam between two sublayers of a pre-LN transformer
    (LayerNorm: Ba et al. 2016; pre-LN: Xiong et al., "On layer normalization in the transformer
    architecture", 2020).

    >>> x, one = torch.tensor([[1.0, 3.0]]), torch.ones(2)
    >>> normed, residual = dropout_add_layer_norm(x, x, one, one, eps=0.0)
    >>> normed.tolist(), residual.tolist()
    ([[0.0, 2.0]], [[2.0, 6.0]])
    """
    new_residual = residual + _dropout_rows(x, dropout_p, seed)
    return F.layer_norm(new_residual, new_residual.shape[-1:], weight, bias, eps), new_residual


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    loss_mask: Tensor | None = None,
    *,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """Cross-entropy of the logits hidden weight^T, each row weighted by loss_mask.

    hidden [..., E], weight [V, E], targets [...] int64, loss_mask [...] (None: all 1). With logp the
    log-softmax of a row and e the label smoothing, ce = -(1 - e) logp[target] - e mean_v(logp) (Szegedy et
    al. 2016, section 7). reduction: "mean" = sum(mask * ce) / sum(mask), "sum" = sum(mask * ce), "none" =
    mask * ce, [...]. Rows of mask 0 are never read, not even their target; a mask of zeros alone gives 0. The
    result is float32 (float64 for float64 inputs).

    >>> hidden, weight = torch.zeros(2, 3), torch.randn(5, 3)
    >>> linear_cross_entropy(hidden, weight, torch.tensor([4, -1]), torch.tensor([1.0, 0.0]))  # log 5
    tensor(1.6094)
    """
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f'reduction: expected "mean", "sum" or "none", got {reduction!r}')
    dtype = _accumulate_dtype(hidden)
    mask = torch.ones_like(targets, dtype=dtype) if loss_mask is None else loss_mask.to(dtype)
    rows = mask.flatten().nonzero().squeeze(1)
    logits = F.linear(hidden.flatten(0, -2)[rows], weight).to(dtype)  # [N, V]
    target_logits = logits.gather(1, targets.flatten()[rows, None]).squeeze(1)
    ce = (
        logits.logsumexp(dim=1)
        - (1.0 - label_smoothing) * target_logits
        - label_smoothing * logits.mean(dim=1)
    )
    ce = ce * mask.flatten()[rows]
    if reduction == "none":
        return torch.zeros_like(mask).flatten().index_copy(0, rows, ce).reshape(targets.shape)
    if reduction == "sum":
        return ce.sum()
    total = mask.sum()
    return ce.sum() / torch.where(total == 0.0, 1.0, total)


def _accumulate_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _drop(x: Tensor, keep: Tensor, dropout_p: float) -> Tensor:
    """Kept elements times 1/(1-p); the others exactly 0, whatever they held."""
    scale = 1.0 / (1.0 - dropout_p) if dropout_p < 1.0 else 0.0
    return torch.where(keep, x * scale, 0.0)


def _dropout_rows(x: Tensor, dropout_p: float, seed: int | None) -> Tensor:
    """Dropout of [..., E], all leading dimensions counted as rows."""
    if dropout_p == 0.0:
        return x
    keep = row_keep_mask(draw_seed(seed), dropout_p, x[..., 0].numel(), x.shape[-1], device=x.device)
    return _drop(x, keep.reshape(x.shape), dropout_p)
