"""Object names to the placeholder and back."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcr2ad.knowledge.agnostic import PLACEHOLDER, leaks, name_object, names, rewrite
from dcr2ad.knowledge.objects import look_up, plural, singular, spoken, table

SHARED = Path(__file__).resolve().parents[2] / "shared"
MMAD = SHARED / "data" / "mmad-sample" / "domain_knowledge.json"


@pytest.mark.parametrize(
    ("text", "object_name", "expected"),
    [
        ("A zipper and two zippers.", "zipper", "An [object] and two [object]."),
        ("<Zipper Defects>", "zipper", "<[object] Defects>"),
        ("The zipper's edge, the zippers' edges.", "zipper", "The [object]'s edge, the [object]'s edges."),
        ("a metal nut, metal-nut, metal_nut, Metal Nuts", "metal_nut", "an [object], [object], [object], [object]"),
        ("The nut is a metal nut.", "metal_nut", "The [object] is an [object]."),
        ("nuts-like; nutty; coconut", "metal_nut", "[object]-like; nutty; coconut"),
        ("The PCB (printed circuit board) and PCBs.", "pcb", "The [object] and [object]."),
        ("pcb2 beside PCB 2 and boards", "pcb2", "[object] beside [object] 2 and [object]"),
        ("Each screw bag holds screws.", "screw_bag", "Each [object] holds screws."),
        ("The connectors of the splicing connectors", "splicing_connectors", "The [object] of the [object]"),
        ("A can can leak. Cans can leak.", "drink_can", "An [object] can leak. [object] can leak."),
        ("A USB (Universal Serial Bus) port", "usb", "An [object] port"),
        ("Wooden beads and a bead", "wooden_beads", "[object] and an [object]"),
        ("It is applicable to textile cable.", "cable", "It is applicable to textile [object]."),
        ("A gadget, two gadgets, gadget-shaped", "gadget", "An [object], two [object], [object]-shaped"),
        ("Batteries and a button-battery", "button_battery", "[object] and an [object]"),
    ],
)
def test_every_mention_becomes_the_placeholder(text: str, object_name: str, expected: str) -> None:
    assert rewrite(text, object_name) == expected
    assert leaks(expected, object_name) == []


def test_leaks_do_not_depend_on_the_patterns_of_rewriting() -> None:
    assert leaks("A toothbrushing test.", "toothbrush") == ["toothbrushing"]
    assert leaks("The tooth brush is new.", "toothbrush") == ["tooth", "brush"]
    assert leaks("The USB and a usb-like port", "usb") == ["usb", "usb"]
    assert leaks("An [object] is fine.", "zipper") == []


@given(st.sampled_from(sorted(table())), st.text(max_size=40), st.text(max_size=40))
def test_no_name_survives_in_any_surroundings(object_name: str, before: str, after: str) -> None:
    for name in names(object_name):
        if name == "can":
            continue
        for form in (name, plural(name), name.upper(), name.replace(" ", "_"), name.replace(" ", "-")):
            text = rewrite(f"{before} the {form} {after}", object_name)
            assert not re.search(rf"(?<![a-z])the {re.escape(form)} ", text, re.IGNORECASE)


@given(st.sampled_from(sorted(table())), st.text(max_size=80))
def test_rewriting_twice_changes_nothing(object_name: str, text: str) -> None:
    once = rewrite(f"{text} {object_name}", object_name)
    assert rewrite(once, object_name) == once


@pytest.mark.parametrize(
    ("text", "object_name", "expected"),
    [
        ("[object] are whole.", "pill", "Pills are whole."),
        ("An [object] is whole.", "pill", "A pill is whole."),
        ("An [object] is whole.", "end_cap", "An end cap is whole."),
        ("These [object] differ.", "battery", "These batteries differ."),
        ("an [object]", "usb", "a USB"),
        ("an [object]", "u_block", "a u block"),
        ("a single [object] is bent", "pushpins", "a single pushpin is bent"),
        ("[object]-shaped", "capsules", "Capsule-shaped"),
        ("Sections of the [object] are missing.", "zipper", "Sections of the zipper are missing."),
        ("<[object] Defects>", "zipper", "<Zipper Defects>"),
        ("No mention.", "zipper", "No mention."),
        ("The [object] is dry.", "", "The object is dry."),
    ],
)
def test_the_name_returns_in_readable_grammar(text: str, object_name: str, expected: str) -> None:
    assert name_object(text, object_name) == expected


@given(st.text(alphabet="abc .[]", max_size=60), st.text(max_size=20))
def test_no_placeholder_is_left_by_naming(text: str, object_name: str) -> None:
    if PLACEHOLDER not in object_name:
        assert PLACEHOLDER not in name_object(f"{text} [object] {text.replace('[', '')}", object_name)


@pytest.mark.parametrize(
    ("one", "many"),
    [("box", "boxes"), ("battery", "batteries"), ("brush", "brushes"), ("mesh", "meshes"), ("pill", "pills")],
)
def test_singular_and_plural(one: str, many: str) -> None:
    assert plural(one) == many
    assert singular(many) == one
    assert singular(one) == one
    assert plural(many) == many


def test_objects_are_looked_up_under_any_spelling() -> None:
    for name in ("Magnetic Tile", "magnetic-tile", "magnetic_tiles"):
        row = look_up(name)
        assert row is not None
        assert row.name == "magnetic_tile"
    assert look_up("flux capacitor") is None
    assert spoken("sim_card_set") == "SIM card set"


def _words(text: str) -> list[str]:
    """Words and placeholders without punctuation: the paper's text lost its stops and dashes in conversion."""
    return re.findall(r"\[object\]|[a-z]+", text.lower())


@pytest.mark.skipif(not MMAD.exists(), reason="MMAD's knowledge file is absent")
def test_figure_3_comes_out_as_printed() -> None:
    """Figure 3, key MVTec.zipper.combined; the paper's own text is the reference."""
    paper = (SHARED / "paper" / "dcr2-ad.txt").read_text()
    line = next(line for line in paper.splitlines() if line.startswith("Knowledge (k_1)"))
    printed = line[line.index("Description:") : line.index("</object]>")]
    raw = json.loads(MMAD.read_text())["MVTec"]["zipper"]["combined"]
    rewritten = rewrite(raw, "zipper")
    assert rewritten.strip().startswith("<[object] Defects>")
    assert _words(rewritten[rewritten.index("Description:") :]) == _words(printed)
