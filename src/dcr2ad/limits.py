"""A limit of the visual expert's score for one line, from the scores of its good parts.

Reads scores; returns a limit. One limit for all kinds of parts (`dcr2ad.expert.THRESHOLD`) follows the kinds it was taken from:
parts that look more alike than those pass it only with a coarse defect. Knows nothing about images. Not in the paper.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist, fmean

LEAST = 5
"""Good parts that a limit of their own needs; of three it is no better than the general one (docs/expert.md)."""
SHARE = 0.8
"""Share of good parts that should lie below, the same as for the general limit."""
SPREAD = 1.1
"""Standard deviation of good parts' scores in an ordinary category, in units of the score; of real-mini's train photographs."""
WEIGHT = 12
"""How many good parts that ordinary spread counts for, so that a few scores close together by chance set none close to them.
How far apart the spreads of real-mini's seven categories lie says about 12."""


def own_limit(scores: Sequence[float], share: float = SHARE) -> float:
    """The score below which a further good part of the line lies with probability `share`.

    The one-sided prediction limit of a normal sample, its variance drawn towards `SPREAD` squared:
    mean + t(share; n - 1 + `WEIGHT`) s sqrt(1 + 1/n).

    Args:
        scores: of n good parts, each beside the others.
        share: between 0.5 and 1.

    Raises:
        ValueError: fewer than `LEAST` scores, or no such share.
    """
    count = len(scores)
    if count < LEAST or not 0.5 <= share < 1:
        raise ValueError(f"a limit needs {LEAST} scores and a share from 0.5 to 1, not {count} and {share}")
    mean = fmean(scores)
    free = count - 1 + WEIGHT
    variance = (sum((score - mean) ** 2 for score in scores) + WEIGHT * SPREAD**2) / free
    return mean + student_quantile(share, free) * math.sqrt(variance * (1 + 1 / count))


def student_quantile(share: float, free: int) -> float:
    """Quantile of Student's t by its expansion about the normal one (Abramowitz and Stegun 26.7.5).

    Args:
        share: probability below.
        free: degrees of freedom; from 10 on the error is below 0.001 for shares up to 0.99.
    """
    z = NormalDist().inv_cdf(share)
    return (
        z
        + (z**3 + z) / (4 * free)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * free**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * free**3)
    )
