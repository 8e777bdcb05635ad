"""DeepSpeed's ZeRO: moments (stage 1), gradients (2) and weights (3) divided among processes, behind the methods of a `Spread`.

Reads of `accelerate launch` what it says by `DeepSpeedPlugin`; hands the model and AdamW to DeepSpeed's engine, which then
exchanges, clips and steps, at the boundaries that the training loop sets. accelerate's own `prepare` is passed by: it has
DeepSpeed on GPUs only, while this is tested on a CPU, and takes the launcher's word for what the recipe decides. DeepSpeed is
imported only where the launcher asks for it. Knows nothing about losses, steps or files. Not in the paper.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from importlib import metadata
from typing import Any

import torch

from dcr2ad.config import TrainSettings
from dcr2ad.errors import ModelError
from dcr2ad.training.sharding import undivided
from dcr2ad.training.spread import Spread, whole_state

OLDEST = (0, 19)
"""Oldest release of DeepSpeed that is taken; older ones were not tried."""
BUCKET = 50_000_000
"""Gradients exchanged together, unless the launcher says otherwise: 200 MB, where DeepSpeed's own default takes 2 GB."""
_SIZES = (
    *("allgather_bucket_size", "allgather_partitions", "contiguous_gradients", "overlap_comm", "reduce_bucket_size"),
    *("reduce_scatter", "round_robin_gradients", "stage3_max_live_parameters", "stage3_max_reuse_distance"),
    *("stage3_param_persistence_threshold", "stage3_prefetch_bucket_size", "sub_group_size"),
)
"""What the launcher may say of ZeRO beside its stage: sizes and order, which change no result."""
_IDLE = ("stage", "stage3_gather_16bit_weights_on_model_save", "offload_optimizer", "offload_param")
"""What is looked at by itself, or without effect here."""


