"""Blind reader: what of a data set's answers can be told from the texts of question and options alone.

Reads `Question`s, never an image; returns accuracy beside chance for each sub-task. Knows nothing about files or models. The
paper does not measure it; a benchmark whose options give the answer away measures reading, not seeing.

The reader (`dcr2ad.choice_model`) sees the option's words, the whole text, these beside each word of the question, the
option's place and length, and how many words it shares with the other options. It is tested on images it never saw.
"""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from dcr2ad.choice_model import (
    SLOTS,
    best_options,
    cross_validate,
    fit,
    group_folds,
    held_out,
    option_scores,
    right_share,
)
from dcr2ad.knowledge.search import tokens
from dcr2ad.types import Question, Record, Subtask

ALLOWED = 5.0
"""Points above chance up to which a sub-task passes."""
FEWEST = 100
"""Questions below which a sub-task's figure says nothing."""


class BlindScore(Record):
    """How far the blind reader gets on one sub-task, in per cent."""

    subtask: Subtask
    """Which."""
    questions: int
    """Questions read."""
    chance: float
    """Mean of one over the number of options."""
    accuracy: float
    """Of the reader, on images it was not trained on."""
    error: float
    """Standard error of the accuracy."""

    @property
    def excess(self) -> float:
        """Points above chance."""
        return self.accuracy - self.chance

    @property
    def verdict(self) -> str:
        """``too few``, ``leaks`` or ``passes``."""
        if self.questions < FEWEST:
            return "too few"
        return "leaks" if self.excess > ALLOWED else "passes"


class LetterScore(Record):
    """Whether the right letters are spread evenly over one number of options."""

    options: int
    """Number of options."""
    counts: tuple[int, ...]
    """How often each place was right."""
    statistic: float
    """Pearson's chi-square against equal shares."""
    limit: float
    """The statistic's 99 % quantile under equal shares."""

    @property
    def passes(self) -> bool:
        """Whether equal shares stand."""
        return self.statistic <= self.limit


def read_blind(questions: Iterable[Question], *, seed: int = 0) -> list[BlindScore]:
    """Train and test the blind reader on each sub-task.

    Args:
        questions: of one data set; images of one group (of one path, where there is none) stay on one side of each split.
        seed: seed of the folds.

    Returns:
        one score for each sub-task that has questions of two groups or more, in the order of `Subtask`.
    """
    scores = (_score(subtask, asked, seed) for subtask, asked in _by_subtask(questions).items())
    return [score for score in scores if score is not None]


def read_across(learnt: Iterable[Question], asked: Iterable[Question]) -> list[BlindScore]:
    """Train the blind reader on one data set and test it on another, whose answers were balanced by themselves.

    Within one data set whose texts are balanced the reader falls below chance: a text that is right often in some folds is
    rare in the others. Across two there is no such bond.

    Args:
        learnt: questions to learn from.
        asked: questions to answer, about other parts.

    Returns:
        one score for each sub-task that both have, in the order of `Subtask`.
    """
    taught, scores = _by_subtask(learnt), []
    for subtask, then in _by_subtask(asked).items():
        first = taught.get(subtask)
        if first:
            features, shown = _features([*first, *then])
            answers = np.array([question.answer for question in (*first, *then)])
            cut = len(first)
            weights = fit(features[:cut], shown[:cut], answers[:cut])
            logits = option_scores(weights, features[cut:], shown[cut:])
            scores.append(_scored(subtask, then, right_share(logits, answers[cut:])))
    return scores


def blind_answers(questions: Iterable[Question], *, seed: int = 0) -> dict[str, int]:
    """What the blind reader answers: question id -> index of an option, each by a reader that never saw the question's image.

    A tie is broken by lot, as is a sub-task with questions of a single group, of which nothing can be learnt.
    """
    rng = np.random.default_rng(seed)
    given: dict[str, int] = {}
    for rows in _by_subtask(questions).values():
        features, shown = _features(rows)
        folds = group_folds([shown_part(question) for question in rows], seed)
        logits = np.where(shown, 0.0, -np.inf)
        if folds is not None:
            logits = held_out(features, shown, np.array([question.answer for question in rows]), folds)
        for question, row in zip(rows, best_options(logits), strict=True):
            given[question.id] = int(rng.choice(np.flatnonzero(row)))
    return given


