"""Blind reader: what of a data set's answers can be told from the texts of question and options alone.

Reads `Question`s or `PreferencePair`s, never an image; returns accuracy beside chance for each sub-task. Knows nothing about
files or models. The paper does not measure it; a benchmark whose options give the answer away measures reading, not seeing.

The reader scores each option by a bag of words and takes the softmax over a question's options (a conditional logit, McFadden
1974), fitted by gradient descent with an L2 penalty. It sees the option's words, the whole text, these beside each word of
the question, the option's place and length, and how many words it shares with the other options. It is tested on images it
never saw.
"""

from __future__ import annotations

import random
import zlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np

from dcr2ad.knowledge.search import tokens
from dcr2ad.parsing import write_response
from dcr2ad.types import PreferencePair, Question, Record, Subtask

FOLDS = 5
ALLOWED = 5.0
"""Points above chance up to which a sub-task passes."""
FEWEST = 100
"""Questions below which a sub-task's figure says nothing."""

PAIRS_ALLOWED = 60.0
"""Per cent of pairs up to which telling chosen from rejected by their texts passes."""
FEWEST_PAIRS = 40
"""Pairs below which the figure says nothing."""

_SLOTS = 1 << 15
_STEPS, _RATE, _PENALTY = 80, 0.1, 2e-4


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
    asked: dict[Subtask, list[Question]] = defaultdict(list)
    for question in questions:
        asked[question.subtask].append(question)
    scores = (_score(subtask, asked[subtask], seed) for subtask in Subtask if subtask in asked)
    return [score for score in scores if score is not None]


def blind_answers(questions: Iterable[Question], *, seed: int = 0) -> dict[str, int]:
    """What the blind reader answers: question id -> index of an option, each by a reader that never saw the question's image.

    A tie is broken by lot, as is a sub-task with questions of a single group, of which nothing can be learnt.
    """
    asked: dict[Subtask, list[Question]] = defaultdict(list)
    for question in questions:
        asked[question.subtask].append(question)
    rng = np.random.default_rng(seed)
    given: dict[str, int] = {}
    for subtask in (subtask for subtask in Subtask if subtask in asked):
        rows = asked[subtask]
        features, shown = _features(rows)
        folds = _folds([_group(question) for question in rows], seed)
        logits = np.where(shown, 0.0, -np.inf)
        if folds is not None:
            logits = _held_out(features, shown, np.array([question.answer for question in rows]), folds)
        for question, row in zip(rows, _best(logits), strict=True):
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


class PairReading(Record):
    """How often a reader of the two responses alone, without image or question, tells chosen from rejected."""

    pairs: int
    """Pairs read."""
    accuracy: float
    """In per cent, on images it was not trained on; 50 is chance."""
    error: float
    """Standard error of the accuracy."""
    length_alone: float
    """Per cent of pairs whose chosen response is the longer one, equal ones counted half."""
    allowed: float = PAIRS_ALLOWED
    """Accuracy up to which length, style and wording count as no leak."""

    @property
    def verdict(self) -> str:
        """``too few``, ``leaks`` or ``passes``."""
        if self.pairs < FEWEST_PAIRS:
            return "too few"
        return "leaks" if self.accuracy > self.allowed else "passes"


def read_pairs(pairs: Sequence[PreferencePair], *, seed: int = 0) -> PairReading | None:
    """Train and test a reader that is shown both responses of a pair, unordered, and must name the chosen one.

    It sees words, neighbouring words and which is longer. A pair's two responses and all pairs about one image stay on one side
    of each split.

    Args:
        pairs: preference pairs.
        seed: seed of the folds.

    Returns:
        None where there are fewer than two images.
    """
    texts = [[write_response(trajectory) for trajectory in (pair.chosen, pair.rejected)] for pair in pairs]
    folds = _folds([_group(pair.question) for pair in pairs], seed)
    if folds is None:
        return None
    slots = [[_response_slots(text, other) for text, other in (both, both[::-1])] for both in texts]
    features = np.zeros((len(pairs), 2, max(len(s) for row in slots for s in row)), dtype=np.int32)
    for number, row in enumerate(slots):
        for which, found in enumerate(row):
            features[number, which, : len(found)] = found
    right = _cross_validate(features, np.ones(features.shape[:2], dtype=bool), np.zeros(len(pairs), dtype=np.int64), folds)
    longer = [0.5 + 0.5 * np.sign(len(chosen) - len(rejected)) for chosen, rejected in texts]
    return PairReading(
        pairs=len(pairs),
        accuracy=100 * float(right.mean()),
        error=100 * float(right.std() / np.sqrt(len(right))),
        length_alone=100 * float(np.mean(longer)),
    )


