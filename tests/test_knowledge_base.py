"""The knowledge base: looking up, labels, categories, search, files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcr2ad.errors import RecordError, UnknownNameError
from dcr2ad.knowledge import KnowledgeBase
from dcr2ad.knowledge.check import check
from dcr2ad.knowledge.labels import known_labels, normalise_alias
from dcr2ad.knowledge.objects import DOMAINS, table
from dcr2ad.types import KnowledgeEntry

SHARED = Path(__file__).resolve().parents[2] / "shared"
INDEX = SHARED / "data" / "real-mini" / "index.jsonl"


BUILTIN = KnowledgeBase.builtin()


@pytest.fixture(scope="module")
def base() -> KnowledgeBase:
    return BUILTIN


def entry(key: str, **fields: object) -> KnowledgeEntry:
    return KnowledgeEntry.model_validate({"key": key, "title": key.replace(".", " "), "text": "An [object].", **fields})


def test_the_built_in_entries_pass_every_check(base: KnowledgeBase) -> None:
    assert len(base) >= 160
    assert check(base) == []


def test_every_domain_has_one_normal_state(base: KnowledgeBase) -> None:
    for domain in DOMAINS:
        normals = [entry.key for entry in base if entry.category == domain and entry.is_normal]
        assert normals == [f"General.{domain}.normal"]
    assert {entry.category for entry in base} == set(DOMAINS)
    assert {name for row in table().values() for name in row.domains} <= set(DOMAINS)


def test_a_key_a_title_and_a_close_name(base: KnowledgeBase) -> None:
    scratch = base.get("General.surface.scratch")
    assert base.resolve("  surface   SCRATCH ") is scratch
    assert base.resolve("general.surface.scratch") is scratch
    assert base.resolve("surface scratches") is None
    with pytest.raises(UnknownNameError, match=r"General\.surface\.scratch"):
        base.get("General.surface.scrach")


@pytest.mark.parametrize(("dataset", "object_name", "label"), list(known_labels()))
def test_every_known_label_leads_to_one_defect(base: KnowledgeBase, dataset: str, object_name: str, label: str) -> None:
    found = base.resolve_label(dataset, object_name, label, True)
    assert found is not None
    assert not found.is_normal


def test_real_iad_codes_and_names_agree(base: KnowledgeBase) -> None:
    names = {"AK": "pit", "BX": "deformation", "CH": "abrasion", "HS": "scratch", "PS": "damage", "QS": "missing parts"}
    names |= {"YW": "foreign objects", "ZW": "contamination"}
    for dataset, object_name, code in known_labels():
        if dataset == "real_iad":
            by_code = base.resolve_label("Real-IAD", object_name, code, True)
            assert by_code == base.resolve_label("Real-IAD", object_name, names[code], True), (object_name, code)


def test_the_most_specific_alias_wins() -> None:
    plain, by_object = entry("A.b.plain", aliases=("hole",)), entry("A.b.object", aliases=("carpet/hole",))
    by_set, both = entry("A.b.set", aliases=("mvtec/hole",)), entry("A.b.both", aliases=("mvtec/carpet/hole",))
    base = KnowledgeBase([plain, by_object, by_set, both])
    assert base.resolve_label("DS-MVTec", "Carpet", "Hole", True) == both
    assert base.resolve_label("own", "carpet", "hole", True) == by_object
    assert base.resolve_label("MVTec-AD", "wood", "hole", True) == by_set
    assert base.resolve_label("own", "wood", "hole", True) == plain


def test_an_object_with_a_number_shares_the_aliases_of_its_kind(base: KnowledgeBase) -> None:
    found = base.resolve_label("visa", "pcb2", "burnt", True)
    assert found is not None
    assert found.key == "General.board.burnt_area"


def test_own_entries_go_before_imported_and_built_in_ones() -> None:
    entries = [entry(f"A.b.{source}", source=source, aliases=("dent",)) for source in ("builtin", "mmad", "own")]
    found = KnowledgeBase(entries).resolve_label("x", "y", "dent", True)
    assert found is not None
    assert found.source == "own"


def test_a_label_that_says_nothing_resolves_to_nothing(base: KnowledgeBase) -> None:
    assert base.resolve_label("mtd", "magnetic tile", None, True) is None
    assert base.resolve_label("mtd", "magnetic tile", "never heard of", True) is None
    assert base.resolve_label("mtd", "magnetic tile", "good", True) is None


@pytest.mark.parametrize(
    ("dataset", "object_name", "key"),
    [
        ("mtd", "magnetic tile", "General.ceramic.normal"),
        ("deeppcb", "pcb", "General.board.normal"),
        ("cookies", "cookie", "General.food.normal"),
        ("bsdata", "ball screw", "General.metal.normal"),
        ("elpv", "solar cell mono", "General.cell.normal"),
        ("mine", "flux capacitor", "General.surface.normal"),
    ],
)
def test_a_good_part_gets_the_normal_state_that_fits(base: KnowledgeBase, dataset: str, object_name: str, key: str) -> None:
    for label in (None, "good"):
        found = base.resolve_label(dataset, object_name, label, False)
        assert found is not None
        assert found.key == key


def test_a_base_without_built_in_entries_has_no_normal_fallback() -> None:
    assert KnowledgeBase([entry("A.b.dent")]).resolve_label("x", "y", None, False) is None


def test_category_prefers_imported_then_labels_then_the_domain(base: KnowledgeBase) -> None:
    keys = [entry.key for entry in base.category("magnetic tile", "mtd")]
    assert keys == [f"General.ceramic.{name}" for name in ("blowhole", "break", "crack", "fray", "uneven", "normal")]
    names = ("open", "short", "mousebite", "spur", "spurious_copper", "pin_hole", "normal")
    boards = {entry.key for entry in base.category("pcb", "deeppcb")}
    assert boards == {f"General.board.{name}" for name in names}
    assert {entry.category for entry in base.category("candle")} == {"polymer"}
    assert any(entry.is_normal for entry in base.category("flux capacitor"))
    assert len(base.category("flux capacitor")) == 13
    imported = [entry(f"{s}.zipper.{d}", source="mmad") for s in ("MVTec", "Real-IAD") for d in ("good", "bad")]
    both = KnowledgeBase([*base, *imported])
    assert [entry.key for entry in both.category("Zipper", "DS-MVTec")] == ["MVTec.zipper.good", "MVTec.zipper.bad"]
    assert len(both.category("zipper")) == 4


def test_whatever_a_label_means_can_apply_to_its_object(base: KnowledgeBase) -> None:
    for dataset, name, label in known_labels():
        meant = {base.resolve_label(dataset, name, label, True), base.resolve_label(dataset, name, None, False)} - {None}
        assert meant and meant <= set(base.applicable(name, dataset)), (dataset, name, label)


def test_what_can_apply_is_of_the_objects_material_and_under_its_own_names(base: KnowledgeBase) -> None:
    cookie = [found.key for found in base.applicable("cookie", "cookies")]
    assert [key for key in cookie if key.endswith(".normal")] == ["General.food.normal"]
    assert "General.food.crack" in cookie and "General.structural.crack" not in cookie
    assert "General.contamination.dirt" in cookie and not any(".metal." in key or ".board." in key for key in cookie)
    assert cookie == [found.key for found in base if found.key in set(cookie)]
    assert base.applicable("cookie") == base.applicable("Cookies"), "an object is known by any of its forms"
    assert base.applicable("widget") == base.entries, "nothing is left out for an object that is not in the table"
    own = entry("Own.widget.frayed_seal")
    assert own in KnowledgeBase([own, *base]).applicable("cookie"), "entries that are not ours say nothing of a material"


def test_every_category_of_the_table_can_be_read_in_one_prompt(base: KnowledgeBase) -> None:
    for name in table():
        chosen = base.category(name)
        assert 2 <= len(chosen) <= 20
        assert any(entry.is_normal for entry in chosen)
        assert any(not entry.is_normal for entry in chosen)


def test_look_alikes_come_with_what_tells_them_apart(base: KnowledgeBase) -> None:
    pairs = base.look_alikes("General.ceramic.blowhole")
    assert "General.ceramic.break" in {entry.key for entry, _ in pairs}
    assert all(like.difference for _, like in pairs)
    assert KnowledgeBase([base.get("General.ceramic.blowhole")]).look_alikes("General.ceramic.blowhole") == ()


@pytest.mark.parametrize(
    ("query", "title"),
    [
        ("brown powdery patch on steel", "Local rust"),
        ("two pieces stuck together", "Pieces stuck together"),
        ("torn packaging with visible content", "Torn packaging"),
        ("bubble in glass", "Glass bubble"),
        ("dark round hole in metal", "Surface pit"),
        ("hair on the surface", "Stray fibre"),
    ],
)
def test_search_finds_what_is_described(base: KnowledgeBase, query: str, title: str) -> None:
    assert title in {entry.title for entry, _ in base.search(query, 3)}


@given(st.text(max_size=60), st.integers(min_value=-1, max_value=300))
def test_search_takes_any_text(text: str, k: int) -> None:
    found = BUILTIN.search(text, k)
    scores = [score for _, score in found]
    assert len(found) <= max(k, 0)
    assert scores == sorted(scores, reverse=True)
    assert all(score > 0 for score in scores)


def test_every_entry_is_found_by_its_own_title(base: KnowledgeBase) -> None:
    missed = [e.title for e in base if e.key not in {found.key for found, _ in base.search(e.title, 5)}]
    assert len(missed) <= 2, missed


def test_the_digest_is_of_the_entries_not_of_their_order(base: KnowledgeBase) -> None:
    assert KnowledgeBase(reversed(base.entries)).digest == base.digest
    assert KnowledgeBase(base.entries[1:]).digest != base.digest


def test_a_base_comes_back_from_its_file(base: KnowledgeBase, tmp_path: Path) -> None:
    base.save(tmp_path / "deep" / "entries.jsonl")
    again = KnowledgeBase.load(tmp_path / "deep" / "entries.jsonl")
    assert again.entries == base.entries
    assert again.digest == base.digest


@pytest.mark.parametrize(
    ("content", "where"),
    [
        ("{}\n", ":1:"),
        ('{"key": "a.b.c", "title": "t", "text": "x"}\nnot json\n', ":2:"),
        ('{"key": "a.b.c", "title": "t", "text": "x", "colour": 1}\n', "colour"),
        ("", "no knowledge entry"),
        (
            '{"key": "a.b.c", "title": "t", "text": "x"}\n{"key": "a.b.d", "title": " T ", "text": "x"}\n',
            "share the title",
        ),
        ('{"key": "a.b.c", "title": "t", "text": "x"}\n{"key": "a.b.c", "title": "u", "text": "x"}\n', "share the key"),
    ],
)
def test_a_bad_file_is_one_line_that_names_the_place(tmp_path: Path, content: str, where: str) -> None:
    (tmp_path / "bad.jsonl").write_text(content)
    with pytest.raises(RecordError) as caught:
        KnowledgeBase.load(tmp_path / "bad.jsonl")
    assert where in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(RecordError, match="no such file"):
        KnowledgeBase.load(tmp_path / "absent.jsonl")


def test_a_source_can_be_left_out() -> None:
    base = KnowledgeBase([entry("A.b.c", source="mmad"), entry("A.b.d", source="own")])
    assert [entry.key for entry in base.without_sources("mmad")] == ["A.b.d"]
    with pytest.raises(UnknownNameError, match="mmda"):
        base.without_sources("mmda")


def test_render_names_the_object(base: KnowledgeBase) -> None:
    for entry in base:
        text = base.render(entry, "magnetic_tile")
        assert "[object]" not in text
        assert "magnetic tile" in text.lower()
        assert "an magnetic" not in text


def test_aliases_are_normalised() -> None:
    assert normalise_alias("Real-IAD/Toy Brick/Missing Parts") == "real_iad/toy_brick/missing_parts"


@pytest.mark.real
@pytest.mark.skipif(not INDEX.exists(), reason="the shared real-mini photographs are absent")
def test_every_label_of_real_mini_resolves(base: KnowledgeBase) -> None:
    for line in INDEX.read_text().splitlines():
        row = json.loads(line)
        found = base.resolve_label(row["dataset"], row["category"], row["defect"], row["label"] != "good")
        assert found is not None
        assert found.is_normal == (row["label"] == "good")
