"""Importing, merging, checking and building; small fixtures of MMAD's schema in our own words."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from dcr2ad.errors import InputError, RecordError, UnknownNameError
from dcr2ad.knowledge import KnowledgeBase
from dcr2ad.knowledge.check import check, check_file
from dcr2ad.knowledge.own import read_own
from dcr2ad.knowledge.sources import find_leaks, merge, read_domain_knowledge, unique_titles
from dcr2ad.stages.knowledge import build_knowledge_base
from dcr2ad.types import KnowledgeEntry, LookAlike

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "mmad-sample"
MMAD, REAL_IAD = SHARED / "domain_knowledge.json", SHARED / "real_iad_domain_knowledge.json"

DATA = {
    "MVTec": {
        "zipper": {
            "good": " <Usual State>\n Description: A zipper with even rows.\n Zippers may carry lint.",
            "split_teeth": "<Parted Zipper: Rows>\nDescription: The zipper's rows gape.",
        },
        "pill": {"good": "<Usual State> Description: Round pills without marks.", "crack": "   "},
    },
    "Real-IAD": {"toy_brick": {"missing parts": "A toy brick lacks a stud; bricks have eight."}},
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "knowledge.json"
    path.write_text(json.dumps(DATA))
    return path


def entry(key: str, text: str, **fields: object) -> KnowledgeEntry:
    return KnowledgeEntry.model_validate({"key": key, "title": f"Title {key}", "text": text, **fields})


def test_a_file_of_mmads_schema_becomes_entries(file: Path) -> None:
    imported = read_domain_knowledge(file)
    by_key = {entry.key: entry for entry in imported.entries}
    assert list(by_key) == [
        "MVTec.zipper.good",
        "MVTec.zipper.split_teeth",
        "MVTec.pill.good",
        "Real-IAD.toy_brick.missing_parts",
    ]
    assert [(d.key, d.reason) for d in imported.dropped] == [("MVTec.pill.crack", "empty text")]
    good = by_key["MVTec.zipper.good"]
    assert good.text == "<Usual State> Description: An [object] with even rows. [object] may carry lint."
    assert good.is_normal
    assert good.source == "mmad"
    assert by_key["MVTec.zipper.split_teeth"].title == "Parted Part, Rows"
    brick = by_key["Real-IAD.toy_brick.missing_parts"]
    assert (brick.source, brick.title) == ("real-iad", "Missing parts")
    assert brick.aliases == ("real_iad/toy_brick/missing_parts", "real_iad/toy_brick/qs")
    assert find_leaks(imported.entries) == []


@pytest.mark.parametrize(
    ("content", "where"),
    [
        ("[]", "no JSON object"),
        ("{", "not JSON"),
        ('{"A": 1}', "A: no objects"),
        ('{"A": {"b": "x"}}', "A.b: no defects"),
        ('{"A": {"b": {"c": 3}}}', "A.b.c: expected a text"),
    ],
)
def test_another_schema_is_refused(tmp_path: Path, content: str, where: str) -> None:
    (tmp_path / "bad.json").write_text(content)
    with pytest.raises(RecordError, match=where):
        read_domain_knowledge(tmp_path / "bad.json")
    with pytest.raises(RecordError, match="no such file"):
        read_domain_knowledge(tmp_path / "absent.json")


def test_titles_are_made_unique_without_naming_the_object(file: Path) -> None:
    own = entry("Own.a.b", "Mine.", title="Usual State", source="own")
    named = unique_titles([*read_domain_knowledge(file).entries, own])
    titles = [entry.title for entry in named]
    assert titles[0] == "Usual State (interlocking teeth)"
    assert titles[-1] == "Usual State"
    assert len(set(titles)) == len(titles)
    assert find_leaks(named) == []
    twice = [entry(f"X.unknown.{n}", "t", title="Same", source="mmad") for n in "abc"]
    assert [e.title for e in unique_titles(twice)] == ["Same", "Same 2", "Same 3"]


def test_equal_and_nearly_equal_texts_merge_and_the_first_keeps_the_aliases() -> None:
    words = " ".join(f"word{n}" for n in range(60))
    first = entry("A.b.c", words, aliases=("one",))
    equal = entry("A.b.d", words.upper() + "!", aliases=("two",), source="own")
    near = entry("A.b.e", words + " more", aliases=("three",))
    normal = entry("A.b.f", words, is_normal=True)
    other = entry(
        "A.b.g",
        " ".join(f"else{n}" for n in range(60)),
        look_alikes=(LookAlike(key="A.b.d", difference="d"), LookAlike(key="A.b.c", difference="c")),
    )
    kept, merged = merge([first, equal, near, normal, other])
    assert [entry.key for entry in kept] == ["A.b.c", "A.b.f", "A.b.g"]
    assert kept[0].aliases == ("one", "two", "three")
    assert [(pair.kept, pair.dropped) for pair in merged] == [("A.b.c", "A.b.d"), ("A.b.c", "A.b.e")]
    assert merged[0].likeness == 1.0
    assert [like.key for like in kept[2].look_alikes] == ["A.b.c"]


def test_the_built_in_entries_hold_no_near_duplicates() -> None:
    assert merge(KnowledgeBase.builtin())[1] == []


MARKDOWN = """---
title: Leak at the seal
object: valve
cues: wet rim; drop marks
place: below the seal
look_alike: General.contamination.oil | a leak begins at the seal
cause: worn seal
effect: loss of pressure
aliases: Leak, valve/leaking
---
# Not the title

