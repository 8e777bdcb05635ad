"""Making data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from dcr2ad import console
from dcr2ad.artifacts import read_records
from dcr2ad.commands.common import load_knowledge, must_exist, print_counts, read_recipe, say
from dcr2ad.errors import InputError
from dcr2ad.leaks import Forbidden, read_forbidden
from dcr2ad.types import Question


def run_draw(out: Path, *, count: int, seed: int) -> None:
    """Verb `draw`."""
    from dcr2ad.datasets.drawn import write_drawn

    written = write_drawn(out, count, seed)
    console.err.print(f"{written} pictures with masks in {out}", markup=False)


def run_kinds(data: Path, out: Path, *, split: str, datasets: Sequence[str], knowledge: Path | None) -> None:
    """Verb `kinds`."""
    must_exist(data)
    from dcr2ad.expert import Expert
    from dcr2ad.stages.kinds import fit_kinds

    with console.progress("kinds") as update:
        made = fit_kinds(data, out, load_knowledge(knowledge), Expert(), split=split, datasets=datasets, progress=update)
    print_counts("kinds", made.model_dump(), out / "kinds.npz")


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
) -> None:
    """Verb `instruct`."""
    must_exist(data)
    from dcr2ad.endpoint_teacher import EndpointTeacher, open_teacher
    from dcr2ad.expert import Expert
    from dcr2ad.stages.instruct import build_instructions
    from dcr2ad.stages.kinds import expert_with_kinds, pass_on

    settings = read_recipe(recipe).instruct
    if teacher is not None:
        settings = settings.model_copy(update={"teacher": teacher})
    expert = expert_with_kinds(kinds, Expert()) if settings.expert else None
    forbidden = _read_forbidden(forbid)
    writer = open_teacher(settings.teacher, seed, per_minute=settings.teacher_per_minute)
    with console.progress("instruct") as update:
        made = build_instructions(
            data,
            out,
            load_knowledge(knowledge),
            settings,
            seed=seed,
            expert=expert,
            progress=update,
            fresh=fresh,
            datasets=datasets,
            forbidden=forbidden,
            teacher=writer,
        )
    if kinds is not None:
        pass_on(kinds, out)
    print_counts("instruct", made.model_dump(), out / "questions.jsonl")
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
    from dcr2ad.datasets.folder import read_folder

    must_exist(data)
    with console.progress("check") as update:
        found = check_folder(read_folder(data, datasets=datasets), update)
    counts = found.model_dump(exclude={"findings"})
    rows = [(name.replace("_", " "), value) for name, value in counts.items()]
    console.out.print(console.table("data", ("count", ""), rows))
    for finding in found.findings:
        say(f"{finding.path}: {finding.what}")
    for what, count in found.counts.items():
        say(f"{count} x {what}")
    return not found.findings


def run_stats(path: Path) -> None:
    """Verb `data stats`."""
    questions = _read_questions(path)
    counts = Counter(
        ("defective" if question.sample.is_anomalous else "good", question.subtask.value, question.sample.object)
        for question in questions
    )
    rows = [(*key, count, f"{count / len(questions):.1%}") for key, count in sorted(counts.items())]
    console.out.print(console.table(f"{len(questions)} questions", ("component", "sub-task", "object", "questions", ""), rows))


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
