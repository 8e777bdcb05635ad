"""How a model lies on the processes that train it, and what a step is made by: here whole in each of them (DDP), or in one.

Reads a model made trainable; returns a `Spread`, which the training loop calls and steps. `dcr2ad.training.sharding` divides
the model by FSDP2, `dcr2ad.training.zero` by DeepSpeed's ZeRO, under the same methods; which one it is the launcher says
(`dcr2ad.training.launch`). Whole tensors go in and out, so that checkpoints and models are the same files under all of them.
Knows nothing about losses, steps or files.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from dcr2ad.config import TrainSettings
from dcr2ad.training.weights import ImageInputs, image_inputs


class Spread:
    """A model on its processes, whole in each.

    Args:
        model: a model whose trainable parameters require gradients and are float32; spread in place.
        accelerator: accelerate's `Accelerator`.
        settings: the optimiser's.
        autocast: whether products are computed in bfloat16.

    Attributes:
        called: what is called in place of the model.
        images: what images must enter as.
        divided: whether no process can make a forward without the others.
        trained: trained parameters by name.
        optimizer: AdamW; its groups hold the learning rate.
    """

    divided = False

    def __init__(self, model: Any, accelerator: Any, settings: TrainSettings, *, autocast: bool) -> None:
        self.accelerator = accelerator
        self.images: ImageInputs = image_inputs(model)
        self.called = self._spread(model, settings, autocast=autocast)

    def _spread(self, model: Any, settings: TrainSettings, *, autocast: bool) -> Any:
        """Put the model where it is computed, make the optimiser; returns what is called."""
        called = self.accelerator.prepare(model)
        self._optimize(model, settings)
        return called

    def _optimize(self, model: Any, settings: TrainSettings) -> None:
        self.trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
        self.optimizer = adamw(self.trained, settings, fused=self.accelerator.device.type == "cuda")

    @property
    def reads_to(self) -> torch.device:
        """Where a checkpoint is read to."""
        return next(iter(self.trained.values())).device

    def forward(self, *, last: bool) -> AbstractContextManager[Any]:
        """What one forward and its backward are made in.

        Args:
            last: whether it is the step's last; gradients are exchanged then.
        """
        return nullcontext() if last else self.accelerator.no_sync(self.called)

    def backward(self, loss: torch.Tensor) -> None:
        """Add gradients, which are averaged over processes."""
        self.accelerator.backward(loss)

    def update(self, max_norm: float) -> float:
        """Clip, step and forget the gradients.

        Returns:
            the gradient's norm before clipping.
        """
        norm = self._norm(self.accelerator.clip_grad_norm_(list(self.trained.values()), max_norm))
        self.optimizer.step()
        self.optimizer.zero_grad()
        return norm

    def _norm(self, found: torch.Tensor) -> float:
        return float(found)

    def state(self, *, keep: bool) -> tuple[dict[str, Any], dict[str, Any]]:
        """Trained parameters by name and the optimiser's state, whole; all processes must call it.

        Args:
            keep: whether this process wants them.
        """
        return dict(self.trained), self.optimizer.state_dict()

    def load(self, weights: dict[str, torch.Tensor], optimizer: dict[str, Any]) -> None:
        """Take what `state` gave, under this spread or another; every process has it."""
        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(weights[name])
        self.optimizer.load_state_dict(optimizer)

    def whole_state(self, model: Any, dtype: torch.dtype, *, keep: bool) -> dict[str, Any] | None:
        """Tensors that are written of the trained model; None where the model itself holds them.

        All processes must call it.

        Args:
            model: the model.
            dtype: type that a whole model's weights are written in.
            keep: whether this process wants them.
        """
        return None

    def close(self) -> None:
        """Undo what reaches beyond the model."""


def whole_state(model: Any, dtype: torch.dtype, whole: Callable[[torch.Tensor], torch.Tensor | None]) -> dict[str, Any]:
    """What is written of a trained model, on the CPU: of an adapter what is trained, else everything.

    Args:
        model: a model on its processes.
        dtype: type that a whole model's weights are written in.
        whole: makes a whole tensor of one of its own; None where this process does not want it.
    """
    # Not `named_parameters`: under FSDP2 a forward without a backward leaves gathered ones there, gone a moment later.
    state = model.state_dict(keep_vars=True)
    adapter = hasattr(model, "peft_config")
    found: dict[int, torch.Tensor | None] = {}  # tied weights are one tensor, and stay one
    for value in state.values():
        if id(value) not in found and (value.requires_grad or not adapter):
            full = whole(value)
            if full is not None and not adapter and full.is_floating_point():
                full = full.to(dtype)
            found[id(value)] = full
    return {name: found[id(value)] for name, value in state.items() if id(value) in found}


def adamw(trained: dict[str, torch.nn.Parameter], settings: TrainSettings, *, fused: bool) -> torch.optim.AdamW:
    """AdamW (Section 4.3); weight decay on matrices only, not on biases and norms.

    Args:
        trained: trained parameters by name, of their whole shapes.
        settings: learning rate and weight decay.
        fused: whether to use the fused one, as on a GPU: torch's default there holds another copy of all moments for a moment.
    """
    groups = [
        {"params": [value for value in trained.values() if value.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [value for value in trained.values() if value.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=settings.learning_rate, fused=fused or None)
