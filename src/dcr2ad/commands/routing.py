"""Measuring the router."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dcr2ad import console
from dcr2ad.artifacts import read_records
from dcr2ad.commands.common import load_knowledge, route_mode
from dcr2ad.errors import InputError
from dcr2ad.prompts import DEFAULT_WORDING, load_wording
from dcr2ad.types import Question, RouteMode


def check_what(
    what: str, modes: Sequence[str], *, calibrate: bool, whole_base: bool = False, precision: str = "fp32"
) -> list[RouteMode]:
    """The route modes asked for, hybrid where none is; all of them for `--what routing`."""
    if what not in {"answers", "routing"}:
        raise InputError(f"--what {what!r} is nothing that is measured", "Use answers or routing")
    if calibrate and what != "routing":
        raise InputError("--calibrate fits the router", "Use it with --what routing")
    if whole_base and what != "routing":
        raise InputError("--whole-base ranks for the router's figures", "Use it with --what routing")
    if precision != "fp32" and what == "routing":
        raise InputError("the router's figures are taken in float32", "Leave --precision out")
    found = list(dict.fromkeys(route_mode(mode) for mode in modes))
    if what == "answers" and len(found) > 1:
        raise InputError("answers are measured under one route mode", "Give --routing once")
    every: list[RouteMode] = ["recall", "listed", "hybrid"]
    return found or (every if what == "routing" else ["hybrid"])


def run_evaluate_routing(
    questions: Path,
    out: Path,
    *,
    model: str,
    modes: Sequence[RouteMode],
    shots: int,
    expert: bool,
    orders: int | None,
    whole_base: bool,
    calibrate: bool,
    prompts: Path | None,
    knowledge: Path | None,
    fresh: bool,
) -> None:
    """Verb `evaluate --what routing`."""
    wording = DEFAULT_WORDING if prompts is None else load_wording(prompts)
    rows = list(read_records(questions, Question))
    from dcr2ad.models.adapters import store_calibration
    from dcr2ad.models.base import open_model
    from dcr2ad.models.hf import trained_folder
    from dcr2ad.routing import LISTED
    from dcr2ad.stages.routing import evaluate_routing
    from dcr2ad.stages.routing_figures import RoutingFigures

    folder = trained_folder(model)
    if calibrate and folder is None:
        raise InputError(f"{model} is no trained model, so a fit cannot be stored with it", "Leave --calibrate out")
    opened, base = open_model(model), load_knowledge(knowledge)
    with console.progress("routing") as update:
        report = evaluate_routing(
            opened,
            rows,
            base,
            out,
            modes=modes,
            expert=expert,
            shots=shots,
            orders=orders or LISTED,
            whole_base=whole_base,
            wording=wording,
            fresh=fresh,
            progress=update,
        )

    def line(way: str, found: RoutingFigures) -> tuple[str, ...]:
        three = zip((found.top1, found.top3, found.mrr), found.chance, strict=True)
        shown = [f"{i.value:.1f} [{i.low:.1f}, {i.high:.1f}] / {guess:.1f}" for i, guess in three]
        rest = (found.ranked, found.error_raw, found.error, found.place_bias, found.steady, found.seconds)
        return (way, *shown, *("" if value is None else f"{value:.1f}" for value in rest))

    heads = ("way", "top-1 / chance", "top-3 / chance", "MRR / chance", "ranked", "ECE", "fitted", "place bias", "steady", "s")
    title = f"routing of {report.photographs} photographs among {report.entries} entries, in % with 95 % intervals"
    console.out.print(console.table(title, heads, [line(way, found) for way, found in report.ways.items()]))
    if report.left_out:
        console.err.print(f"{report.left_out} photographs left out: their label leads to no entry", markup=False)
    if calibrate and folder is not None:
        path = store_calibration(folder, report.calibration)
        console.err.print(f"temperature and threshold of {', '.join(report.calibration)} stored in {path}", markup=False)
    console.err.print(f"figures in {out / 'routing.json'}, pictures beside it", markup=False)
