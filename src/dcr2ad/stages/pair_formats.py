"""Preference pairs in the formats of other trainers: TRL's and LLaMA-Factory's.

Reads `PreferencePair`s and the knowledge base; writes files in a folder. The prompt is the one this package trains on, images
by absolute path. Knows nothing about models. Not in the paper.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dcr2ad.artifacts import write_text
from dcr2ad.errors import UnknownNameError
from dcr2ad.knowledge.base import KnowledgeBase
from dcr2ad.parsing import write_response
from dcr2ad.prompts import build_prompt
from dcr2ad.types import ImagePart, PreferencePair, Prompt, TextPart

FORMATS = ("trl", "llamafactory")
"""Known formats."""


def export_pairs(pairs: Sequence[PreferencePair], knowledge_base: KnowledgeBase, form: str, folder: Path) -> Path:
    """Write pairs for another trainer.

    ``trl``: ``trl.jsonl``, conversational with ``images``, ``prompt``, ``chosen``, ``rejected`` (DPOTrainer). ``llamafactory``:
    ``llamafactory.json`` in its sharegpt ranking form, and the ``dataset_info.json`` that declares it.

    Returns:
        the file with the pairs.

    Raises:
        UnknownNameError: no such format.
    """
    if form not in FORMATS:
        raise UnknownNameError(f"no format {form!r}", f"Use one of: {', '.join(FORMATS)}")
    prompts = [build_prompt(p.question, entries=knowledge_base.listed(p.question)) for p in pairs]
    if form == "trl":
        file = folder / "trl.jsonl"
        lines = (json.dumps(_trl(pair, prompt), ensure_ascii=False) for pair, prompt in zip(pairs, prompts, strict=True))
        write_text(file, "".join(f"{line}\n" for line in lines))
        return file
    file = folder / "llamafactory.json"
    rows = [_llamafactory(pair, prompt) for pair, prompt in zip(pairs, prompts, strict=True)]
    write_text(file, json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
    columns = {"messages": "conversations", "chosen": "chosen", "rejected": "rejected", "images": "images"}
    info = {"dcr2ad_pairs": {"file_name": file.name, "formatting": "sharegpt", "ranking": True, "columns": columns}}
    write_text(folder / "dataset_info.json", json.dumps(info, indent=1) + "\n")
    return file


def _trl(pair: PreferencePair, prompt: Prompt) -> dict[str, Any]:
    content = [{"type": "image"} if isinstance(part, ImagePart) else _text(part) for part in prompt.parts]

    def answer(text: str) -> list[dict[str, Any]]:
        return [{"role": "assistant", "content": [{"type": "text", "text": text}]}]

    return {
        "images": _images(prompt),
        "prompt": [{"role": "user", "content": content}],
        "chosen": answer(write_response(pair.chosen)),
        "rejected": answer(write_response(pair.rejected)),
    }


def _llamafactory(pair: PreferencePair, prompt: Prompt) -> dict[str, Any]:
    text = "".join("<image>" if isinstance(part, ImagePart) else part.text for part in prompt.parts)
    return {
        "conversations": [{"from": "human", "value": text}],
        "chosen": {"from": "gpt", "value": write_response(pair.chosen)},
        "rejected": {"from": "gpt", "value": write_response(pair.rejected)},
        "images": _images(prompt),
    }


def _text(part: TextPart) -> dict[str, str]:
    return {"type": "text", "text": part.text}


def _images(prompt: Prompt) -> list[str]:
    return [str(Path(part.path).resolve()) for part in prompt.parts if isinstance(part, ImagePart)]
