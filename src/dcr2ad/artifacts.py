"""Record files and run folders: JSONL that survives a kill, manifests, resume.

Reads and writes files under a run folder; returns records. A file is appended line by line and flushed, a torn last line is
cut off when the file is opened again, and whole files are replaced in one step. Knows nothing about what records mean. Not
in the paper.
"""

from __future__ import annotations

import contextlib
import csv
import fcntl
import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Generic, Self, TypeVar

from pydantic import BaseModel, ValidationError

from dcr2ad.errors import RecordError, RunError
from dcr2ad.types import RunManifest

T = TypeVar("T", bound=BaseModel)

_VERSIONED = ("dcr2ad", "torch", "transformers", "peft", "numpy", "pillow")


def versions() -> dict[str, str]:
    """Versions of the packages a result depends on."""
    found = {}
    for name in _VERSIONED:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def digest_json(value: Any) -> str:
    """SHA-256, in hexadecimal, of a value's canonical JSON (sorted keys, no blanks)."""
    return hashlib.sha256(_canonical(value).encode()).hexdigest()


def digest_records(records: Iterable[BaseModel]) -> str:
    """`digest_json` of the list of the records' values, one record in memory at a time."""
    digest = hashlib.sha256(b"[")
    for number, record in enumerate(records):
        digest.update(("," if number else "").encode() + _canonical(record.model_dump(mode="json")).encode())
    digest.update(b"]")
    return digest.hexdigest()


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    """Rows as CSV, the head among them, with plain line ends."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()


def digest_file(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_text(path: str | Path, text: str) -> None:
    """Write a whole file in one step: a reader sees the old file or the new one, never a part."""
    write_bytes(path, text.encode())


def write_bytes(path: str | Path, data: bytes) -> None:
    """As `write_text`, for bytes."""
    with _replaced(Path(path)) as file:
        file.write(data)


@contextlib.contextmanager
def _replaced(path: Path) -> Iterator[IO[bytes]]:
    """A file to write that takes the place of `path` at the end, and only if nothing went wrong."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_records(path: str | Path, kind: type[T]) -> Iterator[T]:
    """Records of a JSONL file, one by one.

    Raises:
        RecordError: no such file, or a line that is not such a record; names file and line.
    """
    path = Path(path)
    if not path.is_file():
        raise RecordError(f"no such file: {path}", "Run the stage that writes it, or check the path")
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield read_record(line, kind, f"{path}:{number}")


def read_record(line: str, kind: type[T], place: str) -> T:
    """The record of one line.

    Raises:
        RecordError: it is no such record; names the `place`, a file and line.
    """
    try:
        return kind.model_validate_json(line)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the line"
        raise RecordError(f"{place}: {where}: {first['msg']}", f"Each line must be one {kind.__name__}") from None


def write_records(path: str | Path, records: Iterable[BaseModel]) -> int:
    """Write a whole JSONL file in one step, one record in memory at a time; returns the number of records."""
    count = 0
    with _replaced(Path(path)) as file:
        for record in records:
            file.write(f"{record.model_dump_json()}\n".encode())
            count += 1
    return count


class RecordWriter:
    """Appends records to a JSONL file, each flushed to disk before `write` returns.

    A torn last line, left by a kill, is cut off first.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        drop_torn_line(self.path)
        self._file: IO[str] = self.path.open("a", encoding="utf-8")

    def write(self, *records: BaseModel) -> None:
        """Append records; all of one call stand or fall together but for a power cut."""
        self._file.write("".join(record.model_dump_json() + "\n" for record in records))
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def drop_torn_line(path: Path) -> None:
    """Cut off a last line without its line feed, which a killed process left half-written."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        end = file.seek(0, os.SEEK_END)
        position = end
        while position > 0:
            start = max(0, position - 65536)
            file.seek(start)
            block = file.read(position - start)
            newline = block.rfind(b"\n")
            if newline >= 0:
                position = start + newline + 1
                break
            position = start
        if position < end:
            file.truncate(position)


