"""Questions in, predictions and an `EvalReport` out (Section 4.2).

Reads questions, a model and a knowledge base; writes ``predictions.jsonl`` and ``report.json``. All questions about an image
are asked together; predictions are appended image by image, so a killed run continues. A failing image is a recorded status.
Only the questions being asked and the predictions just made are in memory: what is counted is read back from the file. Knows
nothing about the wording of prompts or about drawing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dcr2ad import metrics
from dcr2ad.artifacts import (
    RecordWriter,
    StageFolder,
    digest_records,
    drop_torn_line,
    read_manifest,
    read_records,
    versions,
    write_records,
    write_text,
)
from dcr2ad.errors import InputError, RecordError
from dcr2ad.knowledge.base import KnowledgeBase
from dcr2ad.models.base import ChatModel
from dcr2ad.prompts import DEFAULT_WORDING, Wording
from dcr2ad.record_file import RecordFile
from dcr2ad.stages.asking import Asker, ImageQuestions, by_image
from dcr2ad.stages.findings import Inspects
from dcr2ad.types import EvalProtocol, EvalReport, Prediction, Question

REPORT = "report.json"
"""File of the report in an evaluation's folder."""


def evaluate(
    model: ChatModel,
    questions: Sequence[Question],
    knowledge_base: KnowledgeBase,
    protocol: EvalProtocol,
    out: Path,
    *,
    wording: Wording = DEFAULT_WORDING,
    expert: Inspects | None = None,
    shard: tuple[int, int] = (1, 1),
    leaks: dict[str, Any] | None = None,
    variant: str = "",
    seed: int | None = None,
    notes: Sequence[str] = (),
    fresh: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> EvalReport:
    """Ask every question under one protocol.

    Args:
        model: the model.
        questions: the benchmark; findings of the visual expert, where computed, are in the samples. Of a
            `dcr2ad.record_file.RecordFile` only the questions being asked are in memory.
        knowledge_base: K.
        protocol: what is measured.
        out: the folder of this evaluation.
        wording: the fixed texts of the prompts; name them in `protocol.prompts`.
        expert: makes the findings of samples that carry none, where the protocol tells them.
        shard: which part of the images to ask about, (i, n) for the i-th of n; `merge` joins the parts.
        leaks: what the model's training shares with the benchmark (`dcr2ad.stages.overlap`), for the report.
        variant: row of a run's ablation that the model is, for the report.
        seed: seed the variant was trained with, for the report.
        notes: what a reader of the report must know.
        fresh: throw earlier predictions in `out` away.
        progress: called with images done and images in all.

    Raises:
        InputError: no question, or two with one id.
        RunError: `out` holds predictions of another protocol, model, benchmark or knowledge.
        CannotScoreError: the protocol scores and the model gives no probabilities.
    """
    _check(questions)
    # An evaluation in float32 is named as versions without `precision` named it, and continues what they began.
    config = {
        "protocol": protocol.model_dump(exclude={"precision"} if protocol.precision == "fp32" else None),
        "model": model.info.digest,
        "backend": model.info.backend,
        "knowledge": knowledge_base.digest,
    }
    inputs = {"questions": digest_records(questions)}
    if shard[1] > 1:
        config["shard"] = "{}/{}".format(*shard)
    with StageFolder(out, stage="evaluate", config=config, inputs=inputs, fresh=fresh) as folder:
        file = out / "predictions.jsonl"
        if not folder.done:
            groups = _part(by_image(questions), *shard)
            finished = _keep_whole_images(file, questions, groups)
            asker = Asker(model, knowledge_base, protocol, wording, expert)
            waiting = [group for group in groups if group.image not in finished]
            done = len(groups) - len(waiting)
            with RecordWriter(file) as writer:
                for images, made in asker.answer_all([questions[place] for place in group.places] for group in waiting):
                    writer.write(*made)
                    done += images
                    if progress:
                        progress(done, len(groups))
        predictions = RecordFile(file, Prediction)
        about = {"name": model.info.name, "digest": model.info.digest, "backend": model.info.backend}
        report = summarise(
            predictions,
            protocol,
            {**about, "pixels": model.info.pixels, **versions()},
            knowledge_base.digest,
            benchmark=inputs["questions"],
        ).model_copy(
            update={
                "leaks": leaks or {},
                "variant": variant,
                "seed": seed,
                "notes": tuple(notes),
                "trained_on": model.info.trained_on,
            }
        )
        write_report(out, report)
        folder.finish({"questions": report.questions, "answered": report.answered, **report.status_counts})
    return report


def merge(folders: Sequence[Path], out: Path, *, fresh: bool = False) -> EvalReport:
    """Join the shards of one evaluation; the result is that of one process.

    Args:
        folders: finished folders of all shards, in any order.
        out: the folder of the whole.
        fresh: throw away what `out` holds.

    Raises:
        InputError: a shard is missing, unfinished, there twice, or of another evaluation.
    """
    parts: dict[int, tuple[Path, int, dict[str, Any], dict[str, str]]] = {}
    for folder in folders:
        manifest = read_manifest(folder)
        config = dict(manifest.config)
        number, _, count = str(config.pop("shard", "1/1")).partition("/")
        if not manifest.done:
            raise InputError(f"{folder} is not finished", "Run its command again; it continues")
        if int(number) in parts:
            raise InputError(f"{folder} is shard {number}, as {parts[int(number)][0]} is", "Name each shard once")
        parts[int(number)] = (folder, int(count), config, manifest.inputs)
    first = next(iter(parts.values()))
    for folder, *rest in parts.values():
        if tuple(rest) != first[1:]:
            raise InputError(f"{folder} belongs to another evaluation than {first[0]}", "Name shards of one evaluation")
    missing = [str(i) for i in range(1, first[1] + 1) if i not in parts]
    if missing:
        raise InputError(f"of {first[1]} shards these are missing: {', '.join(missing)}", "Name all of them")
    old = read_report(first[0])
    with StageFolder(out, stage="evaluate", config=first[2], inputs=first[3], fresh=fresh) as stage:
        file = out / "predictions.jsonl"
        write_records(file, (p for i in sorted(parts) for p in read_records(parts[i][0] / file.name, Prediction)))
        predictions = RecordFile(file, Prediction)
        report = summarise(predictions, old.protocol, old.model, old.knowledge_digest, benchmark=old.benchmark)
        report = report.model_copy(update={"leaks": old.leaks, "notes": old.notes, "trained_on": old.trained_on})
        write_report(out, report)
        stage.finish({"questions": report.questions, "answered": report.answered, **report.status_counts})
    return report


def write_report(folder: Path, report: EvalReport) -> None:
    """Write an evaluation's report where `read_report` finds it."""
    write_text(folder / REPORT, report.model_dump_json(indent=2) + "\n")


def read_report(folder: Path) -> EvalReport:
    """The report of an evaluation's folder.

    Raises:
        RecordError: the folder holds no finished evaluation, or its report cannot be read.
    """
    file = folder / REPORT
    try:
        return EvalReport.model_validate_json(file.read_text(encoding="utf-8"))
    except OSError:
        raise RecordError(f"{folder} holds no finished evaluation", "Name a folder that dcr2ad evaluate wrote") from None
    except ValidationError as error:
        raise RecordError(f"{file} is no report ({error.errors()[0]['msg']})", "Evaluate again") from None


def summarise(
    predictions: Sequence[Prediction],
    protocol: EvalProtocol,
    model: dict[str, str],
    knowledge_digest: str,
    *,
    benchmark: str = "",
) -> EvalReport:
    """The numbers of a set of predictions, which are gone through several times."""
    counts = Counter(prediction.status for prediction in predictions)
    found = metrics.intervals(predictions)
    return EvalReport(
        protocol=protocol,
        model=model,
        knowledge_digest=knowledge_digest,
        benchmark=benchmark,
        questions=len(predictions),
        answered=counts["answered"],
        status_counts=dict(counts),
        subtasks={subtask.value: value for subtask, value in found.items() if subtask is not None},
        average=found.get(None),
        detection=metrics.detection_rates(predictions),
        objects=metrics.object_table(predictions),
        datasets=metrics.group_table(predictions, lambda p: p.dataset),
        defects=metrics.group_table(predictions, lambda p: f"{p.dataset}/{p.object}/{p.defect or 'good'}"),
        not_answered={p.question_id: f"{p.status}: {p.error}" for p in predictions if p.status != "answered"},
        routing=metrics.routing_accuracy(predictions),
        calibration_error=metrics.calibration_error(predictions),
    )


def _part(groups: list[ImageQuestions], number: int, count: int) -> list[ImageQuestions]:
    """The number-th of `count` runs of neighbouring images: what neighbours share is still encoded once."""
    if not 1 <= number <= count:
        raise InputError(f"there is no shard {number}/{count}", "Name 1/N to N/N")
    return groups[len(groups) * (number - 1) // count : len(groups) * number // count]


def _check(questions: Sequence[Question]) -> None:
    if not questions:
        raise InputError("there is no question to ask", "Build a benchmark from a folder with images, or check the split")
    twice = [name for name, count in Counter(q.id for q in questions).items() if count > 1]
    if twice:
        raise InputError(f"{len(twice)} question ids occur twice, the first is {twice[0]!r}", "Give every question its own id")


def _keep_whole_images(file: Path, questions: Sequence[Question], groups: Sequence[ImageQuestions]) -> set[str]:
    """Images whose questions are all answered; answers of half-done ones are thrown away and asked again, all together."""
    if not file.exists():
        return set()
    drop_torn_line(file)
    answered = {prediction.question_id for prediction in read_records(file, Prediction)}
    begun = {question.sample.image for question in questions if question.id not in answered}
    whole = {group.image for group in groups} - begun
    if any(prediction.image not in whole for prediction in read_records(file, Prediction)):
        write_records(file, (prediction for prediction in read_records(file, Prediction) if prediction.image in whole))
    return whole
