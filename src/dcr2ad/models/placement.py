"""Where a model's weights go and in which type, by what the machine has and what the launcher asks for.

Reads the environment that `accelerate launch` and `torchrun` set; returns names of devices. Knows nothing about models, and
imports torch alone, so that what computes without a language model never waits for transformers.
"""

from __future__ import annotations

import ctypes
import gc
import os

import torch


def computing_device() -> str:
    """Device this process computes on: its own GPU, else the CPU."""
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"


def asks_for(plugin: str) -> bool:
    """Whether `accelerate launch` asks for one of its plugins, ``FSDP`` or ``DEEPSPEED``."""
    return os.environ.get(f"ACCELERATE_USE_{plugin}", "false").lower() == "true"


def loading_device() -> str:
    """Device weights are loaded to: the CPU where they will be divided among processes, since no GPU may hold all of them."""
    return "cpu" if asks_for("FSDP") or asks_for("DEEPSPEED") else computing_device()


def release_memory() -> None:
    """Give back to the system what is no longer used: cycles of objects, and the pages that glibc keeps for later.

    After an evaluation of the embedded model those pages are 0.9 GB; a run that measures many models one after the other held
    six times a model's memory by them.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:  # glibc's alone
        trim(0)


def cpu_has_bfloat16() -> bool:
    """Whether this CPU multiplies in bfloat16 (AVX-512 BF16 or AMX); one that only emulates it is several times slower so."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
