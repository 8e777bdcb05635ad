"""Worked responses for questions: y = (p, c, A) written under a knowledge entry (Sections 3.1, 3.3; Appendix B.1).

Reads a `Question`, the entry its answer rests on, the visual expert's findings and the masks' geometry; returns a
`Trajectory`. The built-in teacher is deterministic and takes the place of the paper's GPT-4o and annotators. Knows nothing
about models, files other than masks, or which entry is right.

A right and a wrong trajectory come from the same sentences: the style never says which one is right.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Protocol

from dcr2ad.balance import LOOK_END
from dcr2ad.geometry import Geometry, sample_geometry
from dcr2ad.parsing import LETTERS
from dcr2ad.places import PLACES
from dcr2ad.prompts import shape_word, size_word, tone_words
from dcr2ad.statements import at_place
from dcr2ad.types import ExpertFindings, KnowledgeEntry, Question, Subtask, Trajectory

WHY_WORDS = 14
"""Words of a why sentence at most: the learner is small (not in the paper)."""
REASONING_WORDS = (20, 45)
"""Fewest and most words of a reasoning (not in the paper)."""
OPTION_WORDS = 12
"""Words of an option repeated at most; a longer one is cut (not in the paper)."""


_ASKED = {"cues": "shows", "effect": "leads to", "cause": "comes from"}
"""What a conclusion says between an entry's title and its statement, by the field of the entry that is asked for."""

_FITS, _SO = ("fits", "matches", "suits"), ("So", "Thus", "Hence")


class Teacher(Protocol):
    """Who writes responses: the built-in teacher, or a model behind an endpoint."""

    @property
    def name(self) -> str:
        """Name for provenance."""

    def write(self, question: Question, entry: KnowledgeEntry | None, *, attempt: int = 0) -> Trajectory | str:
        """The right response: under `entry`, the one that applies (None: the label leads to none), to the gold option.

        `attempt` counts the responses to this question that were refused; a teacher that cannot write one says why instead.
        """

    def write_under(self, entry: KnowledgeEntry | None, question: Question, answer: int) -> Trajectory:
        """A response of the same form and length that argues under a given entry to a given option, right or wrong."""


@dataclass(frozen=True)
class _Scene:
    """What an argument can point at; a part is empty where nothing tells it."""

    claims_defect: bool
    place: str
    """Where the mark is held to be, with its preposition."""
    look: tuple[str, ...]
    """Words for size, shape and, where the expert saw any, tone."""

    @property
    def look_words(self) -> str:
        """``small, compact and darker than normal``."""
        return " and ".join(filter(None, (", ".join(self.look[:-1]), self.look[-1]))) if self.look else ""


class BuiltinTeacher:
    """Writes from label, mask geometry, findings and knowledge entry, in a few varied sentences; seeded by the question's id.

    Args:
        seed: seed of the choice of words.
    """

    name = "builtin"

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed

    def write(self, question: Question, entry: KnowledgeEntry | None, *, attempt: int = 0) -> Trajectory:
        """The right response; see `write_under`. A refused one is followed by one with other words, measured on the mask."""
        return self._write(entry, question, question.answer, attempt)

    def write_under(self, entry: KnowledgeEntry | None, question: Question, answer: int) -> Trajectory:
        """A response that argues under `entry` to option `answer`.

        The same words are chosen for one question whatever the entry, so that the two responses of a preference pair differ
        in the knowledge alone. Without an entry the response has no path.

        Args:
            entry: the entry believed in; None leaves the path out.
            question: the question, with findings in its sample where the prompt shows any.
            answer: index of the option to conclude with.

        Raises:
            ImageError: a mask of the sample cannot be read.
        """
        return self._write(entry, question, answer, 0)

    def _write(self, entry: KnowledgeEntry | None, question: Question, answer: int, attempt: int) -> Trajectory:
        findings = question.sample.expert
        geometry = sample_geometry(question.sample)
        scene = _scene(question, entry, answer, findings, geometry, by_mask=attempt > 0)
        again = f"/{attempt}" if attempt else ""
        # Cues have a seed of their own: their number differs between entries, the choice of words must not.
        cue = _fitting_cue(entry, scene, random.Random(f"{self._seed}/{question.id}/cue{again}")) if entry else ""
        rng = random.Random(f"{self._seed}/{question.id}{again}")
        why = _why(scene, cue, rng) if entry else ""
        report, verb, so = _report(question, scene, findings, rng), rng.choice(_FITS), rng.choice(_SO)
        # The option's own words and then its letter, as the prompt has them: the letter is copied, not looked up.
        conclusion = f"{so} {_conclusion(question, entry, scene, answer)} ({LETTERS[answer]})."
        # A cue too long to quote gives way to the entry's title.
        versions = (f"{report} {_fit(scene, entry, quoted, verb)} {conclusion}" for quoted in (cue, ""))
        short = [text for text in versions if len(text.split()) <= REASONING_WORDS[1]] or [f"{report} {conclusion}"]
        return Trajectory(entry=entry.title if entry else "", why=why, reasoning=short[0], answer=answer)


