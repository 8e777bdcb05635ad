"""FSDP2: a model divided among processes by torch's `fully_shard`, so that none holds all of it.

Reads a model made trainable, and of `accelerate launch` what it says by `FullyShardedDataParallelPlugin`; divides the model in
place, and turns divided tensors into whole ones and back, so that files are the same whether a model was divided or not.
accelerate's own `prepare` is passed by: it ignores FSDP on a CPU, where this is tested; it would divide a frozen vision tower,
whose outputs each process keeps for itself; and it has one precision for all parts. Knows nothing about losses, steps or files.
Not in the paper.
"""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map_only

from dcr2ad.config import TrainSettings
from dcr2ad.errors import ModelError
from dcr2ad.training.spread import Spread, whole_state
from dcr2ad.training.weights import ImageInputs, sees_images


class Fsdp(Spread):
    """A model divided among all processes."""

    divided = True

    @staticmethod
    def check() -> None:
        """Look at what the launcher asks for.

        Raises:
            ModelError: it asks for FSDP1 or parameters kept in the host's memory.
        """
        plugin = _plugin()
        if plugin.fsdp_version != 2:
            raise ModelError("training under FSDP1 is not supported", "Set fsdp_version: 2, as recipes/fsdp2.yaml does")
        if isinstance(plugin.cpu_offload, CPUOffloadPolicy):
            raise ModelError("fsdp_offload_params is not supported", "Set it to false, and use more GPUs (`dcr2ad plan`)")

    def _spread(self, model: Any, settings: TrainSettings, *, autocast: bool) -> Any:
        self.images = divide(model, self.accelerator.device, self.images, autocast=autocast)
        self._optimize(model, settings)
        return model

    @property
    def reads_to(self) -> torch.device:
        """The host, since no device may hold all of it."""
        return torch.device("cpu")

    def forward(self, *, last: bool) -> AbstractContextManager[None]:
        """As `Spread.forward`; gradients are exchanged after each, or they would be whole in each process."""
        return nullcontext()

    def _norm(self, found: torch.Tensor) -> float:
        return float(gather(found))

    def state(self, *, keep: bool) -> tuple[dict[str, Any], dict[str, Any]]:
        """As `Spread.state`, gathered on the CPU."""
        weights, optimizer = gather([self.trained, self.optimizer.state_dict()], keep=keep)
        return weights, optimizer

    def load(self, weights: dict[str, torch.Tensor], optimizer: dict[str, Any]) -> None:
        """As `Spread.load`; moments are divided as their parameters are."""
        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(_like(weights[name], parameter))
        numbered = enumerate(value for group in self.optimizer.param_groups for value in group["params"])
        moments = {
            number: {key: _like(x, value) for key, x in optimizer["state"][number].items()} for number, value in numbered
        }
        self.optimizer.load_state_dict({**optimizer, "state": moments})

    def whole_state(self, model: Any, dtype: torch.dtype, *, keep: bool) -> dict[str, Any]:
        """As `Spread.whole_state`, gathered on the CPU."""

        def whole(value: torch.Tensor) -> torch.Tensor | None:
            full: torch.Tensor = gather(value.detach(), keep=keep)
            return full if keep else None

        return whole_state(model, dtype, whole)


def divide(model: Any, device: torch.device, images: ImageInputs, *, autocast: bool) -> ImageInputs:
    """Divide a model's parameters among all processes, in place; each part is moved to the device just before.

    A frozen vision tower, and a frozen projector behind it, stay whole: features are cached by each process for its own rows,
    so that processes run the tower at different times, and gathering wants all of them at once. Types may differ within a part,
    frozen bfloat16 beside trained float32: torch gathers bytes, and asks one type of those that have gradients only.

    Args:
        model: a model whose trainable parameters require gradients and are float32.
        device: where this process computes.
        images: what images enter as, see `dcr2ad.training.weights.image_inputs`.
        autocast: whether products are computed in bfloat16. Trained weights of the language model's layers are then gathered in
            bfloat16, layer by layer, where autocast would hold such copies of all of them at once; the stream between layers
            keeps its type.

    Returns:
        what images must enter as now: through the whole forward as soon as anything that sees them is divided.
    """
    whole = undivided(model, images)
    for value in whole:
        value.data = value.data.to(device)
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    low = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    reshard = _plugin().reshard_after_forward
    for part, products in parts(model):
        if not whole.issuperset(part.parameters()):
            policy = low if autocast and products else MixedPrecisionPolicy()
            fully_shard(part, mesh=mesh, mp_policy=policy, reshard_after_forward=reshard, ignored_params=whole)
    fully_shard(model, mesh=mesh, ignored_params=whole)
    warnings.filterwarnings("ignore", message=".* returned a view tensor")  # nothing writes into logits
    if images == "features":
        return images
    register_fsdp_forward_method(model, "get_image_features")
    return "pixels"


def undivided(model: Any, images: ImageInputs) -> set[torch.nn.Parameter]:
    """Parameters that stay whole in each process: those that make image features, where none of the tower's is trained."""
    if images == "pixels":
        return set()
    return {value for name, value in model.named_parameters() if not value.requires_grad and sees_images(name)}


def parts(model: Any) -> list[tuple[Any, bool]]:
    """What is gathered by itself: transformer blocks; embeddings and head, unless they are one. The rest goes together.

    Returns:
        modules, and of each whether it is a layer or the head of the language model, whose weights are used in products.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = set(model.get_decoder().layers)
    blocks = [(module, module in layers) for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    return blocks if embeddings.weight is head.weight else [*blocks, (embeddings, False), (head, True)]


def gather(tree: Any, *, keep: bool = True) -> Any:
    """Divided tensors as whole ones on the CPU, one after the other, anything else as it is; all processes must call it.

    Args:
        tree: nested dicts and lists.
        keep: whether this process wants them; else it gets None in their place.
    """

    def whole(value: DTensor) -> torch.Tensor | None:
        full = value.full_tensor()
        return full.cpu() if keep else None

    return tree_map_only(DTensor, whole, tree)


def _like(value: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """A whole tensor of a parameter's shape, divided as the parameter is; every process has it."""
    if not isinstance(parameter, DTensor) or value.shape != parameter.shape:
        return value
    return distribute_tensor(value.detach(), parameter.device_mesh, parameter.placements, src_data_rank=None)


def _plugin() -> Any:
    """What the launcher's environment says of FSDP."""
    from accelerate import FullyShardedDataParallelPlugin

    return FullyShardedDataParallelPlugin()
