"""The reader of kinds: closed form, held-out guesses, files, and the way from drawn defects to words in a prompt."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from shutil import rmtree
from typing import Any, NoReturn

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from dcr2ad.artifacts import read_manifest, read_records
from dcr2ad.cli import app
from dcr2ad.config import Recipe
from dcr2ad.datasets.drawn import write_drawn
from dcr2ad.datasets.folder import read_folder
from dcr2ad.errors import InputError, ModelError, RunError
from dcr2ad.expert import Expert
from dcr2ad.kind_names import kinds_of_object
from dcr2ad.kinds import RIDGE, fit_gallery, gallery_beside, hot_features, load_gallery
from dcr2ad.knowledge import KnowledgeBase
from dcr2ad.models.tower import load_vision_tower
from dcr2ad.prompts import build_prompt, kind_words
from dcr2ad.questions import Rejected
from dcr2ad.stages.kinds import fit_kinds
from dcr2ad.stages.run import Given, run_recipe
from dcr2ad.types import ExpertFindings, KindGuess, Question, TextPart

KEYS = ["a"] * 6 + ["b"] * 6 + ["c"] * 6
TITLES = [f"Kind {key}" for key in KEYS]
GROUPS = [str(number // 2) for number in range(18)]


def _features(seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    centres = 3 * np.eye(3, 8)[["abc".index(key) for key in KEYS]]
    return (centres + 0.3 * random.standard_normal((18, 8))).astype(np.float32)[:, None]


def test_ridge_equals_its_primal_normal_equations() -> None:
    data = _features()
    gallery, _ = fit_gallery(data, KEYS, TITLES, GROUPS)
    rows = data[:, 0] - data[:, 0].mean(0)  # the three kinds are equally frequent: every item weighs 1 / 6
    target = np.eye(3)[["abc".index(key) for key in KEYS]] - 1 / 3
    weight = 1 / 6
    penalty = RIDGE * np.trace(rows @ rows.T) * weight / 18
    primal = np.linalg.solve(weight * rows.T @ rows + penalty * np.eye(8), weight * rows.T @ target)
    assert np.allclose(gallery.weights, primal, atol=1e-4)


def test_kinds_that_differ_are_told_apart_and_probabilities_are_ordered() -> None:
    data = _features()
    gallery, held_out = fit_gallery(data, KEYS, TITLES, GROUPS)
    assert [told[0].key for told in held_out] == KEYS
    told = gallery.guess(_features(seed=1)[0, 0])
    assert told[0].title == "Kind a"
    assert len(told) == 3
    assert [guess.probability for guess in told] == sorted((guess.probability for guess in told), reverse=True)


def test_a_guess_never_rests_on_its_own_group() -> None:
    data = _features()
    keys = list(KEYS)
    keys[0] = keys[1] = "b"  # one group labelled against its looks: only a reader that saw it could say b
    _, held_out = fit_gallery(data, keys, [f"Kind {key}" for key in keys], GROUPS)
    assert held_out[0][0].key == held_out[1][0].key == "a"


def test_a_kind_is_known_whichever_way_it_lies() -> None:
    """Items of one kind lie one way each; fitted on every turn of them, each is told by the others."""
    lies, other = np.eye(6)[:3], np.eye(6)[3:]
    data = np.zeros((12, 2, 6), dtype=np.float32)
    for number in range(12):
        kind, turned = number % 3, number < 3  # the first of each kind lies as no other does
        data[number] = (other[kind], lies[kind]) if turned else (lies[kind], other[kind])
    keys, groups = ["abc"[number % 3] for number in range(12)], [str(number) for number in range(12)]
    titles = [f"Kind {key}" for key in keys]
    assert [told[0].key for told in fit_gallery(data, keys, titles, groups)[1]] == keys
    upright = fit_gallery(data[:, :1], keys, titles, groups)[1]
    assert max(told[0].probability for told in upright[:3]) < 0.5, "nothing is known of how these lie"


def test_turned_crops_are_those_of_the_turned_picture(nano_folder: Path) -> None:
    tower, random = load_vision_tower(nano_folder), np.random.default_rng(0)
    part, sound = (Image.fromarray(random.integers(0, 255, (96, 64, 3), dtype=np.uint8)) for _ in range(2))
    anomaly = random.random((22, 22))
    found = ExpertFindings(
        score=5, raw=1, threshold=3, cell=0, cells=(0.0,) * 9, extent=0.1, elongation=2, tone="same", box=(0.1, 0.2, 0.4, 0.3)
    )
    turn = Image.Transpose.TRANSPOSE
    both = hot_features(tower, part, sound, found, anomaly, (None, turn))
    moved = found.model_copy(update={"box": (0.2, 0.1, 0.3, 0.4)})
    alone = hot_features(tower, part.transpose(turn), sound.transpose(turn), moved, anomaly.T)
    assert np.allclose(both[1], alone[0], atol=1e-4) and not np.allclose(both[0], both[1], atol=0.1)


def test_rare_kinds_are_left_out_and_too_few_refused() -> None:
    keys = [*KEYS[:-2], "d", "d"]
    gallery, held_out = fit_gallery(_features(), keys, [f"Kind {key}" for key in keys], GROUPS)
    assert gallery.keys == ("a", "b", "c")
    assert held_out[-1] == ()
    with pytest.raises(InputError, match="cannot be told apart"):
        fit_gallery(_features()[:4], ["a", "a", "a", "b"], TITLES[:4], GROUPS[:4])


def test_a_gallery_survives_its_file(tmp_path: Path) -> None:
    gallery, _ = fit_gallery(_features(), KEYS, TITLES, GROUPS)
    gallery.save(tmp_path / "kinds.npz")
    again = gallery_beside(str(tmp_path))
    assert again is not None
    assert again.digest == load_gallery(tmp_path / "kinds.npz").digest
    for item in _features(seed=2)[:, 0]:
        assert [guess.key for guess in again.guess(item)] == [guess.key for guess in gallery.guess(item)]
    assert gallery_beside("nano:base") is None
    (tmp_path / "kinds.npz").write_bytes(b"no gallery")
    with pytest.raises(ModelError, match=r"is no gallery"):
        load_gallery(tmp_path / "kinds.npz")
    with pytest.raises(ModelError, match="No such file"):
        load_gallery(tmp_path / "absent.npz")


def test_words_say_how_sure() -> None:
    def told(*shares: float) -> tuple[KindGuess, ...]:
        return tuple(KindGuess(key=name, title=name, probability=p) for name, p in zip("xyz", shares, strict=False))

    assert kind_words(told(0.8, 0.15, 0.05)) == "Clearly x, else y or z."
    assert kind_words(told(0.5, 0.3, 0.2)) == "Perhaps x, else y or z."
    assert kind_words(told(0.9)) == "Clearly x."
    assert kind_words(told(0.9), certain=False) == "If it is a defect: clearly x."


def test_from_drawn_defects_to_words_in_a_prompt(tmp_path: Path, nano_folder: Path) -> None:
    del nano_folder  # built before the command asks for it
    write_drawn(tmp_path / "drawn", 1, seed=0, size=224)
    write_drawn(tmp_path / "more", 1, seed=1, size=224)  # its files have names of the first folder's
    folders = [str(tmp_path / "drawn"), str(tmp_path / "more")]
    run = CliRunner()
    fitted = run.invoke(app, ["kinds", *folders, "-o", str(tmp_path / "kinds"), "--split", ""])
    assert fitted.exit_code == 0, fitted.output
    defects = sum(sample.is_anomalous for folder in folders for sample in read_folder(folder))
    assert read_manifest(tmp_path / "kinds").summary["defects"] == defects
    built = run.invoke(
        app,
        [
            *("bench", "build", str(tmp_path / "drawn"), "-o", str(tmp_path / "bench"), "--split", ""),
            *("--max-images", "12", "--kinds", str(tmp_path / "kinds")),
        ],
    )
    assert built.exit_code == 0, built.output
    questions = list(read_records(tmp_path / "bench" / "questions.jsonl", Question))
    told = [question for question in questions if question.sample.expert and question.sample.expert.kinds]
    assert told
    found = told[0].sample.expert
    assert found is not None
    texts = [part.text for part in build_prompt(told[0]).parts if isinstance(part, TextPart)]
    assert any(kind_words(found.kinds, certain=found.is_anomalous) in text for text in texts)
    bad = next(sample for sample in read_folder(tmp_path / "drawn") if sample.is_anomalous)
    asked = ["diagnose", bad.image, "-r", bad.references[0], "--object", bad.object, "-m", "nano:base", "--context", "none"]
    for more, kinds_told in ((["--kinds", str(tmp_path / "kinds")], True), ([], False)):  # nano:base has no gallery
        diagnosed = run.invoke(app, [*asked, *more, "--json"])
        assert diagnosed.exit_code == 0, diagnosed.output
        seen = json.loads(diagnosed.stdout)["expert"]
        assert bool(seen["kinds"]) == kinds_told
    refused = run.invoke(app, [*asked, "--no-expert", "--kinds", str(tmp_path / "kinds")])
    assert isinstance(refused.exception, InputError)
    refused = run.invoke(app, [*asked, "--kinds", str(tmp_path / "nothing")])
    assert isinstance(refused.exception, ModelError)


def test_a_gallery_without_its_held_out_guesses_is_told(tmp_path: Path, nano_folder: Path) -> None:
    del nano_folder
    write_drawn(tmp_path / "drawn", 1, seed=0, size=112)
    (tmp_path / "two.toml").write_text("[instruct]\nmax_images = 2\n")
    run, shipped = CliRunner(), Path("src/dcr2ad/weights/real/kinds.npz")
    asked = ["instruct", str(tmp_path / "drawn"), "--recipe", str(tmp_path / "two.toml"), "--kinds", str(tmp_path)]
    (tmp_path / "kinds.npz").write_bytes(shipped.read_bytes())
    for held_out in ("", "{}", '{"of another picture": []}'):
        if held_out:
            (tmp_path / "held_out.json").write_text(held_out)
        made = run.invoke(app, [*asked, "-o", str(tmp_path / f"out{len(held_out)}")])
        assert made.exit_code == 0, made.output
        assert ("comes without held_out.json" in made.output) == (len(held_out) < 3)
    (tmp_path / "held_out.json").unlink()
    said: list[str] = []
    recipe, given = Recipe(name="r"), Given(kinds=tmp_path)

    def stopped(label: str) -> NoReturn:
        raise KeyboardInterrupt(label)

    with pytest.raises(KeyboardInterrupt, match="instruct"):
        run_recipe(recipe, tmp_path / "drawn", tmp_path / "run", bar=stopped, say=said.append, given=given)
    assert "comes without held_out.json" in said[-1], "a run says so too"


def _write_good_parts(folder: Path) -> None:
    """Drawn parts without the defective ones; no index, whose absolute paths would decide what is drawn onto them."""
    write_drawn(folder, 4, seed=0, size=112)
    for label in folder.glob("*/test/*"):
        if label.name != "good":
            rmtree(label)


def test_defects_drawn_onto_good_photographs_are_kinds_too_and_a_stop_loses_nothing(tmp_path: Path, nano_folder: Path) -> None:
    del nano_folder
    _write_good_parts(tmp_path / "good")
    base, expert = KnowledgeBase.builtin(), _StopsAt(Expert(), 9)
    with pytest.raises(KeyboardInterrupt):
        fit_kinds(tmp_path / "good", tmp_path / "kinds", base, expert, drawn=28)  # type: ignore[arg-type]
    assert not (tmp_path / "kinds" / "kinds.npz").exists()
    expert.left = 1000
    made = fit_kinds(tmp_path / "good", tmp_path / "kinds", base, expert, drawn=28)  # type: ignore[arg-type]
    assert 1000 - expert.left == made.drawn - 9, "what was looked at before the stop is not looked at again"
    assert made.defects == 0 and 9 < made.drawn <= 28
    known = load_gallery(tmp_path / "kinds" / "kinds.npz")
    assert len(known.keys) >= 2 and set(known.keys) <= set(made.kinds)
    assert not (tmp_path / "kinds" / "features.jsonl").exists()
    left_out = list(read_records(tmp_path / "kinds" / "rejected.jsonl", Rejected))
    assert made.drawn + sum(item.reason.endswith("could be drawn") for item in left_out) == 28
    assert Counter(item.reason for item in left_out) == made.dropped
    assert fit_kinds(tmp_path / "good", tmp_path / "kinds", base, expert, drawn=28) == made  # type: ignore[arg-type]
    with pytest.raises(RunError, match="drawn"):
        fit_kinds(tmp_path / "good", tmp_path / "kinds", base, expert, drawn=7)  # type: ignore[arg-type]


def test_more_defects_are_drawn_onto_one_object(tmp_path: Path, nano_folder: Path) -> None:
    del nano_folder
    _write_good_parts(tmp_path / "good")
    name = next(iter(read_folder(tmp_path / "good"))).object
    run, out = CliRunner(), tmp_path / "kinds"
    asked = ["kinds", str(tmp_path / "good"), "-o", str(out), "--split", "", "--draw-defects", "14"]
    fitted = run.invoke(app, [*asked, "--draw-on", f"{name}=13"])
    assert fitted.exit_code == 0, fitted.output
    summary = read_manifest(out).summary
    drawn = [path for path in (out / "drawn" / name.replace(" ", "_")).rglob("*.png") if not path.stem.endswith("_mask")]
    missed = sum(count for reason, count in summary["dropped"].items() if reason.endswith("could be drawn"))
    assert summary["drawn"] + missed == 14 + 13
    assert 13 - missed <= len(drawn) <= 13 + 2, "two of the fourteen are on this object"
    changed = run.invoke(app, [*asked, "--draw-on", f"{name}=12"])
    assert isinstance(changed.exception, RunError) and "drawn_on" in str(changed.exception)


@pytest.mark.parametrize("given", ["cookie", "=3", "cookie=0", "cookie=-1", "cookie=x", "cookie=2001", "cookie=²"])
def test_what_is_no_object_and_number_is_refused(tmp_path: Path, given: str) -> None:
    refused = CliRunner().invoke(app, ["kinds", str(tmp_path), "-o", str(tmp_path / "out"), "--draw-on", given])
    assert isinstance(refused.exception, InputError) and "OBJECT=N" in refused.exception.what
    assert not (tmp_path / "out").exists()


def test_an_object_that_no_photograph_shows_is_refused_by_name(tmp_path: Path) -> None:
    write_drawn(tmp_path / "parts", 1, seed=0, size=112)
    asked = ["kinds", str(tmp_path / "parts"), "-o", str(tmp_path / "out"), "--split", "", "--draw-on", "casting=3"]
    refused = CliRunner().invoke(app, asked)
    assert isinstance(refused.exception, InputError)
    assert "'casting'" in refused.exception.what and "woven cloth" in refused.exception.fix
    for good in (tmp_path / "parts" / "woven_cloth").rglob("good"):
        rmtree(good)
    asked[-1] = "woven cloth=3"
    refused = CliRunner().invoke(app, asked)
    assert isinstance(refused.exception, InputError)
    assert "good" in refused.exception.what and "woven cloth" not in refused.exception.fix


class _StopsAt:
    """An expert that is interrupted after some images."""

    def __init__(self, expert: Expert, left: int) -> None:
        self._expert, self.left = expert, left

    def inspect(self, *asked: Any) -> Any:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return self._expert.inspect(*asked)

    def hot_features(self, *asked: Any) -> Any:
        return self._expert.hot_features(*asked)


def test_a_kind_is_told_by_the_name_it_has_on_the_object_and_kinds_of_other_materials_are_not() -> None:
    def findings(*guesses: tuple[str, float]) -> ExpertFindings:
        kinds = tuple(KindGuess(key=key, title="as fitted", probability=share) for key, share in guesses)
        return ExpertFindings(
            score=9, raw=1, threshold=3, cell=0, cells=(0.0,) * 9, extent=0.1, elongation=2, tone="darker", kinds=kinds
        )

    seen = findings(
        ("General.board.spur", 0.4), ("General.ceramic.crack", 0.2), ("General.metal.pitting", 0.2), ("General.food.crack", 0.2)
    )
    base = KnowledgeBase.builtin()
    told = kinds_of_object(seen, "ksdd", "commutator", base).kinds
    assert [kind.key for kind in told] == ["General.structural.hairline_crack", "General.metal.pitting"]
    assert [kind.probability for kind in told] == pytest.approx([0.4 / 0.6, 0.2 / 0.6]), (
        "equal ones together, of those that fit"
    )
    assert told[0].title == base.get(told[0].key).title
    assert [kind.key for kind in kinds_of_object(seen, "mtd", "magnetic tile", base).kinds][:1] == ["General.ceramic.crack"]
    alone = findings(("General.board.spur", 1.0))
    assert [kind.key for kind in kinds_of_object(alone, "x", "cookie", base).kinds] == ["General.board.spur"], (
        "better than none"
    )
    assert kinds_of_object(findings(), "x", "cookie", base).kinds == ()
