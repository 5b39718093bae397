"""Texts for the objectives: documents of ids that are all different, some of which end sentences."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from glm_ext.data import SpecialIds

IDS = SpecialIds()
FIRST_WORD = 20
VOCAB = 1000
# Every seventh id ends a sentence.
PIECES = [b""] * FIRST_WORD + [b" word." if i % 7 == 0 else b" word" for i in range(FIRST_WORD, VOCAB)]


def text(*document_lengths: int, closed: bool = True) -> np.ndarray:
    """[CLS] document eos for each length; the words of all of them count up from FIRST_WORD."""
    tokens: list[int] = []
    word = FIRST_WORD
    for length in document_lengths:
        tokens += [IDS.cls, *range(word, word + length), IDS.eos]
        word += length
    return np.array(tokens if closed else tokens[:-1], dtype=np.int64)


@st.composite
def texts(draw: st.DrawFn, max_documents: int = 4) -> np.ndarray:
    lengths = draw(st.lists(st.integers(1, 80), min_size=1, max_size=max_documents))
    return text(*lengths, closed=draw(st.booleans()))
