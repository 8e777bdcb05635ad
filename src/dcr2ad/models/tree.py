"""Token trees: many sequences that share beginnings, laid out so that each distinct token is computed once.

Sequences go in; one row of nodes comes out, with the mask under which a node sees its ancestors and itself only. Under that
mask, and with positions that continue along each path, one forward of the row equals a separate forward of every sequence.
All questions about one image, all titles of a knowledge base after one prompt, and the chosen and the rejected response of a
preference pair are such trees. Pure tensors; knows nothing about models. Not in the paper.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch

UNSHARED = 8
"""Tokens of a continuation that the others of its prompt do not begin with, counted at most."""


class Span(NamedTuple):
    """Neighbouring nodes of one path, each the parent of the next, and what lies before them on it."""

    start: int
    """First node."""
    end: int
    """One past the last node."""
    before: tuple[tuple[int, int], ...]
    """Ranges of the ancestors of the first node, in order; none touches the next."""

    @property
    def seen(self) -> tuple[tuple[int, int], ...]:
        """Ranges of all nodes that the last node sees."""
        return _joined((*self.before, (self.start, self.end)))

    def cut(self, size: int) -> list[Span]:
        """The same nodes as spans of `size` at most."""
        starts = range(self.start, self.end, size)
        return [Span(s, min(s + size, self.end), _joined((*self.before, (self.start, s)))) for s in starts]


@dataclass(frozen=True)
class TokenTree:
    """Distinct prefixes of a set of sequences, parents before children.

    Attributes:
        parents: index of each node's parent, -1 for a root; shape ``(T,)``.
        paths: for each sequence the nodes of its tokens, in order.
        first: for each node, a pair (sequence, index within it) that it came from.
    """

    parents: np.ndarray
    paths: tuple[np.ndarray, ...]
    first: tuple[tuple[int, int], ...]

    @classmethod
    def build(cls, sequences: Sequence[Sequence[Hashable]]) -> TokenTree:
        """Lay out sequences; equal beginnings share nodes.

        Args:
            sequences: each a sequence of hashable tokens; an image token must carry its image, or two images would merge.
        """
        nodes: dict[tuple[int, Hashable], int] = {}
        parents: list[int] = []
        first: list[tuple[int, int]] = []
        paths = []
        for number, sequence in enumerate(sequences):
            path = np.empty(len(sequence), dtype=np.int64)
            parent = -1
            for index, token in enumerate(sequence):
                node = nodes.setdefault((parent, token), len(parents))
                if node == len(parents):
                    parents.append(parent)
                    first.append((number, index))
                path[index] = parent = node
            paths.append(path)
        return cls(np.asarray(parents, dtype=np.int64), tuple(paths), tuple(first))

    def __len__(self) -> int:
        return len(self.parents)

    def mask(self, prefix: int = 0) -> torch.Tensor:
        """Attention mask: True where a node (row) may look.

        Args:
            prefix: number of already cached tokens that every node sees.

        Returns:
            boolean tensor of shape ``(T, prefix + T)``.
        """
        return dense_mask(self.spans(), prefix)

    def spans(self) -> tuple[Span, ...]:
        """The nodes in order, as few spans as there are forks and roots."""
        heads = np.flatnonzero(self.parents != np.arange(len(self.parents)) - 1)
        # The first node is a root, whose parent -1 looks like the node before it.
        edges = [0, *(int(head) for head in heads if head > 0), len(self.parents)]
        found: list[Span] = []
        for start, end in pairwise(edges):
            parent = int(self.parents[start])
            before: tuple[tuple[int, int], ...] = ()
            if parent >= 0:
                branch = found[int(np.searchsorted(edges, parent, side="right")) - 1]
                before = _joined((*branch.before, (branch.start, parent + 1)))
            found.append(Span(start, end, before))
        return tuple(found)


def dense_mask(spans: Sequence[Span], prefix: int = 0) -> torch.Tensor:
    """The spans' mask, behind `prefix` tokens that every node sees; see `TokenTree.mask`."""
    count = spans[-1].end
    seen = np.zeros((count, prefix + count), dtype=bool)
    seen[:, :prefix] = True
    for start, end, before in spans:
        for first, last in before:
            seen[start:end, prefix + first : prefix + last] = True
        seen[start:end, prefix + start : prefix + end] = np.tri(end - start, dtype=bool)
    return torch.from_numpy(seen)


def _joined(ranges: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Ranges in order without empty ones, those that touch as one."""
    found: list[tuple[int, int]] = []
    for start, end in ranges:
        if found and found[-1][1] == start:
            found[-1] = (found[-1][0], end)
        elif start < end:
            found.append((start, end))
    return tuple(found)


def common_prefix(sequences: Sequence[Sequence[Hashable]]) -> int:
    """Length of the longest beginning that all sequences share; by halving, so that slices are compared and not tokens."""
    head = sequences[0]
    low, high = 0, min(len(sequence) for sequence in sequences)
    while low < high:
        middle = (low + high + 1) // 2
        if all(sequence[low:middle] == head[low:middle] for sequence in sequences[1:]):
            low = middle
        else:
            high = middle - 1
    return low


def chunks(work: list[tuple[int, int]], sizes: list[tuple[int, int]], limit: int) -> list[list[tuple[int, int]]]:
    """Cut work into rows of about `limit` tokens at most, prompts kept together.

    Tokens of a prompt's own tail are shared by its options and counted once; of an option behind others those that it hardly
    shares with them, `UNSHARED` at most.

    Args:
        work: pairs (prompt, continuation), in order.
        sizes: tokens of each pair: the prompt's tail, the continuation.
        limit: tokens of a row.
    """
    cut: list[list[tuple[int, int]]] = []
    used = limit + 1
    previous = -1
    for (prompt, option), (tail, own) in zip(work, sizes, strict=True):
        cost = tail + own if prompt != previous or used > limit else min(own, UNSHARED)
        if used + cost > limit:
            cut.append([])
            used, cost = 0, tail + own
        cut[-1].append((prompt, option))
        used += cost
        previous = prompt
    return cut
