"""Numbers by hand."""

from __future__ import annotations

import numpy as np
import pytest

from dcr2ad import metrics
from dcr2ad.types import Prediction, RankedEntry, Subtask


def prediction(
    number: int,
    correct: bool,
    *,
    subtask: Subtask = Subtask.DETECTION,
    anomalous: bool = True,
    dataset: str = "d",
    status: str = "answered",
    probabilities: tuple[float, ...] | None = None,
    routed: tuple[str, ...] = (),
) -> Prediction:
    return Prediction(
        question_id=str(number),
        image=f"{number}.png",
        dataset=dataset,
        object="nut",
        is_anomalous=anomalous,
        subtask=subtask,
        n_options=2,
        gold=0,
        status=status,
        answer=(0 if correct else 1) if status == "answered" else None,
        probabilities=probabilities,
        right_key="k",
        routed=tuple(RankedEntry(key=key, title=key, probability=0.1) for key in routed),
    )


def test_detection_is_the_mean_over_normal_and_abnormal() -> None:
    rows = [prediction(i, i < 3, anomalous=True) for i in range(4)] + [prediction(9, False, anomalous=False)]
    assert metrics.subtask_accuracy(rows, Subtask.DETECTION) == pytest.approx((75 + 0) / 2)


def test_data_sets_weigh_alike() -> None:
    rows = [prediction(i, True, subtask=Subtask.ANALYSIS, dataset="large") for i in range(9)]
    rows.append(prediction(10, False, subtask=Subtask.ANALYSIS, dataset="small"))
    assert metrics.subtask_accuracy(rows, Subtask.ANALYSIS) == pytest.approx(50)


def test_average_is_the_plain_mean_of_the_sub_tasks_present() -> None:
    rows = [prediction(1, True, subtask=Subtask.ANALYSIS), prediction(2, False, subtask=Subtask.DESCRIPTION)]
    assert metrics.average(rows) == pytest.approx(50)
    assert metrics.average([]) is None


def test_rates_by_hand() -> None:
    # Abnormal: 3 found, 1 unparsed. Normal: 1 passed, 2 called abnormal.
    rows = [prediction(i, True) for i in range(3)] + [prediction(3, False, status="unparsed")]
    rows += [prediction(4, True, anomalous=False), prediction(5, False, anomalous=False), prediction(6, False, anomalous=False)]
    rates = metrics.detection_rates(rows)
    assert rates["Overkill"] == pytest.approx(200 / 3)
    assert rates["Miss"] == pytest.approx(25)
    assert rates["Recall"] == pytest.approx(75)
    assert rates["Precision"] == pytest.approx(60)
    assert rates["F1"] == pytest.approx(100 * 6 / 9)


def test_failed_questions_stay_in_the_denominator() -> None:
    rows = [prediction(1, True, subtask=Subtask.ANALYSIS), prediction(2, False, subtask=Subtask.ANALYSIS, status="failed")]
    assert metrics.subtask_accuracy(rows, Subtask.ANALYSIS) == 50


def test_interval_is_clustered_by_image_and_reproducible() -> None:
    # Ten questions on one image move together: the interval is as wide as that of two images, not of eleven questions.
    rows = [prediction(1, True, subtask=Subtask.ANALYSIS) for _ in range(10)] + [prediction(2, False, subtask=Subtask.ANALYSIS)]
    found = metrics.intervals(rows)[Subtask.ANALYSIS]
    assert found == metrics.intervals(rows)[Subtask.ANALYSIS] == metrics.intervals(rows)[None]
    assert (found.low, found.high) == (0.0, 100.0) and found.n == 11
    assert found.value == pytest.approx(1000 / 11)


def test_interval_covers_as_often_as_it_says() -> None:
    """Of 95 % intervals of a known accuracy, about 95 in 100 hold it (150 trials, 200 images)."""
    rng = np.random.default_rng(0)
    held = 0
    for trial in range(150):
        rows = [prediction(i, bool(rng.random() < 0.7), subtask=Subtask.ANALYSIS) for i in range(200)]
        found = metrics.intervals(rows, seed=trial)[None]
        held += found.low <= 70 <= found.high
    assert 0.89 <= held / 150 <= 0.99


def test_routing_by_hand() -> None:
    rows = [
        prediction(1, True, routed=("k", "a")),
        prediction(1, True, routed=("k", "a")),  # the same image again counts once
        prediction(2, True, routed=("a", "b", "k")),
        prediction(3, True, routed=("a", "b")),
        prediction(4, True),
    ]
    assert metrics.routing_accuracy(rows) == pytest.approx({"top1": 100 / 3, "top3": 200 / 3, "mrr": 400 / 9, "n": 3})


def test_calibration_by_hand() -> None:
    rows = [prediction(1, True, probabilities=(0.8, 0.2)), prediction(2, False, probabilities=(0.8, 0.2))]
    assert metrics.calibration_error(rows) == pytest.approx(30)
    assert metrics.calibration_error([prediction(1, True)]) is None


def test_tables_are_the_figures_of_each_group_alone_and_one_pass_is_enough() -> None:
    rng, rows = np.random.default_rng(0), []
    for i in range(200):
        subtask = list(Subtask)[int(rng.integers(7))]
        row = prediction(
            i // 3, bool(rng.random() < 0.6), subtask=subtask, anomalous=bool(rng.random() < 0.5), dataset=f"d{i % 4}"
        )
        rows.append(row.model_copy(update={"object": f"o{i % 5}"}))
    table = metrics.group_table(iter(rows), lambda p: f"{p.dataset}/{p.object}")
    for name, found in table.items():
        own = [p for p in rows if f"{p.dataset}/{p.object}" == name]
        assert found == {s.value: metrics.subtask_accuracy(own, s) for s in Subtask if any(p.subtask == s for p in own)}
    assert list(table) == sorted({f"{p.dataset}/{p.object}" for p in rows})
    assert metrics.intervals(iter(rows)) == metrics.intervals(rows)
    assert metrics.calibration_error(iter(rows)) == metrics.calibration_error(rows)


def test_resamples_do_not_depend_on_how_many_are_drawn_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [prediction(i // 2, i % 3 > 0, subtask=list(Subtask)[i % 7], dataset=f"d{i % 2}") for i in range(90)]
    found = []
    for numbers in (1, 45 * 7, 2**18):
        monkeypatch.setattr("dcr2ad.metrics._DRAWN", numbers)
        found.append((metrics.intervals(rows), metrics.paired_differences(rows, rows[:45] + rows[45:])))
    assert found[0] == found[1] == found[2]
