"""Several Parts B on one Part A that do not see each other: the choices of a question, packed.

Shape letters: B sequences, S packed length, H heads, D head dim, C rows of all Parts B together, K Parts B.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from .ops.reference import Lengths


@dataclass(frozen=True, slots=True)
class Branches:
    """Who sees whom where each sequence is Part A, then its Parts B end to end: given in place of a KVCache.

    Part A sees itself. A Part B sees Part A and its own past, as if it stood there alone; so Part A is
    encoded once for all of them, with gradients.

    rows [C]: place b * S + s of every row of every Part B, Parts B one after the other. cu_seqlens [K + 1]:
    Part B k is rows[cu_seqlens[k] : cu_seqlens[k + 1]].

    >>> from glm_ext import ops
    >>> q, k, v = torch.randn(3, 1, 2, 5, 8, dtype=torch.float64)  # A A | B | C C
    >>> branches = Branches(rows=torch.tensor([2, 3, 4]), cu_seqlens=torch.tensor([0, 1, 3]))
    >>> out = branches.attend(ops, q, k, v, prefix_len=2)
    >>> alone = [x[:, :, [0, 1, 3, 4]] for x in (q, k, v)]
    >>> torch.allclose(out[:, :, 3:], ops.span_attention(*alone, prefix_len=2)[:, :, 2:])
    True
    """

    rows: Tensor
    cu_seqlens: Tensor

    def attend(
        self,
        ops: ModuleType,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        prefix_len: Lengths,
        seq_len: Lengths | None = None,
        *,
        start: Lengths | None = None,
        dropout_p: float = 0.0,
    ) -> Tensor:
        """[B, H, S, D] each -> [B, H, S, D]. seq_len and start stay None.

        Softmax over two sets of keys is softmax over each, weighted by its share exp(lse) of the sum.
        """
        if seq_len is not None or start is not None:
            raise ValueError("cache: expected no seq_len or start beside Branches")
        options = {"dropout_p": dropout_p, "return_lse": True}
        # Every row, of Part B too, sees the keys before prefix_len and no other.
        out, lse = ops.span_attention(query, key, value, prefix_len, prefix_len, **options)
        by_row = [x.transpose(1, 2).flatten(0, 1) for x in (query, key, value)]  # [B S, H, D]
        own, own_lse = ops.span_attention_varlen(
            *(x[self.rows] for x in by_row), self.cu_seqlens, 0, **options
        )

        flat = out.transpose(1, 2).flatten(0, 1)  # [B S, H, D]
        context, context_lse = flat[self.rows], lse.transpose(1, 2).flatten(0, 1)[self.rows]  # [C, H]
        own_lse = own_lse.transpose(0, 1)  # [C, H]
        total = torch.logaddexp(context_lse, own_lse)
        context_share, own_share = ((part - total).exp()[..., None] for part in (context_lse, own_lse))
        both = (context_share * context + own_share * own).to(flat.dtype)
        B, H, S, D = query.shape
        merged: Tensor = flat.index_copy(0, self.rows, both)
        return merged.view(B, S, H, D).transpose(1, 2)
