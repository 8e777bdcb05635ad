"""MMAD's files: ``mmad.json`` of any version, ``metadata.csv``, and the field's answer files.

Reads JSON and CSV, never pixels; returns `Question`s, or `Prediction`s of an answer file, and names what is wrong with the
copy. Paths are relative to the data root. The texts are MMAD's own (CC BY-NC-SA): read where the user has them, never shipped.
The paper evaluates on MMAD (Section 4.2); file formats are not in the paper.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

from dcr2ad.datasets.folder import ResolvesLabels, Skipped, with_knowledge
from dcr2ad.errors import RecordError
from dcr2ad.parsing import LETTERS, read_answer
from dcr2ad.types import Prediction, Question, Sample, Subtask, Unparsed

Which = Literal["random", "similar"]

SUBTASKS = {
    **{subtask.value: subtask for subtask in Subtask},
    "Object Structure": Subtask.OBJECT_ANALYSIS,
    "Object Details": Subtask.OBJECT_ANALYSIS,
    "Anomaly Discrimination": Subtask.DETECTION,
}
"""MMAD's nine raw types, and the paper's own name of one, to the seven sub-tasks."""

KNOWN_FILES = {
    "639343b491bc67b2abb3c5d719f221ce27f83b2ed97948f4e88055aaa31f1c1e": "39,670 questions on 8,366 images",
}
"""SHA-256 of the versions of ``mmad.json`` that figures are known to be published on, and what they hold."""

_ONE_DATASET = {"MVTec-AD": "DS-MVTec"}
"""Two prefixes of one data set; the official scorer counts them apart."""
_WRONG_LABELS = {"DS-MVTec/bottle/image/broken_large/016.png": "its localisation label is known to be wrong"}
_OPTION = re.compile(r"^\s*([A-Z])\s*[.:)]\s*(.+?)\s*$", re.MULTILINE)
_COLUMNS = {
    "image": ("query_image", "image", "image_path", "file_name"),
    "template": ("template_image", "random_template", "template", "reference"),
    "question": ("question", "text"),
    "options": ("options",),
    "answer": ("answer", "correct_answer"),
    "type": ("question_type", "type"),
}


class MmadReading(NamedTuple):
    """What a benchmark file holds."""

    questions: tuple[Question, ...]
    """Questions in the file's order."""
    faults: tuple[Skipped, ...]
    """What is wrong with this copy, and what was done about it."""


def is_mmad(path: Path) -> bool:
    """Whether a file is to be read by this module: ``.json`` or ``.csv``."""
    return path.suffix.lower() in {".json", ".csv"}


def unknown_version(path: Path, sha256: str) -> str:
    """A warning where a file called ``mmad.json`` is no version in `KNOWN_FILES`; else empty."""
    if path.name.lower() != "mmad.json" or sha256 in KNOWN_FILES:
        return ""
    return f"{path.name} (sha256 {sha256[:12]}) is no known version of MMAD's file: compare its figures with no published ones"


def read_mmad(
    path: str | Path,
    root: str | Path | None = None,
    *,
    knowledge_base: ResolvesLabels | None = None,
    templates: Which = "random",
) -> MmadReading:
    """Read ``mmad.json`` or ``metadata.csv``.

    Args:
        path: the file.
        root: folder the image paths begin in; None is the file's own.
        knowledge_base: resolves labels to the entry that applies (k_w).
        templates: which of the two lists of references is used, best first.

    Raises:
        RecordError: no such file, another schema, or no question; names the place.
    """
    path = Path(path)
    base = Path(root) if root is not None else path.parent
    reader = _Reader(base, knowledge_base, templates)
    rows = _csv_rows(path) if path.suffix.lower() == ".csv" else _json_rows(path)
    questions = tuple(question for key, value in rows for question in reader.questions(key, value, path))
    if not questions:
        raise RecordError(f"{path} holds no question", "Name MMAD's mmad.json or metadata.csv")
    return MmadReading(questions, tuple(reader.faults))


