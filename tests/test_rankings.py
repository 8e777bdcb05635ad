"""Ranks, calibration and thresholds, by hand and against scipy-free references."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcr2ad import rankings


def test_ranks_and_chance_by_hand() -> None:
    p = {"a": 0.5, "b": 0.3, "c": 0.2}
    assert [rankings.rank_of(key, p) for key in "abcd"] == [1, 2, 3, None]
    assert rankings.rank_of("a", dict.fromkeys("abc", 0.0)) == 2
    assert rankings.chance(3) == pytest.approx((100 / 3, 100.0, 100 * (1 + 1 / 2 + 1 / 3) / 3))
    assert rankings.hits([1, 3, None], 1) == [1.0, 0.0, 0.0] and rankings.reciprocal([2, None]) == [0.5, 0.0]


@given(st.lists(st.floats(0.01, 1.0), min_size=2, max_size=8), st.floats(0.2, 5.0))
def test_a_temperature_keeps_the_order_and_is_undone_by_its_inverse(weights: list[float], temperature: float) -> None:
    total = sum(weights)
    p = {str(i): w / total for i, w in enumerate(weights)}
    scaled = rankings.at_temperature(p, temperature)
    assert sum(scaled.values()) == pytest.approx(1.0)
    assert rankings.at_temperature(scaled, 1 / temperature) == pytest.approx(p)
    assert max(scaled, key=scaled.__getitem__) in {k for k in p if p[k] == pytest.approx(max(p.values()))}


def test_the_fitted_temperature_brings_back_the_odds_that_were_sharpened() -> None:
    """Right in 3 of 4: the likeliest confidence is 3/4; stated 27/28, which is (3/1) cubed, so temperature 3."""
    stated = {"a": 27 / 28, "b": 1 / 28}
    rows = [("a", stated)] * 3 + [("b", stated)] + [("gone", stated)]
    assert rankings.fit_temperature(rows) == pytest.approx(3.0, rel=0.03)
    assert rankings.fit_temperature([("gone", stated)]) == 1.0
    assert rankings.likelihood(rows, 3.0) == pytest.approx(-(3 * math.log(0.75) + math.log(0.25)) / 4, rel=1e-6)


def test_calibration_error_by_hand() -> None:
    assert rankings.calibration_error([0.75] * 4, [True, True, True, False]) == pytest.approx(0.0)
    assert rankings.calibration_error([0.95, 0.95, 0.15, 0.15], [True, False, False, False]) == pytest.approx(30.0)


def test_the_threshold_parts_right_from_wrong_and_needs_both() -> None:
    sure, right = [0.9] * 6 + [0.3] * 6, [True] * 6 + [False] * 6
    assert rankings.fit_threshold(sure, right) == 0.9
    assert rankings.fit_threshold(sure[:8], right[:8]) == 0.0
    assert rankings.fit_threshold([0.3] * 6 + [0.9] * 6, right) <= 0.3


def test_the_bias_of_places_is_zero_when_even_and_by_hand_else() -> None:
    assert rankings.place_bias([(0.25,) * 4] * 3) == pytest.approx(0.0)
    assert rankings.place_bias([(1.0, 0.0), (0.5, 0.5)]) == pytest.approx(25.0)


def test_intervals_resample_groups() -> None:
    one = rankings.interval([1.0, 0.0] * 20, [str(i // 2) for i in range(40)])
    assert one.value == one.low == one.high == 50.0 and one.n == 40
    many = rankings.interval([1.0, 0.0] * 20, [str(i) for i in range(40)])
    assert many.low < 50.0 < many.high