def direct_answer(question: Question) -> Trajectory:
    """The right option without path or reasoning, for training the mode that answers directly."""
    return Trajectory(entry="", why="", reasoning="", answer=question.answer)


def _scene(
    question: Question,
    entry: KnowledgeEntry | None,
    answer: int,
    findings: ExpertFindings | None,
    geometry: Geometry | None,
    *,
    by_mask: bool,
) -> _Scene:
    """What the argument points at: the mask where it claims a defect and there is one, else the expert's hot spot.

    A wrong answer that does not follow from its entry sees what it concludes: no defect where there is one, or the mark
    somewhere else, or of another outline.
    """
    claims_defect = question.sample.is_anomalous if entry is None else not entry.is_normal
    if question.subtask is Subtask.DETECTION:
        claims_defect = question.sample.is_anomalous == (answer == question.answer)
    mask = geometry if claims_defect or findings is None else None
    hot = findings if findings is not None and findings.box is not None else None
    if mask and findings and (by_mask or mask.cell != findings.cell):
        hot = None  # what the expert says of its hot spot is not said of the mark, which lies elsewhere
    cell = mask.cell if mask else findings.cell if findings else None
    # Size and shape are the expert's, which the prompt shows, unless the question asks for them by the mask.
    measured = mask if mask and (hot is None or question.provenance.get("verified") == "mask") else hot
    look: tuple[str, ...] = (size_word(measured.extent), shape_word(measured.elongation)) if measured else ()
    tone: tuple[str, ...] = (tone_words(hot.tone),) if hot else ()
    place = "" if cell is None else at_place(cell)
    concluded = question.options[answer]
    if answer != question.answer and question.subtask is Subtask.LOCALIZATION and concluded in PLACES:
        place = at_place(PLACES.index(concluded))
    outline, _, outlined = concluded.partition(LOOK_END)
    # Cues have the word too ("notch or mark points elsewhere"): an outline ends in a place.
    if answer != question.answer and question.subtask is Subtask.DESCRIPTION and outlined in map(at_place, range(len(PLACES))):
        place, look, tone = outlined, tuple(outline.lower().split(", ")), ()
    return _Scene(claims_defect, place, look + tone)


def _report(question: Question, scene: _Scene, findings: ExpertFindings | None, rng: random.Random) -> str:
    """What the expert or the reference shows, and how far it is believed."""
    name = question.sample.object
    where = scene.place or f"on the {name}"
    if findings is None:
        if scene.claims_defect:
            return f"Beside a good {name}, the mark {where} does not belong there."
        if scene.place:
            return f"Beside a good {name}, only texture varies {where}, as it may."
        return f"Beside a good {name}, the picture shows no mark of its own."
    score = f"The expert scores {findings.score:.1f}, {'above' if findings.is_anomalous else 'below'} the limit"
    score += f" {findings.threshold:.1f}"
    hottest = at_place(findings.cell)
    if scene.claims_defect and scene.place != hottest:
        return f"{score}, hottest {hottest}, {rng.choice(('yet', 'but'))} the mark lies {where}."
    believed = findings.is_anomalous == scene.claims_defect
    told = {
        (True, True): ("the mark stands out", "the picture differs"),
        (True, False): ("nothing stands out", "nothing differs"),
        (False, True): ("a mark is visible", "something differs"),
        (False, False): ("only texture varies", "only light varies"),
    }[believed, scene.claims_defect]
    return f"{score}, {'and' if believed else 'yet'} {rng.choice(told)} {where}."


