"""What is read off the model about one case: verdict, defect, place, the user's question, and who said what.

Reads a `Case`; returns parts of a `Diagnosis`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from dcr2ad.errors import InputError, ModelError
from dcr2ad.knowledge.agnostic import name_object
from dcr2ad.knowledge.base import KnowledgeBase
from dcr2ad.models.base import letter_probabilities
from dcr2ad.parsing import parse_response
from dcr2ad.places import PLACES
from dcr2ad.prompts import (
    LOCATION_QUESTION,
    SURE,
    answer_prompt,
    build_prompt,
    describe_findings,
    detection_question,
    knowledge_prompt,
    open_prompt,
    size_word,
    tone_words,
)
from dcr2ad.reasoning import write_responses
from dcr2ad.routing import best_defect
from dcr2ad.stages.diagnose_case import Case, Diagnoser
from dcr2ad.types import (
    Completion,
    KnowledgeEntry,
    Prompt,
    Question,
    RankedEntry,
    Sample,
    Sampling,
    Subtask,
    Trajectory,
    Unparsed,
)


def read_verdict(diagnoser: Diagnoser, case: Case, notes: list[str]) -> tuple[str, Trajectory | None, float]:
    """Response to the yes/no question under the selected entry, as text and read, and p(anomalous)."""
    question = detection_question(case.sample.id, case.sample)
    prompt = build_prompt(question, entries=case.entries, shots=len(case.sample.references))
    opened = knowledge_prompt(prompt, case.ranking[0].title) if case.ranking and not case.abstained else prompt
    written = write_responses(diagnoser.model, [opened], [question.options])[0]
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


def selected_entry(case: Case, trajectory: Trajectory | None, knowledge_base: KnowledgeBase) -> RankedEntry | None:
    """The entry reasoned under: the head of the ranking, or what the response names where nothing was ranked."""
    if case.abstained:
        return None
    if case.ranking:
        return case.ranking[0]
    named = knowledge_base.resolve(trajectory.entry) if trajectory and trajectory.entry else None
    return RankedEntry(key=named.key, title=named.title, probability=1.0) if named else None


def find_defect(
    case: Case, entry: KnowledgeEntry | None, knowledge_base: KnowledgeBase, notes: list[str]
) -> KnowledgeEntry | None:
    """The kind of an anomalous part: the entry reasoned under, or the most probable defect where that is a normal state."""
    if entry is None or not entry.is_normal:
        return entry
    found = best_defect(case.ranking, knowledge_base)
    if found is not None:
        notes.append(
            f"The model reasoned under the normal state ({entry.title}) and yet calls the part anomalous; "
            f"the type is the most probable defect entry."
        )
    return found


def kind_told(sample: Sample, knowledge_base: KnowledgeBase) -> KnowledgeEntry | None:
    """The kind that the visual expert tells as clear: the type of an anomalous part under no knowledge."""
    kinds = sample.expert.kinds if sample.expert else ()
    return knowledge_base.resolve(kinds[0].key) if kinds and kinds[0].probability >= SURE else None


def find_place(diagnoser: Diagnoser, case: Case, trajectory: Trajectory | None) -> str | None:
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


def answer_own_question(
    diagnoser: Diagnoser, case: Case, text: str | None, options: Sequence[str]
) -> tuple[str | None, tuple[float, ...] | None]:
    """Answer to the user's own question, and a probability for each option where the model gives them."""
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


def describe(sample: Sample, entry: KnowledgeEntry | None, anomalous: bool) -> str:
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


def name_sources(sample: Sample, entry: KnowledgeEntry | None, anomalous: bool, *, told: bool, routed: bool) -> dict[str, str]:
    """Who makes each statement of the diagnosis, model, visual expert or knowledge base.

    `told`: the type is `kind_told`'s; `routed`: the knowledge was ranked, with the kinds that the expert tells weighed in.
    """
    sources = {"verdict": "model", "knowledge": "model", "reasoning": "model", "response": "model", "answer": "model"}
    if anomalous:
        sources |= {"location": "model", "defect_type": "visual expert" if told else "model"}
    said_by = [name for name, there in (("visual expert", sample.expert), ("knowledge base", entry)) if there is not None]
    sources["description"] = " and ".join(said_by) or "nobody"
    sources["effect"] = "knowledge base"
    if sample.expert is not None:
        sources |= {"expert": "visual expert", "expert_map": "visual expert"}
        if routed and sample.expert.kinds:
            sources["knowledge"] = "model and visual expert"
    return sources
