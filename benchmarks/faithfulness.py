"""How far written verdicts keep to the evidence they were given, and to the form of their question.

    python benchmarks/faithfulness.py bench/questions.jsonl runs/NAME/evaluate/*reason

Of each folder of `dcr2ad evaluate` (or of a run), over its yes/no questions that have the visual expert's findings: how often
the expert's threshold is right, the answer follows the threshold, the entry named does (a normal state below it, a defect
above), the answer is right, and the last sentence says in words that there is a defect or none. The built-in base's normal
states are known by their first word. Then, over all questions whose answer an entry decides (verdicts, kinds, looks, causes and
effects, looks of good parts), how often the answer is not the one that the response's own entry leads to: reasoning that
contradicts itself, whatever the photograph shows. Not in the paper.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from dcr2ad.artifacts import read_records
from dcr2ad.knowledge.base import KnowledgeBase
from dcr2ad.parsing import parse_response
from dcr2ad.rivals import answer_under
from dcr2ad.types import Prediction, Question, Subtask, Unparsed

HEADINGS = ("verdicts", "threshold right", "answer follows it", "entry follows it", "answer right", "says it in words")
DECIDED = (
    Subtask.DETECTION,
    Subtask.CLASSIFICATION,
    Subtask.DESCRIPTION,
    Subtask.ANALYSIS,
    Subtask.OBJECT_ANALYSIS,
)
"""Sub-tasks whose answer an entry decides; where the mark lies, and what the part is called, it does not."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("questions", type=Path, help="the benchmark's questions.jsonl")
    parser.add_argument("evaluations", type=Path, nargs="+", help="folders with predictions.jsonl")
    asked = parser.parse_args()
    questions = {question.id: question for question in read_records(asked.questions, Question)}
    answered = {
        folder: [
            (questions[given.question_id], given, parse_response(given.raw, questions[given.question_id].options))
            for given in read_records(folder / "predictions.jsonl", Prediction)
        ]
        for folder in asked.evaluations
    }
    print(" | ".join(HEADINGS))
    for folder, answers in answered.items():
        counts = [0] * len(HEADINGS)
        for question, given, read in answers:
            seen = question.sample.expert
            if question.subtask is Subtask.DETECTION and seen is not None:
                above = seen.score > seen.threshold
                said = None if given.answer is None else question.options[given.answer] == "Yes"
                # A response that names no entry follows nothing.
                entry = "" if isinstance(read, Unparsed) else read.entry
                follows = bool(entry) and entry.startswith("Normal ") != above
                right = above == question.sample.is_anomalous
                in_words = re.search(r"\b(?:a|no) defect\b", re.split(r"\. (?=So|Hence|Thus)", given.raw)[-1]) is not None
                for number, holds in enumerate((True, right, said == above, follows, given.answer == given.gold, in_words)):
                    counts[number] += holds
        print(" | ".join(map(str, counts)), folder.name)
    base = KnowledgeBase.builtin()
    print("\nanswer contradicts its entry | " + " | ".join(DECIDED) + " | all")
    for folder, answers in answered.items():
        contradicted, decided = dict.fromkeys(DECIDED, 0), dict.fromkeys(DECIDED, 0)
        for question, given, read in answers:
            named = None if isinstance(read, Unparsed) else base.resolve(read.entry)
            led_to = answer_under(named, question) if named else None
            if question.subtask in DECIDED and led_to is not None:
                decided[question.subtask] += 1
                contradicted[question.subtask] += given.answer != led_to
        shares = [f"{contradicted[name]} of {decided[name]}" for name in DECIDED]
        total = f"{sum(contradicted.values())} of {sum(decided.values())}"
        print(" | ".join([folder.name, *shares, total]))


if __name__ == "__main__":
    main()
