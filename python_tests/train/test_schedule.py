import math
from itertools import pairwise

import pytest

from glm_ext.train.schedule import learning_rate

SETTINGS = {"peak": 2.0, "steps": 100, "warmup": 0.1, "min_ratio": 0.05}


def test_warmup_is_linear_and_the_first_step_already_moves():
    assert [learning_rate(t, **SETTINGS) for t in range(10)] == pytest.approx(
        [0.2 * (t + 1) for t in range(10)]
    )


def test_cosine_starts_at_the_peak_and_passes_half_way_in_the_middle():
    assert learning_rate(10, **SETTINGS) == 2.0
    assert learning_rate(55, **SETTINGS) == pytest.approx(2.0 * (1 + 0.05) / 2)
    assert learning_rate(32, **SETTINGS) == pytest.approx(
        2.0 * (0.05 + 0.95 * (1 + math.cos(math.pi * 22 / 90)) / 2)
    )


def test_rate_stays_at_its_minimum_after_the_end():
    assert [learning_rate(t, **SETTINGS) for t in (100, 101, 10**9)] == pytest.approx([0.1] * 3)


def test_rate_falls_after_the_warmup():
    rates = [learning_rate(t, **SETTINGS) for t in range(10, 101)]
    assert all(later < earlier for earlier, later in pairwise(rates))


def test_no_warmup_starts_at_the_peak():
    assert learning_rate(0, peak=2.0, steps=100, warmup=0.0, min_ratio=0.0) == 2.0