class Zero(Spread):
    """A model under DeepSpeed's engine."""

    @staticmethod
    def check(settings: TrainSettings) -> None:
        """Look at what the launcher asks for.

        Raises:
            ModelError: DeepSpeed is missing or too old, or what the launcher says is not supported or contradicts the settings.
        """
        _configuration(settings)

    def _spread(self, model: Any, settings: TrainSettings, *, autocast: bool) -> Any:
        """As `Spread`; under stage 3 a frozen vision tower stays whole, as under FSDP2 (`dcr2ad.training.sharding.divide`)."""
        import deepspeed

        config = _configuration(settings)
        self.divided = config["zero_optimization"]["stage"] == 3
        if self.accelerator.device.type == "cpu":  # else it compiles an operator for inference, for minutes
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        warnings.filterwarnings("ignore", message=r"`torch\.distributed\.\w+` is deprecated")  # DeepSpeed calls them
        self._linear = torch.nn.functional.linear
        self._optimize(model, settings)  # before anything is divided, since shapes decide what decays
        self._groups = self.optimizer.state_dict()["param_groups"]
        names = {id(value): name for name, value in self.trained.items()}
        self._numbered = [names[id(value)] for group in self.optimizer.param_groups for value in group["params"]]
        self._hidden = self._hide(model) if self.divided else []
        if self.divided:  # one parameter after the other; the engine would put the whole model onto the device first
            deepspeed.zero.Init(module=model, config_dict_or_path=config)
            for value in model.buffers():
                value.data = value.data.to(self.accelerator.device)
        self._engine = deepspeed.initialize(model=model, optimizer=self.optimizer, config=config)[0]
        self._begin_moments()
        if self.divided and self.images != "features":
            self.images = "pixels"
        return self._engine

    def _hide(self, model: Any) -> list[tuple[Any, str, Any]]:
        """Keep from DeepSpeed what stays whole: it divides and hooks all that it sees, and a hook wants all processes at once.

        Hidden modules are called as before, but are no part of the module tree.
        """
        found = list(_whole_modules(model, undivided(model, self.images)))
        for parent, name, module in found:
            module.to(self.accelerator.device)
            parent._modules[name] = None  # keeps its place
            parent.__dict__[name] = module
        return found

    def _show(self) -> None:
        while self._hidden:
            parent, name, module = self._hidden.pop()
            del parent.__dict__[name]
            parent._modules[name] = module

    def _begin_moments(self) -> None:
        """Make AdamW's moments, which it makes itself at its first step, so that a checkpoint can be loaded before."""
        zero = self._engine.optimizer
        self._flat = zero.fp32_partitioned_groups_flat if self.divided else zero.single_partition_of_fp32_groups
        for flat in self._flat:
            step = torch.zeros((), device=flat.device if self.accelerator.device.type == "cuda" else "cpu")
            self.optimizer.state[flat] = {"step": step, "exp_avg": torch.zeros_like(flat), "exp_avg_sq": torch.zeros_like(flat)}
        if not self.divided:
            zero._lazy_init_hp_params_optimizer_state()  # which its first step would do, with groups without moments

    @property
    def reads_to(self) -> torch.device:
        """The host: whole moments would not fit beside the model."""
        return torch.device("cpu")

    def forward(self, *, last: bool) -> AbstractContextManager[None]:
        """As `Spread.forward`; from stage 2 on gradients are exchanged after each."""
        self._engine.set_gradient_accumulation_boundary(last)
        return nullcontext()

    def backward(self, loss: torch.Tensor) -> None:
        """As `Spread.backward`."""
        self._engine.backward(loss)

    def update(self, max_norm: float) -> float:
        """As `Spread.update`; `max_norm` is in the engine's configuration. A gradient that is no number steps nothing."""
        self._engine.step()
        norm = float(self._engine.get_global_grad_norm())
        return norm if norm >= 0 else float("nan")  # -1 stands for what is no number

    def state(self, *, keep: bool) -> tuple[dict[str, Any], dict[str, Any]]:
        """As `Spread.state`, gathered one tensor after the other on the CPU."""
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        def whole(value: torch.Tensor) -> torch.Tensor | None:
            return value.detach().cpu().clone() if keep else None

        weights = {name: whole(safe_get_full_fp32_param(value)) for name, value in self.trained.items()}
        step = self.optimizer.state[self._flat[0]]["step"].detach().cpu()
        moments = {}
        for number, name in enumerate(self._numbered):
            both = {key: whole(safe_get_full_optimizer_state(self.trained[name], key)) for key in ("exp_avg", "exp_avg_sq")}
            moments[number] = {"step": step.clone(), **both}
        groups = [
            {**was, **{key: value for key, value in now.items() if key != "params"}}
            for was, now in zip(self._groups, self.optimizer.param_groups, strict=True)
        ]
        return weights, {"state": moments, "param_groups": groups}

    def load(self, weights: dict[str, torch.Tensor], optimizer: dict[str, Any]) -> None:
        """As `Spread.load`; each process takes its share."""
        for name, value in self.trained.items():
            self._put(value, weights[name])
        for number, name in enumerate(self._numbered):
            for key in ("exp_avg", "exp_avg_sq"):
                self._put(self.trained[name], optimizer["state"][number][key], key)
        for flat in self._flat:
            self.optimizer.state[flat]["step"].copy_(optimizer["state"][0]["step"])
        for group, was in zip(self.optimizer.param_groups, optimizer["param_groups"], strict=True):
            group.update({key: value for key, value in was.items() if key not in ("params", "fused", "foreach")})

    def _put(self, parameter: Any, whole: torch.Tensor, key: str | None = None) -> None:
        """Put a whole tensor in place of a parameter, or of one of its moments."""
        import deepspeed
        from deepspeed.utils import (
            safe_set_full_fp32_param,
            safe_set_full_optimizer_state,
            safe_set_local_fp32_param,
            safe_set_local_optimizer_state,
        )

        if key is None:
            with torch.no_grad(), deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
                parameter.copy_(whole)
        value = whole.to(self.accelerator.device)
        if self.divided:  # by its own share: a whole one must be a multiple of the processes
            value = _share(value, parameter.ds_tensor.numel(), self.accelerator)
        if key is None:
            (safe_set_local_fp32_param if self.divided else safe_set_full_fp32_param)(parameter, value)
        else:
            (safe_set_local_optimizer_state if self.divided else safe_set_full_optimizer_state)(parameter, value, key)

    def whole_state(self, model: Any, dtype: torch.dtype, *, keep: bool) -> dict[str, Any]:
        """As `Spread.whole_state`; under stage 1 and 2 too, where a model's tensors are parts of one large one."""
        import deepspeed

        def whole(value: torch.Tensor) -> torch.Tensor | None:
            gathered = deepspeed.zero.GatheredParameters([value]) if isinstance(value, torch.nn.Parameter) else nullcontext()
            with gathered:
                return value.detach().cpu().clone() if keep else None

        self._show()
        return whole_state(model, dtype, whole)

    def close(self) -> None:
        """Take away hooks, and torch's `linear` that DeepSpeed put its own in place of."""
        self._show()
        self._engine.destroy()
        torch.nn.functional.linear = self._linear


