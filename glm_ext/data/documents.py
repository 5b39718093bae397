"""Tokenized documents in one flat array, in memory or in a file; and which of them are held out."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .bits import Bits, Flags
from .blocks import Weights
from .held_out import hold_out, too_few
from .spans import Ints

if TYPE_CHECKING:
    from .tokenizer import GLMTokenizer

_PIECE_LENGTH = 1024  # tokens, some pages


@dataclass(frozen=True, slots=True)
class TokenDocuments:
    """Documents as one flat array: document d is tokens[offsets[d] : offsets[d + 1]], with its closing eos.

    tokens [N] any integer dtype (a memory map will do), offsets [documents + 1] int64, from 0 to N, rising.
    weights [N]: loss weight of each token, e.g. 0 on a prompt; None: 1 everywhere. sentence_ends [N]: which
    tokens end a sentence; None: not known. With `starts` [documents] the documents are some of the array:
    document d begins at starts[d] and is as long as offsets say.
    """

    tokens: NDArray[np.integer]
    offsets: Ints
    weights: Weights | Bits | None = None
    sentence_ends: Flags | Bits | None = None
    starts: Ints | None = None

    def __post_init__(self) -> None:
        whole = self.starts is None
        if len(self.offsets) < 2 or self.offsets[0] != 0 or (whole and self.offsets[-1] != len(self.tokens)):
            raise ValueError(
                f"documents: expected offsets from 0 to {len(self.tokens)} (the number of tokens), "
                f"got {self.offsets.tolist()[:1]} .. {self.offsets.tolist()[-1:]}; is the corpus empty?"
            )
        lengths = np.diff(self.offsets)
        if (lengths < 1).any():
            raise ValueError("documents: expected rising offsets, got an empty document; leave it out")
        if self.starts is not None and (
            self.starts.shape != lengths.shape
            or self.starts.min() < 0
            or (self.starts + lengths).max() > len(self.tokens)
        ):
            raise ValueError(
                f"documents: expected a start for each of {len(lengths)} documents, "
                f"all of them within {len(self.tokens)} tokens"
            )
        for name, of_tokens in (("weight", self.weights), ("sentence flag", self.sentence_ends)):
            if of_tokens is not None and of_tokens.shape != self.tokens.shape:
                raise ValueError(
                    f"documents: expected a {name} for each of {len(self.tokens)} tokens, "
                    f"got {list(of_tokens.shape)}"
                )

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, document: int) -> NDArray[np.integer]:
        return self.tokens[self.where(document)]

    @property
    def num_tokens(self) -> int:
        """Tokens of these documents, which may be some of the array."""
        return int(self.offsets[-1])

    def where(self, document: int) -> slice:
        """Where a document lies in `tokens`."""
        begin, end = int(self.offsets[document]), int(self.offsets[document + 1])
        start = begin if self.starts is None else int(self.starts[document])
        return slice(start, start + end - begin)

    def draw(self, rng: np.random.Generator) -> slice:
        """Where a document lies; drawn with probability proportional to its length."""
        token = rng.integers(self.num_tokens)
        return self.where(int(np.searchsorted(self.offsets, token, side="right")) - 1)

    def select(self, chosen: Flags) -> TokenDocuments:
        """The documents that are chosen, without a copy of their tokens."""
        lengths = np.diff(self.offsets)[chosen]
        starts = self.offsets[:-1] if self.starts is None else self.starts
        return dataclasses.replace(self, offsets=_offsets(lengths), starts=starts[chosen])

    def cut(self, length: int) -> TokenDocuments:
        """The documents in pieces of this many tokens, the last of each shorter."""
        begins, ends = [], []
        for document in range(len(self)):
            where = self.where(document)
            begin = np.arange(where.start, where.stop, length)
            begins.append(begin)
            ends.append(np.append(begin[1:], where.stop))
        starts = np.concatenate(begins)
        return dataclasses.replace(self, offsets=_offsets(np.concatenate(ends) - starts), starts=starts)


class TokenSplit(NamedTuple):
    """Documents to train on and documents never trained on, both views of the same tokens."""

    train: TokenDocuments
    held_out: TokenDocuments


def split_token_documents(documents: TokenDocuments, held_out: float = 0.05) -> TokenSplit:
    """Holds out about this part of the documents, at least one, chosen by a hash of their tokens.

    Equal documents share a side. Where there are too few to share out, they are first cut into pieces of some
    pages. ValueError if that leaves fewer than two different pieces.
    """
    parts = documents.cut(_PIECE_LENGTH) if too_few(len(documents), held_out) else documents
    hidden = hold_out((parts[part].astype("<u4").tobytes() for part in range(len(parts))), held_out)
    if hidden.all():
        raise ValueError(
            f"the corpus is too small to hold a part of it out: {len(documents)} documents, "
            f"{documents.num_tokens:,} tokens; expected several different documents, or some pages"
        )
    return TokenSplit(parts.select(~hidden), parts.select(hidden))


def encode_documents(tokenizer: GLMTokenizer, documents: Sequence[str]) -> TokenDocuments:
    """Encodes documents and closes each with eos. Special tokens written in a document are plain text."""
    encoded = [[*ids, tokenizer.eos_id] for ids in tokenizer.encode_batch(documents)]
    offsets = _offsets(np.array([len(ids) for ids in encoded], dtype=np.int64))
    tokens = np.fromiter((token for ids in encoded for token in ids), dtype=np.int32, count=int(offsets[-1]))
    return TokenDocuments(tokens, offsets)


def _offsets(lengths: Ints) -> Ints:
    return np.concatenate((np.zeros(1, dtype=np.int64), np.cumsum(lengths, dtype=np.int64)))
