"""One photograph in, one routed diagnosis out (Figure 2c).

Reads an image, its references, a model, a knowledge base and, where switched on, the visual expert; returns a `Diagnosis`. A
folder of images becomes a JSONL file that a stopped run continues. Knows nothing about pages or the command line.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dcr2ad.artifacts import RecordWriter, StageFolder, read_records
from dcr2ad.errors import InputError, ModelError, UnknownNameError
from dcr2ad.images import content_digest, load_image
from dcr2ad.knowledge.agnostic import name_object
from dcr2ad.knowledge.base import KnowledgeBase
from dcr2ad.models.base import ChatModel, letter_probabilities
from dcr2ad.parsing import LETTERS, parse_response
from dcr2ad.places import PLACES
from dcr2ad.prompts import (
    LOCATION_QUESTION,
    answer_prompt,
    build_prompt,
    describe_findings,
    detection_question,
    open_prompt,
    size_word,
    tone_words,
)
from dcr2ad.reasoning import write_responses
from dcr2ad.report.overlay import encode_map
from dcr2ad.routing import rank_titles, route_sample
from dcr2ad.types import (
    Completion,
    Diagnosis,
    KnowledgeEntry,
    Prompt,
    Question,
    RankedEntry,
    Record,
    RouteMode,
    RoutingNote,
    Sample,
    Sampling,
    Subtask,
    Trajectory,
    Unparsed,
)

if TYPE_CHECKING:
    from dcr2ad.expert import Expert

RUNNERS_UP = 4
CONTEXTS = "none, category, routed or oracle:KEY"


class FailedImage(Record):
    """An image of a folder that could not be diagnosed."""

    image: str
    """Its path."""
    error: str
    """One line: what was wrong and what to do."""


@dataclasses.dataclass(frozen=True)
class Diagnoser:
    """Everything a diagnosis needs but the photograph.

    Attributes:
        model: the model that answers.
        knowledge_base: K.
        expert: the visual expert, or None to switch it off.
        context: ``none``, ``category``, ``routed`` or ``oracle:KEY``.
        max_new_tokens: limit of a response.
        routing: how a routed context is ranked.
        orders: orders of a listing that the ranking is averaged over.
    """

    model: ChatModel
    knowledge_base: KnowledgeBase
    expert: Expert | None
    context: str = "routed"
    max_new_tokens: int = 160
    routing: RouteMode = "hybrid"
    orders: int = 1

    def __post_init__(self) -> None:
        check_context(self.context, self.knowledge_base)


def check_context(context: str, knowledge_base: KnowledgeBase) -> None:
    """Refuse a context that does not exist, before anything is loaded.

    Raises:
        UnknownNameError: no such context, or no entry under the key of ``oracle:KEY``.
    """
    kind, _, key = context.partition(":")
    if kind not in {"none", "category", "routed", "oracle"} or (kind == "oracle") != bool(key):
        raise UnknownNameError(f"no context {context!r}", f"Use {CONTEXTS}")
    if kind == "oracle":
        knowledge_base.get(key)


def check_question(question: str | None, options: Sequence[str]) -> None:
    """Refuse options that no question goes with.

    Raises:
        InputError: options without a question, a single option, more than there are letters, or an empty question.
    """
    if question is not None and not question.strip():
        raise InputError("the question is empty", "Give --question some words")
    if (options and question is None) or len(options) == 1:
        raise InputError("options need a question and at least two of them", "Give --question, and --option twice or more")
    if len(options) > len(LETTERS):
        raise InputError(f"{len(options)} options are more than there are letters", f"Give {len(LETTERS)} at most")


@dataclasses.dataclass(frozen=True)
class _Case:
    """One photograph under one context."""

    sample: Sample
    entries: tuple[KnowledgeEntry, ...]
    ranking: tuple[RankedEntry, ...]
    routing: RoutingNote | None = None

    @property
    def abstained(self) -> bool:
        """Whether the router found no entry probable enough to reason under."""
        return self.routing is not None and self.routing.abstained


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
    notes = _check_images(image, references)
    sample, anomaly_map = _sample(diagnoser, image, references, object_name, notes)
    case = _case(diagnoser, sample)
    if case.abstained and case.routing:
        best = case.ranking[0]
        notes.append(
            f"No knowledge entry is probable enough (best {best.title}, {best.probability:.2f}, below "
            f"{case.routing.threshold:.2f}), so the model answered without knowledge."
        )
    response, trajectory, probability = _verdict(diagnoser, case, notes)
    anomalous = probability >= 0.5
    selected = _selected(case, trajectory, diagnoser.knowledge_base)
    entry = diagnoser.knowledge_base.get(selected.key) if selected else None
    defect = _defect_entry(case, entry, diagnoser.knowledge_base, notes) if anomalous else None
    answer, probabilities = _own_question(diagnoser, case, question, options)
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
        location=_location(diagnoser, case, trajectory) if anomalous else None,
        defect_type=defect.title if defect else None,
        description=_describe(sample, shown, anomalous),
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
        sources=_sources(sample, shown, anomalous),
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


def _check_images(image: str | Path, references: Sequence[str | Path]) -> list[str]:
    size = load_image(image).size
    notes = []
    for path in references:
        other = load_image(path).size
        if other != size:
            notes.append(
                f"The reference has {other[0]}x{other[1]} pixels and the photograph {size[0]}x{size[1]}; "
                "the expert scaled the reference to fit."
            )
    return notes


def _sample(
    diagnoser: Diagnoser, image: str | Path, references: Sequence[str | Path], object_name: str, notes: list[str]
) -> tuple[Sample, str | None]:
    """The photograph as a sample (its label is unknown and never used), with the expert's findings and map."""
    findings = anomaly_map = None
    if diagnoser.expert is not None and references:
        findings, raw_map = diagnoser.expert.inspect(image, references)
        anomaly_map = encode_map(raw_map)
    elif diagnoser.expert is not None:
        notes.append("No reference was given, so the visual expert had nothing to compare with.")
    sample = Sample(
        id=Path(image).stem,
        image=str(image),
        references=tuple(str(path) for path in references),
        dataset="",
        object=object_name,
        is_anomalous=False,
        expert=findings,
    )
    return sample, anomaly_map


