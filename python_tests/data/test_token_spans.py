"""The token-span objective: the statistics of the public implementation, and its limits."""

from typing import Any

import numpy as np
import pytest

from glm_ext.data import SpecialIds, TokenSpanSettings, token_spans

IDS = SpecialIds()


def text(*document_lengths: int, closed: bool = True) -> np.ndarray:
    """[CLS] document eos for each length; the words of a document are 100, 101, ..."""
    parts = [[IDS.cls, *range(100, 100 + length), IDS.eos] for length in document_lengths]
    tokens = np.array([token for part in parts for token in part], dtype=np.int64)
    return tokens if closed else tokens[:-1]


def test_statistics_over_3000_texts_are_those_of_the_reference() -> None:
    """Of 512 tokens: masked fraction .1514, 24.5 spans, 561 tokens with Part B, none dropped."""
    rng = np.random.default_rng(0)
    source = text(511, closed=False)
    assert len(source) == 512
    spans, totals, masked = [], [], []
    for _ in range(3000):
        example = token_spans(source, rng, IDS)
        assert example is not None
        count = np.count_nonzero(example.tokens[: example.prefix_len] == IDS.mask)
        spans.append(count)
        totals.append(len(example))
        masked.append((len(example) - example.prefix_len - count) / 512)
    assert np.mean(masked) == pytest.approx(0.1514, abs=0.0003)
    assert np.mean(spans) == pytest.approx(24.5, abs=0.3)
    assert np.mean(totals) == pytest.approx(561, abs=0.6)
    assert max(totals) <= 512 + 2 * 40


def test_span_order_in_part_b_is_shuffled_uniformly() -> None:
    rng = np.random.default_rng(0)
    rising = []
    for _ in range(400):
        example = token_spans(text(511, closed=False), rng, IDS)
        assert example is not None
        places = example.positions[0][example.tokens == IDS.sop]
        rising.append((np.diff(places) > 0).mean())
    assert np.mean(rising) == pytest.approx(0.5, abs=0.02)


def test_cls_eos_and_the_cut_token_are_never_blanked() -> None:
    rng = np.random.default_rng(0)
    for closed in (True, False):
        source = text(30, 60, 10, closed=closed)
        for _ in range(200):
            example = token_spans(source, rng, IDS)
            assert example is not None
            part_a = example.tokens[: example.prefix_len]
            assert np.count_nonzero(part_a == IDS.cls) == 3
            assert np.count_nonzero(part_a == IDS.eos) == (3 if closed else 2)
            assert part_a[-1] == source[-1]


def test_a_text_too_short_to_blank_is_dropped() -> None:
    rng = np.random.default_rng(0)
    assert token_spans(text(4), rng, IDS) is None  # int(.15 * 6) == 0
    assert token_spans(np.array([IDS.cls, IDS.eos] * 4), rng, IDS) is None  # no words at all
    assert token_spans(np.empty(0, dtype=np.int64), rng, IDS) is None


def test_settings_change_how_much_is_blanked() -> None:
    rng = np.random.default_rng(0)
    example = token_spans(text(98), rng, IDS, TokenSpanSettings(ratio=0.5, mean_length=10.0, max_length=12))
    assert example is not None
    targets = example.targets[example.prefix_len :]
    assert np.count_nonzero(targets != IDS.eop) >= 50
    assert example.positions[1].max() <= 13


@pytest.mark.parametrize("setting", [{"ratio": 0.0}, {"ratio": 1.0}, {"mean_length": 0.0}, {"max_length": 0}])
def test_settings_out_of_range_are_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(setting))}: expected"):
        TokenSpanSettings(**setting)
