"""One photograph in, one routed diagnosis out (Figure 2c).

Reads an image, its references, a model, a knowledge base and, where switched on, the visual expert; returns a `Diagnosis`. A
folder of images becomes a JSONL file that a stopped run continues. Knows nothing about pages or the command line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from dcr2ad.artifacts import RecordWriter, StageFolder, read_records
from dcr2ad.errors import InputError
from dcr2ad.images import content_digest
from dcr2ad.knowledge.agnostic import name_object
from dcr2ad.stages.diagnose_answers import (
    answer_own_question,
    describe,
    find_defect,
    find_place,
    kind_told,
    name_sources,
    read_verdict,
    selected_entry,
)
from dcr2ad.stages.diagnose_case import Diagnoser, check_context, check_images, check_question, make_case, make_sample
from dcr2ad.types import (
    Diagnosis,
    Record,
)

__all__ = ["Diagnoser", "FailedImage", "check_context", "check_question", "diagnose", "diagnose_folder"]

RUNNERS_UP = 4


class FailedImage(Record):
    """An image of a folder that could not be diagnosed."""

    image: str
    """Its path."""
    error: str
    """One line: what was wrong and what to do."""


def diagnose(
    diagnoser: Diagnoser,
    image: str | Path,
    references: Sequence[str | Path] = (),
    *,
    object_name: str = "part",
    question: str | None = None,
    options: Sequence[str] = (),
) -> Diagnosis:
    """Diagnose one photograph.

    Args:
        diagnoser: model, knowledge, expert and context.
        image: the photograph.
        references: photographs of good parts, best first; without any the expert has nothing to compare with and stays silent.
        object_name: what the part is called in the prompts.
        question: a question of the user's own, answered besides.
        options: its options; without any the answer is free text.

    Raises:
        ImageError: an image is missing, damaged, too small or too large.
        InputError: options without a question, or a single option.
        ModelError: the model cannot answer.
    """
    check_question(question, options)
    notes = check_images(image, references)
    sample, anomaly_map = make_sample(diagnoser, image, references, object_name, notes)
    case = make_case(diagnoser, sample)
    if case.abstained and case.routing:
        best = case.ranking[0]
        notes.append(
            f"No knowledge entry is probable enough (best {best.title}, {best.probability:.2f}, below "
            f"{case.routing.threshold:.2f}), so the model answered without knowledge."
        )
    response, trajectory, probability = read_verdict(diagnoser, case, notes)
    anomalous = probability >= 0.5
    selected = selected_entry(case, trajectory, diagnoser.knowledge_base)
    entry = diagnoser.knowledge_base.get(selected.key) if selected else None
    defect = find_defect(case, entry, diagnoser.knowledge_base, notes) if anomalous else None
    told = kind_told(sample, diagnoser.knowledge_base) if anomalous and case.abstained else None
    defect = defect or told
    answer, probabilities = answer_own_question(diagnoser, case, question, options)
    shown = defect or entry
    return Diagnosis(
        image=str(image),
        references=tuple(str(path) for path in references),
        object=object_name,
        verdict="anomalous" if anomalous else "normal",
        probability=probability,
        knowledge=selected,
        runners_up=tuple(r for r in case.ranking if selected is None or r.key != selected.key)[:RUNNERS_UP],
        routing=case.routing,
        reasoning=trajectory.reasoning if trajectory else response,
        location=find_place(diagnoser, case, trajectory) if anomalous else None,
        defect_type=defect.title if defect else None,
        description=describe(sample, shown, anomalous),
        effect=name_object(shown.effect, object_name) if shown and anomalous else "",
        expert=sample.expert,
        expert_map=anomaly_map,
        question=question,
        options=tuple(options),
        answer=answer,
        answer_probabilities=probabilities,
        context=diagnoser.context,
        model=f"{diagnoser.model.info.name} {diagnoser.model.info.digest[:12]}",
        response=response,
        sources=name_sources(sample, shown, anomalous, told=told is not None, routed=bool(case.ranking)),
        notes=tuple(notes),
    )


def diagnose_folder(
    diagnoser: Diagnoser,
    images: Iterable[Path],
    references: Sequence[str | Path],
    out: Path,
    *,
    object_name: str = "part",
    question: str | None = None,
    options: Sequence[str] = (),
    fresh: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[Diagnosis], list[FailedImage]]:
    """Diagnose many photographs into ``out/diagnoses.jsonl``; a stopped run continues where it stopped.

    An image that cannot be used goes to ``out/failed.jsonl`` and the rest go on.

    Returns:
        all diagnoses of the folder in the order of `images`, and the failures.

    Raises:
        RunError: `out` holds diagnoses made with another model, context, reference, object or question.
    """
    listed = list(images)
    config = {
        "model": diagnoser.model.info.digest,
        "knowledge": diagnoser.knowledge_base.digest,
        "context": diagnoser.context,
        "routing": f"{diagnoser.routing} {diagnoser.orders}",
        "expert": diagnoser.expert is not None,
        "shots": diagnoser.shots,
        "alarms": round(diagnoser.alarms, 6),
        "object": object_name,
        "question": question,
        "options": list(options),
    }
    inputs = {f"reference {i}": content_digest(path) for i, path in enumerate(references)}
    with StageFolder(out, stage="diagnose", config=config, inputs=inputs, fresh=fresh) as folder:
        done_file, failed_file = out / "diagnoses.jsonl", out / "failed.jsonl"
        with RecordWriter(done_file) as writer, RecordWriter(failed_file) as failures:
            seen = {d.image for d in read_records(done_file, Diagnosis)} | {
                f.image for f in read_records(failed_file, FailedImage)
            }
            for number, path in enumerate(listed, 1):
                if str(path) not in seen:
                    try:
                        writer.write(
                            diagnose(diagnoser, path, references, object_name=object_name, question=question, options=options)
                        )
                    except InputError as error:
                        failures.write(FailedImage(image=str(path), error=str(error)))
                if progress:
                    progress(number, len(listed))
        order = {str(path): i for i, path in enumerate(listed)}
        made = sorted((d for d in read_records(done_file, Diagnosis) if d.image in order), key=lambda d: order[d.image])
        failed = [f for f in read_records(failed_file, FailedImage) if f.image in order]
        folder.finish({"images": len(listed), "diagnosed": len(made), "failed": len(failed)})
    return made, failed
