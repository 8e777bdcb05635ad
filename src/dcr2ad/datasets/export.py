"""Instruction data in the forms other trainers read: ShareGPT, LLaMA-Factory, TRL, Parquet.

Reads `Question`s with responses; writes files. The prompt is the one `dcr2ad` trains on. Knows nothing about training.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dcr2ad.artifacts import write_text
from dcr2ad.errors import InputError, UnknownNameError
from dcr2ad.knowledge import KnowledgeBase
from dcr2ad.parsing import write_response
from dcr2ad.prompts import build_prompt
from dcr2ad.types import ImagePart, Prompt, Question

FORMATS = ("sharegpt", "llamafactory", "trl", "parquet")


def export_questions(questions: Iterable[Question], base: KnowledgeBase, out: Path, form: str) -> int:
    """Write the questions that have a response; returns how many.

    ``sharegpt`` writes a JSON list with ``conversations`` (``from`` ``human`` and ``gpt``, ``value``) and ``images``, an
    ``<image>`` a picture; ``llamafactory`` one with ``messages``, and ``dataset_info.json`` beside it. ``trl`` writes JSONL
    with ``prompt``, ``completion`` and ``images`` in the conversational vision form. ``parquet`` holds the rows of ``trl``
    (needs ``pyarrow``). Images are named by path.

    Raises:
        UnknownNameError: no such form.
        InputError: no question has a response, or pyarrow is missing.
    """
    if form not in FORMATS:
        raise UnknownNameError(f"no format {form!r}", f"Formats: {', '.join(FORMATS)}")
    answered = [question for question in questions if question.response is not None]
    if not answered:
        raise InputError("no question has a response", "Name the folder of `instruct`, not of `bench`")
    make = {"sharegpt": _sharegpt, "llamafactory": _llamafactory}.get(form, _trl)
    rows = [make(_prompt(question, base), question) for question in answered]
    if form == "parquet":
        _write_parquet(rows, out)
    elif form == "trl":
        write_text(out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    else:
        write_text(out, json.dumps(rows, ensure_ascii=False, indent=1) + "\n")
    if form == "llamafactory":
        tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
        columns = {"messages": "messages", "images": "images"}
        entry = {"file_name": out.name, "formatting": "sharegpt", "columns": columns, "tags": tags}
        write_text(out.with_name("dataset_info.json"), json.dumps({"dcr2ad": entry}, indent=2) + "\n")
    return len(rows)


def _prompt(question: Question, base: KnowledgeBase) -> Prompt:
    return build_prompt(question, entries=base.listed(question))


def _images(prompt: Prompt) -> list[str]:
    return [part.path for part in prompt.parts if isinstance(part, ImagePart)]


def _response(question: Question) -> str:
    return write_response(question.response) if question.response is not None else ""


def _text(prompt: Prompt) -> str:
    return "".join("<image>" if isinstance(part, ImagePart) else part.text for part in prompt.parts)


def _sharegpt(prompt: Prompt, question: Question) -> dict[str, Any]:
    turns = [{"from": "human", "value": _text(prompt)}, {"from": "gpt", "value": _response(question)}]
    return {"id": question.id, "conversations": turns, "images": _images(prompt)}


def _llamafactory(prompt: Prompt, question: Question) -> dict[str, Any]:
    messages = [{"role": "user", "content": _text(prompt)}, {"role": "assistant", "content": _response(question)}]
    return {"id": question.id, "messages": messages, "images": _images(prompt)}


def _trl(prompt: Prompt, question: Question) -> dict[str, Any]:
    content = [
        {"type": "image", "text": None} if isinstance(part, ImagePart) else {"type": "text", "text": part.text}
        for part in prompt.parts
    ]
    return {
        "prompt": [{"role": "user", "content": content}],
        "completion": [{"role": "assistant", "content": [{"type": "text", "text": _response(question)}]}],
        "images": _images(prompt),
    }


def _write_parquet(rows: list[dict[str, Any]], out: Path) -> None:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise InputError("Parquet needs pyarrow", "pip install pyarrow, or choose another format") from None
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.tmp")
    pq.write_table(pa.Table.from_pylist(rows), temporary)
    temporary.replace(out)