def _fit(scene: _Scene, entry: KnowledgeEntry | None, cue: str, verb: str) -> str:
    """How the place looks, and that this agrees with the entry."""
    look = scene.look_words
    if entry is None:
        unlike = "unlike" if scene.claims_defect else "like"
        return f"It is {look}, {unlike} a good part." if look else f"It looks {unlike} a good part."
    what = f'"{cue}"' if cue else entry.title
    return f"{look[:1].upper()}{look[1:]}, it {verb} {what}." if look else f"It {verb} {what}."


def _conclusion(question: Question, entry: KnowledgeEntry | None, scene: _Scene, answer: int) -> str:
    """What follows, ending in the words of the option concluded with; the letter comes behind.

    What is known of an entry follows its title: a small model recalls what has followed the same words before.
    """
    option = question.options[answer].rstrip(".")
    subtask = question.subtask
    if subtask is Subtask.DETECTION:
        return f"the {question.sample.object} {'has a' if scene.claims_defect else 'has no'} defect and the answer is {option}"
    if subtask is Subtask.LOCALIZATION:
        return f"the defect lies {at_place(PLACES.index(option))}" if option in PLACES else f"its place is {_shortened(option)}"
    if subtask is Subtask.CLASSIFICATION:
        return f"the defect is called {option}"
    if subtask is Subtask.OBJECT_CLASSIFICATION:
        return f"the part shown is called {option}"
    asked = question.provenance.get("asks", "")
    if entry is None or asked not in _ASKED:
        told = {Subtask.DESCRIPTION: "it shows", Subtask.ANALYSIS: "one expects"}.get(subtask, "a good part has")
    else:
        told = f"{entry.title} {_ASKED[asked]}"
    return f"{told}: {_shortened(option)}"


def _why(scene: _Scene, cue: str, rng: random.Random) -> str:
    """One short sentence or phrase: cue and place, with the look where there is room."""
    verb = rng.choice(("seen", "found", "visible"))
    base = f"{cue or 'its cues'}, {verb} {scene.place}" if scene.place else cue or "its cues are visible"
    long = f"{base}, {' and '.join(scene.look[:2])}" if scene.look else base
    return next((text for text in (long, base) if len(text.split()) <= WHY_WORDS), _first_words(base, WHY_WORDS))


_HINTS = {
    "line-like": ("line", "thin", "narrow", "stripe", "thread", "kinked", "jagged", "fissure", "furrow", "finger"),
    "compact": ("dot", "round", "spot", "hollow", "crater", "blob", "opening", "notch"),
    "large": ("large", "wide", "area", "cloud", "band", "region", "patch"),
    "tiny": ("small", "tiny", "dot", "fine"),
    "small": ("small", "dot", "fine", "local"),
    "darker than normal": ("dark", "black", "shadow"),
    "brighter than normal": ("bright", "glint", "lighter", "shine"),
}
"""Words of a cue that a look in the picture supports."""


_AGAINST = {"darker than normal": _HINTS["brighter than normal"], "brighter than normal": _HINTS["darker than normal"]}
"""Words of a cue that a look in the picture speaks against."""


def _fitting_cue(entry: KnowledgeEntry, scene: _Scene, rng: random.Random) -> str:
    """The entry's cue that the words for the place support best; of equals any one, but a "no …" only for want of others."""

    def support(cue: str) -> int:
        text = f" {cue.lower()}"
        fits = sum(hint in text for word in scene.look for hint in _HINTS.get(word, ()))
        clashes = sum(hint in text for word in scene.look for hint in _AGAINST.get(word, ()))
        return fits - 3 * clashes - 2 * (text.startswith((" no ", " not ", " only ")))

    best = max(map(support, entry.cues), default=0)
    return rng.choice([cue for cue in entry.cues if support(cue) == best] or [""])


def _shortened(text: str) -> str:
    """A very long option cut at its first comma or semicolon: the letter follows anyway."""
    if len(text.split()) <= OPTION_WORDS:
        return text
    head = min((text.split(mark)[0] for mark in (",", ";", " and ", " or ")), key=len)
    return _first_words(head, OPTION_WORDS)


def _first_words(text: str, count: int) -> str:
    return " ".join(text.split()[:count]).rstrip(",;")
