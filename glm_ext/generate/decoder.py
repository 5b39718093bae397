"""The key/value cache of several texts at once.

Shape letters: B texts, N longest Part A, S new tokens, E width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..model import GLM


class Decoder:
    """Texts whose Part A is encoded; what is fed next sees it and all that was fed before.

    Part A lies right-aligned in the first N columns of the cache, padding on its left, so that Part B of
    every text begins in column N: a row of the cache sees the interval start <= j <= its own column.
    Positions do not depend on padding.
    """

    def __init__(self, model: GLM, contexts: Sequence[Sequence[int]], room: int) -> None:
        """contexts: Part A of each text, none empty; room: how many tokens will be fed at most."""
        self.model, self.device = model, model.word_embeddings.weight.device
        lengths = [len(context) for context in contexts]
        self.prefix_len = max(lengths)
        self.start = torch.tensor([self.prefix_len - length for length in lengths], device=self.device)
        self.cache = model.new_cache(len(contexts), self.prefix_len + room)
        padding = [[0] * (self.prefix_len - length) for length in lengths]
        self.feed(
            [[*pad, *context] for pad, context in zip(padding, contexts, strict=True)],
            [[*pad, *range(length)] for pad, length in zip(padding, lengths, strict=True)],
            [[0] * self.prefix_len] * len(contexts),
        )

    def feed(
        self,
        tokens: Sequence[Sequence[int]],
        places: Sequence[Sequence[int]],
        block_places: Sequence[Sequence[int]],
    ) -> Tensor:
        """Hidden states [B, S, E] of S more tokens of each text, at places in Part A and in their span."""
        ids = torch.tensor(tokens, device=self.device)
        positions = torch.tensor([places, block_places], device=self.device).transpose(0, 1)
        return self.model.hidden(ids, positions, self.prefix_len, start=self.start, cache=self.cache)

    def step(self, tokens: Sequence[int], places: Sequence[int], block_places: Sequence[int]) -> Tensor:
        """Logits [B, V] after one more token of each text."""
        columns = ([[value] for value in values] for values in (tokens, places, block_places))
        return self.model.logits(self.feed(*columns)[:, -1])

    def select(self, rows: Sequence[int]) -> None:
        """Goes on with these texts, in this order; one may be taken several times."""
        index = torch.tensor(rows, device=self.device)
        self.start = self.start[index]
        self.cache = [layer.take(index) for layer in self.cache]

    def reorder(self, rows: Sequence[int], first: int) -> None:
        """Row i goes on as row rows[i], where both hold the same before column `first`."""
        index = torch.tensor(rows, device=self.device)
        for layer in self.cache:
            layer.reorder(index, first)

    @property
    def length(self) -> int:
        return self.cache[0].length

    def rewind(self, length: int) -> None:
        """Forgets what was fed after the first `length` columns."""
        for layer in self.cache:
            layer.length = length