def _response_slots(text: str, other: str) -> list[int]:
    words = tokens(text)
    names = {f"word {word}" for word in words} | {f"next {a} {b}" for a, b in pairwise(words)}
    names |= {f"length {np.sign(len(text) - len(other))}"}
    return [1 + zlib.crc32(name.encode()) % (_SLOTS - 1) for name in sorted(names)]


def _chi_square_99(freedom: int) -> float:
    """99 % quantile of chi-square, by Wilson and Hilferty (1931), to within 2 %."""
    step = 2 / (9 * freedom)
    return freedom * (1 - step + 2.3263 * step**0.5) ** 3


def _score(subtask: Subtask, questions: Sequence[Question], seed: int) -> BlindScore | None:
    folds = _folds([_group(question) for question in questions], seed, [q.options[q.answer] for q in questions])
    if folds is None:
        return None
    features, shown = _features(questions)
    answers = np.array([question.answer for question in questions])
    right = _cross_validate(features, shown, answers, folds)
    return BlindScore(
        subtask=subtask,
        questions=len(questions),
        chance=100 * float(np.mean([1 / len(question.options) for question in questions])),
        accuracy=100 * float(right.mean()),
        error=100 * float(right.std() / np.sqrt(len(right))),
    )


def _folds(groups: Sequence[str], seed: int, strata: Sequence[str] = ()) -> np.ndarray | None:
    """Fold of each item, items of one group together; None where there are fewer than two groups.

    Groups with the same right text are dealt out evenly. Otherwise, in data whose texts are balanced, what is right often in
    some folds is rare in the other, and the reader falls below chance for it: a leak would be hidden behind that.
    """
    names = sorted(set(groups))
    if len(names) < 2:
        return None
    random.Random(seed).shuffle(names)
    if strata:
        first = dict(zip(reversed(groups), reversed(strata), strict=True))
        names.sort(key=lambda name: first[name])
    fold_of = {group: index % min(FOLDS, len(names)) for index, group in enumerate(names)}
    return np.array([fold_of[group] for group in groups])


def _cross_validate(features: np.ndarray, shown: np.ndarray, answers: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """For each item whether the reader that was fitted on the other folds is right; a tie counts its share."""
    best = _best(_held_out(features, shown, answers, folds))  # equal options share the point: a tie is a guess
    return best[np.arange(len(answers)), answers] / best.sum(axis=1)


def _held_out(features: np.ndarray, shown: np.ndarray, answers: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """Score of each option, ``(items, options)``, by the reader fitted on the other folds; -inf where there is no option."""
    logits = np.full(shown.shape, -np.inf)
    for fold in range(folds.max() + 1):
        train, test = folds != fold, folds == fold
        weights = _fit(features[train], shown[train], answers[train])
        logits[test] = np.where(shown[test], weights[features[test]].sum(axis=2), -np.inf)
    return logits


def _best(logits: np.ndarray) -> np.ndarray:
    """Which options score highest, ties among them."""
    return logits >= logits.max(axis=1, keepdims=True) - 1e-9


def _group(question: Question) -> str:
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
    return [1 + zlib.crc32(name.encode()) % (_SLOTS - 1) for name in names]


def _fit(features: np.ndarray, shown: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """Weights of the slots by AdaGrad on the mean negative log-likelihood; slot 0, the padding, stays 0."""
    weights, squares = np.zeros(_SLOTS), np.full(_SLOTS, 1e-8)
    target = np.eye(features.shape[1])[answers]
    flat = features.ravel()
    for _ in range(_STEPS):
        logits = np.where(shown, weights[features].sum(axis=2), -np.inf)
        chances = np.exp(logits - logits.max(axis=1, keepdims=True))
        chances /= chances.sum(axis=1, keepdims=True)
        error = np.repeat((chances - target).ravel() / len(answers), features.shape[2])
        gradient = np.bincount(flat, error, _SLOTS) + _PENALTY * weights
        gradient[0] = 0
        squares += gradient**2
        weights -= _RATE * gradient / np.sqrt(squares)
    return weights
