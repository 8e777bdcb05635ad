"""Records of a JSONL file as a sequence, each read when it is asked for: only where lines begin is in memory.

Reads a record file; returns records. For what is asked about in parts and counted in one pass, such as the questions and
predictions of an evaluation. Knows nothing about what records mean. Not in the paper.
"""

from __future__ import annotations

import os
import tempfile
import weakref
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Generic, TypeVar, overload

from pydantic import BaseModel

from dcr2ad.artifacts import read_record
from dcr2ad.errors import RecordError

T = TypeVar("T", bound=BaseModel)


class RecordFile(Sequence[T], Generic[T]):
    """Records of a JSONL file; every line is checked once at the start.

    The file is held open, so that one that is replaced meanwhile is still read as it was. A sequence of this kind has no `==`
    by its records and should not be searched: each look at a record parses its line anew, 10 to 20 microseconds.

    Args:
        path: the file.
        kind: the records in it.

    Raises:
        RecordError: no such file, or a line that is not such a record; names file and line.
    """

    def __init__(self, path: str | Path, kind: type[T]) -> None:
        path = Path(path)
        try:
            file = path.open("rb")
        except OSError:
            raise RecordError(f"no such file: {path}", "Run the stage that writes it, or check the path") from None
        self._hold(file, kind, str(path))

    @classmethod
    def of(cls, records: Iterable[T], kind: type[T]) -> RecordFile[T]:
        """Records put into a file without a name, which goes with the sequence.

        Raises:
            RecordError: the folder for temporary files cannot be written, or is full.
        """
        made = cls.__new__(cls)
        try:
            file = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the sequence
            file.writelines(f"{record.model_dump_json()}\n".encode() for record in records)
            file.seek(0)
        except OSError as error:
            fix = "Make room, or set TMPDIR to another folder"
            raise RecordError(f"records cannot be put into {tempfile.gettempdir()} ({error.strerror})", fix) from None
        made._hold(file, kind, "records")
        return made

    def _hold(self, file: IO[bytes], kind: type[T], name: str) -> None:
        self._kind, self._name = kind, name
        self._starts, self._ends, self._numbers = array("q"), array("q"), array("q")
        self._file = os.dup(file.fileno())
        weakref.finalize(self, os.close, self._file)
        with file:
            place = 0
            for number, line in enumerate(file, 1):
                if line.strip():
                    self._record(line, number)
                    self._starts.append(place)
                    self._ends.append(place + len(line))
                    self._numbers.append(number)
                place += len(line)

    def __len__(self) -> int:
        return len(self._starts)

    def __iter__(self) -> Iterator[T]:
        return (self[place] for place in range(len(self)))

    @overload
    def __getitem__(self, place: int) -> T: ...

    @overload
    def __getitem__(self, place: slice) -> list[T]: ...

    def __getitem__(self, place: int | slice) -> T | list[T]:
        if isinstance(place, slice):
            return [self[at] for at in range(*place.indices(len(self)))]
        start = self._starts[place]
        return self._record(os.pread(self._file, self._ends[place] - start, start), self._numbers[place])

    def _record(self, line: bytes, number: int) -> T:
        return read_record(line.decode("utf-8", errors="replace"), self._kind, f"{self._name}:{number}")
