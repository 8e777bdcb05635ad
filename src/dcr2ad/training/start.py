"""What a training goes on from: the model given, told apart from an adapter that lies on its base.

Reads a model and the name it goes by; returns a `Start`. Knows nothing about what is trained.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dcr2ad.errors import InputError
from dcr2ad.models.adapters import MARKER, TrainedModel, adapter_of, read_trained
from dcr2ad.models.hf import trained_folder
from dcr2ad.models.vlm import VisionLanguageModel
from dcr2ad.training.weights import model_digest, weights_digest


@dataclass(frozen=True)
class Start:
    """A model to go on from.

    Attributes:
        base: name of the model that an adapter trained here is to be loaded onto.
        adapter: the adapter to go on with; None where the start is a whole model.
        trained: what the start says of its own training, if it had any here.
        digests: of the model as given, and of the adapter.
    """

    base: str
    adapter: Path | None
    trained: TrainedModel | None
    digests: dict[str, str]


def start_from(vlm: VisionLanguageModel, spec: str) -> Start:
    """What a training goes on from.

    Args:
        vlm: the model called `spec`, or, where `spec` is the folder of an adapter, that adapter's base.
        spec: name the model goes by.

    Raises:
        InputError: the model given is another one: an adapter's base without it, or with the adapter merged in already.
    """
    adapter, folder = adapter_of(spec), trained_folder(spec)
    digests = {"model": model_digest(vlm.model)}
    if adapter is None:
        if (Path(spec) / MARKER).is_file() and Path(vlm.model.name_or_path).resolve() != Path(spec).resolve():
            raise InputError(f"the model given is {vlm.model.name_or_path}, not the SFT model {spec}", f"Open {spec}")
        return Start(spec, None, read_trained(folder) if folder else None, digests)
    was, now = adapter.base_digest.split("-")[0], digests["model"].split("-")[0]
    if was == now and adapter.base_digest != digests["model"]:
        raise InputError(
            f"the model given is not the one that the adapter in {spec} was trained on ({adapter.base!r})",
            f"Open {adapter.base!r}, without the adapter",
        )
    return Start(adapter.base, Path(spec), adapter, {**digests, "adapter": weights_digest(spec)})
