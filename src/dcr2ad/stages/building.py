"""One run of `dcr2ad instruct` or `dcr2ad bench build`: samples to questions with responses, written as they are made.

Reads `Sample`s; writes ``samples.jsonl``, ``questions.jsonl`` and ``rejected.jsonl`` and returns a `BuildSummary` of what they
hold. Which samples, is `dcr2ad.stages.instruct`'s business. Knows nothing about models; the visual expert is an object with
`inspect`.

A run may be killed at any moment. Each image is written as its questions, its rejected questions, and last its own line, which
says that it is done; lines of an image without that line are thrown away when the run continues.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dcr2ad.artifacts import RecordWriter, StageFolder, digest_json, digest_records, read_records
from dcr2ad.config import InstructSettings
from dcr2ad.datasets.folder import Skipped
from dcr2ad.datasets.onto import Planned, draw_planned
from dcr2ad.deception import candidates_for, choose_wrong_key
from dcr2ad.errors import ImageError, InputError
from dcr2ad.evidence import unsupported
from dcr2ad.exchange import exchange_facts
from dcr2ad.geometry import sample_geometry
from dcr2ad.images import load_image
from dcr2ad.knowledge import KnowledgeBase
from dcr2ad.leaks import Forbidden, Match
from dcr2ad.questions import QuestionMaker, Rejected
from dcr2ad.routing import LISTED
from dcr2ad.stages.build_files import (
    FORBIDDEN,
    SKIPPED,
    UNDRAWN,
    UNREADABLE,
    BuildSummary,
    count_made,
    even_sides,
    keep_finished,
)
from dcr2ad.stages.findings import InspectsTraceably, inspect_sample
from dcr2ad.teacher import Teacher, direct_answer
from dcr2ad.types import Question, Sample, Trajectory
from dcr2ad.verify import check_response
from dcr2ad.wordings import BENCHMARK_WORDING, QuestionWording

_DENIED, _UNSUPPORTED = "the response cannot stand", "the findings do not carry the answer"
TRIES = 3
"""How often a response is written that the mask denies; not in the paper, which revises by hand."""

Progress = Callable[[int, int], None]
"""Called with images done and images in all."""


class Build:
    """One run over the samples."""

    def __init__(
        self,
        chosen: tuple[list[Sample], tuple[Skipped, ...], list[Sample]],
        knowledge_base: KnowledgeBase,
        wording: QuestionWording,
        *,
        seed: int,
        expert: InspectsTraceably | None,
        teacher: Teacher | None,
        settings: InstructSettings | None = None,
        forbidden: Forbidden | None = None,
        planned: Sequence[Planned] = (),
    ) -> None:
        self._real, self._skipped, every = chosen
        self._planned = {item.sample.id: item for item in planned}
        self._samples = [*self._real, *(item.sample for item in planned)]
        if planned:
            random.Random(f"{seed}/order").shuffle(self._samples)
        self._base = knowledge_base
        self._measuring = wording is BENCHMARK_WORDING
        # A small benchmark still offers the kinds of defect that the whole data holds.
        known = every if self._measuring else self._samples
        self._settings = settings or InstructSettings()
        self._maker = QuestionMaker(
            knowledge_base,
            known,
            seed=seed,
            wording=wording,
            hard_share=self._settings.hard_share,
            subtasks=self._settings.subtasks,
            thin_detection=not self._settings.supported_only,  # `even_sides` does it at the end
            measuring=self._measuring,
        )
        self._seed = seed
        self._expert = expert
        self._teacher = teacher
        self._forbidden = forbidden

    def run(self, out: Path, stage: str, config: dict[str, Any], fresh: bool, progress: Progress | None) -> BuildSummary:
        """Write the three files, or continue them; returns what they hold."""
        inputs = {
            "samples": digest_records(self._real),
            "knowledge": self._base.digest,
            "findings": "none" if self._expert is None else self._expert.fingerprint,
        }
        if self._forbidden is not None:
            inputs["forbidden"] = digest_json(self._forbidden.digest_parts)
        with StageFolder(out, stage=stage, config=config, inputs=inputs, seed=self._seed, fresh=fresh) as folder:
            if folder.done:
                return BuildSummary.model_validate(folder.manifest.summary)
            done = keep_finished(out)
            for question in read_records(out / "questions.jsonl", Question):
                self._maker.balance.count(question)
            self._write_all(out, done, progress)
            if not self._measuring:
                even_sides(out, f"{self._seed}/even")
            with RecordWriter(out / "rejected.jsonl") as rejected:
                rejected.write(*(Rejected(sample=item.path, reason=f"{SKIPPED}: {item.why}") for item in self._skipped))
            summary = count_made(out, self._skipped)
            if not summary.questions:
                raise InputError(f"no question could be made of {summary.images} images", f"See {out / 'rejected.jsonl'}")
            folder.finish(summary.model_dump(mode="json"))
            return summary

    def _write_all(self, out: Path, done: set[str], progress: Progress | None) -> None:
        with (
            RecordWriter(out / "samples.jsonl") as samples,
            RecordWriter(out / "questions.jsonl") as questions,
            RecordWriter(out / "rejected.jsonl") as rejected,
        ):
            for position, sample in enumerate(self._samples, 1):
                if sample.id not in done:
                    made = self._ask(sample)
                    if isinstance(made, Rejected):
                        rejected.write(made)
                    else:
                        seen, asked, dropped = made
                        questions.write(*asked)
                        rejected.write(*dropped)
                        samples.write(seen)
                if progress is not None:
                    progress(position, len(self._samples))

    def _ask(self, sample: Sample) -> tuple[Sample, list[Question], list[Rejected]] | Rejected:
        """The sample as seen, its questions with responses, and those dropped; or why the whole sample is."""
        try:
            if why := self._refusal(sample):
                return Rejected(sample=sample.id, reason=why)
            seen = self._inspect(sample)
            made, dropped = self._maker.make(seen)
        except ImageError as error:
            return Rejected(sample=sample.id, reason=f"{UNREADABLE}: {error.what}")
        answered = [self._respond(question) for question in made]
        kept = [item for item in answered if isinstance(item, Question)]
        # What counts is what is written: a resumed run knows nothing else.
        for question in made:
            self._maker.balance.count(question, -1)
        for question in kept:
            self._maker.balance.count(question)
        return seen, kept, [*dropped, *(item for item in answered if isinstance(item, Rejected))]

    def _refusal(self, sample: Sample) -> str:
        """Why the sample is left out whole, or an empty text; a planned picture is drawn on the way."""
        if match := self._forbidden_match(sample):
            return f"{FORBIDDEN}: {match.reason}"
        if planned := self._planned.get(sample.id):
            try:
                draw_planned(planned)
            except ImageError as error:
                return f"{UNDRAWN}: {error.what}"
        return ""

    def _forbidden_match(self, sample: Sample) -> Match | None:
        """Why the sample may not be used; its references count, since training shows them."""
        if self._forbidden is None:
            return None
        planned = self._planned.get(sample.id)
        shown = planned.source.image if planned else sample.image
        found = (self._forbidden.find(path, sample.dataset) for path in (shown, *sample.references))
        return next((match for match in found if match is not None), None)

    def _inspect(self, sample: Sample) -> Sample:
        """The sample with the expert's findings; without expert or reference its images are only opened, to fail here."""
        if self._expert is None or not sample.references:
            for path in (sample.image, *sample.references):
                load_image(path)
            return sample
        return inspect_sample(sample, self._expert, self._base)[0]

    def _respond(self, question: Question) -> Question | Rejected:
        """The question with its listed entries and its response, where there is a teacher.

        A response that says of the mark what the mask denies is written again, `TRIES` times in all, and then dropped.
        """
        if self._teacher is None:
            return question
        geometry = sample_geometry(question.sample)
        if self._settings.supported_only and (why := unsupported(question, geometry)):
            return Rejected(sample=question.sample.id, subtask=question.subtask, reason=f"{_UNSUPPORTED}: {why}")
        rng = random.Random(f"{self._seed}/{question.id}/response")
        direct, listed = rng.random() < self._settings.direct_share, rng.random() < self._settings.listed_share
        key = question.sample.right_key
        exchanges = listed and rng.random() < self._settings.exchanged_share
        exchanged = exchange_facts(question, rng) if exchanges else None
        question = exchanged or question
        if direct:
            response, who = direct_answer(question), "direct"
        else:
            response, who = None, self._teacher.name
        tries, false = 1, ["no response"]
        while response is None and tries <= TRIES:
            written = self._teacher.write(question, self._base.get(key) if key else None, attempt=tries - 1)
            false = [written] if isinstance(written, str) else check_response(question, written, geometry)
            if isinstance(written, Trajectory) and not false:
                response = written
            else:
                tries += 1
        if response is None:
            return Rejected(sample=question.sample.id, subtask=question.subtask, reason=f"{_DENIED}: {'; '.join(false)}")
        provenance = {**question.provenance, "teacher": who, **({"tries": str(tries)} if tries > 1 else {})}
        update: dict[str, Any] = {"response": response, "provenance": provenance}
        if listed and key and exchanged is None:
            wrong = choose_wrong_key(question.sample, key, self._base, seed=self._seed).key
            update["candidates"] = candidates_for(key, wrong, question.sample, self._base, count=LISTED, seed=self._seed)
        if rng.random() < self._settings.unshown_share:
            update["sample"] = question.sample.model_copy(update={"references": ()})
        return question.model_copy(update=update)