def _whole_modules(model: Any, whole: set[torch.nn.Parameter]) -> Iterator[tuple[Any, str, Any]]:
    """The largest modules of whose parameters all stay whole, each with its parent and its name there."""
    for name, module in model.named_children():
        values = set(module.parameters())
        if values and whole.issuperset(values):
            yield model, name, module
        else:
            yield from _whole_modules(module, whole)


def _share(whole: torch.Tensor, size: int, accelerator: Any) -> torch.Tensor:
    """This process's share of a tensor, as ZeRO-3 cuts it: flat, the last ones filled up with zeros."""
    flat = whole.flatten()
    padded = torch.nn.functional.pad(flat, (0, size * accelerator.num_processes - flat.numel()))
    return padded.narrow(0, size * accelerator.process_index, size)


def _configuration(settings: TrainSettings) -> dict[str, Any]:
    """DeepSpeed's configuration: what the launcher may say, and what the settings do.

    Raises:
        ModelError: see `Zero.check`.
    """
    _check_installed()
    from accelerate import DeepSpeedPlugin

    try:
        said = dict(DeepSpeedPlugin().deepspeed_config)
    except (ValueError, OSError) as error:
        raise ModelError(f"the launcher's DeepSpeed configuration: {str(error).splitlines()[0]}", "Correct it") from None
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision != "no":
        raise ModelError(f"mixed_precision: {precision} is not supported", 'Set it to "no"; the recipe says the precision')
    zero = said.pop("zero_optimization")
    stage = zero.get("stage", 0)
    if stage not in (1, 2, 3):
        raise ModelError(f"ZeRO stage {stage} divides nothing", "Use stage 1, 2 or 3, or launch with recipes/ddp.yaml")
    for part in ("offload_optimizer", "offload_param"):
        device = (zero.get(part) or {}).get("device", "none")
        if device != "none":
            raise ModelError(f"{part} to {device} is not supported", "Set it to none, and use more GPUs (`dcr2ad plan`)")
    if settings.max_grad_norm <= 0:
        what = f"max_grad_norm = {settings.max_grad_norm:g} would have DeepSpeed clip nothing"
        raise ModelError(what, "Set it above zero; a large one clips nothing anywhere")
    forwards, rows = settings.gradient_accumulation, settings.batch_size
    ours = {
        "gradient_accumulation_steps": forwards,
        "gradient_clipping": settings.max_grad_norm,
        "train_micro_batch_size_per_gpu": rows,
        "train_batch_size": rows * forwards * int(os.environ.get("WORLD_SIZE", "1")),
    }
    for name, value in said.items():
        _check_option(name, value, ours)
    other = [name for name in zero if name not in (*_SIZES, *_IDLE)]
    if other:
        raise ModelError(f"zero_optimization.{other[0]} is not supported", "Leave it out of DeepSpeed's configuration")
    sizes = {name: value for name, value in zero.items() if name in _SIZES and value != "auto"}
    return {
        "train_micro_batch_size_per_gpu": rows,
        "gradient_accumulation_steps": 1,  # the loop weighs rows itself and sets the boundaries
        "gradient_clipping": settings.max_grad_norm,
        "zero_allow_untested_optimizer": True,  # torch's AdamW
        "zero_optimization": {"reduce_bucket_size": BUCKET, **sizes, "stage": stage},
    }


def _check_option(name: str, value: Any, ours: dict[str, Any]) -> None:
    if name in ours:
        if value not in ("auto", ours[name]):
            what = f"{name} is {value} in the launcher's DeepSpeed configuration, {ours[name]} by the recipe"
            raise ModelError(what, "Set it to auto there: the recipe says it")
    elif isinstance(value, dict) and value.get("enabled") in (False, "auto"):
        return
    elif name not in ("steps_per_print", "zero_allow_untested_optimizer"):
        raise ModelError(f"DeepSpeed's {name} is not supported", "Leave it out of DeepSpeed's configuration")


def _check_installed() -> None:
    try:
        version = metadata.version("deepspeed")
    except metadata.PackageNotFoundError:
        raise ModelError("the launcher asks for DeepSpeed, which is not installed", "Install dcr2ad[deepspeed]") from None
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
        raise ModelError(f"DeepSpeed {version} is too old", f"Install DeepSpeed {'.'.join(map(str, OLDEST))} or newer")
    try:
        import deepspeed  # noqa: F401 (it looks for a compiler and for CUDA)
    except Exception as error:
        reason = " ".join(str(error).split())[:160]
        raise ModelError(f"DeepSpeed {version} cannot be imported ({reason})", "Repair its installation") from None
