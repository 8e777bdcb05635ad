"""A trained model as an adapter to ship: small, with its digest, its manifest and a card.

Reads the folder of a training stage; writes a folder that `dcr2ad.models.hf` opens like any other. Weights are rounded to
bfloat16. A whole model is cut to low rank first (`dcr2ad.training.extract`), and so is an adapter trained on one of the
package's own: it becomes one adapter on the embedded model before any training. Of the training's change a part alone can be
kept. What rounding, cutting and leaving out cost is to be measured on the packed folder. Not in the paper.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from dcr2ad.artifacts import write_text
from dcr2ad.errors import InputError
from dcr2ad.models.adapters import MARKER, TrainedModel, read_trained
from dcr2ad.models.hf import HFModel
from dcr2ad.models.shipped import BASE, MOST_BYTES, adapter_digest
from dcr2ad.report.card import CARD, model_card
from dcr2ad.training.extract import extract_adapter
from dcr2ad.training.weights import model_digest, weights_digest
from dcr2ad.types import EvalReport


@dataclass(frozen=True)
class Packing:
    """How to pack.

    Attributes:
        rank: of a whole model, the rank of every weight's change; None chooses each by `energy`, and of an adapter that
            stays one the rank it has.
        energy: of a whole model, share of each weight's squared change that is kept.
        part: how far to go from the model that the training went on from (0) to the trained one (1). Half of the way may keep
            more of what was known, and most of what was learnt (WiSE-FT, Wortsman et al. 2022).
        start: ``model/`` of the training before, whose adapter this one went on with: a part is counted from there. Wanted
            where the folder says so, and a part alone is kept.
        licence: what the licences of the training data allow, in words; empty keeps what the folder says.
        reports: evaluations to print in the card, by name.
    """

    rank: int | None = None
    energy: float = 0.9
    part: float = 1.0
    start: Path | None = None
    licence: str = ""
    reports: Mapping[str, EvalReport] = field(default_factory=dict)


def pack_adapter(folder: str | Path, out: str | Path, how: Packing = Packing()) -> TrainedModel:
    """Pack a trained model. The folder appears in one step.

    Args:
        folder: ``model/`` of a training stage.
        out: folder to write.
        how: see `Packing`.

    Raises:
        ModelError: the folder is no trained model.
        InputError: something stands at `out`, the part is none or one of a folder that is a part already, the training went on
            from another model than the one named, or from one that is not named, or an adapter of the embedded model is larger
            than the package takes.
    """
    if not 0 < how.part <= 1:
        raise InputError(f"no such part of a training: {how.part}", "Give more than 0 and at most 1")
    source, target = Path(folder), Path(out)
    trained = read_trained(source)
    if how.part < 1:
        if trained.part < 1:
            what = f"{source} is {trained.part:g} of the way of its training already, and does not hold where that began"
            raise InputError(what, "Pack the trained folder by another --part")
        _check_start(source, trained, how.start)
    if target.exists():
        raise InputError(f"{target} exists already", "Name a new folder")
    work = target.with_name(f".{target.name}.tmp")
    raw = work / "float32"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        update: dict[str, object] = {"kind": "adapter", "licence": how.licence or trained.licence}
        stacked = trained.kind == "adapter" and bool(adapter_digest(trained.base))
        plain = trained.kind == "adapter" and not stacked
        if not plain or how.part < 1:
            base_name = BASE if stacked else trained.base
            base, tuned = (HFModel.open(name).vlm.model for name in (base_name, str(source)))
            mixed = [source]
            if how.part < 1:
                start_name = str(how.start or trained.base)
                _go_back(tuned, base if start_name == base_name else HFModel.open(start_name).vlm.model, how.part)
                mixed += [how.start] if how.start else []
            rank = sum(map(_rank_of, mixed)) if plain and how.rank is None else how.rank
            update["extracted"] = extract_adapter(base, tuned, raw, rank=rank, energy=how.energy).record()
            update["part"] = how.part
            if stacked:
                update |= {"base": BASE, "base_digest": model_digest(base), "base_adapter": ""}
            source = raw
        _round(source, work)
        shutil.rmtree(raw, ignore_errors=True)
        packed = trained.model_copy(update={**update, "digest": weights_digest(work)})
        write_text(work / MARKER, json.dumps(packed.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n")
        write_text(work / CARD, model_card(packed, how.reports))
        size = sum(path.stat().st_size for path in work.iterdir())
        if packed.base == BASE and size > MOST_BYTES:
            raise InputError(
                f"packed it has {size / 2**20:.1f} MB, and the package takes {MOST_BYTES // 2**20}",
                "Keep less with --rank, or of a whole model with --energy, or train with a lower lora_rank",
            )
        work.rename(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return packed


def _check_start(source: Path, trained: TrainedModel, start: Path | None) -> None:
    """Whether a part of the way is counted from where the training began.

    Raises:
        InputError: it went on with the adapter of a model that is not named, or not with that of the one named.
        ModelError: what is named is no trained model.
    """
    if start is None:
        if trained.start:
            what = f"{source} went on with the adapter of a model trained before, and a part of its way begins there"
            raise InputError(what, "Name that model's folder by --start")
    elif read_trained(start).base != trained.base or trained.start not in ("", weights_digest(start)):
        raise InputError(
            f"{start} is not the model that {source} went on from", "Name the folder that --model named in training"
        )


def _go_back(tuned: Any, start: Any, part: float) -> None:
    """Move a trained model's weights, in place, to where a part of the way from its start lies."""
    before = dict(start.named_parameters())
    with torch.no_grad():
        for name, value in tuned.named_parameters():
            value.lerp_(before[name], 1 - part)


def _rank_of(adapter: Path) -> int:
    return int(json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))["r"])


def _round(source: Path, target: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = {name: value.to(torch.bfloat16) for name, value in load_file(source / "adapter_model.safetensors").items()}
    save_file(tensors, target / "adapter_model.safetensors", metadata={"format": "pt"})
    (target / "adapter_model.safetensors").chmod(0o644)  # written for its owner alone, and to be installed for all
    shutil.copy2(source / "adapter_config.json", target)
