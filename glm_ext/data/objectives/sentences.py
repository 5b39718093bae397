"""Sentence level: blank out whole sentences, 15 % of the text (Du et al. 2022, section 2.2)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..bits import Flags
from ..blocks import Example, Weights, make_blocks
from ..spans import Ints, Spans, document_segments
from ..special import SpecialIds

# A run of end marks, English or Chinese, with the quotes and brackets that close with it and the line's end.
_MARK = "[.?!;:]|" + "|".join("。？！；：…")
_CLOSING = "[\"')\\]]|" + "|".join("”’」』）")
_SENTENCE_END = re.compile(f"(?:{_MARK})+(?:{_CLOSING})*\n*|\n+".encode())


@dataclass(frozen=True, slots=True, kw_only=True)
class SentenceSettings:
    """Blank out at least int(ratio * N) tokens of a text of N, or all whole sentences if they are fewer."""

    ratio: float = 0.15

    def __post_init__(self) -> None:
        if not 0 < self.ratio < 1:
            raise ValueError(f"ratio: expected a number between 0 and 1, got {self.ratio}")


def sentence_spans(
    tokens: Ints,
    rng: np.random.Generator,
    ids: SpecialIds,
    settings: SentenceSettings = SentenceSettings(),
    *,
    pieces: Sequence[bytes],
    weights: Weights | None = None,
    ends: Flags | None = None,
) -> Example | None:
    """One example of a text `[CLS] document eos ...`: sentences, in random order, until enough is blanked.

    pieces: the bytes of every token id (GLMTokenizer.pieces), in which sentence ends are found where `ends`
    does not tell them. Neighbours may both be blanked: two [sMASK] in a row. None if the text is too short or
    holds no whole sentence.

    >>> pieces = [b""] * 11 + [b"One", b" two", b".", b" Three", b" four", b"!"]
    >>> text = np.array([2, 11, 12, 13, 14, 15, 16, 8])  # [CLS] One two. Three four! eos
    >>> sentence_spans(text, np.random.default_rng(1), SpecialIds(), pieces=pieces).tokens
    array([ 2, 6, 14, 15, 16, 8, 9, 11, 12, 13])
    """
    total = int(settings.ratio * len(tokens))
    sentences = find_sentences(tokens, ids, pieces, ends)
    if total < 1 or len(sentences.starts) == 0:
        return None
    drawn = rng.permutation(len(sentences.starts))
    enough = int(np.searchsorted(np.cumsum(sentences.lengths[drawn]), total)) + 1
    chosen = np.sort(drawn[:enough])
    spans = Spans(sentences.starts[chosen], sentences.lengths[chosen])
    order = rng.permutation(len(chosen))
    return make_blocks(tokens, spans, order, mask=ids.smask, sop=ids.sop, eop=ids.eop, weights=weights)


def find_sentences(
    tokens: Ints, ids: SpecialIds, pieces: Sequence[bytes], known_ends: Flags | None = None
) -> Spans:
    """The sentences of a text, without [CLS] and eos: each ends with the token that ends its marks.

    What is left at a document's end is a sentence too, unless the text's limit cut it: a model must not learn
    to stop in the middle of one. Marks are found in the bytes, so one that is split between tokens counts.
    known_ends: where the sentences end, to be found nowhere else.
    """
    starts, lengths = [], []
    for offset, room in document_segments(tokens, eos=ids.eos, cls=ids.cls):
        closed = offset + room < len(tokens) and tokens[offset + room] == ids.eos
        stop = offset + room + (not closed)  # a sentence may end on the last token of a cut text
        if known_ends is None:
            ends = _marked_ends([pieces[token] for token in tokens[offset:stop]])
        else:
            ends = np.flatnonzero(known_ends[offset:stop]) + 1
        if closed and (len(ends) == 0 or ends[-1] != room):
            ends = np.append(ends, room)
        begins = np.zeros_like(ends)
        begins[1:] = ends[:-1]
        starts.append(offset + begins)
        lengths.append(ends - begins)
    if not starts:
        return Spans(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64))
    return Spans(np.concatenate(starts), np.concatenate(lengths))


def _marked_ends(words: Sequence[bytes]) -> Ints:
    """How many words there are up to the end of each run of marks."""
    last_byte = np.cumsum([len(word) for word in words])
    marks = [match.end() for match in _SENTENCE_END.finditer(b"".join(words))]
    return np.unique(np.searchsorted(last_byte, marks) + 1)