A wet track begins at the seal
of the valve. Valves drip.
"""


def test_a_markdown_file_is_an_entry(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "Seal leak.md").write_text(MARKDOWN)
    (tmp_path / "plain.md").write_text("# Plain one\nOnly text.\n")
    plain, leak = read_own(tmp_path)
    assert (plain.key, plain.title, plain.text, plain.source) == ("Own.general.plain", "Plain one", "Only text.", "own")
    assert leak.key == "Own.valve.seal_leak"
    assert leak.text == "A wet track begins at the seal of the [object]. [object] drip."
    assert leak.cues == ("wet rim", "drop marks")
    assert leak.aliases == ("leak", "valve/leaking")
    assert leak.look_alikes[0].key == "General.contamination.oil"


@pytest.mark.parametrize(
    ("content", "where"),
    [
        ("---\ntitle: x\n", "does not end"),
        ("---\ncolour: red\n---\ntext", ":2:"),
        ("---\ntitle: x\n---\n", "has no text"),
        ("---\nnormal: perhaps\n---\ntext", "perhaps"),
        ("---\ntitle: a\ntitle: b\n---\ntext", ":3: title is given twice"),
        ("---\nlook_alike: General.a.b\n---\ntext", "without a difference"),
        ("# Title: with colon\ntext", "colon"),
    ],
)
def test_a_bad_markdown_file_is_one_line_that_names_the_place(tmp_path: Path, content: str, where: str) -> None:
    (tmp_path / "bad.md").write_text(content)
    with pytest.raises(RecordError, match=where):
        read_own(tmp_path)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="no Markdown"):
        read_own(tmp_path)


def test_own_jsonl_keeps_an_imported_source(tmp_path: Path) -> None:
    lines = [entry("A.b.c", "x"), entry("A.b.d", "y", source="mmad")]
    (tmp_path / "own.jsonl").write_text("".join(line.model_dump_json() + "\n" for line in lines))
    assert [entry.source for entry in read_own(tmp_path / "own.jsonl")] == ["own", "mmad"]


def test_the_stage_writes_entries_and_report(file: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    (own / "leak.md").write_text(MARKDOWN)
    base, report = build_knowledge_base(tmp_path / "out", mmad=file, own=own)
    builtin = len(KnowledgeBase.builtin())
    assert report.read == {"mmad": 3, "real-iad": 1, "own": 1, "builtin": builtin}
    assert report.entries == len(base) == builtin + 5
    assert report.leaks == ()
    assert [d.reason for d in report.dropped] == ["empty text"]
    assert KnowledgeBase.load(tmp_path / "out" / "entries.jsonl").digest == report.digest
    assert json.loads((tmp_path / "out" / "report.json").read_text())["entries"] == len(base)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["entries.jsonl", "report.json"]


def test_excluded_sources_are_gone_and_counted(file: Path, tmp_path: Path) -> None:
    base, report = build_knowledge_base(tmp_path, mmad=file, exclude_sources=("mmad", "builtin"))
    assert [entry.source for entry in base] == ["real-iad"]
    assert Counter(d.reason for d in report.dropped)["source excluded"] == 3 + len(KnowledgeBase.builtin())
    with pytest.raises(UnknownNameError, match="mmda"):
        build_knowledge_base(tmp_path, exclude_sources=("mmda",))
    with pytest.raises(InputError, match="empty"):
        build_knowledge_base(tmp_path, builtin=False)


def test_check_names_each_problem() -> None:
    like = (LookAlike(key="A.b.gone", difference=""), LookAlike(key="A.b.one", difference="x"))
    entries = [
        entry("A.b.one", "x", source="own", aliases=("same",), look_alikes=like),
        entry("A.b.two", "x", source="own", title="title a.b.ONE", aliases=("Same", "a//b")),
        entry("bad key", "The zipper.", source="own", title="T: x"),
        entry("Own.zipper.x", "The zipper.", source="own"),
        entry("General.surface.x", "Too short for a bottle."),
    ]
    found = "\n".join(check(entries))
    for part in (
        "'title a.b.one' is used 2 times",
        "bad key: a key has three parts",
        "'T: x' is empty or holds",
        "A.b.gone does not exist",
        "A.b.gone has no difference",
        "A.b.one: is its own look-alike",
        "alias 'same' means A.b.one and A.b.two",
        "'a//b' has an empty part",
        "Own.zipper.x: names the object: 'zipper'",
        "General.surface.x: text of 5 words",
        "General.surface.x: text without [object]",
        "General.surface.x: names an object: 'bottle'",
        "General.surface.x: no place",
    ):
        assert part in found, part


def test_check_wants_look_alikes_to_point_back() -> None:
    one = entry("Own.general.one", "x", source="own", look_alikes=(LookAlike(key="Own.general.two", difference="d"),))
    two = entry("Own.general.two", "y", source="own")
    assert check([one, two]) == ["Own.general.one: look-alike Own.general.two does not point back"]
    back = two.model_copy(update={"look_alikes": (LookAlike(key="Own.general.one", difference="d"),)})
    assert check([one, back]) == []


def test_check_file_lists_what_keeps_a_base_from_loading(tmp_path: Path) -> None:
    line = entry("Own.general.one", "x", source="own").model_dump_json()
    (tmp_path / "own.jsonl").write_text(f"{line}\n{line}\n")
    assert check_file(tmp_path / "own.jsonl")[0] == "key 'own.general.one' is used 2 times"


@pytest.mark.skipif(not (MMAD.exists() and REAL_IAD.exists()), reason="MMAD's and Real-IAD's knowledge files are absent")
def test_the_real_files_build_without_a_leak(tmp_path: Path) -> None:
    base, report = build_knowledge_base(tmp_path, mmad=MMAD, real_iad=REAL_IAD)
    assert (report.read["mmad"], report.read["real-iad"]) == (146, 141)
    sets = Counter(entry.key.split(".")[0] for entry in base if entry.source == "mmad")
    assert sets == {"MVTec": 86, "MVTec-LOCO": 15, "VisA": 24, "GoodsAD": 21}
    assert report.leaks == ()
    assert report.dropped == ()
    assert report.entries == sum(report.read.values()) - len(report.merged)
    assert check(base) == []
    found = base.resolve_label("DS-MVTec", "zipper", "combined", True)
    assert found is not None
    assert found.key == "MVTec.zipper.combined"
    assert all(entry.source != "mmad" for entry in base.without_sources("mmad"))