class StageFolder:
    """One stage's folder: its manifest, and whether to begin, continue or skip.

    Use as a context manager; it holds a lock so that two processes never write one folder. `done` tells whether an equal
    manifest says the work is finished; `finish` says so at the end.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        stage: str,
        config: dict[str, Any],
        inputs: dict[str, str] | None = None,
        seed: int = 0,
        fresh: bool = False,
    ) -> None:
        self.path = Path(path)
        self._manifest = RunManifest(stage=stage, config=config, inputs=inputs or {}, versions=versions(), seed=seed)
        self._fresh = fresh
        self._lock: IO[str] | None = None

    @property
    def manifest(self) -> RunManifest:
        """The manifest as it stands."""
        return self._manifest

    @property
    def done(self) -> bool:
        """Whether this work was finished, now or by an earlier run."""
        return self._manifest.done

    def finish(self, summary: dict[str, Any]) -> None:
        """Record that the stage is done and what it counted."""
        self._manifest = self._manifest.model_copy(update={"done": True, "summary": summary})
        self._save()

    def __enter__(self) -> Self:
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = (self.path / ".lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise RunError(f"{self.path} is being written by another process", "Wait for it, or use another folder") from None
        try:
            self._adopt()
        except BaseException:
            self._lock.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._lock is not None:
            self._lock.close()

    def _adopt(self) -> None:
        file = self.path / "manifest.json"
        if self._fresh and file.exists():
            for item in self.path.iterdir():
                if item.name != ".lock":
                    shutil.rmtree(item) if item.is_dir() else item.unlink()
        if not file.exists():
            self._save()
            return
        old = read_manifest(self.path)
        for field in ("stage", "config", "inputs", "seed"):
            was, now = getattr(old, field), _jsonable(getattr(self._manifest, field))
            if was != now:
                raise RunError(
                    f"{self.path} holds work made from another {_difference(field, was, now)}",
                    "Use another folder, or --fresh to throw the old work away",
                )
        self._manifest = old

    def _save(self) -> None:
        write_text(self.path / "manifest.json", self._manifest.model_dump_json(indent=2) + "\n")


class KeptRecords(Generic[T]):
    """Records kept between runs, a file each: what costs much to make and is decided by its key.

    Any number of processes may share the folder.

    Args:
        folder: where they are kept.
        kind: of record.
    """

    def __init__(self, folder: Path, kind: type[T]) -> None:
        self._folder = folder
        self._kind = kind

    def get(self, key: str) -> T | None:
        """The record of a key, a digest of all that decides it; None where there is none, or none that can be read."""
        try:
            return self._kind.model_validate_json(self._file(key).read_bytes())
        except (OSError, ValidationError):
            return None

    def put(self, key: str, record: T) -> None:
        """Keep a record.

        Raises:
            OSError: it cannot be written.
        """
        write_text(self._file(key), record.model_dump_json())

    def _file(self, key: str) -> Path:
        return self._folder / key[:2] / f"{key}.json"


def read_manifest(folder: str | Path) -> RunManifest:
    """Manifest of a stage's folder.

    Raises:
        RecordError: there is none, or it cannot be read.
    """
    file = Path(folder) / "manifest.json"
    try:
        return RunManifest.model_validate_json(file.read_text(encoding="utf-8"))
    except OSError:
        raise RecordError(f"no manifest in {folder}", "Is this a stage's folder?") from None
    except ValidationError as error:
        raise RecordError(f"{file} is not a manifest ({error.errors()[0]['msg']})", "Use another folder") from None


def _jsonable(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))


def _difference(field: str, was: Any, now: Any) -> str:
    if isinstance(was, dict) and isinstance(now, dict):
        changed = [key for key in sorted({*was, *now}) if was.get(key) != now.get(key)]
        shown = ", ".join(f"{key} ({was.get(key)!r} then, {now.get(key)!r} now)" for key in changed[:3])
        return f"{field}: {shown}"
    return f"{field} ({was!r} then, {now!r} now)"