def read_answers(path: str | Path) -> list[dict[str, Any]]:
    """Rows of an answer file: a list, or one JSON object a line.

    Raises:
        RecordError: no such file, or a row without one of the four fields; names the row.
    """
    path = Path(path)
    text = _text(path)
    try:
        rows = (
            json.loads(text)
            if text.lstrip().startswith("[")
            else [json.loads(line) for line in text.splitlines() if line.strip()]
        )
    except ValueError as error:
        raise RecordError(f"{path} is no answer file ({error})", "It must be a JSON list of answers") from None
    for number, row in enumerate(rows, 1):
        missing = [
            f for f in ("image", "question_type", "correct_answer", "gpt_answer") if not isinstance(row, dict) or f not in row
        ]
        if missing:
            raise RecordError(f"{path}: answer {number} has no {missing[0]!r}", "See docs/evaluation.md for the format")
        if row["gpt_answer"] is None:
            row["gpt_answer"] = ""
    if not rows:
        raise RecordError(f"{path} holds no answer", "Name the file an evaluation wrote")
    return list(rows)


def answers_to_predictions(answers: Sequence[Mapping[str, Any]]) -> list[Prediction]:
    """Answers as predictions for the `strict` count: one data set for both of MVTec's prefixes, nothing left out.

    Raises:
        RecordError: an unknown type, or a right answer that is no letter; names the row.
    """
    found = []
    for number, row in enumerate(answers, 1):
        image, kind, gold = str(row["image"]), str(row["question_type"]), str(row["correct_answer"]).strip().upper()
        if kind not in SUBTASKS or len(gold) != 1 or gold not in LETTERS:
            raise RecordError(f"answer {number} ({image}): type {kind!r}, right answer {gold!r}", "Check the answer file")
        options = _options_of(row.get("question")) or list(
            LETTERS[: max(LETTERS.index(gold) + 1, 2 if "Detection" in kind else 5)]
        )
        read = read_answer(str(row["gpt_answer"]), options)
        label = Label.of(image)
        found.append(
            Prediction(
                question_id=f"{image}#{number}",
                image=image,
                dataset=label.dataset,
                object=label.object,
                defect=label.defect,
                is_anomalous=label.defect is not None,
                subtask=SUBTASKS[kind],
                n_options=len(options),
                gold=LETTERS.index(gold),
                status="unparsed" if isinstance(read, Unparsed) else "answered",
                answer=None if isinstance(read, Unparsed) else read,
                raw=str(row["gpt_answer"]),
                error=read.reason if isinstance(read, Unparsed) else "",
            )
        )
    return found


def predictions_to_answers(predictions: Sequence[Prediction]) -> list[dict[str, str]]:
    """Predictions in the field's answer format; what was not answered has an empty answer."""
    return [
        {
            "image": p.question_id.rpartition("#")[0] or p.image,
            "question": p.question_id,
            "question_type": p.subtask.value,
            "correct_answer": LETTERS[p.gold],
            "gpt_answer": "" if p.answer is None else LETTERS[p.answer],
        }
        for p in predictions
    ]


class Label(NamedTuple):
    """What a query path says: data set, object and defect; None for a good part."""

    dataset: str
    object: str
    defect: str | None

    @classmethod
    def of(cls, key: str) -> Label:
        """Read a path such as ``DS-MVTec/bottle/image/broken_large/000.png``; the folder of the image is its label."""
        parts = PurePosixPath(key).parts
        dataset = parts[0] if len(parts) > 1 else ""
        folder = parts[-2] if len(parts) > 1 else ""
        defect = None if folder.lower() == "good" else folder
        return cls(_ONE_DATASET.get(dataset, dataset), parts[1] if len(parts) > 2 else "", defect)


