"""Making data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from dcr2ad import console
from dcr2ad.artifacts import read_records, write_bytes
from dcr2ad.commands.common import count_rows, load_knowledge, must_exist, print_counts, read_recipe, say
from dcr2ad.datasets.folder import read_folder
from dcr2ad.datasets.onto import DRAWN
from dcr2ad.errors import InputError
from dcr2ad.images import load_image, load_mask, write_png
from dcr2ad.leaks import Forbidden, read_forbidden
from dcr2ad.types import Question, Sample

_MOST_DRAWN_ON = 2000
"""As for --draw-defects."""


def run_draw(out: Path, *, count: int, seed: int, onto: Path | None = None, contact_sheet: Path | None = None) -> None:
    """Verb `draw`."""
    if onto is None:
        from dcr2ad.datasets.drawn import write_drawn

        say(f"{write_drawn(out, count, seed)} pictures with masks in {out}")
    else:
        must_exist(onto)
        from dcr2ad.datasets.onto import write_onto

        good = [sample for sample in read_folder(onto) if not sample.is_anomalous]
        with console.progress("draw") as update:
            done, dropped = write_onto(good, out, count, load_knowledge(None), seed=seed, progress=update)
        say(f"{len(done)} defects drawn onto {len(good)} good photographs, with masks in {out}")
        for why, number in sorted(dropped.items()):
            say(f"{number} left out: {why}")
    if contact_sheet is not None:
        write_sheet(contact_sheet, [sample for sample in read_folder(out) if sample.is_anomalous])


def write_sheet(path: Path, samples: Sequence[Sample]) -> None:
    """A contact sheet of defective pictures, evenly over all of them, each beside its mask."""
    from dcr2ad.report.sheet import MOST, contact_sheet

    if not samples:
        raise InputError("no picture for the contact sheet", "Draw some: see --draw-defects")
    shown = [samples[index * len(samples) // min(MOST, len(samples))] for index in range(min(MOST, len(samples)))]
    pictures = []
    for sample in shown:
        mask = load_mask(sample.masks[0]) if sample.masks else None
        pictures.append((f"{sample.object}: {sample.defect}", load_image(sample.image), mask))
    write_png(path, contact_sheet(pictures))
    say(f"contact sheet of {len(shown)}: {path}")


def run_kinds(
    data: Sequence[Path],
    out: Path,
    *,
    split: str,
    datasets: Sequence[str],
    draw_defects: int,
    draw_on: Sequence[str],
    knowledge: Path | None,
    seed: int,
    fresh: bool,
) -> None:
    """Verb `kinds`."""
    for folder in data:
        must_exist(folder)
    drawn_on = dict(map(_object_and_number, draw_on))
    from dcr2ad.expert import Expert
    from dcr2ad.stages.kinds import fit_kinds

    with console.progress("kinds") as update:
        made = fit_kinds(
            data,
            out,
            load_knowledge(knowledge),
            Expert(),
            split=split,
            datasets=datasets,
            drawn=draw_defects,
            drawn_on=drawn_on,
            seed=seed,
            fresh=fresh,
            progress=update,
        )
    print_counts("kinds", made.model_dump(), out / "kinds.npz")


def _object_and_number(text: str) -> tuple[str, int]:
    name, _, number = text.rpartition("=")
    if not name or not number.isdecimal() or not 1 <= int(number) <= _MOST_DRAWN_ON:
        raise InputError(f"--draw-on {text!r} is not OBJECT=N", f"For example --draw-on 'cookie=60'; at most {_MOST_DRAWN_ON}")
    return name, int(number)


def run_instruct(
    data: Path,
    out: Path,
    *,
    datasets: Sequence[str],
    recipe: Path | None,
    knowledge: Path | None,
    seed: int,
    fresh: bool,
    forbid: Sequence[Path] = (),
    teacher: str | None = None,
    kinds: Path | None = None,
    draw_defects: int | None = None,
    contact_sheet: Path | None = None,
) -> None:
    """Verb `instruct`."""
    must_exist(data)
    from dcr2ad.endpoint_teacher import EndpointTeacher, open_teacher
    from dcr2ad.expert import Expert
    from dcr2ad.stages.instruct import build_instructions
    from dcr2ad.stages.kept_findings import KeptFindings
    from dcr2ad.stages.kinds import expert_with_kinds, pass_on, without_held_out

    settings = read_recipe(recipe).instruct
    if teacher is not None:
        settings = settings.model_copy(update={"teacher": teacher})
    if draw_defects is not None:
        settings = settings.model_copy(update={"draw_defects": draw_defects})
    expert = expert_with_kinds(kinds, Expert()) if settings.expert else None
    if remark := without_held_out(kinds, expert):
        say(remark)
    forbidden = _read_forbidden(forbid)
    writer = open_teacher(settings.teacher, seed, per_minute=settings.teacher_per_minute)
    with console.progress("instruct") as update:
        made = build_instructions(
            data,
            out,
            load_knowledge(knowledge),
            settings,
            seed=seed,
            expert=KeptFindings(expert) if expert else None,
            progress=update,
            fresh=fresh,
            datasets=datasets,
            forbidden=forbidden,
            teacher=writer,
        )
    if kinds is not None:
        pass_on(kinds, out)
    print_counts("instruct", made.model_dump(), out / "questions.jsonl")
    if contact_sheet is not None:
        drawn = (sample for sample in read_records(out / "samples.jsonl", Sample) if sample.id.startswith(DRAWN))
        write_sheet(contact_sheet, list(drawn))
    denied = made.rejected.get("the response cannot stand", 0)
    rate = (denied + made.rewritten) / max(1, made.reasoned + denied)
    say(f"checked against masks: {rate:.1%} of responses denied at first; {made.rewritten} rewritten, {denied} dropped")
    if isinstance(writer, EndpointTeacher):
        used = writer.usage
        price = f", cost {used.cost(settings.teacher_prices):.2f}" if settings.teacher_prices else ""
        tokens = f"{used.prompt_tokens} tokens sent, {used.new_tokens} written"
        say(f"teacher: {used.requests} requests, {used.cached} answers from the cache, {tokens}{price}")
    run_blind(out)


def run_blind(path: Path, *, seed: int = 0) -> bool:
    """Verb `data blind`; returns whether no sub-task leaks and the letters are even."""
    from dcr2ad.blind import letter_balance, read_blind

    questions = _read_questions(path)
    scores, letters = read_blind(questions, seed=seed), letter_balance(questions)
    rows = [
        (
            score.subtask.value,
            score.questions,
            f"{score.chance:.1f}",
            f"{score.accuracy:.1f} ± {score.error:.1f}",
            score.verdict,
        )
        for score in scores
    ]
    columns = ("sub-task", "questions", "chance", "blind reader", "")
    console.out.print(console.table("what the texts alone give away", columns, rows))
    for found in letters:
        verdict = f"{'even' if found.passes else 'uneven'} (chi-square {found.statistic:.2f}, limit {found.limit:.2f})"
        say(f"right letters of {found.options} options: {', '.join(map(str, found.counts))}; {verdict}")
    return all(score.verdict != "leaks" for score in scores) and all(found.passes for found in letters)


def run_check(data: Path, *, datasets: Sequence[str] = ()) -> bool:
    """Verb `data check`; returns whether nothing is wrong."""
    from dcr2ad.datasets.check import check_folder

    must_exist(data)
    with console.progress("check") as update:
        found = check_folder(read_folder(data, datasets=datasets), update)
    console.out.print(console.table("data", ("count", ""), count_rows(found.model_dump(exclude={"findings"}))))
    for finding in found.findings:
        say(f"{finding.path}: {finding.what}")
    for what, count in found.counts.items():
        say(f"{count} x {what}")
    return not found.findings


def run_stats(path: Path, figure: Path | None = None) -> None:
    """Verb `data stats`."""
    questions = _read_questions(path)
    counts = Counter(
        ("defective" if question.sample.is_anomalous else "good", question.subtask.value, question.sample.object)
        for question in questions
    )
    rows = [(*key, count, f"{count / len(questions):.1%}") for key, count in sorted(counts.items())]
    console.out.print(console.table(f"{len(questions)} questions", ("component", "sub-task", "object", "questions", ""), rows))
    if figure is not None:
        from dcr2ad.report.sunburst import sunburst_png

        write_bytes(figure, sunburst_png(counts))
        say(f"sunburst: {figure}")


def run_data_export(path: Path, out: Path, *, form: str, knowledge: Path | None) -> None:
    """Verb `data export`."""
    from dcr2ad.datasets.export import export_questions

    written = export_questions(_read_questions(path), load_knowledge(knowledge), out, form)
    say(f"{written} questions written: {out}")


def _read_questions(path: Path) -> list[Question]:
    """The questions of a file or of a stage's folder."""
    questions = list(read_records(path / "questions.jsonl" if path.is_dir() else path, Question))
    if not questions:
        raise InputError(f"{path} holds no question", "Name the folder of `instruct` or `bench`")
    return questions


def _read_forbidden(paths: Sequence[Path]) -> Forbidden | None:
    """The leak guard of `--forbid`; None where nothing is forbidden."""
    if not paths:
        return None
    with console.progress("forbidden images") as update:
        return read_forbidden(paths, update)
