"""Which rows make which optimiser step, for any number of processes.

Reads numbers only; returns rows and weights. The order is a function of seed and epoch, so that nothing of it has to be kept
for resuming, and a step holds the same rows however many processes share it. Knows nothing about models or what a row is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dcr2ad.config import TrainSettings


@dataclass(frozen=True)
class Plan:
    """Which rows make which step, for any number of processes.

    Attributes:
        rows: number of rows.
        settings: epochs, batch size, accumulation and the limit on steps.
        processes: number of processes.
        seed: seed of the order.
        groups: rows that stay together, each row in one group; empty: each row for itself.
    """

    rows: int
    settings: TrainSettings
    processes: int
    seed: int
    groups: tuple[tuple[int, ...], ...] = ()

    @property
    def total(self) -> int:
        """Optimiser steps of the run."""
        steps = self._steps_an_epoch * self.settings.epochs
        return steps if self.settings.max_steps is None else min(steps, self.settings.max_steps)

    def step_rows(self, step: int) -> list[int]:
        """Rows of a step over all processes; an epoch's last step may have fewer."""
        epoch, number = divmod(step, self._steps_an_epoch)
        drawn = np.random.default_rng([self.seed, epoch])
        if self.groups:
            order = np.concatenate([self.groups[group] for group in drawn.permutation(len(self.groups))])
        else:
            order = drawn.permutation(self.rows)
        return [int(row) for row in order[number * self._rows_a_step : (number + 1) * self._rows_a_step]]

    def shares(self, step: int, process: int) -> list[list[tuple[int, float]]]:
        """Forwards of one process: rows with weights that sum to one over all processes.

        Every process makes the same number of forwards, or gradient exchange would wait for ever; where rows run out one is
        computed again with weight zero.
        """
        rows = self.step_rows(step)
        mine = [(row, 1 / len(rows)) for row in rows[process :: self.processes]]
        mine += [(rows[0], 0.0)] * (-(-len(rows) // self.processes) - len(mine))
        size = self.settings.batch_size
        return [mine[start : start + size] for start in range(0, len(mine), size)]

    @property
    def _rows_a_step(self) -> int:
        return self.settings.batch_size * self.settings.gradient_accumulation * self.processes

    @property
    def _steps_an_epoch(self) -> int:
        return -(-self.rows // self._rows_a_step)
