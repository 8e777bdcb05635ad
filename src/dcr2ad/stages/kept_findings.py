"""The visual expert's findings, computed once for a photograph beside its references and kept between runs.

Reads what an expert finds; writes one small file a photograph under the cache folder, named by all that decides it: the images'
contents, the gallery and what it says held out, the limit, and the code. So the second set of questions about the same
photographs, or the second cell of an evaluation, costs no look at them. Anomaly maps are not kept. Knows nothing about what
findings are for. Not in the paper.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import dcr2ad
from dcr2ad.artifacts import KeptRecords, digest_file, digest_json
from dcr2ad.expert import Expert
from dcr2ad.images import content_digest
from dcr2ad.models.nano import NAME, cache_folder
from dcr2ad.types import ExpertFindings

_DECIDING = ("expert", "images", "kinds", "patches", "regions", "models/tower")
"""Modules whose code decides what is found."""


class KeptFindings:
    """An expert that looks once at what it has not seen.

    Args:
        expert: looks; its gallery must not change afterwards.
        folder: where findings are kept; None is ``findings`` in the cache folder of models.
    """

    def __init__(self, expert: Expert, folder: Path | None = None) -> None:
        self._expert = expert
        self._folder = folder or cache_folder() / "findings"
        self._kept = KeptRecords(self._folder, ExpertFindings)

    @property
    def fingerprint(self) -> str:
        """See `Expert.fingerprint`."""
        return self._expert.fingerprint

    def own_limit(self, good_paths: Sequence[str | Path], share: float) -> float:
        """See `Expert.own_limit`."""
        return self._expert.own_limit(good_paths, share)

    def with_limit(self, limit: float) -> KeptFindings:
        """See `Expert.with_limit`."""
        return KeptFindings(self._expert.with_limit(limit), self._folder)

    def inspect(self, image_path: str | Path, reference_paths: Sequence[str | Path]) -> tuple[ExpertFindings, None]:
        """Findings as `Expert.inspect` gives them, and no map.

        Raises:
            InputError: no reference.
            ImageError: an image cannot be used; of one whose findings are kept only the bytes are read.
        """
        expert, image = self._expert, content_digest(image_path)
        shown = [content_digest(path) for path in reference_paths]
        held_out = expert.held_out.get(image)
        told = None if held_out is None else [kind.model_dump(mode="json") for kind in held_out]
        key = digest_json([NAME, _code(), expert.looking, expert.limit, image, shown, told])
        findings = self._kept.get(key)
        if findings is None:
            findings, _ = expert.inspect(image_path, reference_paths)
            with contextlib.suppress(OSError):  # what cannot be kept is found again
                self._kept.put(key, findings)
        return findings, None


@cache
def _code() -> str:
    """Digest of the sources that decide what is found: findings of another version are none of this one's."""
    home = Path(dcr2ad.__file__).parent
    return digest_json([digest_file(home / f"{name}.py") for name in _DECIDING])
