"""The dropout bits of glm_ext in plain torch: Philox4x32-7 on (seed, logical coordinates), nothing stored.

The kernels draw the same bits (csrc/core/philox.h), so one seed is one mask on every backend and at any
tiling. Counters are laid out for them: the lanes of a CPU vector are consecutive columns of one word, and the
elements that a GPU thread holds of an mma tile come out of one call.
"""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor

Words: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor]  # four uint32 held in int64

_MASK_32 = 0xFFFFFFFF


def draw_seed(seed: int | None = None) -> int:
    """The seed given, or one from torch's default generator, which torch.manual_seed makes repeatable."""
    return int(torch.randint(0, 2**63 - 1, ())) if seed is None else seed


def philox(counter: Words, seed: int, rounds: int = 7) -> Words:
    """Philox4x32: four random words per counter.

    Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011. The counter words are int64 tensors
    that broadcast together and hold values below 2**32; the key is the low and the high word of the seed.

    >>> zero = torch.zeros((), dtype=torch.int64)
    >>> [hex(int(word)) for word in philox((zero, zero, zero, zero), seed=0)]
    ['0x5f6fb709', '0xd893f64', '0x4f121f81', '0x4f730a48']
    """
    c0, c1, c2, c3 = counter
    key_0, key_1 = seed & _MASK_32, seed >> 32 & _MASK_32
    for _ in range(rounds):
        high_0, low_0 = _multiply_32(c0, 0xD2511F53)
        high_1, low_1 = _multiply_32(c2, 0xCD9E8D57)
        c0, c1, c2, c3 = high_1 ^ c1 ^ key_0, low_1, high_0 ^ c3 ^ key_1, low_0
        key_0, key_1 = key_0 + 0x9E3779B9 & _MASK_32, key_1 + 0xBB67AE85 & _MASK_32
    return c0, c1, c2, c3


def attention_keep_mask(
    seed: int,
    dropout_p: float,
    batch: int,
    heads: int,
    rows: int,
    cols: int,
    *,
    first_batch: int = 0,
    device: torch.device | str | None = None,
) -> Tensor:
    """Which attention probabilities survive dropout: bool [batch, heads, rows, cols].

    One call serves 2 x 4 elements, rows 8 apart and columns 16 apart. Element (b, h, i, j) takes 16 bits of
    counter ((j/64)*16 + j%16, (i/16)*8 + i%8, h, b): of word (j/16)%4 the low half where i%16 < 8, else the
    high half. `first_batch` is the number of the first sequence, for callers that take a batch one sequence
    at a time.

    >>> attention_keep_mask(seed=1, dropout_p=0.5, batch=1, heads=1, rows=2, cols=5).int().tolist()
    [[[[0, 1, 0, 0, 1], [0, 0, 0, 0, 0]]]]
    """
    row_blocks, col_blocks = -(-rows // 16), -(-cols // 64)
    b = torch.arange(first_batch, first_batch + batch, device=device).reshape(-1, 1, 1, 1)
    h = torch.arange(heads, device=device).reshape(-1, 1, 1)
    i = torch.arange(row_blocks * 8, device=device).reshape(-1, 1)
    j = torch.arange(col_blocks * 16, device=device)
    bits = _halves(philox((j, i, h, b), seed)).reshape(batch, heads, row_blocks, 8, col_blocks, 16, 4, 2)
    bits = bits.permute(0, 1, 2, 7, 3, 4, 6, 5)  # [batch, heads, (row block, half, 8), (col block, word, 16)]
    bits = bits.reshape(batch, heads, row_blocks * 16, col_blocks * 64)
    return bits[:, :, :rows, :cols] < _keep_threshold(dropout_p)


def row_keep_mask(
    seed: int, dropout_p: float, rows: int, cols: int, *, device: torch.device | str | None = None
) -> Tensor:
    """Which elements of an activation [rows, cols] survive dropout: bool [rows, cols].

    One call serves 8 columns, 16 apart. Element (n, e) takes 16 bits of counter
    ((e/128)*16 + e%16, n % 2**32, n / 2**32, 0): with t = (e/16)%8, of word t/2 the low half where t is even.

    >>> row_keep_mask(seed=1, dropout_p=0.5, rows=1, cols=8).int().tolist()
    [[0, 1, 0, 0, 1, 1, 1, 0]]
    """
    blocks = -(-cols // 128)
    n = torch.arange(rows, device=device).reshape(-1, 1)
    e = torch.arange(blocks * 16, device=device)
    bits = _halves(philox((e, n & _MASK_32, n >> 32, torch.zeros_like(n)), seed))
    bits = bits.reshape(rows, blocks, 16, 8).transpose(2, 3)  # [rows, (block, (word, half), 16)]
    return bits.reshape(rows, blocks * 128)[:, :cols] < _keep_threshold(dropout_p)


def _multiply_32(a: Tensor, constant: int) -> tuple[Tensor, Tensor]:
    """High and low word of a 32 x 32 bit product, which int64 cannot hold: halve the constant."""
    upper, lower = a * (constant >> 16), a * (constant & 0xFFFF)
    high = (upper + (lower >> 16)) >> 16
    low = (((upper & 0xFFFF) << 16) + lower) & _MASK_32
    return high, low


def _halves(words: Words) -> Tensor:
    """Four tensors [...] of 32 bits -> [..., 4, 2]: the low and the high 16 bits of each word."""
    stacked = torch.stack(words, dim=-1)
    return torch.stack((stacked & 0xFFFF, stacked >> 16), dim=-1)


def _keep_threshold(dropout_p: float) -> int:
    if not 0.0 <= dropout_p <= 1.0:
        raise ValueError(f"dropout_p: expected 0 <= p <= 1, got {dropout_p}")
    return round((1.0 - dropout_p) * 65536)