def _case(diagnoser: Diagnoser, sample: Sample) -> _Case:
    """Entries in the prompt, and the ranking among the candidates of the context."""
    kind, _, key = diagnoser.context.partition(":")
    knowledge_base, model = diagnoser.knowledge_base, diagnoser.model
    shots = len(sample.references)
    if kind == "none":
        return _Case(sample, (), ())
    if kind == "oracle":
        entry = knowledge_base.get(key)
        return _Case(sample, (entry,), (RankedEntry(key=entry.key, title=entry.title, probability=1.0),))
    if kind == "routed":
        routing = route_sample(model, sample, knowledge_base, mode=diagnoser.routing, shots=shots, orders=diagnoser.orders)
        return _Case(sample, tuple(knowledge_base.get(k) for k in routing.listed), routing.ranking, routing.note)
    entries = knowledge_base.category(sample.object)
    if model.info.backend == "openai":
        return _Case(sample, entries, ())
    prompt = build_prompt(detection_question(sample.id, sample), entries=entries, shots=shots)
    return _Case(sample, entries, tuple(rank_titles(model, prompt, entries)))


def _verdict(diagnoser: Diagnoser, case: _Case, notes: list[str]) -> tuple[str, Trajectory | None, float]:
    """Response to the yes/no question under the selected entry, as text and read, and p(anomalous)."""
    question = detection_question(case.sample.id, case.sample)
    prompt = build_prompt(question, entries=case.entries, shots=len(case.sample.references))
    opening = f"<knowledge>{case.ranking[0].title}:" if case.ranking and not case.abstained else ""
    written = write_responses(diagnoser.model, [prompt.model_copy(update={"opening": opening})], [question.options])[0]
    _check_written(written.completion)
    read = parse_response(written.text, question.options)
    trajectory = None
    if isinstance(read, Unparsed):
        notes.append(f"The model's response could not be read ({read.reason}); the verdict was read off its answer alone.")
    else:
        trajectory = read
    # Option 0 says that there is a defect (dcr2ad.prompts.DETECTION_OPTIONS).
    if written.probabilities is not None:
        return written.text, trajectory, written.probabilities[0]
    if diagnoser.model.info.can_score:
        return written.text, trajectory, letter_probabilities(diagnoser.model, [answer_prompt(prompt)], [2])[0][0]
    if trajectory is None:
        raise InputError("the model's response holds no answer, and it gives no probabilities", "Use another model")
    return written.text, trajectory, 1.0 if trajectory.answer == 0 else 0.0


def _check_written(completion: Completion) -> None:
    if completion.status == "failed":
        raise ModelError(completion.error.rstrip("."), "")


def _generate(diagnoser: Diagnoser, prompt: Prompt) -> Completion:
    completion = diagnoser.model.generate([prompt], Sampling(max_new_tokens=diagnoser.max_new_tokens))[0][0]
    _check_written(completion)
    return completion


