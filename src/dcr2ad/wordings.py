"""Templates of the questions: one set for training, another, held out, for measuring.

Returns strings; knows nothing about samples or options. MMAD's types in our own words (Appendix B.1 gives no templates).
"""

from __future__ import annotations

from dataclasses import dataclass

from dcr2ad.prompts import DETECTION_QUESTION, LOCATION_QUESTION


@dataclass(frozen=True)
class QuestionWording:
    """Templates of the questions; ``{object}`` is the object's name. Two sets never share a template (see tests)."""

    name: str
    detection: tuple[tuple[str, str, str], ...]
    """Question, the option that says defective, the option that says good."""
    classification: tuple[str, ...]
    localization: tuple[str, ...]
    description: tuple[str, ...]
    effect: tuple[str, ...]
    cause: tuple[str, ...]
    object_classification: tuple[str, ...]
    object_analysis: tuple[str, ...]


# What asks for a kind, its look, cause or effect never names the object: of one with few kinds, the name tells the answer.
INSTRUCT_WORDING = QuestionWording(
    name="instruct",
    detection=(
        (DETECTION_QUESTION, "Yes", "No"),
        ("Does the {object} deviate from a good one?", "Yes", "No"),
        ("Is this {object} free of defects?", "No", "Yes"),
        ("What is the state of the {object}?", "Defective", "Good"),
        ("Do you see a defect on this {object}?", "Yes", "No"),
        ("Beside the good part, does something not belong here?", "Yes", "No"),
        ("Is something wrong with the {object}?", "Yes", "No"),
    ),
    classification=(
        "Which kind of defect is it?",
        "What is the defect called?",
        "There is a defect. Of which type is it?",
        "The part is defective. Give the defect its name.",
        "Which name fits the defect?",
        "Of what type is this defect?",
    ),
    localization=(
        LOCATION_QUESTION,
        "In which part of the picture is the defect?",
        "Which place is affected by the defect?",
        "The {object} is defective. Where is the mark?",
        "Where does the defect sit?",
        "Give the place of the defect.",
    ),
    description=(
        "What does the defect look like?",
        "Which description fits the defect?",
        "How does the defect appear?",
        "The part is defective. How does the mark look?",
        "Which words describe the defect best?",
        "Describe the look of the defect.",
    ),
    effect=(
        "Which effect is typical of this defect?",
        "What can this defect lead to?",
        "The part is defective. What are the consequences?",
        "What harm may this defect do?",
        "What might result from the defect?",
        "What does such a defect bring about?",
        "Which consequence does this kind of defect have?",
        "If the part is used, what can happen?",
    ),
    cause=(
        "Which cause is typical of this defect?",
        "What does this defect usually come from?",
        "The part is defective. What was the reason?",
        "How does such a defect arise?",
        "Where does this kind of defect originate?",
        "What may have caused the defect?",
        "Why does a defect like this occur?",
        "Which origin does such a defect have?",
    ),
    object_classification=(
        "Which object is inspected?",
        "What is shown in the picture?",
        "Which part is this?",
        "Of what kind is the inspected item?",
        "Give the name of the part shown.",
    ),
    object_analysis=(
        "Which features show that this part is normal?",
        "How does a good part of this kind look?",
        "What marks a sound part?",
        "The part is free of defects. Which features fit it?",
        "Which description fits a part as it should be?",
    ),
)
"""For training."""

BENCHMARK_WORDING = QuestionWording(
    name="benchmark",
    detection=(
        ("Can a defect be seen on the {object}?", "Yes", "No"),
        ("Compared with a normal {object}, is anything wrong here?", "Yes", "No"),
    ),
    classification=("A defect is present. What type is it?", "Name the defect."),
    localization=("The {object} has a defect. Where does it lie?", "Name the place of the defect on the {object}."),
    description=("A defect is present. How would you describe it?", "What is the appearance of the defect?"),
    effect=("A defect is present. What may follow from it?", "What is the likely consequence of the defect?"),
    cause=("A defect is present. What has probably led to it?", "What is the likely origin of the defect?"),
    object_classification=("What kind of product is this?", "Name the product in the picture."),
    object_analysis=("What is characteristic of this product in good order?", "By what can its normal state be told?"),
)
"""Held out, for measuring; the blanks aside no template is one of training."""
