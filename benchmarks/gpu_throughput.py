"""Questions a second of `dcr2ad evaluate` with a Qwen2.5-VL of true 7B size, and from it the hours for all of MMAD.

    python benchmarks/gpu_throughput.py [--size 7b|toy] [--images 88] [--slow 8] [--reason N]

Weights are random, so answers mean nothing and speed is the real one; the configuration is the published one
(`dcr2ad.models.sizes`), in bfloat16 on a GPU. ``toy`` is small enough for a CPU. Photographs are drawn in the sizes of MMAD's
data sets, each as often as its share of MMAD's questions, and stored as PNG or JPEG as there; as in MMAD five questions (4.7
there) are asked of an image, and 11 images share 8 references (6,102 for 8,366 there). An image takes 1,280 tokens at most, as
under MMAD. The tokenizer is trained on the prompts' own wording, so a text takes a number of tokens near Qwen's, not the
same. ``--slow`` questions are asked the published way too (`mmad_throughput.published`), whose answers must be equal; random
weights of bfloat16 decide some questions by rounding, so `answers_equal` is a count. Reading and decoding of the image files
counts. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.mmad_throughput import KINDS, distinct_tokens, published
from PIL import Image
from tests.tiny import QWEN_SPECIALS, tiny_qwen, tiny_tokenizer

from dcr2ad.knowledge.base import KnowledgeBase
from dcr2ad.models.base import letter_probabilities
from dcr2ad.models.hf import HFModel
from dcr2ad.models.sizes import published_config
from dcr2ad.models.vlm import VisionLanguageModel, load_processor
from dcr2ad.prompts import answer_prompt, build_prompt
from dcr2ad.stages.evaluate import evaluate
from dcr2ad.types import EvalProtocol, Question, Sample

MMAD_QUESTIONS = 39_670
"""Questions of MMAD's present file."""
SIZES = (
    ("GoodsAD", 13_088, (3000, 3000), "jpg"),
    ("VisA", 10_622, (1500, 1000), "jpg"),
    ("DS-MVTec", 8_336, (1024, 1024), "png"),
    ("MVTec-LOCO", 7_624, (1600, 1280), "png"),
)
"""MMAD's data sets: questions, a usual size of their photographs, and their format."""
SHARED = 8 / 11
"""References an image: 6,102 for 8,366 images."""


def model_of_size(size: str, folder: Path) -> HFModel:
    """A random Qwen2.5-VL, never written to disk; ``toy`` is `tests.tiny.tiny_qwen`.

    Args:
        size: ``7b`` or ``toy``.
        folder: for its processor.
    """
    tiny_qwen(folder, image_tokens=1280 if size == "7b" else 64)
    if size == "toy":
        return HFModel.open(f"hf:{folder}")
    from transformers import Qwen2_5_VLForConditionalGeneration

    tokenizer = tiny_tokenizer()
    number = tokenizer.convert_tokens_to_ids
    config = published_config("qwen2.5-vl-7b")
    for key, token in (("image_token_id", 5), ("video_token_id", 6), ("vision_start_token_id", 3), ("vision_end_token_id", 4)):
        setattr(config, key, number(QWEN_SPECIALS[token]))
    config.text_config.update({"bos_token_id": 0, "eos_token_id": number("<|im_end|>"), "pad_token_id": 0})
    device = "cuda" if torch.cuda.is_available() else "cpu"
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            model = Qwen2_5_VLForConditionalGeneration(config).eval()
    finally:
        torch.set_default_dtype(before)
    return HFModel(VisionLanguageModel(model, load_processor(folder)), name="random 7B", digest="random")


