"""Token trees: many sequences that share beginnings, laid out so that each distinct token is computed once.

Sequences go in; one row of nodes comes out, with the mask under which a node sees its ancestors and itself only. Under that
mask, and with positions that continue along each path, one forward of the row equals a separate forward of every sequence.
All questions about one image, all titles of a knowledge base after one prompt, and the chosen and the rejected response of a
preference pair are such trees. Pure tensors; knows nothing about models. Not in the paper.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch


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
        count = len(self.parents)
        seen = np.zeros((count, count), dtype=bool)
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                seen[node, :node] = seen[parent, :node]
            seen[node, node] = True
        before = np.ones((count, prefix), dtype=bool)
        return torch.from_numpy(np.concatenate([before, seen], axis=1))


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
