"""Balance over a data set: no letter, text or side is right more often than it should be by chance.

Reads `Question`s made and `Sample`s to come; returns places, orders and what to leave out. Knows nothing about wording,
masks or knowledge. Not in the paper; `dcr2ad.blind` measures whether it holds.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from itertools import combinations

from dcr2ad.places import PLACES, neighbours
from dcr2ad.types import Question, Sample, Subtask

LOOK_END = " mark "
"""Ends the look in a description of look and place."""


_STRICTNESS = 12
"""How strongly lacking texts are preferred as wrong options: with 3, frequent kinds were right in 38 of 100 offers of four."""
_SLACK, _GRANTED, _GRANTED_STRICTLY = 1.1, 12, 5
"""Factor and numbers of offers by which a text may be right more often than its share."""


Kind = tuple[Subtask, str]
"""A sub-task, and for places the object: what texts are balanced within."""


class OptionBalance:
    """Keeps letters and option texts from telling which option is right, over a whole data set.

    Right options are put where they have been least often, apart for each sub-task, number of options and side (defective or
    good), so that "Yes" is A as often as B; and a text is offered as a wrong option about as often, for each time it is right,
    as any other. The state follows from the questions made: a resumed run feeds those to `count`.
    """

    def __init__(self) -> None:
        self._placed: Counter[tuple[Subtask, int, bool, int]] = Counter()
        self._right: Counter[tuple[Kind, str]] = Counter()
        self._wrong: Counter[tuple[Kind, str]] = Counter()
        self._beside: Counter[tuple[str, str]] = Counter()

    def count(self, question: Question, times: int = 1) -> None:
        """Take note of a question made; -1 takes back one that was dropped after all."""
        subtask, options = question.subtask, question.options
        self._placed[subtask, len(options), question.sample.is_anomalous, question.answer] += times
        # The question of a place names the object, and of each object other places are usual.
        kind = (subtask, question.sample.object if subtask is Subtask.LOCALIZATION else "")
        self._right[kind, options[question.answer]] += times
        for index, text in enumerate(options):
            self._wrong[kind, text] += times * (index != question.answer)
        if question.provenance.get("verified") == "mask" and subtask is Subtask.DESCRIPTION:
            looks = [text.partition(LOOK_END)[0] for text in options]
            for other in {*looks} - {looks[question.answer]}:
                self._beside[looks[question.answer], other] += times

    def fair_looks(self, right: str, others: Iterable[str]) -> list[str]:
        """Looks that may stand as the wrong one beside `right`: each has been right beside it at least as often as wrong.

        Most defects are small and compact; a reader who knows that must gain nothing.
        """
        return [other for other in others if self._beside[right, other] <= self._beside[other, right]]

    def place(self, subtask: Subtask, n_options: int, is_anomalous: bool, rng: random.Random) -> int:
        """Index for the right option."""
        used = [self._placed[subtask, n_options, is_anomalous, index] for index in range(n_options)]
        return rng.choice([index for index, count in enumerate(used) if count == min(used)])

    def order(
        self,
        subtask: Subtask,
        offers: Iterable[tuple[str, str]],
        favoured: Collection[str],
        rng: random.Random,
        object_name: str = "",
    ) -> list[tuple[str, str]]:
        """Candidates for wrong options, ``(text, key)``, in an order drawn by lot: those most lacking so far come first.

        `favoured` are texts that make the question hard, whose chance is raised; `object_name` is given for places.
        """

        def lot(text: str) -> float:
            kind = (subtask, object_name)
            lacking = (self._right[kind, text] + 0.3) / (self._wrong[kind, text] + 1)
            weight = (3 * lacking) ** _STRICTNESS * (2 if text in favoured else 1)
            return float(rng.random() ** (1 / max(weight, 1e-9)))

        return sorted(offers, key=lambda offer: -lot(offer[0]))

    def is_surplus(self, subtask: Subtask, text: str, options: int, object_name: str = "", *, strict: bool = False) -> bool:
        """Whether `text` was right so often, beside how often it was wrong, that it should not be asked for once more.

        Where kinds exclude each other (a crack is no wrong option beside another crack), a frequent one cannot be wrong often
        enough. The first few are granted, fewer when `strict`: with so few questions nobody learns.
        """
        kind = (subtask, object_name)
        granted = (_GRANTED_STRICTLY if strict else _GRANTED) / (2 if object_name else 1)
        return self._right[kind, text] + 1 > _SLACK * (self._wrong[kind, text] + granted) / (options - 1)


def even_cap(counts: Iterable[int], options: int) -> int:
    """Most questions an answer may have so that it is right in at most one of `options` questions.

    With more it cannot be wrong often enough: a question offers an answer once.

    >>> even_cap([75, 48, 32, 25, 12], 4)
    34
    """
    sizes = sorted(counts)
    return max(
        (cap for cap in range(max(sizes, default=0) + 1) if sum(min(size, cap) for size in sizes) >= options * cap), default=0
    )


def best_options(answers: Iterable[Hashable], wanted: int = 4) -> int:
    """Options to give a question, `wanted` at most, so that `even_cap` leaves out few: a third of the questions, if it can be.

    1 where there is but one answer.
    """
    sizes = list(Counter(answers).values())
    kept = {n: sum(min(size, even_cap(sizes, n)) for size in sizes) for n in range(2, min(wanted, len(sizes)) + 1)}
    enough = [n for n, questions in kept.items() if questions >= 2 / 3 * sum(sizes)]
    return max(enough) if enough else max(kept, key=lambda n: kept[n], default=1)


def surplus(samples: Sequence[Sample], answers: Mapping[str, Hashable], options: int, seed: str) -> set[str]:
    """Ids of the samples to leave out so that every answer stays within `even_cap`; which of an answer's is drawn by lot.

    Args:
        samples: all samples the question could be asked of.
        answers: sample id -> answer; samples without one are not counted.
        options: options of the question.
        seed: seed of the lot.
    """
    having: dict[Hashable, list[str]] = defaultdict(list)
    for sample in samples:
        if sample.id in answers:
            having[answers[sample.id]].append(sample.id)
    cap = even_cap(map(len, having.values()), options)
    lots = (sorted(ids, key=lambda one: random.Random(f"{seed}/{one}").random()) for ids in having.values())
    return {one for ids in lots for one in ids[cap:]}


def uneven_sides(samples: Iterable[Sample], seed: str) -> set[str]:
    """Ids of the samples to leave out of detection so that each object is defective as often as good.

    An object with one side only stays as it is: leaving it out would leave nothing.
    """
    objects: dict[tuple[str, str], list[Sample]] = defaultdict(list)
    for sample in samples:
        objects[sample.dataset, sample.object].append(sample)
    out: set[str] = set()
    for members in objects.values():
        sides: dict[str, Hashable] = {sample.id: sample.is_anomalous for sample in members}
        if len(set(sides.values())) == 2:
            out |= surplus(members, sides, 2, seed)
    return out


def paired_places(right: str, wrong: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Three wrong places, the first in order with which each of the four has a neighbour: the right one is not the only one."""

    def in_pairs(chosen: Sequence[tuple[str, str]]) -> bool:
        cells = {PLACES.index(place) for place in (right, *(place for place, _ in chosen))}
        return all(cells & set(neighbours(cell)) for cell in cells)

    return next((list(three) for three in combinations(wrong, 3) if in_pairs(three)), list(wrong[:3]))
