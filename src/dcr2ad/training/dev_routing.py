"""How well the policy routes while it is trained: photographs of a dev set in, accuracies for the log out.

Reads a questions file, the knowledge base and the policy; writes routing.jsonl in the stage's folder and returns shares. The
policy answers as `dcr2ad evaluate --what routing` asks it, with its weights as they stand. Nothing random is drawn and no
gradient kept, so that a training with measurements takes the same steps as one without. Knows nothing about pairs or losses.
Not in the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from dcr2ad import rankings
from dcr2ad.artifacts import RecordWriter, digest_records, read_records
from dcr2ad.config import KrdpoSettings
from dcr2ad.errors import InputError
from dcr2ad.knowledge.base import KnowledgeBase
from dcr2ad.models.hf import HFModel
from dcr2ad.routing import route_sample
from dcr2ad.training.trainer import Session
from dcr2ad.types import Question, Record, RouteMode, Sample

ROUTING = "routing.jsonl"
"""File of the measurements in the stage's folder."""


class RoutingStep(Record):
    """One measurement; shares from 0 to 1."""

    step: int
    """Optimiser steps made before it; 0 is the starting policy."""
    photographs: int
    """Photographs routed."""
    top1: float
    """Share whose right entry is ranked first."""
    top3: float
    """Share whose right entry is among the first three."""
    mrr: float
    """Mean reciprocal rank of the right entry."""

    def line(self) -> dict[str, float]:
        """What the step's line of the log gets."""
        return {"routing_top1": self.top1, "routing_top3": self.top3, "routing_mrr": self.mrr}


@dataclass(frozen=True)
class RoutingDev:
    """Photographs of a dev set, and when they are routed.

    Attributes:
        samples: photographs whose right entry is in the base.
        knowledge_base: K.
        mode: how the policy ranks.
        every: optimiser steps between measurements.
        file: where they are kept.
    """

    samples: Sequence[Sample]
    knowledge_base: KnowledgeBase
    mode: RouteMode
    every: int
    file: Path

    @classmethod
    def open(cls, settings: KrdpoSettings, knowledge_base: KnowledgeBase, out: Path) -> RoutingDev | None:
        """Read the dev set that the settings name; None where they name none.

        Raises:
            InputError: it holds no photograph with a known right entry.
            RecordError: it cannot be read.
        """
        if settings.routing_dev is None:
            return None
        path = Path(settings.routing_dev)
        if not path.is_file():
            raise InputError(f"no such file: {path} (krdpo.routing_dev)", "Name a questions.jsonl, or leave the key out")
        every = {question.sample.image: question.sample for question in read_records(path, Question)}
        samples = [sample for sample in every.values() if sample.right_key is not None and sample.right_key in knowledge_base]
        if not samples:
            what = f"{path} (krdpo.routing_dev) shows no photograph whose label leads to an entry of the knowledge base"
            raise InputError(what, "Build it with `dcr2ad bench build` on this base")
        return cls(samples, knowledge_base, settings.routing_mode, settings.routing_steps, out / ROUTING)

    @property
    def digest(self) -> str:
        """Digest of the photographs."""
        return digest_records(self.samples)

    def is_due(self, step: int, total: int) -> bool:
        """Whether a measurement belongs after so many of all steps."""
        return step % self.every == 0 or step == total

    def measure(self, session: Session, step: int) -> RoutingStep:
        """Route every photograph under the policy as it stands, or take what an earlier session measured at this step."""
        from accelerate.utils import broadcast_object_list, gather_object

        accelerator = session.accelerator
        found: RoutingStep | None = broadcast_object_list([self._stored(step) if accelerator.is_main_process else None])[0]
        if found is not None:
            return found
        if session.divided:  # every forward needs all processes: each routes every photograph, in step
            ranks = _ranks(session, self.samples, self)
        else:
            ranks = gather_object(_ranks(session, self.samples[accelerator.process_index :: accelerator.num_processes], self))
        found = RoutingStep(
            step=step,
            photographs=len(ranks),
            top1=sum(rankings.hits(ranks, 1)) / len(ranks),
            top3=sum(rankings.hits(ranks, 3)) / len(ranks),
            mrr=sum(rankings.reciprocal(ranks)) / len(ranks),
        )
        if accelerator.is_main_process:
            with RecordWriter(self.file) as writer:
                writer.write(found)
        return found

    def summary(self) -> dict[str, object]:
        """First and last measurement."""
        steps = sorted(read_records(self.file, RoutingStep), key=lambda row: row.step)
        return {"routing": {"before": steps[0].model_dump(), "after": steps[-1].model_dump()}} if steps else {}

    def _stored(self, step: int) -> RoutingStep | None:
        RecordWriter(self.file).close()  # makes the file, and cuts off what a kill left half-written
        return next((row for row in read_records(self.file, RoutingStep) if row.step == step), None)


def _ranks(session: Session, samples: Sequence[Sample], dev: RoutingDev) -> list[int | None]:
    """Rank of the right entry of each photograph, 1 the best."""
    vlm, training = session.vlm, session.model.training
    if session.images != "features":
        vlm.forget_features(tower=False)  # the projector or the tower has changed since
    session.model.eval()
    model = HFModel(vlm, name="the policy", digest="")
    with torch.autocast(vlm.device.type, torch.bfloat16, enabled=session.autocast):
        routed = [route_sample(model, sample, dev.knowledge_base, mode=dev.mode) for sample in samples]
    session.model.train(training)
    if session.images != "features":
        vlm.forget_features(tower=False)
    return [
        rankings.rank_of(sample.right_key or "", {entry.key: entry.probability for entry in found.ranking})
        for sample, found in zip(samples, routed, strict=True)
    ]
