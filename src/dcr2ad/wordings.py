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


INSTRUCT_WORDING = QuestionWording(
    name="instruct",
    detection=(
        (DETECTION_QUESTION, "Yes", "No"),
        ("Does the {object} deviate from a good one?", "Yes", "No"),
        ("Is this {object} free of defects?", "No", "Yes"),
        ("What is the state of the {object}?", "Defective", "Good"),
    ),
    classification=("Which kind of defect is it?", "What is the defect called?", "There is a defect. Of which type is it?"),
    localization=(LOCATION_QUESTION, "In which part of the picture is the defect?", "Which place is affected by the defect?"),
    description=("What does the defect look like?", "Which description fits the defect?", "How does the defect appear?"),
    effect=("Which effect is typical of this defect?", "What can this defect lead to?"),
    cause=("Which cause is typical of this defect?", "What does this defect usually come from?"),
    object_classification=("Which object is inspected?", "What is shown in the picture?"),
    object_analysis=("Which features show that this part is normal?", "How does a good part of this kind look?"),
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
