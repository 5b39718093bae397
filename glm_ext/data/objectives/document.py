"""Document level: blank out half of a text or more in one piece (Du et al. 2022, section 2.2)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..bits import Flags
from ..blocks import Example, Weights, make_blocks, make_prefix
from ..spans import Ints, Spans, document_segments
from ..special import SpecialIds


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentSettings:
    """How much of a text to blank out, and whether text may follow the blank.

    The span's length is uniform between min_ratio and max_ratio of what can be blanked out. With probability
    `infill` it lies anywhere in its document, and what follows it stays visible; else it is the text's end.
    """

    min_ratio: float = 0.5
    max_ratio: float = 1.0
    infill: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.min_ratio <= self.max_ratio <= 1:
            raise ValueError(
                f"min_ratio, max_ratio: expected 0 < min_ratio <= max_ratio <= 1, "
                f"got {self.min_ratio} and {self.max_ratio}"
            )
        if not 0 <= self.infill <= 1:
            raise ValueError(f"infill: expected a probability in [0, 1], got {self.infill}")


def document_span(
    tokens: Ints,
    rng: np.random.Generator,
    ids: SpecialIds,
    settings: DocumentSettings = DocumentSettings(),
    *,
    weights: Weights | None = None,
    ends: Flags | None = None,
) -> Example | None:
    """One example of a text `[CLS] document eos [CLS] document ...` with one [gMASK].

    Prefix form: the span is all from some place to the end, in the extreme all but the first [CLS]; its last
    target is the text's own last token. Infill form: the span has a place in the only document, and its end
    is an eop. A text of several documents, closed or cut, always takes the prefix form: no infilled span
    crosses their ends. None if there is nothing to blank out.

    >>> text = np.arange(100, 120)
    >>> example = document_span(text, np.random.default_rng(0), SpecialIds(), DocumentSettings(infill=0.0))
    >>> int(example.tokens[example.prefix_len - 1]) == SpecialIds().gmask
    True
    """
    infill = rng.random() < settings.infill
    segments = document_segments(tokens, eos=ids.eos, cls=ids.cls) if infill else []
    if infill and not segments:
        return None
    if len(segments) == 1:
        [(offset, room)] = segments
        length = _span_length(rng, room, settings)
        start = offset + int(rng.integers(0, room - length, endpoint=True))
        spans = Spans(np.array([start]), np.array([length]))
        order = np.zeros(1, dtype=np.int64)
        return make_blocks(tokens, spans, order, mask=ids.gmask, sop=ids.sop, eop=ids.eop, weights=weights)

    room = len(tokens) - int(len(tokens) > 0 and tokens[0] == ids.cls)
    if room == 0:
        return None
    cut = len(tokens) - _span_length(rng, room, settings)
    return make_prefix(tokens, cut, gmask=ids.gmask, sop=ids.sop, weights=weights)


def _span_length(rng: np.random.Generator, room: int, settings: DocumentSettings) -> int:
    longest = max(1, int(settings.max_ratio * room))
    shortest = min(longest, int(np.ceil(settings.min_ratio * room)))
    return int(rng.integers(shortest, longest, endpoint=True))
