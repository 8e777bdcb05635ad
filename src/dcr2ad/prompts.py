"""Every string a model ever sees: question, context and findings in, `Prompt` out.

The order is text shared by all, references, query, the expert's findings, knowledge, and last the question, so that all
questions about one image share the longest possible prefix. The order is the paper's only as far as Section 3.1 gives one
(visual tokens, then text); the wording is not in the paper and is ours. Knows nothing about models or files.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from string import Formatter

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from dcr2ad.errors import RecordError
from dcr2ad.kind_names import TOLD
from dcr2ad.knowledge.agnostic import name_object
from dcr2ad.parsing import ANSWER_OPENING, KNOWLEDGE_OPENING, LETTERS
from dcr2ad.places import PLACES
from dcr2ad.statements import capital
from dcr2ad.types import ExpertFindings, ImagePart, KindGuess, KnowledgeEntry, Part, Prompt, Question, Sample, Subtask, TextPart

PLACEHOLDERS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "reference": ((), ("object", "count")),
    "references": ((), ("object", "count")),
    "query": ((), ("object",)),
    "expert": (("findings",), ()),
    "entry": (("title",), ("text", "cues", "place", "cause", "effect")),
    "cues": (("title", "cues"), ("text", "place", "cause", "effect")),
    "cause": (("cause",), ("title",)),
    "effect": (("effect",), ("title",)),
    "question": (("question",), ()),
    "option": (("letter", "option"), ()),
}
"""What the texts of `Wording` must and may name in braces; the others are taken as they are."""
_OPTIONAL = ("cues", "cause", "effect")
"""Texts that may be empty: then an entry's text is shown instead of its cues, and nothing is said of the others."""


class Wording(BaseModel):
    """The fixed texts of a prompt; a user can load others from a TOML file with these keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    instruction: str = (
        "You inspect industrial parts. Choose the knowledge that applies, reason under it, then give one option letter, as "
        "<knowledge>title: why</knowledge><think>reasoning</think><answer>letter</answer>."
    )
    # The object is named in the question only: these lines stand before it, and one question asks which object it is.
    reference: str = "\nNormal part:"
    references: str = "\n{count} normal parts:"
    query: str = "\nInspected part:"
    expert: str = "\nVisual expert: {findings}"
    knowledge: str = "\nKnowledge:"
    entry: str = "\n- {title}: {text}"
    # What is known of an entry in the words of a worked response (`dcr2ad.teacher`), so that they can be copied; `cues` stands
    # for `entry` where an entry has any, and says the same in fewer words.
    cues: str = "\n- {title} shows: {cues}."
    cause: str = " {title} comes from: {cause}."
    effect: str = " {title} leads to: {effect}."
    question: str = "\nQuestion: {question}"
    # The letter also follows its option: a small model copies what came after a phrase long before it finds what came before.
    option: str = "\n{letter}. {option} ({letter})"

    @model_validator(mode="after")
    def _placeholders(self) -> Wording:
        for key, (needed, allowed) in PLACEHOLDERS.items():
            try:
                named = {field for _, field, _, _ in Formatter().parse(getattr(self, key)) if field is not None}
            except ValueError as error:
                raise ValueError(f"{key}: {error}") from None
            if odd := named - set(needed) - set(allowed):
                raise ValueError(f"{key}: no placeholder {{{min(odd)}}}; there are {', '.join((*needed, *allowed))}")
            if (missing := set(needed) - named) and (key not in _OPTIONAL or getattr(self, key)):
                raise ValueError(f"{key}: {{{min(missing)}}} is missing")
        return self


DEFAULT_WORDING = Wording()

SURE = 0.7
"""Probability from which a kind is told as clear."""

DETECTION_QUESTION = "Is there any defect in the {object}?"
DETECTION_OPTIONS = ("Yes", "No")
LOCATION_QUESTION = "Where is the defect on the {object}?"


SIZES = (("tiny", 0.005), ("small", 0.03), ("medium", 0.12), ("large", float("inf")))
"""Words for a region's size, each with the share of the image it stays under."""


