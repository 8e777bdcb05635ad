"""The records: everything that crosses a stage or touches disk.

All are frozen pydantic models that refuse unknown fields; on disk each is one JSON object a line. An answer is always an
INDEX into the options: letters exist only in `dcr2ad.prompts` and `dcr2ad.parsing`. Knows nothing about files or models.
"""

from __future__ import annotations

from dcr2ad.types.base import Probability, Record
from dcr2ad.types.prompts import (
    Completion,
    ImagePart,
    OptionScores,
    Part,
    Prompt,
    RankedEntry,
    RouteMode,
    RoutingCalibration,
    RoutingNote,
    Sampling,
    TextPart,
)
from dcr2ad.types.questions import (
    BoundaryQuestion,
    ExpertFindings,
    KindGuess,
    KnowledgeEntry,
    LookAlike,
    PreferencePair,
    Question,
    Sample,
    Subtask,
    Trajectory,
    Unparsed,
)
from dcr2ad.types.results import (
    Answering,
    Comparison,
    Context,
    Diagnosis,
    EvalProtocol,
    EvalReport,
    Interval,
    PairedResult,
    Precision,
    Prediction,
    RunManifest,
    Scoring,
)

__all__ = [
    "Answering",
    "BoundaryQuestion",
    "Comparison",
    "Completion",
    "Context",
    "Diagnosis",
    "EvalProtocol",
    "EvalReport",
    "ExpertFindings",
    "ImagePart",
    "Interval",
    "KindGuess",
    "KnowledgeEntry",
    "LookAlike",
    "OptionScores",
    "PairedResult",
    "Part",
    "Precision",
    "Prediction",
    "PreferencePair",
    "Probability",
    "Prompt",
    "Question",
    "RankedEntry",
    "Record",
    "RouteMode",
    "RoutingCalibration",
    "RoutingNote",
    "RunManifest",
    "Sample",
    "Sampling",
    "Scoring",
    "Subtask",
    "TextPart",
    "Trajectory",
    "Unparsed",
]
