"""Which continuations a model holds for likely, without reading all of them: a search over their trie under a bound.

Reads log-probabilities of next tokens as they become known; says which nodes to read next, and when what is left unread can no
longer matter. Pure numbers: knows nothing about models, titles or knowledge. Not in the paper.

The log-probability of a continuation here is that of writing it where nothing but the listed ones can be written: each next
token's is normalised over those that some of them go on with. Where a single one is left its end is certain, and not read: a
title that ends in a rare word does not lose by it.

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

ROUND = 128
"""Nodes read at first, and twice as many at each further time."""
FEW = 2
"""Continuations behind a node up to which they are read with it: on a CPU a forward costs as much as 30 nodes more in it."""
HOT = 96
"""Nodes read at once because the last searches had to read them."""
SLIGHT = 0.05
"""Share of the tolerance that a node must be able to weigh for the next search to begin with it."""
ROOT = -1
"""The place before the first token."""


class Trie:
    """Continuations laid out once for many searches, and where the last of these had to read.

    Args:
        options: token ids of each, at least one.
    """

    def __init__(self, options: Sequence[Sequence[int]]) -> None:
        self.tree = TokenTree.build(options)
        self.tokens = [int(options[number][index]) for number, index in self.tree.first]
        self.depths = [index for _, index in self.tree.first]
        self.lengths = np.array([len(option) for option in options])
        self.ends = np.array([path[-1] for path in self.tree.paths])
        # One more than there are nodes: the last is the root's, at index -1.
        self.children: list[list[int]] = [[] for _ in range(len(self.tree) + 1)]
        for node, parent in enumerate(self.tree.parents):
            self.children[int(parent)].append(node)
        self.behind: list[Counter[int]] = [Counter() for _ in range(len(self.tree) + 1)]
        """For each node how many continuations of each length go on behind it."""
        for path, length in zip(self.tree.paths, self.lengths.tolist(), strict=True):
            for node in (ROOT, *path[:-1].tolist()):
                self.behind[node][length] += 1
        self._hot: dict[int, None] = {}

    @property
    def hot(self) -> list[int]:
        """Nodes that the last searches had to read, parents before children."""
        return sorted(self._hot, key=self.depths.__getitem__)

    def chain(self, node: int) -> list[int]:
        """What follows a node behind which a single continuation goes on, or none."""
        found = []
        while self.children[node]:
            (node,) = self.children[node]
            found.append(node)
        return found

    def remember(self, nodes: Sequence[int]) -> None:
        """Nodes that a search had to read, the most important first, parents before children."""
        merged = dict.fromkeys((*nodes, *self._hot))
        kept: dict[int, None] = {}
        for node in merged:
            if len(kept) < HOT and (int(self.tree.parents[node]) in kept or int(self.tree.parents[node]) == ROOT):
                kept[node] = None
        self._hot = kept


class TrieSearch:
    """One search.

    Args:
        trie: the continuations.
        temperature: T.
        tolerance: the search ends when `left` is at most this; 0 reads everything, at once.
        sure: and the likeliest so many are certain, in their order.
    """

    def __init__(self, trie: Trie, *, temperature: float, tolerance: float, sure: int = 1) -> None:
        self.trie = trie
        self._mean = float(trie.lengths.mean()) / temperature
        self._powers = self._mean / trie.lengths
        self._joint = np.full(len(trie.tree) + 1, np.nan)
        self._joint[ROOT] = 0.0
        self._frontier = {ROOT}
        self._read: list[int] = []
        self._tolerance = tolerance
        self._sure = min(sure, len(trie.lengths))
        self._room = ROUND

    def learn(self, node: int, logprobs: Sequence[float]) -> None:
        """What follows a node, `ROOT` included, was read: log-probabilities of its children in the trie, in their order.

        They are normalised here: the model's own give the rest of its vocabulary some probability too.
        """
        whole = float(np.logaddexp.reduce(np.asarray(logprobs)))
        for child, value in zip(self.trie.children[node], logprobs, strict=True):
            self._joint[child] = self._joint[node] + value - whole
            if self.trie.behind[child].total() > 1:
                self._frontier.add(child)
            else:
                self._joint[self.trie.chain(child)] = self._joint[child]
        self._frontier.discard(node)
        self._read.append(node)

    def first(self) -> list[int]:
        """Nodes to read together with what stands before the continuations, parents before children."""
        if self._tolerance > 0:
            return self.trie.hot
        return [node for node in range(len(self.trie.tree)) if self.trie.behind[node].total() > 1]  # all: at once

    def choose(self) -> list[int]:
        """Nodes to read next, parents before children; empty when the search is done."""
        if not self._frontier:
            return []
        ordered = sorted((-self._bound(node), node) for node in self._frontier)
        nodes, bounds = [node for _, node in ordered], -np.array([bound for bound, _ in ordered])
        after = np.append(np.logaddexp.accumulate(bounds[::-1])[::-1][1:], -np.inf)
        unread = np.logaddexp.reduce(bounds)
        total = np.logaddexp(unread, self._read_mass())
        limit = total + math.log(self._tolerance)
        heavy = np.append(True, after[:-1] > limit)  # what is left when all heavier ones are read is still too much
        if unread <= limit:
            heavy[:] = False
        return self._with_descendants([node for node, wanted in zip(nodes, heavy | self._rivals(nodes), strict=True) if wanted])

    def needed(self) -> list[int]:
        """Nodes read that could have weighed something, the heaviest first, parents before children."""
        found = [(self._bound(node), node) for node in self._read if node != ROOT]
        least = float(np.logaddexp(self._unread_mass(), self._read_mass())) + math.log(max(SLIGHT * self._tolerance, 1e-12))
        heavy = [(bound, node) for bound, node in found if bound > least]
        return [node for _, node in sorted(heavy, key=lambda item: (-item[0], self.trie.depths[item[1]]))]

    def result(self) -> tuple[list[float], float]:
        """Log-probability of each continuation, and `left`.

        One that was not read to its end gets an equal share of the most that its beginning leaves, so that a softmax over all
        of them gives those unread `left` in sum.
        """
        found = self._joint[self.trie.ends].copy()
        for option, path in enumerate(self.trie.tree.paths):
            if np.isnan(found[option]):
                node = next((int(n) for n in path[::-1] if not np.isnan(self._joint[n])), ROOT)
                share = self._bound(node) - math.log(self.trie.behind[node].total())
                found[option] = share / self._powers[option]
        if not self._frontier:
            return found.tolist(), 0.0
        rest = self._unread_mass()
        return found.tolist(), math.exp(rest - float(np.logaddexp(rest, self._read_mass())))

    def _bound(self, node: int) -> float:
        """Log of the most that all unread continuations behind a node can weigh."""
        joint = float(self._joint[node])
        powers = [(self._mean / length, count) for length, count in self.trie.behind[node].items()]
        return float(np.logaddexp.reduce([max(0.0, 1 - power) * math.log(count) + power * joint for power, count in powers]))

    def _rivals(self, nodes: Sequence[int]) -> np.ndarray:
        """Which nodes must be read for the likeliest `sure` to be certain: an unread end behind them may be among these."""
        weights = np.sort(self._weights())
        if len(weights) < self._sure:
            return np.arange(len(nodes)) < self._sure
        return np.array([self._mean / max(self.trie.behind[node]) * self._joint[node] for node in nodes]) > weights[-self._sure]

    def _weights(self) -> np.ndarray:
        """Log-weights of the continuations read to their ends."""
        joint = self._joint[self.trie.ends]
        known = ~np.isnan(joint)
        return np.asarray(self._powers[known] * joint[known])

    def _unread_mass(self) -> float:
        """Log of the most that all unread continuations can weigh."""
        return float(np.logaddexp.reduce([self._bound(node) for node in self._frontier])) if self._frontier else -math.inf

    def _read_mass(self) -> float:
        weights = self._weights()
        return float(np.logaddexp.reduce(weights)) if len(weights) else -math.inf

    def _with_descendants(self, nodes: Sequence[int]) -> list[int]:
        """Nodes, with all that lies behind them where that is little; as many as this round may read."""
        taken: list[int] = []
        for node in nodes:
            waiting = [node]
            while waiting and len(taken) < self._room:
                taken.append(waiting.pop(0))
                if self.trie.behind[node].total() <= FEW:
                    waiting += [child for child in self.trie.children[taken[-1]] if self.trie.behind[child].total() > 1]
        self._room *= 2
        return taken
