import math
from itertools import pairwise

import pytest

from glm_ext.train.schedule import SCHEDULES, learning_rate

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


def test_linear_falls_evenly_and_stays_at_its_minimum():
    """The reference's linear decay goes on below zero after the end; this one does not."""
    rates = [learning_rate(t, **SETTINGS, schedule="linear") for t in range(10, 101)]
    assert [a - b for a, b in pairwise(rates)] == pytest.approx([2.0 * 0.95 / 90] * 90)
    assert (rates[0], rates[-1]) == pytest.approx((2.0, 0.1))
    assert learning_rate(10**9, **SETTINGS, schedule="linear") == pytest.approx(0.1)


def test_wsd_stays_then_falls_and_stays_again():
    rates = [learning_rate(t, **SETTINGS, schedule="wsd", decay=0.2) for t in range(102)]
    assert rates[:10] == pytest.approx([0.2 * (t + 1) for t in range(10)])
    assert rates[10:81] == [2.0] * 71
    assert rates[90] == pytest.approx(2.0 * (1 + 0.05) / 2)
    assert rates[100:] == pytest.approx([0.1] * 2)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_very_short_runs_have_a_rate(schedule, steps):
    for t in range(steps + 1):
        assert 0 < learning_rate(t, **{**SETTINGS, "steps": steps}, schedule=schedule) <= 2.0


def test_an_unknown_schedule_is_refused():
    with pytest.raises(ValueError, match="expected one of cosine, linear, wsd, got 'step'"):
        learning_rate(50, **SETTINGS, schedule="step")
