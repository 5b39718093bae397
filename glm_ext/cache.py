"""What decoding keeps: the keys and values of the tokens so far.

Shape letters: B batch, S new tokens, T all tokens so far, H heads, D head dim.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from .ops.reference import Lengths


@dataclass(slots=True)
class KVCache:
    """The keys and values that one attention layer has seen, in room allocated once. No gradient.

    >>> cache = KVCache.allocate(batch_size=1, num_heads=2, capacity=8, head_dim=4)
    >>> key, value = cache.append(*torch.zeros(2, 1, 2, 3, 4))
    >>> key.shape, cache.length
    (torch.Size([1, 2, 3, 4]), 3)
    """

    key: Tensor  # [B, H, capacity, D]
    value: Tensor  # [B, H, capacity, D]
    length: int = 0  # tokens held

    @classmethod
    def allocate(
        cls,
        batch_size: int,
        num_heads: int,
        capacity: int,
        head_dim: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> KVCache:
        key, value = torch.empty(2, batch_size, num_heads, capacity, head_dim, device=device, dtype=dtype)
        return cls(key, value)

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Stores S more tokens [B, H, S, D] and returns all T so far, as views [B, H, T, D]."""
        end, capacity = self.length + key.shape[2], self.key.shape[2]
        if end > capacity:
            raise ValueError(f"cache: expected room for {end} tokens, got {capacity}; allocate a larger one")
        self.key[:, :, self.length : end] = key
        self.value[:, :, self.length : end] = value
        self.length = end
        return self.key[:, :, :end], self.value[:, :, :end]

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
        """[B, H, S, D] each -> [B, H, S, D]: the S new tokens see what is held, and are held from now on."""
        key, value = self.append(key, value)
        out: Tensor = ops.span_attention(
            query, key, value, prefix_len, seq_len, start=start, dropout_p=dropout_p
        )
        return out

    def take(self, rows: Tensor) -> KVCache:
        """A new cache that holds these sequences of the batch, in this order; one may come several times."""
        key, value = (x.new_empty(len(rows), *x.shape[1:]) for x in (self.key, self.value))
        key[:, :, : self.length] = self.key[rows, :, : self.length]
        value[:, :, : self.length] = self.value[rows, :, : self.length]
        return KVCache(key, value, self.length)

    def reorder(self, rows: Tensor, first: int = 0) -> None:
        """Sequence i becomes what sequence rows[i] was, from token `first` on; nothing else is copied."""
        for x in (self.key, self.value):
            x[:, :, first : self.length] = x[rows, :, first : self.length]