class _Reader:
    def __init__(self, root: Path, knowledge_base: ResolvesLabels | None, templates: Which) -> None:
        self.faults: list[Skipped] = []
        self._root = root
        self._base = knowledge_base
        self._templates = templates
        self._present = root.is_dir() and any(root.iterdir())

    def questions(self, key: str, value: Mapping[str, Any], path: Path) -> Iterator[Question]:
        """Questions of one image."""
        asked = next((value[name] for name in value if name.startswith("conversation")), None)
        if not isinstance(asked, list):
            raise RecordError(f"{path}: {key}: no list under a key that begins with 'conversation'", "Is this mmad.json?")
        sample = self._sample(key, value)
        if key in _WRONG_LABELS:
            self._fault(key, _WRONG_LABELS[key])
        for number, row in enumerate(asked):
            made = self._question(f"{key}#{number}", sample, row)
            if made is not None:
                yield made

    def _question(self, name: str, sample: Sample, row: Any) -> Question | None:
        try:
            kind, options, answer = SUBTASKS[str(row["type"])], dict(row["Options"]), str(row["Answer"]).strip().upper()[:1]
            letters = sorted(options)
            if kind is Subtask.OBJECT_CLASSIFICATION and sample.object == "pill" and "nut" in str(options[answer]).lower():
                self._fault(name, "a metal nut filed under pill; asked as it is")
            return Question(
                id=name,
                sample=sample,
                subtask=kind,
                text=str(row["Question"]).strip(),
                options=tuple(str(options[letter]).strip() for letter in letters),
                answer=letters.index(answer),
            )
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            self._fault(name, f"question left out: {type(error).__name__} {error}")
            return None

    def _sample(self, key: str, value: Mapping[str, Any]) -> Sample:
        label = Label.of(key)
        folder = self._root / "/".join(PurePosixPath(key).parts[:2])
        mask = value.get("mask_path") or ""
        masks = self._masks(key, folder / mask) if mask and label.defect else ()
        sample = Sample(
            id=key,
            image=str(self._root / key),
            references=tuple(str(self._root / name) for name in self._references(key, value)),
            masks=masks,
            dataset=label.dataset,
            object=label.object,
            defect=label.defect,
            is_anomalous=label.defect is not None,
        )
        if self._present and not (self._root / key).is_file():
            self._fault(key, "no such image; its questions count as failed")
        return sample if self._base is None else next(with_knowledge([sample], self._base))

    def _references(self, key: str, value: Mapping[str, Any]) -> list[str]:
        other = "similar" if self._templates == "random" else "random"
        listed = value.get(f"{self._templates}_templates") or value.get(f"{other}_templates") or []
        if not self._present:
            return list(listed)
        found = [name for name in listed if (self._root / name).is_file()]
        if len(found) < len(listed):
            self._fault(key, f"{len(listed) - len(found)} of {len(listed)} references are missing; the others are used")
        return found

    def _masks(self, key: str, mask: Path) -> tuple[str, ...]:
        """A mask file or a folder of them; ``rbg_mask`` and ``rgb_mask`` both occur."""
        swapped = [Path(str(mask).replace(a, b)) for a, b in (("rbg_mask", "rgb_mask"), ("rgb_mask", "rbg_mask"))]
        for candidate in (mask, *swapped):
            if candidate.is_file():
                return (str(candidate),)
            if candidate.is_dir():
                return tuple(str(file) for file in sorted(candidate.glob("*.png")))
        if self._present:
            self._fault(key, f"no such mask: {mask.name}; masks are not needed to ask")
        return ()

    def _fault(self, path: str, why: str) -> None:
        self.faults.append(Skipped(path=path, why=why))


def _json_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        data = json.loads(_text(path))
    except ValueError as error:
        raise RecordError(f"{path} is not JSON ({error})", "Name MMAD's mmad.json") from None
    if not isinstance(data, dict) or not all(isinstance(value, dict) for value in data.values()):
        raise RecordError(f"{path} is not in MMAD's schema", "It must be one object, image path to entry")
    yield from data.items()


def _csv_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Rows of ``metadata.csv``, one a question, gathered by image; its mask column has a wrong prefix and is not read."""
    rows = list(csv.DictReader(_text(path).splitlines(keepends=True)))
    names = {column.strip().lower(): column for column in (rows[0] if rows else {}) if column}
    known = {field: next((names[n] for n in listed if n in names), None) for field, listed in _COLUMNS.items()}
    missing = [field for field in ("image", "question", "options", "answer", "type") if known[field] is None]
    if missing:
        raise RecordError(f"{path} has no column for {missing[0]}", f"Columns there: {', '.join(names) or 'none'}")
    gathered: dict[str, dict[str, Any]] = {}
    for row in rows:
        cell = {field: (row[column] or "").strip() if column else "" for field, column in known.items()}
        entry = gathered.setdefault(cell["image"], {"conversation": [], "random_templates": []})
        entry["random_templates"] = entry["random_templates"] or ([cell["template"]] if cell["template"] else [])
        options = dict(_OPTION.findall(cell["options"]))
        asked = {"Question": cell["question"], "Answer": cell["answer"], "Options": options, "type": cell["type"]}
        entry["conversation"].append(asked)
    yield from gathered.items()


def _options_of(question: Any) -> list[str]:
    """Option texts written into an answer's question, in order of their letters; empty where there are none."""
    text = question.get("text", "") if isinstance(question, dict) else question if isinstance(question, str) else ""
    found = _OPTION.findall(str(text))
    return [option for _, option in found] if [letter for letter, _ in found] == list(LETTERS[: len(found)]) else []


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise RecordError(f"{path} cannot be read ({error.strerror})", "Check the path") from None
    except UnicodeDecodeError:
        raise RecordError(f"{path} is not UTF-8 text", "Check the file") from None
