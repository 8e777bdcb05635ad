"""Asking: the questions about some images under one protocol, in as few forwards as they take.

Reads questions, a model and a knowledge base; returns predictions. Letters of all questions about some images are scored in one
row, each image encoded once; written responses are decoded together. What is kept of an image goes once all about it is asked:
memory does not grow with the number of questions. An image that cannot be used, or a request that a server refuses, is a
recorded status. Knows nothing about files, numbers or the wording of prompts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, pairwise
from typing import NamedTuple

from dcr2ad.errors import InputError, RequestError
from dcr2ad.images import forget_images
from dcr2ad.knowledge.base import KnowledgeBase
from dcr2ad.models.base import ChatModel, Forgets, letter_probabilities
from dcr2ad.parsing import parse_response, read_answer_official
from dcr2ad.prompts import DEFAULT_WORDING, Wording, answer_prompt, build_prompt, knowledge_prompt
from dcr2ad.reasoning import Written, mean_probabilities, sample_responses, write_responses
from dcr2ad.routing import best_defect, route_sample
from dcr2ad.stages.findings import Inspects, inspect_sample
from dcr2ad.types import (
    EvalProtocol,
    KnowledgeEntry,
    Prediction,
    Prompt,
    Question,
    RankedEntry,
    Subtask,
    Unparsed,
)

ROUTED_KEPT = 5
"""Entries of a ranking kept in a prediction; a right key further down counts as not found."""
SAYS_DEFECT = {Subtask.CLASSIFICATION, Subtask.LOCALIZATION, Subtask.DESCRIPTION, Subtask.ANALYSIS}
"""Sub-tasks whose questions are asked of defective parts alone, and say so."""
ASKED_TOGETHER = 32
"""Answers asked for in one call at most; those of one image are never taken apart."""


class ImageQuestions(NamedTuple):
    """The questions about one image."""

    image: str
    """Its path."""
    places: tuple[int, ...]
    """Where its questions stand in the benchmark."""


def by_image(questions: Iterable[Question]) -> list[ImageQuestions]:
    """Questions by image, images of one object and reference next to each other: what neighbours share is encoded once."""
    distinct: dict[tuple[str, str, tuple[str, ...], str], int] = {}
    asked: list[list[int]] = []
    for place, question in enumerate(questions):
        sample = question.sample
        key = (sample.dataset, sample.object, sample.references, sample.image)
        number = distinct.setdefault(key, len(asked))
        if number == len(asked):
            asked.append([])
        asked[number].append(place)
    groups: dict[str, list[int]] = {}
    for key in sorted(distinct):
        groups.setdefault(key[3], []).extend(asked[distinct[key]])
    return [ImageQuestions(image, tuple(places)) for image, places in groups.items()]


def ask_together(groups: Iterable[list[Question]], protocol: EvalProtocol) -> Iterator[list[list[Question]]]:
    """Images asked about in one call."""
    room = ASKED_TOGETHER // max(1, protocol.trajectories)
    together: list[list[Question]] = []
    for group in groups:
        count = sum(map(len, together))
        # Scored questions end where the reference changes, so that no reference is read twice.
        enough = protocol.answering == "score" and 2 * count >= room
        ended = bool(together) and together[-1][0].sample.references != group[0].sample.references
        if together and (count + len(group) > room or (enough and ended)):
            yield together
            together = []
        together.append(group)
    if together:
        yield together


class Asker:
    """Asks the questions of one evaluation."""

    def __init__(
        self,
        model: ChatModel,
        knowledge_base: KnowledgeBase,
        protocol: EvalProtocol,
        wording: Wording = DEFAULT_WORDING,
        expert: Inspects | None = None,
    ) -> None:
        self._model = model
        self._base = knowledge_base
        self._protocol = protocol
        self._wording = wording
        self._expert = expert if protocol.expert else None
        self._refused: RequestError | None = None
        self._served = False

    def answer_all(self, groups: Iterable[list[Question]]) -> Iterator[tuple[int, list[Prediction]]]:
        """Ask about images as they come, and forget those that what follows does not show.

        Args:
            groups: the questions of one image each, none of which comes twice.

        Yields:
            how many images were asked about together, and the predictions.

        Raises:
            RequestError: a server has refused every request so far: what is wrong concerns all of them.
        """
        for together, following in pairwise(chain(ask_together(groups, self._protocol), [[]])):
            made = self.answer(together)
            self._served = self._served or any(prediction.status != "failed" for prediction in made)
            if self._refused is not None and not self._served:
                raise self._refused
            yield len(together), made
            done = _shown(together) - _shown(following)
            forget_images(done)
            if isinstance(self._model, Forgets):
                self._model.forget(done)

    def answer(self, groups: Sequence[list[Question]]) -> list[Prediction]:
        """Predictions of all questions about some images; an image that cannot be used, or a refused request, fails alone."""
        try:
            asked = [one for group in groups for one in self._ask(group)]
            questions, prompts, rankings = (list(column) for column in zip(*asked, strict=True))
            if self._protocol.answering == "score":
                return self._by_score(questions, prompts, rankings)
            return self._by_reasoning(questions, prompts, rankings)
        except (InputError, RequestError) as error:
            if len(groups) > 1:
                return [prediction for group in groups for prediction in self.answer([group])]
            if isinstance(error, RequestError):
                if len(groups[0]) > 1:
                    return self.answer([[question] for question in groups[0]])
                self._refused = error
            return [_prediction(question, (), status="failed", error=str(error)) for question in groups[0]]

    def _ask(self, group: list[Question]) -> list[tuple[Question, Prompt, tuple[RankedEntry, ...]]]:
        """Questions of one image with their prompts and the image's ranking of knowledge.

        A response to a question that says that there is a defect reasons under the router's best defect, which is listed in
        place of the last entry where it would not be; which of the listed entries another one reasons under the model says
        itself, question by question: the router has seen the yes/no question alone.
        """
        sample = group[0].sample
        if self._expert is not None and sample.expert is None and sample.references:
            # It compares with what the protocol shows, and with one where it shows none: a comparison needs one.
            beside = sample.model_copy(update={"references": sample.references[: max(1, self._protocol.shots)]})
            told = inspect_sample(beside, self._expert, self._base)[0].expert
            sample = sample.model_copy(update={"expert": told})
            group = [question.model_copy(update={"sample": sample}) for question in group]
        entries, ranking = self._context(group[0])
        expert, shots, wording = self._protocol.expert, self._protocol.shots, self._wording
        defect = best_defect(ranking, self._base) if self._protocol.answering != "score" else None
        with_defect = entries if defect is None or defect in entries else _with(defect, entries, ranking)
        asked = []
        for question in group:
            said = defect if question.subtask in SAYS_DEFECT else None
            listed = with_defect if said else entries
            prompt = build_prompt(question, entries=listed, expert=expert, shots=shots, wording=wording)
            asked.append((question, knowledge_prompt(prompt, said.title) if said else prompt, ranking))
        return asked

    def _context(self, question: Question) -> tuple[tuple[KnowledgeEntry, ...], tuple[RankedEntry, ...]]:
        sample, base, protocol = question.sample, self._base, self._protocol
        if protocol.context == "category":
            return base.category(sample.object, sample.dataset), ()
        if protocol.context == "oracle":
            known = sample.right_key is not None and sample.right_key in base
            return ((base.get(sample.right_key),) if known and sample.right_key else ()), ()
        if protocol.context == "routed":
            routing = route_sample(
                self._model,
                sample,
                base,
                mode=protocol.routing,
                expert=protocol.expert,
                shots=protocol.shots,
                orders=protocol.orders,
                wording=self._wording,
            )
            return tuple(base.get(key) for key in routing.listed), routing.ranking
        return (), ()

    def _by_score(
        self, questions: list[Question], prompts: list[Prompt], rankings: list[tuple[RankedEntry, ...]]
    ) -> list[Prediction]:
        counts = [len(question.options) for question in questions]
        probabilities = letter_probabilities(self._model, [answer_prompt(prompt) for prompt in prompts], counts)
        return [
            _prediction(q, ranking, status="answered", answer=_best(p), probabilities=p)
            for q, p, ranking in zip(questions, probabilities, rankings, strict=True)
        ]

    def _by_reasoning(
        self, questions: list[Question], prompts: list[Prompt], rankings: list[tuple[RankedEntry, ...]]
    ) -> list[Prediction]:
        options = [question.options for question in questions]
        k = self._protocol.trajectories
        if k:
            sampled = sample_responses(self._model, prompts, options, k)
        else:
            sampled = [[written] for written in write_responses(self._model, prompts, options)]
        return [self._read(*row) for row in zip(questions, rankings, sampled, strict=True)]

    def _read(self, question: Question, ranking: tuple[RankedEntry, ...], responses: list[Written]) -> Prediction:
        """One prediction of one or several responses: the mean of their probabilities, else the majority of their answers."""
        raw = "\n".join(written.text for written in responses)
        usable = [written for written in responses if written.completion.answered]
        if not usable:
            ended = responses[0].completion
            return _prediction(question, ranking, status=ended.status, error=ended.error, raw=raw)
        read = [self._letter(written.text, question.options) for written in usable]
        answers = [answer for answer in read if not isinstance(answer, Unparsed)]
        if not answers:
            reason = next(answer.reason for answer in read if isinstance(answer, Unparsed))
            return _prediction(question, ranking, status="unparsed", error=reason, raw=raw)
        known = [written.probabilities for written in usable if written.probabilities is not None]
        mean = mean_probabilities(known) if known else None
        answer = _best(mean) if mean and len(responses) > 1 else Counter(answers).most_common(1)[0][0]
        return _prediction(question, ranking, status="answered", answer=answer, probabilities=mean, raw=raw)

    def _letter(self, text: str, options: Sequence[str]) -> int | Unparsed:
        if self._protocol.scoring == "mmad-official":
            return read_answer_official(text, options)
        read = parse_response(text, options)
        return read if isinstance(read, Unparsed) else read.answer


def _with(entry: KnowledgeEntry, listed: Sequence[KnowledgeEntry], ranking: Sequence[RankedEntry]) -> list[KnowledgeEntry]:
    """The list with an entry in place of that which ranks last, ordered by key: no rank shows in it."""
    place = {ranked.key: number for number, ranked in enumerate(ranking)}
    kept = sorted(listed, key=lambda one: place[one.key])[:-1] if len(listed) > 1 else []
    return sorted([entry, *kept], key=lambda one: one.key)


def _shown(groups: Iterable[list[Question]]) -> set[str]:
    """Paths of all images that questions show."""
    return {path for group in groups for q in group for path in (q.sample.image, *q.sample.references)}


def _best(probabilities: Sequence[float]) -> int:
    return max(range(len(probabilities)), key=probabilities.__getitem__)


def _prediction(
    question: Question,
    ranking: tuple[RankedEntry, ...],
    *,
    status: str,
    answer: int | None = None,
    probabilities: tuple[float, ...] | None = None,
    raw: str = "",
    error: str = "",
) -> Prediction:
    return Prediction.of(
        question,
        status=status,
        answer=answer,
        probabilities=None if probabilities is None else tuple(round(p, 6) for p in probabilities),
        raw=raw,
        error=error,
        routed=ranking[:ROUTED_KEPT],
    )
