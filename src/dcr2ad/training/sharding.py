"""FSDP2: a model divided among processes by torch's `fully_shard`, so that none holds all of it.

Reads a model made trainable, and of `accelerate launch` what it says by `FullyShardedDataParallelPlugin`; divides the model in
place, and turns divided tensors into whole ones and back, so that files are the same whether a model was divided or not.
accelerate's own `prepare` is passed by: it ignores FSDP on a CPU, where this is tested; it would divide a frozen vision tower,
whose outputs each process keeps for itself; and it has one precision for all parts. Knows nothing about losses, steps or files.
Not in the paper.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map_only

from dcr2ad.errors import ModelError
from dcr2ad.models.placement import asks_for
from dcr2ad.training.weights import ImageInputs, sees_images


def check_launch() -> bool:
    """Whether the launcher asks for a divided model.

    Raises:
        ModelError: it asks for DeepSpeed, FSDP1 or parameters kept in the host's memory.
    """
    if asks_for("DEEPSPEED"):
        what = "training under DeepSpeed is not supported: it steps, clips and accumulates by itself, as the training loop does"
        raise ModelError(what, "Launch with recipes/fsdp2.yaml, which divides the same tensors")
    if not asks_for("FSDP"):
        return False
    plugin = _plugin()
    if plugin.fsdp_version != 2:
        raise ModelError("training under FSDP1 is not supported", "Set fsdp_version: 2, as recipes/fsdp2.yaml does")
    if isinstance(plugin.cpu_offload, CPUOffloadPolicy):
        raise ModelError("fsdp_offload_params is not supported", "Set it to false, and use more GPUs (`dcr2ad plan`)")
    return True


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


def whole_state(model: Any, dtype: torch.dtype, *, keep: bool) -> dict[str, torch.Tensor]:
    """What is written of a trained model, on the CPU: of an adapter what is trained, else everything.

    All processes must call it.

    Args:
        model: a divided model.
        dtype: type that a whole model's weights are written in.
        keep: whether this process wants it.
    """
    # Not `named_parameters`: a forward without a backward leaves gathered ones there, which are gone a moment later.
    state = model.state_dict(keep_vars=True)
    if hasattr(model, "peft_config"):
        return dict(gather({name: value.detach() for name, value in state.items() if value.requires_grad}, keep=keep))
    found: dict[int, Any] = {}  # tied weights are one tensor, and stay one
    for value in state.values():
        if id(value) not in found:
            full = gather(value.detach(), keep=keep)
            found[id(value)] = full.to(dtype) if keep and full.is_floating_point() else full
    return {name: found[id(value)] for name, value in state.items()}


def like(value: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """A whole tensor of a parameter's shape, divided as the parameter is; every process has it."""
    if not isinstance(parameter, DTensor) or value.shape != parameter.shape:
        return value
    return distribute_tensor(value.detach(), parameter.device_mesh, parameter.placements, src_data_rank=None)


def load_moments(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load an optimiser's state from whole tensors, as `gather` gives them; moments are divided as their parameters are."""
    numbered = enumerate(value for group in optimizer.param_groups for value in group["params"])
    divided = {number: {key: like(x, value) for key, x in state["state"][number].items()} for number, value in numbered}
    optimizer.load_state_dict({**state, "state": divided})


def _plugin() -> Any:
    """What the launcher's environment says of FSDP."""
    from accelerate import FullyShardedDataParallelPlugin

    return FullyShardedDataParallelPlugin()
