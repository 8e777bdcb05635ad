"""A limit of the expert's score from a line's good parts."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from dcr2ad.datasets.drawn import draw_part
from dcr2ad.expert import THRESHOLD, Expert
from dcr2ad.limits import LEAST, SPREAD, WEIGHT, own_limit, student_quantile

SCORES = st.lists(st.floats(-5, 20), min_size=LEAST, max_size=30)


def test_by_hand() -> None:
    # Scores 1 to 5: mean 3, squares 10. With the ordinary spread for 12: (10 + 12 * 1.21) / 16 = 1.5325; t(0.8; 16) = 0.8647.
    assert (SPREAD, WEIGHT) == (1.1, 12)
    assert own_limit([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx(3 + 0.8647 * math.sqrt(1.5325 * (1 + 1 / 5)), abs=1e-3)


@pytest.mark.parametrize("free", [12, 14, 20, 70])
@pytest.mark.parametrize("share", [0.5, 0.8, 0.9, 0.99])
def test_the_quantile_is_scipys(free: int, share: float) -> None:
    assert student_quantile(share, free) == pytest.approx(stats.t.ppf(share, free), abs=1e-3)


@given(SCORES, st.floats(-10, 10))
def test_it_moves_with_the_scores_and_lies_above_their_mean(scores: list[float], by: float) -> None:
    limit = own_limit(scores)
    assert limit > float(np.mean(scores))
    assert own_limit([score + by for score in scores]) == pytest.approx(limit + by, abs=1e-6)


@given(SCORES, st.floats(0.5, 0.98))
def test_fewer_alarms_mean_a_higher_limit(scores: list[float], share: float) -> None:
    assert own_limit(scores, share + 0.01) > own_limit(scores, share)


def test_so_many_of_further_good_parts_lie_below() -> None:
    """Lines whose spread is the ordinary one; five good parts each."""
    lots = np.random.default_rng(0).normal(3.0, SPREAD, (4000, 6))
    below = np.mean([row[5] <= own_limit(row[:5].tolist(), 0.8) for row in lots])
    assert below == pytest.approx(0.8, abs=0.02)


def test_alike_scores_set_no_limit_close_to_them() -> None:
    assert own_limit([2.0] * LEAST) > 2.5


@pytest.mark.parametrize(("scores", "share"), [([1.0] * 4, 0.8), ([1.0] * 5, 0.4), ([1.0] * 5, 1.0)])
def test_what_cannot_be_is_refused(scores: list[float], share: float) -> None:
    with pytest.raises(ValueError, match="a limit needs"):
        own_limit(scores, share)


@pytest.fixture(scope="module")
def caps(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Six good bottle caps and a cracked one."""
    folder = tmp_path_factory.mktemp("caps")
    paths = []
    for number in range(7):
        draw_part("bottle_cap", "crack" if number == 6 else None, 40 + number, 224)[0].save(folder / f"{number}.png")
        paths.append(folder / f"{number}.png")
    return paths


def test_an_expert_with_a_limit_of_the_line_finds_what_the_general_one_lets_pass(caps: list[Path]) -> None:
    expert = Expert()
    references, good, cracked = caps[:5], caps[5], caps[6]
    limit = expert.own_limit(references)
    assert limit < THRESHOLD
    own = expert.with_limit(limit)
    (found, _), (general, _) = own.inspect(cracked, references), expert.inspect(cracked, references)
    assert (found.score, found.cell) == (general.score, general.cell)
    assert (found.threshold, general.threshold) == (limit, THRESHOLD)
    assert found.is_anomalous
    assert not general.is_anomalous
    assert not own.inspect(good, references)[0].is_anomalous
    assert own.fingerprint != expert.fingerprint


def test_a_limit_does_not_depend_on_the_order_of_the_parts(caps: list[Path]) -> None:
    expert = Expert()
    assert expert.own_limit(caps[:5]) == pytest.approx(expert.own_limit(caps[:5][::-1]), abs=1e-5)
    assert expert.own_limit(caps[:5], 0.95) > expert.own_limit(caps[:5], 0.8)
