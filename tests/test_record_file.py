"""Records left on disk are those that are read at once."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dcr2ad.artifacts import digest_records, read_records, write_records
from dcr2ad.errors import RecordError
from dcr2ad.record_file import RecordFile
from dcr2ad.types import LookAlike

ROWS = [LookAlike(key=f"k{i}", difference=f"line\nbreak {i} é") for i in range(5)]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.text(st.characters(codec="utf-8"), max_size=8)), st.sampled_from(["\n", "\r\n", "\n\n", "\n \n"]), st.booleans()
)
def test_a_sequence_of_what_a_file_holds(texts: list[str], end: str, ended: bool) -> None:
    import tempfile

    rows = [LookAlike(key=str(i), difference=text) for i, text in enumerate(texts)]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "x.jsonl"
        lines = end.join(row.model_dump_json() for row in rows)
        file.write_bytes((lines + (end if ended else "")).encode())
        found = RecordFile(file, LookAlike)
        assert list(found) == list(read_records(file, LookAlike)) == rows and len(found) == len(rows)
        assert found[1:] == rows[1:] and found[::-2] == rows[::-2]
        assert [found[i] for i in range(-len(rows), len(rows))] == [rows[i] for i in range(-len(rows), len(rows))]
        with pytest.raises(IndexError):
            found[len(rows)]
        assert digest_records(found) == digest_records(rows)


def test_a_bad_line_is_named_at_once(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    file.write_text('{"key": "a", "difference": "b"}\n\n{"key": "a", "extra": 1}\n')
    with pytest.raises(RecordError, match=r"x\.jsonl:3: difference"):
        RecordFile(file, LookAlike)
    file.write_bytes(b'{"key": "\xff", "difference": "b"}\n')
    assert RecordFile(file, LookAlike)[0].key == "�" == next(read_records(file, LookAlike)).key
    for nothing in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(RecordError, match="no such file"):
            RecordFile(nothing, LookAlike)


def test_a_file_replaced_meanwhile_is_read_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    write_records(file, ROWS)
    found = RecordFile(file, LookAlike)
    write_records(file, ROWS[:1])
    assert list(found) == ROWS and list(RecordFile(file, LookAlike)) == ROWS[:1]


def test_records_without_a_file_and_what_is_held_open_goes_with_the_sequence(tmp_path: Path) -> None:
    def held() -> int:
        gc.collect()
        return len(list(Path("/proc/self/fd").iterdir()))

    before = held()
    found = RecordFile.of(iter(ROWS), LookAlike)
    assert list(found) == ROWS and held() == before + 1
    del found
    assert held() == before


def test_no_room_for_records_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    with pytest.raises(RecordError, match=r"records cannot be put into .*none \(No such file or directory\)"):
        RecordFile.of(ROWS, LookAlike)