def load_wording(path: str | Path) -> Wording:
    """Read other wording from a TOML file.

    Raises:
        RecordError: no such file, not TOML, or an unknown key.
    """
    try:
        return Wording.model_validate(tomllib.loads(Path(path).read_text(encoding="utf-8")))
    except OSError:
        raise RecordError(f"no such file: {path}", "Check the path") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecordError(f"{path} is not TOML ({error})", "Keys are those of dcr2ad.prompts.Wording") from None
    except ValidationError as error:
        first = error.errors()[0]
        what = ": ".join([*map(str, first["loc"][:1]), first["msg"].removeprefix("Value error, ")])
        raise RecordError(f"{path}: {what}", "Keys are those of dcr2ad.prompts.Wording") from None


def build_prompt(
    question: Question,
    *,
    entries: Sequence[KnowledgeEntry] = (),
    expert: bool = True,
    shots: int = 1,
    opening: str = "",
    wording: Wording = DEFAULT_WORDING,
) -> Prompt:
    """The prompt of one question.

    Args:
        question: question, options and sample (with its findings, if `expert`).
        entries: knowledge put into the context, in the order listed (C_ext of Equation 1).
        expert: whether the visual expert's findings are told, where the sample has any.
        shots: how many of the sample's references are shown.
        opening: text the response is made to begin with.
        wording: the fixed texts.
    """
    sample, name = question.sample, question.sample.object
    if question.subtask is Subtask.OBJECT_CLASSIFICATION:
        name = "part"
        if sample.expert is not None:  # kinds are told by what this object can have, which would say what it is
            sample = sample.model_copy(update={"expert": sample.expert.model_copy(update={"kinds": ()})})
    return _prompt(sample, name, question_text(question, wording), entries, expert, shots, opening, wording)


def open_prompt(
    sample: Sample,
    text: str,
    *,
    entries: Sequence[KnowledgeEntry] = (),
    expert: bool = True,
    shots: int = 1,
    wording: Wording = DEFAULT_WORDING,
) -> Prompt:
    """The prompt of a question without options, answered in free text; arguments as in `build_prompt`."""
    return _prompt(sample, sample.object, wording.question.format(question=text), entries, expert, shots, "", wording)


def question_text(question: Question, wording: Wording = DEFAULT_WORDING) -> str:
    """Question and lettered options."""
    lines = [wording.question.format(question=question.text)]
    lines += [wording.option.format(letter=LETTERS[i], option=option) for i, option in enumerate(question.options)]
    return "".join(lines)


def answer_prompt(prompt: Prompt, response: str = "") -> Prompt:
    """The same prompt with the response opened up to the letter, for reading option probabilities.

    Args:
        prompt: the prompt.
        response: path and reasoning already written, if any; what follows its answer tag is dropped.
    """
    written = response.split(ANSWER_OPENING, 1)[0]
    return prompt.model_copy(update={"opening": prompt.opening + written + ANSWER_OPENING})


def knowledge_prompt(prompt: Prompt, title: str = "") -> Prompt:
    """The same prompt with the response opened where a knowledge title follows, for routing, or behind a title prescribed."""
    return prompt.model_copy(update={"opening": KNOWLEDGE_OPENING + (f"{title}:" if title else "")})


def describe_findings(findings: ExpertFindings) -> str:
    """The visual expert's findings in words; two decimals at most, and no statement the numbers do not carry."""
    verdict = "above" if findings.is_anomalous else "below"
    text = f"score {findings.score:.1f}, {verdict} the limit {findings.threshold:.1f}. "
    hottest, second = told_places(findings)
    text += f"Hottest {hottest}, then {second}."
    if findings.box is not None:
        text += f" Hot spot {size_word(findings.extent)}, {shape_word(findings.elongation)}, {tone_words(findings.tone)}."
    return f"{text} {kind_words(findings.kinds, certain=findings.is_anomalous)}" if findings.kinds else text


