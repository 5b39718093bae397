"""Token spans: blank out short spans, 15 % of the text, and rebuild them (Du et al. 2022, section 2.1)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..bits import Flags
from ..blocks import Example, Weights, make_blocks
from ..spans import Ints, document_segments, sample_document_spans, sample_span_lengths
from ..special import SpecialIds


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenSpanSettings:
    """How much of a text of N tokens to blank out, in spans of what length.

    At least int(ratio * N) tokens, in spans of Poisson(mean_length) tokens, from 1 to max_length. With
    single=True one span alone, whatever its length.
    """

    ratio: float = 0.15
    mean_length: float = 3.0
    max_length: int = 39
    single: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.ratio < 1:
            raise ValueError(f"ratio: expected a number between 0 and 1, got {self.ratio}")
        if not self.mean_length > 0:
            raise ValueError(f"mean_length: expected a number above 0, got {self.mean_length}")
        if self.max_length < 1:
            raise ValueError(f"max_length: expected at least 1, got {self.max_length}")


def token_spans(
    tokens: Ints,
    rng: np.random.Generator,
    ids: SpecialIds,
    settings: TokenSpanSettings = TokenSpanSettings(),
    *,
    weights: Weights | None = None,
    ends: Flags | None = None,
) -> Example | None:
    """One example of a text `[CLS] document eos [CLS] document ...`: spans drawn, placed and shuffled by rng.

    None if nothing can be blanked out: the text is too short for a span, or the spans drawn do not fit
    between its documents' ends. The caller then draws another text.

    >>> text = np.arange(100, 150)
    >>> example = token_spans(text, np.random.default_rng(0), SpecialIds())
    >>> blanks = int(np.count_nonzero(example.tokens == SpecialIds().mask))
    >>> len(example) == 50 + 2 * blanks
    True
    """
    total = 1 if settings.single else int(settings.ratio * len(tokens))  # the first length drawn reaches 1
    lengths = sample_span_lengths(rng, total, mean=settings.mean_length, max_length=settings.max_length)
    if len(lengths) == 0:
        return None
    segments = document_segments(tokens, eos=ids.eos, cls=ids.cls)
    spans = sample_document_spans(rng, lengths, segments, ratio=settings.ratio)
    if spans is None:
        return None
    order = rng.permutation(len(lengths))
    return make_blocks(tokens, spans, order, mask=ids.mask, sop=ids.sop, eop=ids.eop, weights=weights)
