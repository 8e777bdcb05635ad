"""What a task's forwards gave, and their sums over one optimiser step and all processes.

Tensors in, numbers for the log out. Knows nothing about models, equations or what the values mean.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(frozen=True)
class Outcome:
    """What B rows gave.

    Attributes:
        losses: loss of each row, shape ``(B,)``, with gradient.
        metrics: values to log by name, each of shape ``(B,)``; NaN where a row has no such value.
        tokens: tokens computed.
    """

    losses: torch.Tensor
    metrics: dict[str, torch.Tensor]
    tokens: int


@dataclass
class Tally:
    """Sums of one step's outcomes over forwards and processes."""

    loss: float = 0.0
    tokens: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, outcome: Outcome, weights: torch.Tensor) -> None:
        """Count one forward; rows of weight zero are there for other processes' sake."""
        real = weights > 0
        self.loss += float((outcome.losses.detach() * weights).sum())
        self.tokens += outcome.tokens
        for name, values in outcome.metrics.items():
            known = values[real & ~values.isnan()]
            self.sums[name] = self.sums.get(name, 0.0) + float(known.sum())
            self.counts[name] = self.counts.get(name, 0) + len(known)

    def means(self, accelerator: Any) -> dict[str, float]:
        """Loss, tokens and the mean of every metric that some row had, over all processes."""
        values = [self.loss, float(self.tokens), *self.sums.values(), *map(float, self.counts.values())]
        total = accelerator.reduce(torch.tensor(values, dtype=torch.float64, device=accelerator.device)).tolist()
        names, half = list(self.sums), 2 + len(self.sums)
        found = zip(names, total[2:half], total[half:], strict=True)
        return {"loss": total[0], "tokens": total[1], **{name: value / n for name, value, n in found if n}}
