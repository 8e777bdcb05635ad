"""Fitting a gallery of kinds: labelled defects to a linear reader of the expert's hot spots (`dcr2ad.kinds`).

Reads folders of labelled photographs; writes ``kinds.npz``, which goes with a model, ``held_out.json``: for every defect
it was fitted on, by content, what a reader says that never saw its group, and ``rejected.jsonl``: what was left out, and why.
Instruction data told from held-out guesses are as often wrong as the reader is at use. Not in the paper.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path

import numpy as np

from dcr2ad.artifacts import RecordWriter, StageFolder, digest_records, read_records, write_bytes, write_records, write_text
from dcr2ad.datasets.folder import balanced_subset, read_folder, with_knowledge
from dcr2ad.datasets.onto import Planned, draw_planned, plan_defects
from dcr2ad.errors import ImageError, InputError
from dcr2ad.expert import Expert
from dcr2ad.images import content_digest
from dcr2ad.kinds import FILE, TURNS, fit_gallery, load_gallery
from dcr2ad.knowledge import KnowledgeBase
from dcr2ad.questions import Rejected
from dcr2ad.types import KindGuess, Record, Sample

HELD_OUT = "held_out.json"
_FEATURES = "features.jsonl"

Progress = Callable[[int, int], None]
"""Called with images done and images in all."""


class KindsSummary(Record):
    """What a gallery was fitted on, and how often its held-out first guess is right."""

    defects: int
    """Labelled defects fitted on."""
    drawn: int = 0
    """Drawn defects fitted on besides."""
    kinds: dict[str, int]
    """Defects of each kind."""
    right: dict[str, float]
    """Share of right first guesses on labelled defects, each guessed without its group, by object."""
    chance: dict[str, float]
    """The same, were the commonest kind of the object always guessed."""
    dropped: dict[str, int]
    """Images left out, by reason."""


class _Seen(Record):
    """Features of one defect in every turn, kept until the gallery is fitted."""

    sample: Sample
    features: str


def fit_kinds(
    data: str | Path | Sequence[Path],
    out: str | Path,
    knowledge_base: KnowledgeBase,
    expert: Expert,
    *,
    split: str = "train",
    datasets: Sequence[str] = (),
    drawn: int = 0,
    drawn_on: Mapping[str, int] | None = None,
    seed: int = 0,
    fresh: bool = False,
    progress: Progress | None = None,
) -> KindsSummary:
    """Fit a gallery on labelled photographs and on defects drawn onto good ones; a stopped run continues.

    Drawn defects teach kinds that the labels lack (scratch, crack, pit, dirt, chip, hole, foreign object).

    Args:
        data: folders of photographs, see `dcr2ad.datasets.folder.read_folder`; labelled defects, good ones, or both.
        out: folder for ``kinds.npz``, ``held_out.json`` and ``rejected.jsonl``, and for ``drawn``.
        knowledge_base: says which entry a label leads to.
        expert: finds the hot spots.
        split: split of the data to use; empty for all.
        datasets: names of data sets to keep; empty for all.
        drawn: defects drawn onto good photographs, evenly over objects and kinds.
        drawn_on: further ones by object, evenly over its photographs and kinds.
        seed: seed of what is drawn.
        fresh: throw away what `out` holds.
        progress: called after each image.

    Raises:
        InputError: the data cannot be read, or holds too few defects.
        RunError: `out` holds a gallery of other data or settings.
    """
    out = Path(out)
    folders = [data] if isinstance(data, str | Path) else data
    readings = [read_folder(path, split=split, datasets=datasets) for path in folders]
    every = list(with_knowledge(chain.from_iterable(readings), knowledge_base))
    plans = chain(
        _plan(every, drawn, out / "drawn", knowledge_base, seed),
        *(_plan_on(every, name, more, out / "drawn", knowledge_base, seed) for name, more in (drawn_on or {}).items()),
    )
    planned = {item.sample.image: item for item in plans}
    samples = [sample for sample in every if sample.is_anomalous] + [item.sample for item in planned.values()]
    inputs = {"samples": digest_records(every), "knowledge": knowledge_base.digest}
    config = {"split": split, "datasets": list(datasets), "drawn": drawn, "drawn_on": drawn_on or {}, "turns": len(TURNS)}
    with StageFolder(out, stage="kinds", config=config, inputs=inputs, seed=seed, fresh=fresh) as folder:
        if folder.done:
            return KindsSummary.model_validate(folder.manifest.summary)
        seen, rejected = _look(samples, planned, expert, out / _FEATURES, progress)
        if not seen:
            shown = " and ".join(map(str, folders))
            raise InputError(f"{shown} holds no labelled defect with a reference", "Kinds are read off defects: draw some")
        kept = [row.sample for row in seen]
        keys = [str(sample.right_key) for sample in kept]
        titles = [knowledge_base.get(key).title for key in keys]
        features = np.stack([np.frombuffer(b64decode(row.features), dtype=np.float16).reshape(len(TURNS), -1) for row in seen])
        gallery, guesses = fit_gallery(features, keys, titles, [sample.item for sample in kept])
        told = {
            content_digest(sample.image): [guess.model_dump() for guess in found]
            for sample, found in zip(kept, guesses, strict=True)
        }
        write_text(out / HELD_OUT, json.dumps(told, indent=0) + "\n")
        gallery.save(out / FILE)
        rejected += [Rejected(sample=s.id, reason="kind too rare") for s, found in zip(kept, guesses, strict=True) if not found]
        write_records(out / "rejected.jsonl", rejected)
        dropped = Counter(item.reason for item in rejected)
        real = [(s, found) for s, found in zip(kept, guesses, strict=True) if s.image not in planned]
        summary = KindsSummary(
            defects=len(real), drawn=len(kept) - len(real), kinds=dict(Counter(keys)), dropped=dict(dropped), **_rates(real)
        )
        (out / _FEATURES).unlink()
        folder.finish(summary.model_dump(mode="json"))
    return summary


def _plan(samples: Sequence[Sample], count: int, folder: Path, knowledge_base: KnowledgeBase, seed: int) -> list[Planned]:
    """`count` defects to draw onto the good photographs, objects and kinds in turn; as many as there can be where fewer."""
    good = balanced_subset([s for s in samples if not s.is_anomalous], count, seed) if count else []
    if count and not good:
        raise InputError("there is no good photograph to draw a defect onto", "Leave --draw-defects out")
    each = -(-count // max(1, len(good)))
    by_turn = sorted(enumerate(plan_defects(good, each, folder, knowledge_base, seed=seed)), key=lambda item: item[0] % each)
    return [planned for _, planned in by_turn[:count]] if each else []


def _plan_on(
    samples: Sequence[Sample], name: str, count: int, folder: Path, knowledge_base: KnowledgeBase, seed: int
) -> list[Planned]:
    """`_plan` for one object; its drawings are others than those of `_plan` over all."""
    own = [sample for sample in samples if sample.object == name and not sample.is_anomalous]
    if not own:
        known = ", ".join(sorted({s.object for s in samples if not s.is_anomalous}))
        advice = f"Name one of: {known}" if known else "Leave --draw-on out"
        raise InputError(f"no good photograph shows the object {name!r}", advice)
    return _plan(own, count, folder, knowledge_base, seed + 1)


def _look(
    samples: Sequence[Sample], planned: dict[str, Planned], expert: Expert, file: Path, progress: Progress | None
) -> tuple[list[_Seen], list[Rejected]]:
    """Features of every hot spot, those on disk and the rest, and what was left out."""
    rejected: list[Rejected] = []
    with RecordWriter(file) as writer:
        done = {row.sample.image: row for row in read_records(file, _Seen)}
        for number, sample in enumerate(samples, 1):
            reason = "no reference" if not sample.references else "no knowledge entry" if sample.right_key is None else ""
            if not reason and sample.image not in done:
                try:
                    if sample.image in planned:
                        draw_planned(planned[sample.image])
                    findings, anomaly = expert.inspect(sample.image, sample.references)
                    features = expert.hot_features(sample.image, sample.references, findings, anomaly, TURNS)
                except ImageError:
                    drawing = planned.get(sample.image)
                    reason = f"no {drawing.kind.replace('_', ' ')} could be drawn" if drawing else "image cannot be read"
                else:
                    text = b64encode(features.astype(np.float16).tobytes()).decode()
                    done[sample.image] = _Seen(sample=sample, features=text)
                    writer.write(done[sample.image])
            if reason:
                rejected.append(Rejected(sample=sample.id, reason=reason))
            if progress is not None:
                progress(number, len(samples))
    return [done[sample.image] for sample in samples if sample.image in done], rejected


def expert_with_kinds(path: Path | None, expert: Expert) -> Expert:
    """The expert with the gallery of a folder that `fit_kinds` wrote, or of a file; as it is where none is named.

    Raises:
        ModelError: no gallery there.
    """
    if path is not None:
        expert.gallery = load_gallery(path / FILE if path.is_dir() else path)
        held_out = (path if path.is_dir() else path.parent) / HELD_OUT
        if held_out.is_file():
            stored = json.loads(held_out.read_text(encoding="utf-8"))
            expert.held_out = {digest: tuple(map(KindGuess.model_validate, told)) for digest, told in stored.items()}
    return expert


def without_held_out(path: Path | None, expert: Expert | None) -> str:
    """What to say of instruction data told by a gallery without its held-out guesses; empty where there is nothing to say."""
    if path is None or expert is None or expert.held_out:
        return ""
    what = f"the gallery {path} comes without {HELD_OUT}: what it was fitted on is told better than others would be"
    return f"{what}. `dcr2ad kinds` writes both"


def pass_on(source: Path, target: Path) -> None:
    """Copy the gallery in one folder, where there is one, to another: it goes with the data told by it, then with the model."""
    file = source / FILE if source.is_dir() else source
    if file.is_file():
        write_bytes(target / FILE, file.read_bytes())


def _rates(guessed: Sequence[tuple[Sample, tuple[KindGuess, ...]]]) -> dict[str, dict[str, float]]:
    right, chance = {}, {}
    for name in sorted({sample.object for sample, _ in guessed}):
        own = [(s, told) for s, told in guessed if s.object == name]
        right[name] = sum(bool(told) and told[0].key == s.right_key for s, told in own) / len(own)
        chance[name] = max(Counter(s.right_key for s, _ in own).values()) / len(own)
    return {"right": right, "chance": chance}
