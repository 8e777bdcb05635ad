"""A user's own knowledge: a JSONL file of entries, or a folder of Markdown files, one an entry.

Returns entries with source ``own``. Knows nothing about other sources. Not in the paper.

A Markdown file opens with front matter between two lines of three hyphens, one ``name: value`` a line; the text follows:

    ---
    key: Own.valve.leak            (left out: Own.OBJECT.FILE_NAME, OBJECT being general)
    title: Leak at the seal        (left out: the first heading of the text, else the file's name)
    object: valve                  (optional: mentions of it become [object])
    normal: no                     (yes for an entry on acceptable variation)
    cues: wet rim; drop marks      (separated by semicolons)
    place: below the seal
    look_alike: General.contamination.oil | a leak begins at the seal, an oil stain lies anywhere    (may be repeated)
    cause: worn seal
    effect: loss of pressure
    aliases: leak, valve/leaking   (separated by commas)
    ---
    A wet track begins at the seal of the [object] ...
"""

from __future__ import annotations

import re
from pathlib import Path

from pydantic import ValidationError

from dcr2ad.artifacts import read_records
from dcr2ad.errors import RecordError
from dcr2ad.knowledge.agnostic import rewrite
from dcr2ad.knowledge.objects import normalise
from dcr2ad.types import KnowledgeEntry, LookAlike

_FIELDS = ("key", "title", "object", "normal", "cues", "place", "look_alike", "cause", "effect", "aliases")


def read_own(path: str | Path) -> tuple[KnowledgeEntry, ...]:
    """Entries of a JSONL file, or of the Markdown files of a folder and its subfolders in order of their names.

    Raises:
        RecordError: no such path, a folder without Markdown files, or an entry that cannot be read; names file and line.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(path.rglob("*.md"))
        if not files:
            raise RecordError(f"{path} holds no Markdown file", "Put one .md file an entry there, or give a JSONL file")
        return tuple(_read_markdown(file) for file in files)
    entries = [_as_own(entry) for entry in read_records(path, KnowledgeEntry)]
    for entry in entries:
        _check_title(entry.title, f"{path}: {entry.key}")
    return tuple(entries)


def _as_own(entry: KnowledgeEntry) -> KnowledgeEntry:
    """The entry with source ``own``, unless it says that it comes from an imported source: that must stay excludable."""
    return entry.model_copy(update={"source": "own"}) if entry.source == "builtin" else entry


def _check_title(title: str, where: str) -> None:
    """Refuse a title that a model could not write inside a response without breaking it."""
    if not title.strip() or re.search(r"[:<>]", title):
        raise RecordError(f"{where}: title {title!r} is empty or holds a colon or angle bracket", "Choose another title")


def _read_markdown(file: Path) -> KnowledgeEntry:
    """One entry of a Markdown file."""
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    fields: dict[str, str] = {}
    likes: list[LookAlike] = []
    body = lines
    if lines and lines[0].strip() == "---":
        end = next((number for number, line in enumerate(lines[1:], 1) if line.strip() == "---"), None)
        if end is None:
            raise RecordError(f"{file}:1: front matter does not end", "Close it with a line of three hyphens")
        for number, line in enumerate(lines[1:end], 2):
            if line.strip():
                _read_field(line, f"{file}:{number}", fields, likes)
        body = lines[end + 1 :]
    return _entry(file, fields, likes, body)


def _read_field(line: str, where: str, fields: dict[str, str], likes: list[LookAlike]) -> None:
    """One line of front matter into `fields` or `likes`."""
    name, colon, value = (part.strip() for part in line.partition(":"))
    if not colon or name not in _FIELDS:
        raise RecordError(f"{where}: {line.strip()!r} is no field", f"Fields: {', '.join(_FIELDS)}")
    if name == "look_alike":
        key, bar, difference = (part.strip() for part in value.partition("|"))
        if not bar or not difference:
            raise RecordError(f"{where}: a look-alike without a difference", "Write look_alike: KEY | what tells them apart")
        likes.append(LookAlike(key=key, difference=difference))
    elif name in fields:
        raise RecordError(f"{where}: {name} is given twice", "Keep one")
    else:
        fields[name] = value


def _entry(file: Path, fields: dict[str, str], likes: list[LookAlike], body: list[str]) -> KnowledgeEntry:
    """The entry of a file's fields and body."""
    heading = next((line.lstrip("# ").strip() for line in body if line.startswith("#")), "")
    text = " ".join(" ".join(line for line in body if not line.startswith("#")).split())
    if not text:
        raise RecordError(f"{file} has no text", "Write what an inspector should know below the front matter")
    normal = fields.get("normal", "no").lower()
    if normal not in ("yes", "no", "true", "false"):
        raise RecordError(f"{file}: normal is {normal!r}", "Write yes or no")
    title = fields.get("title") or heading or file.stem.replace("_", " ").capitalize()
    if name := fields.get("object", ""):
        text = rewrite(text, name)
        title = rewrite(title, name).replace("[object]", "Part")
    _check_title(title, str(file))
    try:
        return KnowledgeEntry(
            key=fields.get("key") or f"Own.{normalise(name) or 'general'}.{normalise(file.stem)}",
            title=title,
            text=text,
            is_normal=normal in ("yes", "true"),
            source="own",
            cues=_split(fields.get("cues", ""), ";"),
            place=fields.get("place", ""),
            look_alikes=tuple(likes),
            cause=fields.get("cause", ""),
            effect=fields.get("effect", ""),
            aliases=_split(fields.get("aliases", "").lower(), ","),
        )
    except ValidationError as error:
        raise RecordError(f"{file}: {error.errors()[0]['msg']}", "Mend the file") from None


def _split(text: str, separator: str) -> tuple[str, ...]:
    return tuple(part for part in (re.sub(r"\s+", " ", piece).strip() for piece in text.split(separator)) if part)
