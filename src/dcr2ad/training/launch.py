"""What the launcher asks for: which way the model lies on the processes, and accelerate's part in it.

Reads the environment that `accelerate launch` and `torchrun` set; returns a kind of `Spread`, and accelerate's `Accelerator`.
What is not supported is refused here, before a folder is touched. Knows nothing about models. Not in the paper.
"""

from __future__ import annotations

import atexit
from typing import Any

from dcr2ad.config import TrainSettings
from dcr2ad.models.placement import asks_for
from dcr2ad.training.sharding import Fsdp
from dcr2ad.training.spread import Spread


def check_launch(settings: TrainSettings) -> type[Spread]:
    """How the launcher wants the model to lie on the processes.

    Args:
        settings: the stage's, which nothing the launcher says may contradict.

    Raises:
        ModelError: it asks for what `Fsdp.check` or `Zero.check` refuses.
    """
    if asks_for("DEEPSPEED"):
        from dcr2ad.training.zero import Zero

        Zero.check(settings)
        return Zero
    if asks_for("FSDP"):
        Fsdp.check()
        return Fsdp
    return Spread


def open_accelerator(*, cpu: bool) -> Any:
    """accelerate's `Accelerator`: the processes, and what they tell each other.

    It is not told of DeepSpeed, which it would have on GPUs only, and from which transformers would gather that weights are
    divided as they are read; nor of forwards a step, by which it would divide losses that the loop has weighed.

    Args:
        cpu: whether to compute on the CPU where there is a GPU.
    """
    from accelerate import Accelerator
    from accelerate.utils import patch_environment

    atexit.unregister(_part)
    atexit.register(_part)
    with patch_environment(ACCELERATE_USE_DEEPSPEED="false", ACCELERATE_GRADIENT_ACCUMULATION_STEPS="1"):
        return Accelerator(cpu=cpu, mixed_precision="no")


def _part() -> None:
    """Leave the other processes before Python ends: torn down later, gloo's threads can abort a process that has done its work.

    NCCL's groups are left to torch, since there to part can wait for processes that have failed.
    """
    import torch.distributed

    if torch.distributed.is_initialized() and torch.distributed.get_backend() == "gloo":
        torch.distributed.destroy_process_group()


def is_main_process() -> bool:
    """Whether this is the process, of those a launcher started, that writes and tells; True without a launcher."""
    from accelerate import PartialState

    return bool(PartialState().is_main_process)