def letter_balance(questions: Iterable[Question]) -> list[LetterScore]:
    """Chi-square test of the right options' places, for each number of options."""
    counts: dict[int, np.ndarray] = {}
    for question in questions:
        n = len(question.options)
        counts.setdefault(n, np.zeros(n, dtype=np.int64))[question.answer] += 1
    return [
        LetterScore(
            options=n,
            counts=tuple(int(count) for count in found),
            statistic=float(((found - found.mean()) ** 2 / found.mean()).sum()),
            limit=_chi_square_99(n - 1),
        )
        for n, found in sorted(counts.items())
    ]


def _chi_square_99(freedom: int) -> float:
    """99 % quantile of chi-square, by Wilson and Hilferty (1931), to within 2 %."""
    step = 2 / (9 * freedom)
    return freedom * (1 - step + 2.3263 * step**0.5) ** 3


def _by_subtask(questions: Iterable[Question]) -> dict[Subtask, list[Question]]:
    """Questions of each sub-task that has any, in the order of `Subtask`."""
    asked: dict[Subtask, list[Question]] = defaultdict(list)
    for question in questions:
        asked[question.subtask].append(question)
    return {subtask: asked[subtask] for subtask in Subtask if subtask in asked}


def _score(subtask: Subtask, questions: Sequence[Question], seed: int) -> BlindScore | None:
    folds = group_folds([shown_part(question) for question in questions], seed, [q.options[q.answer] for q in questions])
    if folds is None:
        return None
    features, shown = _features(questions)
    answers = np.array([question.answer for question in questions])
    return _scored(subtask, questions, cross_validate(features, shown, answers, folds))


def _scored(subtask: Subtask, questions: Sequence[Question], right: np.ndarray) -> BlindScore:
    return BlindScore(
        subtask=subtask,
        questions=len(questions),
        chance=100 * float(np.mean([1 / len(question.options) for question in questions])),
        accuracy=100 * float(right.mean()),
        error=100 * float(right.std() / np.sqrt(len(right))),
    )


def shown_part(question: Question) -> str:
    """The physical part a question shows: its group, or its image where there is none."""
    sample = question.sample
    return f"{sample.dataset}/{sample.group or sample.image}"


def _features(questions: Sequence[Question]) -> tuple[np.ndarray, np.ndarray]:
    """Feature slots of every option, shape ``(questions, options, features)``, padded with slot 0; and which options exist."""
    rows = [[_option_slots(question, index) for index in range(len(question.options))] for question in questions]
    most = max(len(row) for row in rows)
    longest = max(len(slots) for row in rows for slots in row)
    features = np.zeros((len(rows), most, longest), dtype=np.int32)
    shown = np.zeros((len(rows), most), dtype=bool)
    for number, row in enumerate(rows):
        for index, slots in enumerate(row):
            features[number, index, : len(slots)] = slots
            shown[number, index] = True
    return features, shown


def _option_slots(question: Question, index: int) -> list[int]:
    text = question.options[index]
    words = set(tokens(text))
    others = [set(tokens(option)) for other, option in enumerate(question.options) if other != index]
    length = sorted(map(len, question.options)).index(len(text))
    shared = sum(len(words & other) for other in others)
    names = [f"word {word}" for word in sorted(words)[:24]]
    names += [f"text {text}", f"place {index}", f"length {length}", f"shared {min(shared, 9)}"]
    asked = sorted(set(tokens(question.text)))[:12]
    names += [f"asked {question.text} text {text}", *(f"asked {word} text {text}" for word in asked)]
    return [1 + zlib.crc32(name.encode()) % (SLOTS - 1) for name in names]
