"""A full fine-tuning as an adapter: the change of each weight, cut to low rank by its singular values.

Reads a base model and a fine-tuned one of the same architecture; writes a peft adapter folder that `merge_for_inference` puts
onto the base. Changed parameters that are no matrices (norms, biases) and the projector are kept whole. Not in the paper,
which fine-tunes the 7B model in full and ships it whole.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dcr2ad.errors import InputError, ModelError
from dcr2ad.models.adapters import PROJECTORS, enclosing


@dataclass(frozen=True)
class Extraction:
    """What an extraction kept.

    Attributes:
        rank: largest rank of a weight.
        energy: share of the squared change of all matrices that is kept, 0 to 1.
        error: Frobenius norm of what is lost over that of the whole change.
        weights: matrices that changed.
        whole: modules kept whole.
    """

    rank: int
    energy: float
    error: float
    weights: int
    whole: tuple[str, ...]

    def record(self) -> dict[str, float]:
        """The figures, for `TrainedModel.extracted`."""
        return {"rank": self.rank, "energy": round(self.energy, 6), "error": round(self.error, 6)}


def extract_adapter(base: Any, tuned: Any, out: Path, *, rank: int | None = None, energy: float = 0.9) -> Extraction:
    """Write the difference of two models as a peft adapter in float32.

    Args:
        base: the model before fine-tuning.
        tuned: the model after it, with the same parameters by name and shape.
        out: folder to write; must not exist.
        rank: rank of every weight; None chooses each by `energy`.
        energy: smallest share of a weight's squared change that its rank keeps, where `rank` is None.

    Raises:
        InputError: rank or energy out of range, something stands at `out`, or nothing changed.
        ModelError: the models do not fit together.
    """
    if (rank is not None and rank < 1) or not 0 < energy <= 1:
        raise InputError(f"no such cut: rank {rank}, energy {energy}", "Give a rank of at least 1, or an energy of 0 to 1")
    if out.exists():
        raise InputError(f"{out} exists already", "Name a new folder")
    before, after = dict(base.named_parameters()), dict(tuned.named_parameters())
    if {n: v.shape for n, v in before.items()} != {n: v.shape for n, v in after.items()}:
        raise ModelError("the fine-tuned model has other parameters than its base", "Name the base it was trained from")
    factors: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    whole: set[str] = set()
    kept = lost = 0.0
    for name, module in _changed(base, before, after):
        parameter = f"{name}.weight"
        if not isinstance(module, nn.Linear | nn.Embedding) or enclosing(name, PROJECTORS):
            whole.add(name)
            continue
        up, down, square, left = _cut(after[parameter].detach().float() - before[parameter].detach().float(), rank, energy)
        factors[name] = (up, down)
        kept, lost = kept + square - left, lost + left
        if getattr(module, "bias", None) is not None and not torch.equal(before[f"{name}.bias"], after[f"{name}.bias"]):
            raise ModelError(f"{name} changed its bias, which a low-rank adapter cannot hold", "Use a model without biases")
    if not factors and not whole:
        raise InputError("the fine-tuned model equals its base", "Name the folder of the model that was trained")
    found = Extraction(
        rank=max((down.shape[0] for _, down in factors.values()), default=0),
        energy=kept / (kept + lost) if kept + lost else 1.0,
        error=(lost / (kept + lost)) ** 0.5 if kept + lost else 0.0,
        weights=len(factors),
        whole=tuple(sorted(whole)),
    )
    _write(base, after, factors, found, out)
    return found


def _changed(base: Any, before: dict[str, Any], after: dict[str, Any]) -> Iterator[tuple[str, nn.Module]]:
    """Innermost modules with a parameter that changed; the projector as one."""
    seen: set[str] = set()
    modules = dict(base.named_modules())
    for parameter, value in before.items():
        if torch.equal(value, after[parameter]):
            continue
        name = parameter.rpartition(".")[0]
        name = enclosing(name, PROJECTORS) or name
        if name not in seen:
            seen.add(name)
            yield name, modules[name]


def _cut(change: torch.Tensor, rank: int | None, energy: float) -> tuple[torch.Tensor, torch.Tensor, float, float]:
    """Factors (rows x r, r x columns) of a matrix, its squared norm, and what of it the cut leaves out."""
    left, values, right = torch.linalg.svd(change, full_matrices=False)
    squares = values.double().square()
    total = float(squares.sum())
    shares = squares.cumsum(0) / total
    chosen = min(rank, len(values)) if rank is not None else int((shares < energy - 1e-12).sum()) + 1
    chosen = min(chosen, len(values))
    root = values[:chosen].sqrt()
    return left[:, :chosen] * root, root[:, None] * right[:chosen], total, float(squares[chosen:].sum())


def _write(
    base: Any,
    after: dict[str, Any],
    factors: dict[str, tuple[torch.Tensor, torch.Tensor]],
    found: Extraction,
    out: Path,
) -> None:
    from peft import LoraConfig
    from safetensors.torch import save_file

    tensors: dict[str, torch.Tensor] = {}
    modules = dict(base.named_modules())
    for name, (up, down) in factors.items():
        key = f"base_model.model.{name}"
        if isinstance(modules[name], nn.Embedding):
            tensors[f"{key}.lora_embedding_A"], tensors[f"{key}.lora_embedding_B"] = up.T.contiguous(), down.T.contiguous()
        else:
            tensors[f"{key}.lora_A.weight"], tensors[f"{key}.lora_B.weight"] = down.contiguous(), up.contiguous()
    for name in found.whole:
        for parameter, value in after.items():
            if parameter.startswith(f"{name}."):
                tensors[f"base_model.model.{parameter}"] = value.detach().float().contiguous()
    ranks = {name: down.shape[0] for name, (_, down) in factors.items()}
    # Linear layers of one rank: the form that is merged without peft when a model is opened (`merge_for_inference`).
    plain = len(set(ranks.values())) == 1 and not any(isinstance(modules[name], nn.Embedding) for name in factors)
    pattern = {} if plain else {f"^{name}": rank for name, rank in ranks.items()}
    config = LoraConfig(
        r=max(ranks.values(), default=1),
        lora_alpha=max(ranks.values(), default=1),
        lora_dropout=0.0,
        target_modules="|".join(map(re.escape, sorted(factors))) if plain else sorted(factors),
        rank_pattern=pattern,
        alpha_pattern=pattern,
        modules_to_save=list(found.whole) or None,
    )
    work = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    save_file(tensors, work / "adapter_model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(work)
    work.rename(out)
