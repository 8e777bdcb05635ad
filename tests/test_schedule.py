"""The closed-form schedule against torch's own schedulers."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts, LinearLR, SequentialLR

from dcr2ad.training.schedule import rate_factor, warm_restarts, warmup_steps


def _optimizer(rate: float = 1e-5) -> torch.optim.Optimizer:
    return torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=rate)


def _rates(scheduler: torch.optim.lr_scheduler.LRScheduler, steps: int) -> list[float]:
    rates = []
    for _ in range(steps):
        rates.append(scheduler.optimizer.param_groups[0]["lr"])
        scheduler.optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize(
    ("total", "ratio", "t_0", "t_mult"),
    [(100, 0.05, None, 1), (100, 0.05, 20, 1), (200, 0.1, 7, 2), (97, 0.05, 10, 3), (40, 0.5, 5, 1)],
)
def test_equals_torch(total: int, ratio: float, t_0: int | None, t_mult: int) -> None:
    ours = _rates(warm_restarts(_optimizer(), total, warmup_ratio=ratio, t_0=t_0, t_mult=t_mult), total)
    warmup = warmup_steps(total, ratio)
    optimizer = _optimizer()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SequentialLR steps its schedulers through a call that torch itself deprecates
        rise = LinearLR(optimizer, start_factor=1 / warmup, end_factor=1.0, total_iters=warmup - 1)
        waves = CosineAnnealingWarmRestarts(optimizer, T_0=t_0 or total - warmup, T_mult=t_mult)
        theirs = _rates(SequentialLR(optimizer, [rise, waves], milestones=[warmup]), total)
    assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) < 1e-18


def test_without_warmup_equals_torch() -> None:
    ours = _rates(warm_restarts(_optimizer(), 50, warmup_ratio=0.0, t_0=15, t_mult=2), 50)
    theirs = _rates(CosineAnnealingWarmRestarts(_optimizer(), T_0=15, T_mult=2), 50)
    assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) < 1e-18


def test_by_hand() -> None:
    # 5 % of 40 steps is 2 steps of warm-up: 1/2, 1; then a period of 4 steps: cos of 0, 45, 90, 135 degrees; then again.
    half = math.sqrt(0.5)
    wanted = [0.5, 1.0, 1.0, (1 + half) / 2, 0.5, (1 - half) / 2, 1.0]
    assert warmup_steps(40, 0.05) == 2
    assert [rate_factor(step, warmup=2, t_0=4) for step in range(7)] == pytest.approx(wanted, abs=1e-15)


def test_first_and_only_step_learns() -> None:
    assert _rates(warm_restarts(_optimizer(1.0), 1, warmup_ratio=0.05, t_0=None), 1) == [1.0]


def test_resumes_to_the_last_bit() -> None:
    def schedule(optimizer: torch.optim.Optimizer, start: int = 0) -> torch.optim.lr_scheduler.LambdaLR:
        return warm_restarts(optimizer, 60, warmup_ratio=0.05, t_0=9, t_mult=2, start=start)

    whole = _rates(schedule(_optimizer()), 60)
    first, second = _optimizer(), _optimizer()
    _rates(schedule(first), 32)
    second.load_state_dict(first.state_dict())
    assert _rates(schedule(second, start=32), 28) == whole[32:]
