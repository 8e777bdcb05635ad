"""Stage: build the knowledge base (Section 3.3).

Reads the built-in entries and whatever knowledge files the user has; writes ``entries.jsonl`` and ``report.json`` in its
folder and returns both. Knows nothing about images or models.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from dcr2ad.artifacts import write_text
from dcr2ad.errors import InputError, UnknownNameError
from dcr2ad.knowledge.base import KnowledgeBase
from dcr2ad.knowledge.own import read_own
from dcr2ad.knowledge.sources import BuildReport, Dropped, find_leaks, merge, read_domain_knowledge, unique_titles
from dcr2ad.types import KnowledgeEntry

SOURCES = ("mmad", "real-iad", "mpdd", "own", "builtin")
"""Sources in the order that decides which of two duplicates stays; MPDD's texts come inside the public Real-IAD file."""


def build_knowledge_base(
    out_dir: str | Path,
    *,
    mmad: str | Path | None = None,
    real_iad: str | Path | None = None,
    own: str | Path | None = None,
    builtin: bool = True,
    exclude_sources: Sequence[str] = (),
) -> tuple[KnowledgeBase, BuildReport]:
    """Build the object-agnostic knowledge base and write it (Section 3.3).

    Args:
        out_dir: folder for ``entries.jsonl`` and ``report.json``, each replaced in one step.
        mmad: MMAD's ``domain_knowledge.json``.
        real_iad: a Real-IAD file of the same schema.
        own: own entries, JSONL or a folder of Markdown files.
        builtin: whether the built-in entries are included.
        exclude_sources: sources left out, before anything is merged, so that none of their text can stay under another key.

    Raises:
        RecordError: a file cannot be read; names the place.
        UnknownNameError: a source that does not exist.
        InputError: nothing is left to build from.
    """
    for source in exclude_sources:
        if source not in SOURCES:
            raise UnknownNameError(f"no knowledge source {source!r}", f"Sources: {', '.join(SOURCES)}")
    entries, dropped = _read(mmad, real_iad, own, builtin)
    read = Counter(entry.source for entry in entries)
    dropped += [Dropped(key=e.key, reason="source excluded") for e in entries if e.source in exclude_sources]
    included = [entry for entry in entries if entry.source not in exclude_sources]
    if not included:
        raise InputError("the knowledge base would be empty", "Give a knowledge file or include the built-in entries")
    kept, merged = merge(included)
    base = KnowledgeBase(unique_titles(kept))
    report = BuildReport(
        read=dict(read),
        kept=dict(Counter(entry.source for entry in base)),
        merged=tuple(merged),
        dropped=tuple(dropped),
        leaks=tuple(find_leaks(base)),
        entries=len(base),
        digest=base.digest,
    )
    base.save(Path(out_dir) / "entries.jsonl")
    write_text(Path(out_dir) / "report.json", report.model_dump_json(indent=2) + "\n")
    return base, report


def _read(
    mmad: str | Path | None, real_iad: str | Path | None, own: str | Path | None, builtin: bool
) -> tuple[list[KnowledgeEntry], list[Dropped]]:
    """All entries in the order of `SOURCES`, and what the importers dropped."""
    entries: list[KnowledgeEntry] = []
    dropped: list[Dropped] = []
    for path in (mmad, real_iad):
        if path is not None:
            imported = read_domain_knowledge(path)
            entries += imported.entries
            dropped += imported.dropped
    if own is not None:
        entries += read_own(own)
    if builtin:
        entries += KnowledgeBase.builtin()
    return entries, dropped
