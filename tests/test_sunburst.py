"""The sunburst of Figure 5: its angles by hand, and a picture on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from dcr2ad.artifacts import write_records
from dcr2ad.cli import app
from dcr2ad.report.sunburst import slices, sunburst_png
from tests.tiny import tiny_questions

COUNTS = {("defective", "a", "nut"): 3, ("defective", "b", "cap"): 1, ("good", "a", "nut"): 2, ("defective", "a", "cap"): 2}


def test_each_ring_goes_round_and_children_lie_within_their_parent() -> None:
    found = {piece.path: piece for piece in slices(COUNTS)}
    assert found["defective",].questions == 6 and found["defective",].end == pytest.approx(270)
    assert (found["defective", "a"].start, found["defective", "a"].end) == pytest.approx((0, 225))
    assert (found["defective", "a", "nut"].start, found["defective", "a", "nut"].end) == pytest.approx((90, 225))
    for depth in (1, 2, 3):
        ring = [piece for piece in found.values() if len(piece.path) == depth]
        assert sum(piece.end - piece.start for piece in ring) == pytest.approx(360)
    for piece in found.values():
        parent = found.get(piece.path[:-1])
        assert parent is None or parent.start <= piece.start <= piece.end <= parent.end + 1e-9


def test_many_objects_and_long_names_make_a_picture_of_the_same_bytes() -> None:
    many = {("good", "a", f"{'long name ' * 9}{number}"): 1 + number for number in range(200)}
    assert sunburst_png(many) == sunburst_png(many)


def test_stats_writes_the_picture(tmp_path: Path) -> None:
    write_records(tmp_path / "questions.jsonl", tiny_questions(tmp_path / "photos", 4))
    done = CliRunner().invoke(app, ["data", "stats", str(tmp_path), "-o", str(tmp_path / "out" / "sun.png")])
    assert done.exit_code == 0, done.output
    with Image.open(tmp_path / "out" / "sun.png") as picture:
        assert min(picture.size) > 1000
