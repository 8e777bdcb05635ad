"""Conditional logit over hashed features: which of some options is chosen (McFadden 1974).

Reads slots of features and chosen places as arrays; returns weights, scores of the options, and how often the highest is the
chosen one. Fitted by gradient descent with an L2 penalty; pure numbers. Not in the paper.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np

FOLDS = 5
SLOTS = 1 << 15
"""Features are hashed to so many slots; slot 0 is padding."""
_STEPS, _RATE, _PENALTY = 80, 0.1, 2e-4


def group_folds(groups: Sequence[str], seed: int, strata: Sequence[str] = ()) -> np.ndarray | None:
    """Fold of each item, items of one group together; None where there are fewer than two groups.

    Groups with the same right text are dealt out evenly. Otherwise, in data whose texts are balanced, what is right often in
    some folds is rare in the other, and the reader falls below chance for it: a leak would be hidden behind that.
    """
    names = sorted(set(groups))
    if len(names) < 2:
        return None
    random.Random(seed).shuffle(names)
    if strata:
        first = dict(zip(reversed(groups), reversed(strata), strict=True))
        names.sort(key=lambda name: first[name])
    fold_of = {group: index % min(FOLDS, len(names)) for index, group in enumerate(names)}
    return np.array([fold_of[group] for group in groups])


def cross_validate(features: np.ndarray, shown: np.ndarray, answers: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """For each item whether the reader that was fitted on the other folds is right; a tie counts its share."""
    return right_share(held_out(features, shown, answers, folds), answers)


def held_out(features: np.ndarray, shown: np.ndarray, answers: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """Score of each option, ``(items, options)``, by the reader fitted on the other folds; -inf where there is no option."""
    logits = np.full(shown.shape, -np.inf)
    for fold in range(folds.max() + 1):
        train, test = folds != fold, folds == fold
        weights = fit(features[train], shown[train], answers[train])
        logits[test] = option_scores(weights, features[test], shown[test])
    return logits


def option_scores(weights: np.ndarray, features: np.ndarray, shown: np.ndarray) -> np.ndarray:
    """Score of each option, ``(items, options)``; -inf where there is no option."""
    return np.where(shown, weights[features].sum(axis=2), -np.inf)


def best_options(logits: np.ndarray) -> np.ndarray:
    """Which options score highest, ties among them."""
    return logits >= logits.max(axis=1, keepdims=True) - 1e-9


def right_share(logits: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """For each item 1 where the highest option is the chosen one, its share where several are highest, else 0."""
    best = best_options(logits)
    return np.asarray(best[np.arange(len(answers)), answers] / best.sum(axis=1))


def fit(features: np.ndarray, shown: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """Weights of the slots by AdaGrad on the mean negative log-likelihood; slot 0, the padding, stays 0."""
    weights, squares = np.zeros(SLOTS), np.full(SLOTS, 1e-8)
    target = np.eye(features.shape[1])[answers]
    flat = features.ravel()
    for _ in range(_STEPS):
        logits = option_scores(weights, features, shown)
        chances = np.exp(logits - logits.max(axis=1, keepdims=True))
        chances /= chances.sum(axis=1, keepdims=True)
        error = np.repeat((chances - target).ravel() / len(answers), features.shape[2])
        gradient = np.bincount(flat, error, SLOTS) + _PENALTY * weights
        gradient[0] = 0
        squares += gradient**2
        weights -= _RATE * gradient / np.sqrt(squares)
    return weights
