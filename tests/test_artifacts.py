"""Record files and run folders."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dcr2ad.artifacts import RecordWriter, StageFolder, digest_json, digest_records, read_records, write_text
from dcr2ad.errors import RecordError, RunError
from dcr2ad.types import LookAlike, Sampling

ROWS = [LookAlike(key=f"k{i}", difference=f"line\nbreak {i} é") for i in range(5)]


def test_records_come_back(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    with RecordWriter(file) as writer:
        writer.write(*ROWS[:2])
        writer.write(*ROWS[2:])
    assert list(read_records(file, LookAlike)) == ROWS


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 400))
def test_a_torn_tail_costs_at_most_the_torn_record(cut: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "x.jsonl"
        with RecordWriter(file) as writer:
            writer.write(*ROWS)
        whole = file.read_bytes()
        file.write_bytes(whole[: min(cut, len(whole))])
        complete = whole[: min(cut, len(whole))].count(b"\n")
        with RecordWriter(file) as writer:
            writer.write(ROWS[0])
        assert list(read_records(file, LookAlike)) == [*ROWS[:complete], ROWS[0]]


def test_a_bad_line_is_named(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    file.write_text('{"key": "a", "difference": "b"}\n{"key": "a", "extra": 1}\n')
    with pytest.raises(RecordError, match=r"x\.jsonl:2: difference"):
        list(read_records(file, LookAlike))
    with pytest.raises(RecordError, match="no such file"):
        list(read_records(tmp_path / "none.jsonl", LookAlike))


def test_a_whole_file_is_replaced_or_left(tmp_path: Path) -> None:
    file = tmp_path / "x.txt"
    write_text(file, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(file, "new \ud800")
    assert file.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.txt"]


def test_a_stage_continues_only_under_an_equal_manifest(tmp_path: Path) -> None:
    def folder(rate: float, **more: bool) -> StageFolder:
        return StageFolder(tmp_path / "sft", stage="sft", config={"rate": rate, "list": (1, 2)}, inputs={"a": "b"}, **more)

    with folder(1e-5) as first:
        assert not first.done
        (first.path / "work").write_text("half")
    with folder(1e-5) as again:
        assert (again.path / "work").read_text() == "half"
        again.finish({"steps": 3})
    with folder(1e-5) as done:
        assert done.done and done.manifest.summary == {"steps": 3}
    with pytest.raises(RunError, match=r"rate \(1e-05 then, 2e-05 now\)"), folder(2e-5):
        pass
    assert (tmp_path / "sft" / "work").exists()
    with folder(2e-5, fresh=True) as fresh:
        assert not fresh.done and not (fresh.path / "work").exists()


def test_two_processes_never_write_one_folder(tmp_path: Path) -> None:
    one = StageFolder(tmp_path, stage="x", config={})
    with one, pytest.raises(RunError, match="another process"), StageFolder(tmp_path, stage="x", config={}):
        pass


def test_digest_ignores_key_order() -> None:
    assert digest_json({"a": 1, "b": [2]}) == digest_json({"b": [2], "a": 1}) != digest_json({"a": 1, "b": [3]})


def test_records_are_digested_one_by_one_as_their_list_is() -> None:
    for count in (0, 1, 3):
        records = [Sampling(seed=i) for i in range(count)]
        assert digest_records(iter(records)) == digest_json([record.model_dump(mode="json") for record in records])
