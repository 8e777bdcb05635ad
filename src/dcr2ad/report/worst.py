"""The questions of an evaluation that went worst, with picture, prompt and raw answer.

Reads predictions and a run's question files; returns records for the page. Knows nothing about HTML.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dcr2ad.errors import ImageError
from dcr2ad.images import load_image
from dcr2ad.prompts import build_prompt
from dcr2ad.report.page import picture_uri, shrink
from dcr2ad.report.run_folder import find_questions
from dcr2ad.types import EvalProtocol, Prediction, Question, TextPart

WORST = 10
"""Wrong answers shown."""
_SIDE = 320


@dataclass(frozen=True)
class Wrong:
    """A question that was answered wrongly or not at all."""

    prediction: Prediction
    question: Question | None
    uri: str | None
    problem: str
    prompt: str


def worst_questions(folder: Path, predictions: Sequence[Prediction], protocol: EvalProtocol) -> tuple[Wrong, ...]:
    """Wrong answers, those with the least probability on the right option first, one an image; then some without an answer."""
    answered = [p for p in predictions if p.status == "answered" and not p.is_correct]
    silent = [p for p in predictions if p.status != "answered"]
    chosen: dict[str, Prediction] = {}
    for prediction in sorted(answered, key=_gold_probability):
        chosen.setdefault(prediction.image, prediction)
    kept = [*list(chosen.values())[: WORST - min(3, len(silent))], *silent[:3]]
    questions = find_questions(folder, [p.question_id for p in kept])
    return tuple(_wrong(prediction, questions.get(prediction.question_id), protocol) for prediction in kept)


def _gold_probability(prediction: Prediction) -> float:
    return prediction.probabilities[prediction.gold] if prediction.probabilities else 0.0


def _wrong(prediction: Prediction, question: Question | None, protocol: EvalProtocol) -> Wrong:
    prompt = "" if question is None else _prompt_words(question, protocol)
    try:
        return Wrong(prediction, question, picture_uri(shrink(load_image(prediction.image), _SIDE)), "", prompt)
    except ImageError as error:
        return Wrong(prediction, question, None, str(error), prompt)


def _prompt_words(question: Question, protocol: EvalProtocol) -> str:
    """The prompt as it was asked in the project's own wording, images and knowledge texts by their names only."""
    prompt = build_prompt(question, shots=protocol.shots, expert=protocol.expert)
    words = "".join(part.text if isinstance(part, TextPart) else f" [{Path(part.path).name}]" for part in prompt.parts)
    if protocol.context != "none":
        words += f"\n\n(the texts of the {protocol.context} knowledge stand before the question)"
    return f"(asked in the user's own wording; here in the project's)\n\n{words}" if protocol.prompts else words
