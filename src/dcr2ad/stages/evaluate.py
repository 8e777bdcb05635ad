"""Questions in, predictions and an `EvalReport` out (Section 4.2).

Reads questions, a model and a knowledge base; writes ``predictions.jsonl`` and ``report.json``. All questions about an image
are asked together; predictions are appended image by image, so a killed run continues. A failing image is a recorded status.
Knows nothing about the wording of prompts or about drawing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from dcr2ad import metrics
from dcr2ad.artifacts import (
    RecordWriter,
    StageFolder,
    digest_json,
    drop_torn_line,
    read_records,
    versions,
    write_records,
    write_text,
)
from dcr2ad.errors import InputError
from dcr2ad.knowledge.base import KnowledgeBase
from dcr2ad.models.base import ChatModel, letter_probabilities
from dcr2ad.parsing import parse_response, read_answer_official
from dcr2ad.prompts import answer_prompt, build_prompt
from dcr2ad.reasoning import write_responses
from dcr2ad.routing import route_sample
from dcr2ad.types import (
    EvalProtocol,
    EvalReport,
    KnowledgeEntry,
    Prediction,
    Prompt,
    Question,
    RankedEntry,
    Unparsed,
)

ROUTED_KEPT = 5
"""Entries of a ranking kept in a prediction; a right key further down counts as not found."""


def evaluate(
    model: ChatModel,
    questions: Sequence[Question],
    knowledge_base: KnowledgeBase,
    protocol: EvalProtocol,
    out: Path,
    *,
    fresh: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> EvalReport:
    """Ask every question under one protocol.

    Args:
        model: the model.
        questions: the benchmark; findings of the visual expert, where computed, are in the samples.
        knowledge_base: K.
        protocol: what is measured.
        out: the folder of this evaluation.
        fresh: throw earlier predictions in `out` away.
        progress: called with images done and images in all.

    Raises:
        InputError: no question, or two with one id.
        RunError: `out` holds predictions of another protocol, model, benchmark or knowledge.
        CannotScoreError: the protocol scores and the model gives no probabilities.
    """
    _check(questions)
    config = {"protocol": protocol.model_dump(), "model": model.info.digest, "knowledge": knowledge_base.digest}
    inputs = {"questions": digest_json([q.model_dump(mode="json") for q in questions])}
    with StageFolder(out, stage="evaluate", config=config, inputs=inputs, fresh=fresh) as folder:
        file = out / "predictions.jsonl"
        if not folder.done:
            groups = _by_image(questions)
            finished = _keep_whole_images(file, groups)
            with RecordWriter(file) as writer:
                for number, group in enumerate(groups, 1):
                    if group[0].sample.image not in finished:
                        writer.write(*_answer(model, group, knowledge_base, protocol))
                    if progress:
                        progress(number, len(groups))
        predictions = list(read_records(file, Prediction))
        report = summarise(predictions, protocol, model, knowledge_base)
        write_text(out / "report.json", report.model_dump_json(indent=2) + "\n")
        folder.finish({"questions": report.questions, "answered": report.answered, **report.status_counts})
    return report


def summarise(
    predictions: Sequence[Prediction], protocol: EvalProtocol, model: ChatModel, knowledge_base: KnowledgeBase
) -> EvalReport:
    """The numbers of a set of predictions."""
    counts = Counter(prediction.status for prediction in predictions)
    found = metrics.intervals(predictions)
    info = model.info
    return EvalReport(
        protocol=protocol,
        model={"name": info.name, "digest": info.digest, "backend": info.backend, **versions()},
        knowledge_digest=knowledge_base.digest,
        questions=len(predictions),
        answered=counts["answered"],
        status_counts=dict(counts),
        subtasks={subtask.value: value for subtask, value in found.items() if subtask is not None},
        average=found.get(None),
        detection=metrics.detection_rates(predictions),
        objects=metrics.object_table(predictions),
        routing=metrics.routing_accuracy(predictions),
        calibration_error=metrics.calibration_error(predictions),
    )


def _check(questions: Sequence[Question]) -> None:
    if not questions:
        raise InputError("there is no question to ask", "Build a benchmark from a folder with images, or check the split")
    twice = [name for name, count in Counter(q.id for q in questions).items() if count > 1]
    if twice:
        raise InputError(f"{len(twice)} question ids occur twice, the first is {twice[0]!r}", "Give every question its own id")


def _keep_whole_images(file: Path, groups: Sequence[list[Question]]) -> set[str]:
    """Images whose questions are all answered; answers of half-done ones are thrown away and asked again, all together."""
    if not file.exists():
        return set()
    drop_torn_line(file)
    found = list(read_records(file, Prediction))
    answered = {prediction.question_id for prediction in found}
    whole = {group[0].sample.image for group in groups if all(question.id in answered for question in group)}
    kept = [prediction for prediction in found if prediction.image in whole]
    if len(kept) < len(found):
        write_records(file, kept)
    return whole


def _by_image(questions: Sequence[Question]) -> list[list[Question]]:
    """Questions by image, images of one object and reference next to each other: what neighbours share is encoded once."""
    groups: dict[str, list[Question]] = {}
    for question in sorted(questions, key=lambda q: (q.sample.dataset, q.sample.object, q.sample.references, q.sample.image)):
        groups.setdefault(question.sample.image, []).append(question)
    return list(groups.values())


def _answer(model: ChatModel, group: list[Question], knowledge_base: KnowledgeBase, protocol: EvalProtocol) -> list[Prediction]:
    """Predictions of all questions about one image."""
    try:
        entries, ranking = _context(model, group[0], knowledge_base, protocol)
        prompts = [build_prompt(q, entries=entries, expert=protocol.expert, shots=protocol.shots) for q in group]
        if protocol.answering == "score":
            return _by_score(model, group, prompts, ranking)
        return _by_reasoning(model, group, prompts, ranking, protocol)
    except InputError as error:
        return [_prediction(question, (), status="failed", error=str(error)) for question in group]


def _context(
    model: ChatModel, question: Question, knowledge_base: KnowledgeBase, protocol: EvalProtocol
) -> tuple[tuple[KnowledgeEntry, ...], tuple[RankedEntry, ...]]:
    sample = question.sample
    if protocol.context == "category":
        return knowledge_base.category(sample.object, sample.dataset), ()
    if protocol.context == "oracle":
        known = sample.right_key is not None and sample.right_key in knowledge_base
        return ((knowledge_base.get(sample.right_key),) if known and sample.right_key else ()), ()
    if protocol.context == "routed":
        routing = route_sample(
            model,
            sample,
            knowledge_base,
            mode=protocol.routing,
            expert=protocol.expert,
            shots=protocol.shots,
            orders=protocol.orders,
        )
        return tuple(knowledge_base.get(key) for key in routing.listed), routing.ranking
    return (), ()


def _by_score(
    model: ChatModel, group: list[Question], prompts: list[Prompt], ranking: tuple[RankedEntry, ...]
) -> list[Prediction]:
    counts = [len(question.options) for question in group]
    probabilities = letter_probabilities(model, [answer_prompt(prompt) for prompt in prompts], counts)
    return [
        _prediction(q, ranking, status="answered", answer=max(range(len(p)), key=p.__getitem__), probabilities=p)
        for q, p in zip(group, probabilities, strict=True)
    ]


def _by_reasoning(
    model: ChatModel,
    group: list[Question],
    prompts: list[Prompt],
    ranking: tuple[RankedEntry, ...],
    protocol: EvalProtocol,
) -> list[Prediction]:
    opening = f"<knowledge>{ranking[0].title}:" if ranking else ""
    opened = [prompt.model_copy(update={"opening": opening}) for prompt in prompts]
    found = []
    for question, written in zip(group, write_responses(model, opened, [q.options for q in group]), strict=True):
        raw, completion = written.text, written.completion
        if completion.status in {"failed", "refused"}:
            found.append(_prediction(question, ranking, status=completion.status, error=completion.error, raw=raw))
            continue
        if protocol.scoring == "mmad-official":
            answer = read_answer_official(raw, question.options)
        else:
            read = parse_response(raw, question.options)
            answer = read if isinstance(read, Unparsed) else read.answer
        if isinstance(answer, Unparsed):
            found.append(_prediction(question, ranking, status="unparsed", error=answer.reason, raw=raw))
            continue
        found.append(
            _prediction(question, ranking, status="answered", answer=answer, probabilities=written.probabilities, raw=raw)
        )
    return found


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
    sample = question.sample
    return Prediction(
        question_id=question.id,
        image=sample.image,
        dataset=sample.dataset,
        object=sample.object,
        defect=sample.defect,
        is_anomalous=sample.is_anomalous,
        subtask=question.subtask,
        n_options=len(question.options),
        gold=question.answer,
        status=status,
        answer=answer,
        probabilities=None if probabilities is None else tuple(round(p, 6) for p in probabilities),
        raw=raw,
        error=error,
        right_key=sample.right_key,
        routed=ranking[:ROUTED_KEPT],
    )
