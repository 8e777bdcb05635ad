"""Which continuations a model holds for likely, without reading all of them: a search over their trie under a bound.

Reads log-probabilities of next tokens as they become known; says which nodes to read next, and when what is left unread can no
longer matter. Pure numbers: knows nothing about models, titles or knowledge. Not in the paper.

A continuation of n tokens and log-probability L has the weight exp(a L), a = mean n / (n T): a softmax over the weights is that
of length-normalised log-probabilities at temperature T. A beginning of probability P leaves the k continuations of one length
behind it at most P in sum, hence weights of at most P^a in sum where a >= 1, and k^(1-a) P^a where a < 1 (the power mean). The
sum of these bounds over all beginnings whose ends are unread, as a share of everything, is `left`: the true distribution lies
within `left` in total variation of the one returned.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from dcr2ad.models.tree import TokenTree

ROUND = 64
"""Nodes read at first, and twice as many at each further time: on a CPU a forward costs as much as some 30 nodes more in it."""
ROOT = -1
"""The place before the first token."""


class TrieSearch:
    """The search over one set of continuations.

    Args:
        options: token ids of each, at least one.
        temperature: T.
        tolerance: the search ends when `left` is at most this.
        sure: and the likeliest so many are certain, in their order.
    """

    def __init__(self, options: Sequence[Sequence[int]], *, temperature: float, tolerance: float, sure: int = 1) -> None:
        self.tree = TokenTree.build(options)
        self.tokens = [int(options[number][index]) for number, index in self.tree.first]
        self.depths = [index for _, index in self.tree.first]
        self._children: list[list[int]] = [[] for _ in range(len(self.tree) + 1)]  # the last is the root's: index -1
        for node, parent in enumerate(self.tree.parents):
            self._children[int(parent)].append(node)
        lengths = np.array([len(option) for option in options])
        self._powers = lengths.mean() / lengths / temperature
        self._behind: list[Counter[float]] = [Counter() for _ in range(len(self.tree) + 1)]
        for path, power in zip(self.tree.paths, self._powers, strict=True):
            for node in (ROOT, *path[:-1].tolist()):
                self._behind[node][float(power)] += 1
        self._joint = np.full(len(self.tree) + 1, np.nan)
        self._joint[ROOT] = 0.0
        self._frontier = {ROOT}
        self._ends = np.array([path[-1] for path in self.tree.paths])
        self._tolerance = tolerance
        self._room = ROUND
        self._sure = min(sure, len(options))

    def children(self, node: int) -> list[int]:
        """Nodes one token behind a node, `ROOT` included."""
        return self._children[node]

    def learn(self, node: int, logprobs: Sequence[float]) -> None:
        """What followed a node was read: log-probabilities of its `children`, in their order."""
        for child, value in zip(self._children[node], logprobs, strict=True):
            self._joint[child] = self._joint[node] + value
            if self._behind[child]:
                self._frontier.add(child)
        self._frontier.discard(node)

    def choose(self) -> list[int]:
        """Nodes to read next, parents before children; empty when the search is done."""
        nodes = sorted(self._frontier, key=lambda node: (-self._bound(node), node))
        if not nodes:
            return []
        bounds = np.array([self._bound(node) for node in nodes])
        after = np.append(np.logaddexp.accumulate(bounds[::-1])[::-1][1:], -np.inf)
        total = np.logaddexp(np.logaddexp.reduce(bounds), self._read_mass())
        limit = total + math.log(self._tolerance) if self._tolerance > 0 else -np.inf
        heavy = np.append(True, after[:-1] > limit)  # what is left when all heavier ones are read is still too much
        if np.logaddexp.reduce(bounds) <= limit:
            heavy[:] = False
        return self._with_descendants([node for node, wanted in zip(nodes, heavy | self._rivals(nodes), strict=True) if wanted])

    def result(self) -> tuple[list[float], float]:
        """Log-probability of each continuation, and `left`.

        One that was not read to its end gets an equal share of the most that its beginning leaves, so that a softmax over all
        of them gives those unread `left` in sum.
        """
        found = self._joint[self._ends].copy()
        for option, path in enumerate(self.tree.paths):
            if np.isnan(found[option]):
                node = next((int(n) for n in path[::-1] if not np.isnan(self._joint[n])), ROOT)
                share = self._bound(node) - math.log(self._behind[node].total())
                found[option] = share / self._powers[option]
        bounds = [self._bound(node) for node in self._frontier]
        if not bounds:
            return found.tolist(), 0.0
        rest = float(np.logaddexp.reduce(bounds))
        return found.tolist(), math.exp(rest - float(np.logaddexp(rest, self._read_mass())))

    def _bound(self, node: int) -> float:
        """Log of the most that all unread continuations behind a node can weigh."""
        joint = float(self._joint[node])
        return float(
            np.logaddexp.reduce([max(0.0, 1 - power) * math.log(k) + power * joint for power, k in self._behind[node].items()])
        )

    def _rivals(self, nodes: Sequence[int]) -> np.ndarray:
        """Which nodes must be read for the likeliest `sure` to be certain: an unread end behind them may be among these."""
        weights = np.sort(self._weights())
        if len(weights) < self._sure:
            return np.arange(len(nodes)) < self._sure
        return np.array([min(self._behind[node]) * self._joint[node] for node in nodes]) > weights[-self._sure]

    def _weights(self) -> np.ndarray:
        """Log-weights of the continuations read to their ends."""
        joint = self._joint[self._ends]
        known = ~np.isnan(joint)
        return np.asarray(self._powers[known] * joint[known])

    def _read_mass(self) -> float:
        weights = self._weights()
        return float(np.logaddexp.reduce(weights)) if len(weights) else -math.inf

    def _with_descendants(self, nodes: Sequence[int]) -> list[int]:
        """Nodes, each with what lies behind it, since another forward would cost more; as many as this round may read."""
        taken: list[int] = []
        for node in nodes:
            waiting = [node]
            while waiting and len(taken) < self._room:
                taken.append(waiting.pop(0))
                waiting += [child for child in self._children[taken[-1]] if self._behind[child]]
        self._room *= 2
        return taken
