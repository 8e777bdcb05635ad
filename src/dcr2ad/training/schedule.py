"""The learning rate: linear warm-up, then CosineAnnealingWarmRestarts, as a closed form of the step (Section 4.3).

Reads a step's number; returns a factor. A factor that depends on nothing but the step needs no state, so a resumed run has the
unbroken run's rates to the last bit; torch's own `SequentialLR(LinearLR, CosineAnnealingWarmRestarts)` multiplies its way from
step to step. Knows nothing about models or training loops.
"""

from __future__ import annotations

import math
from functools import partial

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def warmup_steps(total: int, ratio: float) -> int:
    """Optimiser steps of warm-up: the ratio's share of all, rounded up."""
    return math.ceil(total * ratio)


def rate_factor(step: int, *, warmup: int, t_0: int, t_mult: int = 1) -> float:
    """Share of the initial learning rate that a step is made with.

    The first `warmup` steps rise linearly, 1/warmup to 1. Then cosine periods fall from 1 towards 0, the first `t_0` steps
    long, each next one `t_mult` times as long (Loshchilov & Hutter 2017).

    Args:
        step: optimiser steps made before this one.
        warmup: steps of warm-up; the paper's ratio is 0.05 (Section 4.3).
        t_0: steps of the first period, at least 1; not in the paper.
        t_mult: factor between periods; not in the paper.
    """
    if step < warmup:
        return (step + 1) / warmup
    since, period = step - warmup, t_0
    if t_mult == 1:
        since %= period
    while since >= period:
        since -= period
        period *= t_mult
    return (1 + math.cos(math.pi * since / period)) / 2


def warm_restarts(
    optimizer: Optimizer, total: int, *, warmup_ratio: float, t_0: int | None, t_mult: int = 1, start: int = 0
) -> LambdaLR:
    """Scheduler of a whole run.

    Args:
        optimizer: its rates are the initial ones; on resuming it holds the state it was saved with.
        total: optimiser steps of the run.
        warmup_ratio: share of them spent warming up.
        t_0: steps of the first period; None: all steps after warm-up, so that no restart falls into the run.
        t_mult: factor between periods.
        start: optimiser steps already made.
    """
    warmup = warmup_steps(total, warmup_ratio)
    period = t_0 or max(1, total - warmup)
    factor = partial(rate_factor, warmup=warmup, t_0=period, t_mult=t_mult)
    return LambdaLR(optimizer, factor, last_epoch=start - 1)
