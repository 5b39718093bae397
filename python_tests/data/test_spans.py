"""Span lengths and places: distributions, limits, rules."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glm_ext.data.spans import (
    Spans,
    document_segments,
    place_spans,
    sample_document_spans,
    sample_span_lengths,
    span_length_probabilities,
)

EOS, CLS = 0, 1


def test_length_probabilities_are_a_truncated_poisson() -> None:
    p = span_length_probabilities(3.0, 39)
    raw = np.array([math.exp(-3) * 3**k / math.factorial(k) for k in range(1, 40)])
    np.testing.assert_allclose(p, raw / raw.sum(), rtol=1e-12)
    with pytest.raises(ValueError, match="mean > 0"):
        span_length_probabilities(0.0, 39)


def test_length_probabilities_hold_for_a_long_mean() -> None:
    assert np.isfinite(span_length_probabilities(500.0, 1000)).all()


def test_lengths_are_drawn_with_these_probabilities() -> None:
    lengths = sample_span_lengths(np.random.default_rng(0), 300_000)
    expected = span_length_probabilities()[:8]
    seen = np.bincount(lengths, minlength=9)[1:9] / len(lengths)
    np.testing.assert_allclose(seen, expected, atol=5 * math.sqrt(0.25 / len(lengths)))


@given(st.integers(-3, 200), st.integers(0, 2**32))
def test_lengths_stop_as_soon_as_the_total_is_reached(total: int, seed: int) -> None:
    lengths = sample_span_lengths(np.random.default_rng(seed), total)
    assert lengths.sum() >= total
    assert lengths[:-1].sum() < max(total, 1)
    assert ((lengths >= 1) & (lengths <= 39)).all()
    assert (len(lengths) == 0) == (total <= 0)


@given(st.lists(st.integers(1, 5), max_size=8), st.integers(0, 60), st.integers(0, 2**32))
def test_placed_spans_keep_a_gap_and_stay_inside(lengths: list[int], room: int, seed: int) -> None:
    starts = place_spans(np.random.default_rng(seed), np.array(lengths, dtype=np.int64), room)
    if lengths and sum(lengths) + len(lengths) - 1 > room:
        assert starts is None
        return
    assert starts is not None
    ends = starts + lengths
    assert (starts[1:] > ends[:-1]).all()
    assert not lengths or (starts[0] >= 0 and ends[-1] <= room)


def test_a_single_span_is_placed_uniformly() -> None:
    rng = np.random.default_rng(0)
    starts = [place_spans(rng, np.array([3]), 10) for _ in range(8000)]
    counts = np.bincount(np.concatenate(starts), minlength=8)  # type: ignore[arg-type]
    assert len(counts) == 8 and (abs(counts - 1000) < 5 * math.sqrt(1000)).all()


@pytest.mark.parametrize(
    "tokens, segments",
    [
        ([CLS, 11, 12, EOS], [(1, 2)]),
        ([CLS, 11, 12, 13], [(1, 2)]),  # cut: the last token stays
        ([11, 12, EOS, 13, 14, EOS], [(0, 2), (3, 2)]),
        ([CLS, 11, EOS, CLS, 12, 13, 14], [(1, 1), (4, 2)]),
        ([CLS, EOS, CLS, 11, EOS], [(3, 1)]),  # nothing in the first
        ([CLS, 11], []),
        ([EOS], []),
        ([], []),
    ],
)
def test_segments(tokens: list[int], segments: list[tuple[int, int]]) -> None:
    assert document_segments(np.array(tokens, dtype=np.int64), eos=EOS, cls=CLS) == segments


def test_small_documents_give_their_share_and_the_longest_the_rest() -> None:
    segments = [(1, 40), (50, 200), (300, 20)]
    spans = sample_document_spans(np.random.default_rng(0), np.full(12, 3), segments)
    assert spans is not None
    assert (np.diff(spans.starts) > 0).all()
    inside = [((spans.starts >= o) & (spans.starts + spans.lengths <= o + n)).sum() for o, n in segments]
    assert inside == [2, 9, 1]  # int(.15 * 40) // 3, the rest, int(.15 * 20) // 3


def test_what_does_not_fit_is_dropped() -> None:
    rng = np.random.default_rng(0)
    assert sample_document_spans(rng, np.array([4, 4]), [(0, 8)]) is None  # no gap left
    assert sample_document_spans(rng, np.array([4, 3]), [(0, 8)]) is not None
    assert sample_document_spans(rng, np.array([1]), []) is None
    assert sample_document_spans(rng, np.array([39]), [(0, 10), (11, 12)]) is None


def test_the_same_generator_gives_the_same_spans() -> None:
    def draw() -> Spans | None:
        return sample_document_spans(np.random.default_rng(7), np.arange(1, 9), [(0, 100), (120, 200)])

    first, second = draw(), draw()
    assert first is not None and second is not None
    assert (
        first.starts.tolist() == second.starts.tolist() and first.lengths.tolist() == second.lengths.tolist()
    )