def _selected(case: _Case, trajectory: Trajectory | None, knowledge_base: KnowledgeBase) -> RankedEntry | None:
    """The entry reasoned under: the head of the ranking, or what the response names where nothing was ranked."""
    if case.abstained:
        return None
    if case.ranking:
        return case.ranking[0]
    named = knowledge_base.resolve(trajectory.entry) if trajectory and trajectory.entry else None
    return RankedEntry(key=named.key, title=named.title, probability=1.0) if named else None


def _defect_entry(
    case: _Case, entry: KnowledgeEntry | None, knowledge_base: KnowledgeBase, notes: list[str]
) -> KnowledgeEntry | None:
    if entry is None or not entry.is_normal:
        return entry
    for ranked in case.ranking:
        found = knowledge_base.get(ranked.key)
        if not found.is_normal:
            notes.append(
                f"The model reasoned under the normal state ({entry.title}) and yet calls the part anomalous; "
                f"the type is the most probable defect entry."
            )
            return found
    return None


def _location(diagnoser: Diagnoser, case: _Case, trajectory: Trajectory | None) -> str | None:
    """Where the model says it is: the one place its reasoning names, else its answer to the question where."""
    stated = {place for place in PLACES if trajectory and re.search(rf"\b{place}\b", trajectory.reasoning)}
    if len(stated) == 1:
        return stated.pop()
    if not diagnoser.model.info.can_score:
        return PLACES[case.sample.expert.cell] if case.sample.expert else None
    asked = Question(
        id=case.sample.id,
        sample=case.sample,
        subtask=Subtask.LOCALIZATION,
        text=LOCATION_QUESTION.format(object=case.sample.object),
        options=PLACES,
        answer=0,
    )
    prompt = answer_prompt(build_prompt(asked, entries=case.entries, shots=len(case.sample.references)))
    probabilities = letter_probabilities(diagnoser.model, [prompt], [len(PLACES)])[0]
    return PLACES[max(range(len(PLACES)), key=probabilities.__getitem__)]


def _own_question(
    diagnoser: Diagnoser, case: _Case, text: str | None, options: Sequence[str]
) -> tuple[str | None, tuple[float, ...] | None]:
    if text is None:
        return None, None
    asked = Question(
        id=case.sample.id,
        sample=case.sample,
        subtask=Subtask.OBJECT_ANALYSIS,
        text=text,
        options=tuple(options) or ("", ""),
        answer=0,
    )
    shots = len(case.sample.references)
    if options and diagnoser.model.info.can_score:
        prompt = answer_prompt(build_prompt(asked, entries=case.entries, shots=shots))
        probabilities = letter_probabilities(diagnoser.model, [prompt], [len(options)])[0]
        return options[max(range(len(options)), key=probabilities.__getitem__)], probabilities
    if options:
        written = _generate(diagnoser, build_prompt(asked, entries=case.entries, shots=shots)).text
        read = parse_response(written, options)
        return (written if isinstance(read, Unparsed) else options[read.answer]), None
    written = _generate(diagnoser, open_prompt(case.sample, text, entries=case.entries, shots=shots)).text
    return written.strip(), None


def _describe(sample: Sample, entry: KnowledgeEntry | None, anomalous: bool) -> str:
    """What it looks like: the expert's measured words, then the entry's cues."""
    parts = []
    found = sample.expert
    if anomalous and found is not None and found.box is not None:
        parts.append(f"A {size_word(found.extent)} region, {tone_words(found.tone)} (visual expert).")
    elif not anomalous and found is not None:
        parts.append(f"{describe_findings(found)} (visual expert)")
    if entry is not None and entry.cues:
        cues = "; ".join(name_object(cue, sample.object) for cue in entry.cues)
        parts.append(f"Typical of {entry.title.lower()}: {cues} (knowledge base).")
    return " ".join(parts)


def _sources(sample: Sample, entry: KnowledgeEntry | None, anomalous: bool) -> dict[str, str]:
    sources = {"verdict": "model", "knowledge": "model", "reasoning": "model", "response": "model", "answer": "model"}
    if anomalous:
        sources |= {"location": "model", "defect_type": "model"}
    said_by = [name for name, there in (("visual expert", sample.expert), ("knowledge base", entry)) if there is not None]
    sources["description"] = " and ".join(said_by) or "nobody"
    sources["effect"] = "knowledge base"
    if sample.expert is not None:
        sources |= {"expert": "visual expert", "expert_map": "visual expert"}
    return sources