def make_questions(folder: Path, images: int, shrink: int = 1) -> list[Question]:
    """Five questions an image, data sets by their share of MMAD.

    Args:
        folder: for the photographs.
        images: how many are asked about.
        shrink: divides the sides.
    """
    folder.mkdir(parents=True, exist_ok=True)
    total = sum(count for _, count, _, _ in SIZES)
    questions: list[Question] = []
    for name, count, (width, height), kind in SIZES:
        for number in range(max(1, round(images * count / total))):
            made = (name, number, (width // shrink, height // shrink), kind)
            sample = Sample(
                id=f"{name}-{number}",
                image=_photograph(folder, *made),
                references=(_photograph(folder, name, f"good-{int(number * SHARED)}", made[2], kind),),
                dataset=name,
                object="part",
                is_anomalous=True,
            )
            for subtask, text, options in KINDS:
                more = {"id": f"q{len(questions)}", "subtask": subtask, "text": text, "options": options}
                questions.append(Question(sample=sample, answer=0, **more))
    return questions


def _photograph(folder: Path, dataset: str, number: int | str, size: tuple[int, int], kind: str) -> str:
    """A smooth random picture with grain: noise alone would make files larger and slower than photographs are."""
    path = folder / f"{dataset}-{number}.{kind}"
    if not path.exists():
        rng = np.random.default_rng(sum(path.name.encode()))
        rough = Image.fromarray(rng.integers(60, 200, (12, 12, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
        grain = rng.integers(-6, 7, (size[1], size[0], 1), dtype=np.int16)
        levels = np.clip(np.asarray(rough, dtype=np.int16) + grain, 0, 255).astype(np.uint8)
        Image.fromarray(levels).save(path, quality=92)
    return str(path)


def measure(model: HFModel, folder: Path, images: int, slow: int, reason: int, shrink: int = 1) -> dict[str, Any]:
    """Figures of one model; see the head of this file."""
    base, protocol = KnowledgeBase.builtin(), EvalProtocol(expert=False)
    questions = make_questions(folder / "photographs", images, shrink)
    evaluate(model, make_questions(folder / "warm", 4, shrink), base, protocol, folder / "warm-out")
    model.runner.reset()
    model.runner.processed_tokens = 0
    begun = time.perf_counter()
    report = evaluate(model, questions, base, protocol, folder / "out")
    seconds = time.perf_counter() - begun
    tokens = model.runner.processed_tokens
    row: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "questions": report.questions,
        "answered": report.answered,
        "questions_per_second": round(report.questions / seconds, 3),
        "mmad_hours": round(MMAD_QUESTIONS / (report.questions / seconds) / 3600, 2),
        "tokens_per_question": round(tokens / report.questions, 1),
        "token_efficiency": round(distinct_tokens(model, questions) / tokens, 3),
    }
    if slow:
        asked = questions[:slow]
        prompts = [answer_prompt(build_prompt(q, expert=False)) for q in asked]
        chances = letter_probabilities(model, prompts, [len(q.options) for q in asked])
        begun = time.perf_counter()
        _, theirs = published(model, asked, 128)
        row["published_seconds_per_question"] = round((time.perf_counter() - begun) / slow, 3)
        row["speedup_vs_per_question"] = round(row["published_seconds_per_question"] * report.questions / seconds, 2)
        row["answers_equal"] = sum(max(range(len(p)), key=p.__getitem__) == t for p, t in zip(chances, theirs, strict=True))
        row["answers_compared"] = slow
    if reason:
        begun = time.perf_counter()
        written = evaluate(model, questions[:reason], base, EvalProtocol(expert=False, answering="reason"), folder / "reason")
        row["reason_seconds_per_question"] = round((time.perf_counter() - begun) / written.questions, 3)
        row["reason_mmad_hours"] = round(row["reason_seconds_per_question"] * MMAD_QUESTIONS / 3600, 2)
    if torch.cuda.is_available():
        row["peak_gpu_gib"] = round(torch.cuda.max_memory_allocated() / 1024**3, 1)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("7b", "toy"), default="7b" if torch.cuda.is_available() else "toy")
    parser.add_argument("--images", type=int, default=88)
    parser.add_argument("--slow", type=int, default=8, help="questions asked the published way")
    parser.add_argument("--reason", type=int, default=0, help="questions answered by written responses")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = model_of_size(given.size, folder / "model")
        shrink = 8 if given.size == "toy" else 1
        print(json.dumps({"size": given.size, **measure(model, folder, given.images, given.slow, given.reason, shrink)}))


if __name__ == "__main__":
    main()
