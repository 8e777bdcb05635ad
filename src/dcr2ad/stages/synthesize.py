"""KR-RTS (Section 3.3): for every boundary question a right and a deceptive trajectory of one form.

Reads boundary questions and a teacher; writes ``pairs.jsonl`` and ``rejected.jsonl``. k_w is the entry the label leads to, k_l
an entry that deceives (`dcr2ad.deception.choose_wrong_key`); both stand in the prompt among fillers, in random order. A pair is
kept only if both responses parse, y_w is right and y_l is not (or, where the answer does not depend on the knowledge, only the
path differs), each conclusion follows from its own entry, and the lengths are alike. For the ablation (plain DPO, Equation 4)
every pair also holds an unrouted y_l: a wrong answer under k_w, by the same hand. Knows nothing about training.
"""

from __future__ import annotations

import random
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from dcr2ad.artifacts import RecordWriter, StageFolder, digest_records, read_records
from dcr2ad.blind_pairs import read_pairs
from dcr2ad.config import SynthesizeSettings
from dcr2ad.deception import OPTION, Deception, candidates_for, choose_wrong_key, holds_too
from dcr2ad.errors import UnusableAnswerError
from dcr2ad.knowledge.base import KnowledgeBase
from dcr2ad.models.base import ChatModel
from dcr2ad.parsing import parse_response, write_response
from dcr2ad.questions import Rejected
from dcr2ad.rivals import answer_under
from dcr2ad.routing import route_sample
from dcr2ad.teacher import Teacher
from dcr2ad.types import BoundaryQuestion, KnowledgeEntry, PreferencePair, Question, RankedEntry, Subtask, Trajectory

TRIES = 12
"""Deceptive entries tried before a question is dropped: not every one leads to an option of the question."""
FEWEST_GOOD = 0.1
"""Share of pairs about good parts below which `one_sided` speaks."""


