"""The knowledge base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dcr2ad import console


def run_knowledge_build(out: Path, **settings: Any) -> None:
    """Verb `knowledge build`."""
    from dcr2ad.stages.knowledge import build_knowledge_base

    _, report = build_knowledge_base(out, **settings)
    rows = [(source, count, report.kept.get(source, 0)) for source, count in sorted(report.read.items())]
    console.out.print(console.table("knowledge base", ("source", "read", "kept"), rows))
    console.out.print(f"{report.entries} entries, {len(report.merged)} merged, {len(report.dropped)} dropped, ", end="")
    console.out.print(f"{len(report.leaks)} object names left; {out / 'entries.jsonl'}", markup=False)
