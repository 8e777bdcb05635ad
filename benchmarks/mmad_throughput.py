"""Questions a second of `dcr2ad evaluate` against the published way: one generate a question, images processed each time.

    OMP_NUM_THREADS=1 python benchmarks/mmad_throughput.py [--questions N] [--model nano|hf:FOLDER] [--new-tokens 128]

Both ways ask the same questions of the same model in one process. The published way (MMAD's scripts) processes the images and
the whole prompt again for each question and lets the model write up to ``--new-tokens`` tokens; ``first_token`` stops it after
one, which only a reader of probabilities could do, and is the fair comparison of the shared prefix alone. Answers are the most
probable letter of the first token, in both ways. ``--reason N`` measures written answers (``reason``) too: N questions together
against ``--slow`` of them each alone. ``--flops`` counts the products of both ways (torch's own counter): their ratio is what
the speedup would be if each operation took as long in both. On a CPU all times are processor time of all threads, so that other
work on the machine decides little. Without ``--model`` both nano and a tiny random Qwen2.5-VL are measured. Photographs are
drawn by the product; five questions an image, four images an object share a reference. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from tests.tiny import tiny_photograph, tiny_qwen

from dcr2ad.artifacts import read_records
from dcr2ad.knowledge.base import KnowledgeBase
from dcr2ad.models.base import letter_probabilities
from dcr2ad.models.hf import HFModel
from dcr2ad.models.tree import TokenTree
from dcr2ad.parsing import LETTERS
from dcr2ad.prompts import answer_prompt, build_prompt
from dcr2ad.reasoning import write_responses
from dcr2ad.stages.evaluate import evaluate
from dcr2ad.types import EvalProtocol, ImagePart, Prediction, Question, Sample, Subtask

KINDS = (
    (Subtask.DETECTION, "Is there any defect in the part?", ("Yes", "No")),
    (Subtask.CLASSIFICATION, "A defect is present. What type is it?", ("Scratch", "Dent", "Stain", "Hole")),
    (Subtask.LOCALIZATION, "A defect is present. Where is it?", ("Top left", "Top right", "Bottom left", "Centre")),
    (
        Subtask.DESCRIPTION,
        "What does the defect look like?",
        ("A bright line", "A dark hollow", "A dull patch", "A missing piece"),
    ),
    (Subtask.ANALYSIS, "What may follow from it?", ("Nothing", "Leaks", "Corrosion", "An electrical fault")),
)


def make_questions(folder: Path, count: int) -> list[Question]:
    """Five questions an image, four images a reference."""
    questions = []
    for number in range(count):
        image, (subtask, text, options) = number // len(KINDS), KINDS[number % len(KINDS)]
        sample = Sample(
            id=f"s{image}",
            image=tiny_photograph(folder, image, (448, 448)),
            references=(tiny_photograph(folder, 100_000 + image // 4, (448, 448)),),
            dataset="synthetic",
            object=f"part {image // 4:05d}",
            is_anomalous=True,
        )
        questions.append(Question(id=f"q{number}", sample=sample, subtask=subtask, text=text, options=options, answer=0))
    return questions


def published(model: HFModel, questions: list[Question], new_tokens: int) -> tuple[float, list[int]]:
    """Seconds, and the option whose letter is the most probable first token."""
    from PIL import Image

    vlm = model.vlm
    answers: list[int] = []
    begun = now()
    for question in questions:
        prompt = answer_prompt(build_prompt(question, expert=False))
        images = [Image.open(part.path).convert("RGB") for part in prompt.parts if isinstance(part, ImagePart)]
        content = [{"type": "image"} if isinstance(p, ImagePart) else {"type": "text", "text": p.text} for p in prompt.parts]
        text = vlm.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        inputs = vlm.processor(images=images, text=[text + prompt.opening], return_tensors="pt")
        if "image_grid_thw" in inputs:
            inputs["mm_token_type_ids"] = (inputs["input_ids"] == vlm.image_token_id).int()
        with torch.inference_mode():
            made = vlm.model.generate(
                **inputs.to(vlm.device),
                do_sample=False,
                max_new_tokens=new_tokens,
                output_logits=True,
                return_dict_in_generate=True,
            )
        chances = made.logits[0][0].float().softmax(-1)
        spelled = [[vlm.response_ids(form) for form in (letter, f" {letter}")] for letter in LETTERS[: len(question.options)]]
        sums = [sum(float(chances[ids[0]]) for ids in forms if len(ids) == 1) for forms in spelled]
        answers.append(max(range(len(sums)), key=sums.__getitem__))
    return now() - begun, answers


def now() -> float:
    """Seconds of processor time on a CPU, of the clock on a GPU."""
    return time.perf_counter() if torch.cuda.is_available() else time.process_time()


def written(model: HFModel, questions: list[Question], slow: int, folder: Path) -> dict[str, Any]:
    """Written answers: seconds a question together and alone, and whether the answers are the same."""
    model.runner.reset()
    model.runner.processed_tokens = 0
    begun = now()
    evaluate(model, questions, KnowledgeBase.builtin(), EvalProtocol(expert=False, answering="reason"), folder)
    together, tokens = (now() - begun) / len(questions), model.runner.processed_tokens / len(questions)
    found = {p.question_id: p.raw for p in read_records(folder / "predictions.jsonl", Prediction)}
    begun = now()
    alone = []
    for question in questions[:slow]:
        model.runner.reset()
        alone += write_responses(model, [build_prompt(question, expert=False)], [question.options])
    single = (now() - begun) / slow
    return {
        "reason_questions": len(questions),
        "reason_seconds_per_question": round(together, 2),
        "reason_seconds_alone": round(single, 2),
        "reason_speedup_vs_alone": round(single / together, 2),
        "reason_tokens_per_question": round(tokens, 1),
        "reason_responses_equal": sum(found[q.id] == w.text for q, w in zip(questions, alone, strict=False)) / slow,
    }


def flops(model: HFModel, questions: list[Question], slow: int, new_tokens: int, folder: Path) -> dict[str, float]:
    """Floating-point operations a question of `evaluate` and of the published way, in 10^9, and their ratio."""
    from torch.utils.flop_counter import FlopCounterMode

    model.runner.reset()
    model.vlm.forget_features()
    with FlopCounterMode(display=False) as ours:
        evaluate(model, questions, KnowledgeBase.builtin(), EvalProtocol(expert=False), folder)
    with FlopCounterMode(display=False) as theirs:
        published(model, questions[:slow], new_tokens)
    mine, other = ours.get_total_flops() / len(questions) / 1e9, theirs.get_total_flops() / slow / 1e9
    return {"gflop": round(mine, 2), "gflop_published": round(other, 2), "flop_ratio": round(other / mine, 2)}


def distinct_tokens(model: HFModel, questions: list[Question]) -> int:
    """Tokens left when neighbouring prompts share all they have in common: prefixes of one image, and of one reference."""
    keys = []
    for question in questions:
        tokenized = model.vlm.tokenize(answer_prompt(build_prompt(question, expert=False)))
        keys.append(tokenized.keys(model.vlm.image_token_id))
    return len(TokenTree.build(keys))


def measure(
    spec: str, folder: Path, count: int, slow: int, new_tokens: int, reason: int, count_flops: bool = False
) -> dict[str, Any]:
    model = HFModel.open(spec)
    base, protocol = KnowledgeBase.builtin(), EvalProtocol(expert=False)
    questions = make_questions(folder / "photographs", count)
    warm = make_questions(folder / "warm", 5)
    evaluate(model, warm, base, protocol, folder / f"warm-{spec.replace('/', '_')}")
    model.runner.reset()
    model.runner.processed_tokens = 0
    begun = now()
    evaluate(model, questions, base, protocol, folder / f"out-{spec.replace('/', '_')}")
    ours = (now() - begun) / len(questions)
    efficiency = distinct_tokens(model, questions) / model.runner.processed_tokens
    asked = questions[:slow]
    probabilities = letter_probabilities(
        model, [answer_prompt(build_prompt(q, expert=False)) for q in asked], [len(q.options) for q in asked]
    )
    mine = [max(range(len(p)), key=p.__getitem__) for p in probabilities]
    seconds, theirs = published(model, asked, new_tokens)
    one, _ = published(model, asked, 1)
    more = written(model, questions[:reason], slow, folder / f"reason-{spec.replace('/', '_')}") if reason else {}
    if count_flops:
        for limit, name in ((new_tokens, ""), (1, "first_token_")):
            counted = flops(model, questions, slow, limit, folder / f"flops-{limit}-{spec.replace('/', '_')}")
            more |= {f"{name}{key}": value for key, value in counted.items()}
    return {
        "model": spec if spec.startswith("nano") else "tiny Qwen2.5-VL",
        "questions": len(questions),
        "questions_per_second": round(1 / ours, 2),
        "speedup_vs_per_question": round(seconds / slow / ours, 2),
        "speedup_vs_first_token": round(one / slow / ours, 2),
        "answers_equal": mine == theirs,
        "answers_compared": len(mine),
        "token_efficiency": round(efficiency, 3),
        **more,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=100)
    parser.add_argument("--slow", type=int, default=10, help="questions asked the published way")
    parser.add_argument("--model", action="append", default=[])
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--reason", type=int, default=0, help="questions answered by written responses")
    parser.add_argument("--flops", action="store_true", help="count the products of both ways")
    given = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for spec in given.model or ["nano", f"hf:{tiny_qwen(folder / 'qwen', layers=4, hidden=128, image_tokens=256)}"]:
            slow = min(given.slow, given.questions)
            rows.append(measure(spec, folder, given.questions, slow, given.new_tokens, given.reason, given.flops))
            rows[-1]["peak_memory_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
            print(json.dumps(rows[-1]), flush=True)
    worst = {
        key: min(row[key] for row in rows) for key in ("speedup_vs_per_question", "speedup_vs_first_token", "token_efficiency")
    }
    print(json.dumps({**worst, "answers_equal": all(row["answers_equal"] for row in rows)}))


if __name__ == "__main__":
    main()
