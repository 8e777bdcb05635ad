"""The demo: parts the product draws itself, each diagnosed beside a good one.

Reads nothing; writes the pictures and returns the diagnoses. Knows nothing about pages.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from dcr2ad.datasets.drawn import draw_part
from dcr2ad.datasets.folder import object_words
from dcr2ad.expert import Expert
from dcr2ad.kinds import gallery_beside
from dcr2ad.knowledge.base import KnowledgeBase
from dcr2ad.models.base import open_model
from dcr2ad.stages.diagnose import Diagnoser, diagnose
from dcr2ad.types import Diagnosis

EXAMPLES: tuple[tuple[str, str | None], ...] = (
    ("metal_nut", "pit"),
    ("metal_nut", None),
    ("printed_circuit_board", "missing_component"),
    ("bottle_cap", "crack"),
    ("bottle_cap", None),
    ("woven_cloth", "hole"),
)
"""Kind of part and its defect."""
REFERENCES = 5
"""Good parts of each kind: enough for the expert to set its limit by."""
_SEED = 20_000_000
"""Beyond every seed `dcr2ad.datasets.drawn.write_drawn` uses: the examples are never trained on."""


def diagnose_examples(
    model: str, knowledge_base: KnowledgeBase, out: Path, *, progress: Callable[[int, int], None] | None = None
) -> list[Diagnosis]:
    """Draw the examples under ``out/parts`` and diagnose each, routed, with the visual expert.

    Raises:
        ModelError: the model cannot be built or loaded.
    """
    expert = Expert(gallery=gallery_beside(model), precision="auto")
    diagnoser = Diagnoser(open_model(model, precision="auto"), knowledge_base, expert)
    made = []
    for number, (kind, defect) in enumerate(EXAMPLES, 1):
        references = [
            _draw(out / "parts" / f"{kind}_reference_{which}.png", kind, None, _SEED + 100 * which)
            for which in range(REFERENCES)
        ]
        query = _draw(out / "parts" / f"{number}_{kind}_{defect or 'good'}.png", kind, defect, _SEED + number)
        made.append(diagnose(diagnoser, query, references, object_name=object_words(kind)))
        if progress:
            progress(number, len(EXAMPLES))
    return made


def _draw(path: Path, kind: str, defect: str | None, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    draw_part(kind, defect, seed)[0].save(path)
    return path