def told_places(findings: ExpertFindings) -> tuple[str, str]:
    """The two places that the findings name: the hottest and the one after it."""
    order = sorted(range(9), key=lambda cell: -findings.cells[cell])
    return PLACES[findings.cell], PLACES[next(cell for cell in order if cell != findings.cell)]


def kind_words(kinds: Sequence[KindGuess], *, certain: bool = True) -> str:
    """Words for the kinds a hot spot looks like: ``Perhaps crack, else scratch or pit.``

    Args:
        kinds: the guesses, best first; `TOLD` are told.
        certain: whether the expert calls the part anomalous; if not, the kinds are told under an "if".
    """
    sure = "Clearly" if kinds[0].probability >= SURE else "Perhaps"
    others = " or ".join(kind.title for kind in kinds[1:TOLD])
    told = f"{sure} {kinds[0].title}{', else ' if others else ''}{others}."
    return told if certain else f"If it is a defect: {told[:1].lower()}{told[1:]}"


def size_word(extent: float) -> str:
    """Word for a region's share of the image."""
    return next(word for word, limit in SIZES if extent < limit)


def shape_word(elongation: float) -> str:
    """Word for a region's ratio of principal axes."""
    return "line-like" if elongation >= 3 else "longish" if elongation >= 1.8 else "compact"


def tone_words(tone: str) -> str:
    """Words for a region's tone beside the reference."""
    return {"darker": "darker than normal", "brighter": "brighter than normal"}.get(tone, "of normal brightness")


def detection_question(question_id: str, sample: Sample) -> Question:
    """The yes/no question of a diagnosis; option 0 says that there is a defect. The gold answer is the sample's label."""
    return Question(
        id=question_id,
        sample=sample,
        subtask=Subtask.DETECTION,
        text=DETECTION_QUESTION.format(object=sample.object),
        options=DETECTION_OPTIONS,
        answer=0 if sample.is_anomalous else 1,
    )


def _prompt(
    sample: Sample,
    name: str,
    asked: str,
    entries: Sequence[KnowledgeEntry],
    expert: bool,
    shots: int,
    opening: str,
    wording: Wording,
) -> Prompt:
    parts: list[Part] = [TextPart(text=wording.instruction)]
    references = sample.references[:shots] if shots > 0 else ()
    if references:
        text = wording.reference if len(references) == 1 else wording.references
        parts.append(TextPart(text=text.format(object=name, count=len(references))))
        parts.extend(ImagePart(path=path) for path in references)
    parts.append(TextPart(text=wording.query.format(object=name)))
    parts.append(ImagePart(path=sample.image))
    if expert and sample.expert is not None:
        parts.append(TextPart(text=wording.expert.format(findings=describe_findings(sample.expert))))
    parts.append(TextPart(text=_knowledge_text(entries, name, wording) + asked))
    return Prompt(parts=_merge(parts), opening=opening)


def _knowledge_text(entries: Sequence[KnowledgeEntry], name: str, wording: Wording) -> str:
    if not entries:
        return ""
    told = []
    for entry in entries:
        facts = {"text": entry.text, "cues": ", ".join(entry.cues), "place": entry.place}
        facts |= {"cause": entry.cause, "effect": entry.effect}
        # A capital at their beginning, as options have it: the same tokens.
        named = {key: capital(name_object(fact, name)) for key, fact in facts.items()}
        forms = [wording.cues if entry.cues and wording.cues else wording.entry]
        forms += [form for form, fact in ((wording.cause, entry.cause), (wording.effect, entry.effect)) if fact]
        told += [form.format(title=entry.title, **named) for form in forms]
    return wording.knowledge + "".join(told)


def _merge(parts: Sequence[Part]) -> tuple[Part, ...]:
    """Join neighbouring texts, so that one text has one tokenisation."""
    merged: list[Part] = []
    for part in parts:
        last = merged[-1] if merged else None
        if isinstance(part, TextPart) and isinstance(last, TextPart):
            merged[-1] = TextPart(text=last.text + part.text)
        else:
            merged.append(part)
    return tuple(merged)