def synthesize_pairs(
    boundary: Sequence[BoundaryQuestion],
    knowledge_base: KnowledgeBase,
    teacher: Teacher,
    settings: SynthesizeSettings,
    out: Path,
    *,
    model: ChatModel | None = None,
    seed: int = 0,
    fresh: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Write one preference pair a question where one can be made.

    With a model (the SFT model), its own ranking of each photograph's knowledge is read once, and the entries that it wrongly
    finds plausible are among the deceptive ones.

    Returns:
        counts: questions, pairs (by kind, by why k_l deceives and how strongly, by sub-task, and how many are about good
        parts), dropped by reason; where in the list the right entry stood, mean lengths, and ``told_by_text``: how often a
        reader of the texts alone tells chosen from rejected; ``unrouted_told_by_text``: the same for the ablation's rejected
        responses.

    Raises:
        RunError: `out` holds pairs made from other questions or settings.
        ModelError: the teacher's server gives no answer; what cannot be used of its answers is counted as rejected.
    """
    config = {**settings.model_dump(), "teacher": teacher.name}
    if model is not None:
        config["model"] = model.info.digest
    inputs = {"boundary": digest_records(boundary), "knowledge": knowledge_base.digest}
    with StageFolder(out, stage="synthesize", config=config, inputs=inputs, seed=seed, fresh=fresh) as folder:
        if folder.done:
            return folder.manifest.summary
        pairs_file, rejected_file = out / "pairs.jsonl", out / "rejected.jsonl"
        with RecordWriter(pairs_file) as writer, RecordWriter(rejected_file) as rejects:
            balance: Counter[str] = Counter()
            balance.subtract(item.question.sample.right_key or "" for item in boundary)
            balance.update(pair.wrong_key for pair in read_records(pairs_file, PreferencePair))
            seen = {pair.id for pair in read_records(pairs_file, PreferencePair)}
            seen |= {row.sample for row in read_records(rejected_file, Rejected)}
            rankings: dict[str, tuple[RankedEntry, ...]] = {}
            for number, item in enumerate(boundary, 1):
                if item.question.id not in seen:
                    sample = item.question.sample
                    if model is not None and sample.image not in rankings:
                        rankings[sample.image] = route_sample(model, sample, knowledge_base, mode="recall").ranking
                    ranking = rankings.get(sample.image, ())
                    try:
                        made = make_pair(
                            item.question, knowledge_base, teacher, settings, seed=seed, ranking=ranking, balance=balance
                        )
                    except UnusableAnswerError:
                        made = "the teacher's answer cannot be used"
                    if isinstance(made, PreferencePair):
                        writer.write(made)
                        balance[made.wrong_key] += 1
                    else:
                        rejects.write(Rejected(sample=item.question.id, subtask=item.question.subtask, reason=made))
                if progress:
                    progress(number, len(boundary))
        summary = _summary(
            len(boundary), list(read_records(pairs_file, PreferencePair)), list(read_records(rejected_file, Rejected))
        )
        folder.finish(summary)
    return summary


def one_sided(summary: Mapping[str, Any]) -> str:
    """What to say of pairs that are nearly all about defects; empty of others.

    Trained on them the embedded model saw defects in most good parts (docs/nano.md). Not in the paper.

    Args:
        summary: as `synthesize_pairs` returns it, or as a version before wrote it.
    """
    pairs, good = summary["pairs"], summary.get("about_good_parts")
    if good is None or good >= FEWEST_GOOD * pairs:
        return ""
    what = f"{good} of {pairs} pairs are about good parts: preferences about defects alone teach that there is one"
    return f"{what}. Watch Overkill, or mine questions about good parts as well ([mine] calibrated)"


def make_pair(
    question: Question,
    knowledge_base: KnowledgeBase,
    teacher: Teacher,
    settings: SynthesizeSettings,
    *,
    seed: int,
    ranking: Sequence[RankedEntry] = (),
    balance: Mapping[str, int] = MappingProxyType({}),
) -> PreferencePair | str:
    """One preference pair for a question, or why there is none.

    Args:
        question: the question.
        knowledge_base: K.
        teacher: writes the responses.
        settings: candidates listed, lengths.
        seed: seed of the draws.
        ranking: the model's own of the photograph.
        balance: how much oftener an entry is the wrong one than the right one, over all pairs. Of the deceptive entries drawn
            that with the least is taken, so that an entry's name does not tell which response is right.
    """
    right_key = question.sample.right_key
    if right_key is None or right_key not in knowledge_base:
        return "the label leads to no knowledge entry"
    right = knowledge_base.get(right_key)
    chosen_wrong = _wrong(question, right, knowledge_base, seed, ranking, balance)
    if chosen_wrong is None:
        return "no deceptive entry leads to an option of the question"
    wrong, deception, led_to = chosen_wrong
    answer = _wrong_answer(question, led_to, seed) if settings.elsewhere else led_to
    listed = candidates_for(right_key, wrong.key, question.sample, knowledge_base, count=settings.candidates, seed=seed)
    asked = question.model_copy(update={"candidates": listed, "response": None})
    pair = PreferencePair(
        id=question.id,
        question=asked,
        right_key=right_key,
        wrong_key=wrong.key,
        wrong_reason=deception.reason,
        wrong_kind=deception.kind,
        wrong_strength=deception.strength,
        chosen=teacher.write_under(right, asked, asked.answer),
        rejected=teacher.write_under(wrong, asked, answer),
        kind="path" if answer == asked.answer else "answer" if answer == led_to else "elsewhere",
        unrouted=teacher.write_under(right, asked, _wrong_answer(asked, answer, seed)) if settings.unrouted else None,
    )
    return check_pair(pair, knowledge_base, length_ratio=settings.length_ratio) or pair


def check_pair(pair: PreferencePair, knowledge_base: KnowledgeBase, *, length_ratio: float) -> str:
    """Why a pair cannot stand, or an empty text: checks (a) to (c) of the method, and length.

    Args:
        pair: the pair.
        knowledge_base: K.
        length_ratio: largest difference in characters between the responses, as a share of the longer one.
    """
    right, wrong = knowledge_base.get(pair.right_key), knowledge_base.get(pair.wrong_key)
    for name, entry, trajectory in (("chosen", right, pair.chosen), ("rejected", wrong, pair.rejected)):
        if parse_response(write_response(trajectory), pair.question.options) != trajectory:
            return f"the {name} response does not parse"
        if trajectory.entry != entry.title:
            return f"the {name} response selects another entry than its own"
        if answer_under(entry, pair.question) != trajectory.answer and not (name == "rejected" and _is_elsewhere(pair, wrong)):
            return f"the {name} answer does not follow from its entry"
    if not {pair.right_key, pair.wrong_key} <= set(pair.question.candidates):
        return "the prompt does not list both entries"
    if pair.chosen.answer != pair.question.answer:
        return "the chosen answer is wrong"
    if (pair.kind != "path") == (pair.rejected.answer == pair.question.answer):
        return "the rejected answer does not fit the kind of the pair"
    if _lengths_differ(pair.chosen, pair.rejected, length_ratio):
        return f"the responses differ by more than {length_ratio:.0%} in length"
    return "" if pair.unrouted is None else _check_unrouted(pair, pair.unrouted, right, length_ratio)


def _is_elsewhere(pair: PreferencePair, wrong: KnowledgeEntry) -> bool:
    """Whether the rejected response is wrong by where it looks alone: its entry would lead to the right answer."""
    return pair.kind == "elsewhere" and answer_under(wrong, pair.question) == pair.question.answer != pair.rejected.answer


def _check_unrouted(pair: PreferencePair, unrouted: Trajectory, right: KnowledgeEntry, length_ratio: float) -> str:
    """The same checks on the ablation's y_l. One that fails takes the pair with it: both trainings see the same questions."""
    if parse_response(write_response(unrouted), pair.question.options) != unrouted:
        return "the unrouted response does not parse"
    if unrouted.entry != right.title:
        return "the unrouted response selects another entry than the right one"
    if unrouted.answer == pair.question.answer:
        return "the unrouted answer is right"
    if _lengths_differ(pair.chosen, unrouted, length_ratio):
        return f"the unrouted response differs by more than {length_ratio:.0%} in length"
    return ""


def _wrong_answer(question: Question, routed: int, seed: int) -> int:
    """Option that the unrouted response concludes with: the routed one's where that is wrong, else one by lot."""
    if routed != question.answer:
        return routed
    wrong = [index for index in range(len(question.options)) if index != question.answer]
    return random.Random(f"{seed}:{question.id}:unrouted").choice(wrong)


def _wrong(
    question: Question,
    right: KnowledgeEntry,
    knowledge_base: KnowledgeBase,
    seed: int,
    ranking: Sequence[RankedEntry],
    balance: Mapping[str, int],
) -> tuple[KnowledgeEntry, Deception, int] | None:
    """A deceptive entry that leads to an option; one that leads to another answer is preferred over one that does not."""
    drawn = [
        choose_wrong_key(question.sample, right.key, knowledge_base, seed=seed * TRIES + attempt, ranking=ranking)
        for attempt in range(TRIES)
    ]
    sample = question.sample
    named = [
        Deception(entry.key, OPTION, f"{OPTION}: {option}")
        for entry, option in _named(question, knowledge_base)
        if not holds_too(entry, right, sample.defect, object_name=sample.object)
    ]
    for listed, other_answer in ((drawn, True), (named, True), (drawn, False)):
        found = []
        for deception in listed:
            entry = knowledge_base.get(deception.key)
            answer = answer_under(entry, question)
            if answer is not None and (answer != question.answer) == other_answer:
                found.append((entry, deception, answer))
        if found:
            return min(found, key=lambda one: balance.get(one[0].key, 0))
    return None


def _named(question: Question, knowledge_base: KnowledgeBase) -> list[tuple[KnowledgeEntry, str]]:
    """Entries that options stand for, each with its option: the normal state of an object that an option names."""
    if question.subtask is Subtask.OBJECT_CLASSIFICATION:
        entries = [knowledge_base.resolve_label("", option, None, False) for option in question.options]
    else:
        keys = question.provenance.get("keys", "").split()
        entries = [knowledge_base.get(key) if key in knowledge_base else None for key in keys]
    return [(entry, option) for entry, option in zip(entries, question.options, strict=False) if entry is not None]


def _length(trajectory: Trajectory) -> int:
    return len(write_response(trajectory))


def _strengths(pairs: Sequence[PreferencePair]) -> dict[str, float]:
    """By kind of deception that has a strength (probability, similarity) its median."""
    found: dict[str, list[float]] = {}
    for pair in pairs:
        if pair.wrong_strength is not None:
            found.setdefault(pair.wrong_kind, []).append(pair.wrong_strength)
    return {kind: round(statistics.median(values), 3) for kind, values in found.items()}


def _lengths_differ(one: Trajectory, other: Trajectory, ratio: float) -> bool:
    shorter, longer = sorted((_length(one), _length(other)))
    return longer - shorter > ratio * longer


def _reading(pairs: Sequence[PreferencePair]) -> dict[str, Any] | None:
    """How far a reader of the texts alone gets."""
    found = read_pairs(pairs)
    return None if found is None else {**found.model_dump(), "verdict": found.verdict}


def _summary(total: int, pairs: Sequence[PreferencePair], rejected: Sequence[Rejected]) -> dict[str, Any]:
    unrouted = [pair.model_copy(update={"rejected": pair.unrouted}) for pair in pairs if pair.unrouted is not None]
    return {
        "questions": total,
        "pairs": len(pairs),
        "kinds": dict(Counter(pair.kind for pair in pairs)),
        "deception": dict(Counter(pair.wrong_kind for pair in pairs)),
        "deception_strength": _strengths(pairs),
        "subtasks": dict(Counter(pair.question.subtask.value for pair in pairs)),
        "about_good_parts": sum(not pair.question.sample.is_anomalous for pair in pairs),
        "dropped": dict(Counter(row.reason for row in rejected)),
        "right_entry_at": dict(sorted(Counter(pair.question.candidates.index(pair.right_key) + 1 for pair in pairs).items())),
        "characters": {
            "chosen": round(sum(_length(pair.chosen) for pair in pairs) / max(1, len(pairs))),
            "rejected": round(sum(_length(pair.rejected) for pair in pairs) / max(1, len(pairs))),
        },
        "told_by_text": _reading(pairs),
        "unrouted": len(unrouted),
        "unrouted_told_by_text": _reading(unrouted),
    }
