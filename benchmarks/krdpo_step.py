"""KR-DPO's step against TRL's DPOTrainer: pairs a second, peak memory of a step, and whether both compute the same.

    python benchmarks/krdpo_step.py [--models qwen nano] [--batch 1 4] [--steps 4]

Same model, same pairs, same AdamW, float32, full fine-tuning of the language model with vision frozen. TRL: two rows a pair,
its own forward and loss, the reference model's forward in each step (its default); ``precomputed`` leaves that out of its time.
Ours: one tree a step; scoring the reference once is counted into our time, as in a run of one epoch. ``qwen`` is a random
Qwen2.5-VL of 8 layers of width 512 with two images of 400 tokens; ``nano`` is the embedded model. Four pairs are about one
image, as mined questions are. Each way runs in a process of its own; memory is the peak of resident memory in one step less
what stood before it (weights, gradients, optimiser), with an allocator that gives everything back. Time is processor time on
one thread, so that other work on the machine does not count; the median of the timed steps is taken, the slowest and the
fastest are printed. The last line is JSON: the worst case of all that ran.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
BETA = 0.1


def main() -> None:
    """Run every case, each way in its own process, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["qwen", "nano"], choices=["qwen", "nano"])
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 4], help="pairs a forward and step")
    parser.add_argument("--steps", type=int, default=4, help="timed steps")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(child(**json.loads(options.child))))
        return
    cases = []
    with tempfile.TemporaryDirectory() as folder:
        for model in options.models:
            for batch in options.batch:
                cases.append(case(folder, model, batch, options.steps))
                print(json.dumps(cases[-1]), flush=True)
    worst = {
        "speedup": min(found["speedup"] for found in cases),
        "peak_memory_ratio": max(found["peak_memory_ratio"] for found in cases),
        "max_logprob_diff": max(found["max_logprob_diff"] for found in cases),
    }
    print(json.dumps(worst))


def case(folder: str, model: str, batch: int, steps: int) -> dict[str, Any]:
    """One model and batch size: figures of both ways side by side."""
    asked = {"folder": folder, "model": model, "batch": batch, "steps": steps}
    runs = {
        (way, memory): run_child({**asked, "way": way, "memory": memory}) for way in ("trl", "ours") for memory in (False, True)
    }
    theirs, ours = runs["trl", False], runs["ours", False]
    gaps = [abs(a - b) for a, b in zip(theirs["logprobs"], ours["logprobs"], strict=True)]
    peaks = runs["trl", True]["peak_mb"], runs["ours", True]["peak_mb"]
    return {
        "model": model,
        "batch": batch,
        "prefix_tokens": ours["prefix"],
        "response_tokens": ours["responses"],
        "trl_pairs_s": round(theirs["pairs_s"], 4),
        "trl_precomputed_pairs_s": round(theirs["policy_pairs_s"], 4),
        "ours_pairs_s": round(ours["pairs_s"], 4),
        "speedup": round(ours["pairs_s"] / theirs["pairs_s"], 2),
        "step_seconds": {"trl": theirs["step_seconds"], "ours": ours["step_seconds"]},
        "trl_peak_mb": round(peaks[0]),
        "ours_peak_mb": round(peaks[1]),
        "peak_memory_ratio": round(peaks[1] / peaks[0], 3),
        "max_logprob_diff": max(gaps),
        "losses": [theirs["losses"], ours["losses"]],
    }


def run_child(asked: dict[str, Any]) -> dict[str, Any]:
    """One way in a fresh process."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    if asked["memory"]:
        environment |= {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    command = [sys.executable, __file__, "--child", json.dumps(asked)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def child(folder: str, model: str, batch: int, steps: int, way: str, memory: bool) -> dict[str, Any]:
    """Train some steps one way and measure."""
    import torch

    torch.set_num_threads(1)
    vlm, reference = load(Path(folder), model), load(Path(folder), model)
    with torch.no_grad():  # the reference differs from the policy, so that the loss says something
        generator = torch.Generator().manual_seed(7)
        for value in reference.model.parameters():
            value += 0.02 * value.std(unbiased=False) * torch.randn(value.shape, generator=generator)
    for name, value in vlm.model.named_parameters():
        value.requires_grad_("language_model" in name or "lm_head" in name)
    optimizer = torch.optim.AdamW([p for p in vlm.model.parameters() if p.requires_grad], lr=1e-5, weight_decay=0.0)
    batches = pairs(Path(folder), model, batch, steps + 1)
    worker = (Trl if way == "trl" else Ours)(vlm, reference)
    worker.begin(batches)
    outside = worker.seconds / len(batches)  # the reference, where it is scored before the first step
    logprobs = worker.logprobs(batches[0])
    losses, took, inside = [], [], []
    for number, rows in enumerate(batches):
        if number == 1:  # the first step allocates the optimiser's state and warms up
            before = reset_peak()
        began, reference_seconds = time.process_time(), worker.seconds
        loss = worker.loss(rows)
        loss.backward()
        losses.append(float(loss.detach()))
        if number == 1 and memory:
            return {"peak_mb": peak() - before}
        optimizer.step()
        optimizer.zero_grad(set_to_none=not memory)  # gradients that stay are not counted as activations
        took.append(time.process_time() - began)
        inside.append(worker.seconds - reference_seconds)
    step = statistics.median(took[1:])
    return {
        "pairs_s": batch / (step + outside),
        "policy_pairs_s": batch / (step - statistics.median(inside[1:])),
        "step_seconds": [round(value + outside, 2) for value in (min(took[1:]), step, max(took[1:]))],
        "losses": [round(value, 6) for value in losses],
        "logprobs": logprobs,
        "prefix": len(batches[0][0].prompt.ids),
        "responses": [len(response.ids) for response in batches[0][0].responses],
    }


def load(folder: Path, name: str) -> Any:
    """The model of a case, in float32 on the CPU."""
    from tests.tiny import tiny_qwen

    from dcr2ad.models.nano import build_nano
    from dcr2ad.models.vlm import VisionLanguageModel

    if name == "nano":
        return VisionLanguageModel.load(build_nano(), device="cpu")
    if not (folder / "qwen" / "config.json").exists():
        tiny_qwen(folder / "qwen", layers=8, hidden=512, image_tokens=400)
    return VisionLanguageModel.load(folder / "qwen", device="cpu")


def pairs(folder: Path, model: str, batch: int, steps: int) -> list[list[Any]]:
    """Rows of each step: pairs about random photographs, four to a photograph, responses of 80 to 150 tokens."""
    from tests.tiny import tiny_base, tiny_pairs, tiny_photograph

    from dcr2ad.training.batches import pair_row

    vlm, base, rows = load(folder, model), tiny_base(), []
    side = (560, 560)
    for number, pair in enumerate(tiny_pairs(folder / "small", batch * steps)):
        images = [tiny_photograph(folder / "photos", i, side) for i in (number // 4, 1000)]
        sample = pair.question.sample.model_copy(update={"image": images[0], "references": (images[1],)})
        update = {"question": pair.question.model_copy(update={"sample": sample})}
        for which in ("chosen", "rejected"):
            trajectory = getattr(pair, which)
            words = f" {trajectory.why}." * 20
            while True:
                long = trajectory.model_copy(update={"reasoning": (trajectory.reasoning + words).strip()})
                row = pair_row(vlm, pair.model_copy(update={**update, which: long}), base)
                if len(row.responses[which == "rejected"].ids) <= (120 if which == "chosen" else 125):
                    break
                words = words[: len(words) - 5]
            update[which] = long
        rows.append(pair_row(vlm, pair.model_copy(update=update), base))
    return [rows[start : start + batch] for start in range(0, len(rows), batch)]


class Ours:
    """A tree a step, reference scored once."""

    def __init__(self, vlm: Any, reference: Any) -> None:
        self.vlm, self.reference = vlm, reference
        self.seconds = 0.0
        self.kept: dict[str, Any] = {}

    def begin(self, batches: list[list[Any]]) -> None:
        """Score the reference, a batch at a time as the trainer does, and let it go."""
        import torch

        began = time.process_time()
        with torch.no_grad():
            for rows in batches:
                sums = self.sums(self.reference, rows)
                self.kept |= {row.id: [part[i : i + 1] for part in sums] for i, row in enumerate(rows)}
        self.seconds = time.process_time() - began
        self.reference = None

    def sums(self, vlm: Any, rows: list[Any]) -> list[Any]:
        """Segment sums of both responses, each ``(B, 3)``."""
        import torch

        from dcr2ad.training.batches import completion_logprobs
        from dcr2ad.training.losses import segment_sums

        found = completion_logprobs(vlm, rows)
        return [
            torch.stack([segment_sums(v[i], torch.tensor(r.responses[i].segments)) for r, v in zip(rows, found, strict=True)])
            for i in (0, 1)
        ]

    def logprobs(self, rows: list[Any]) -> list[float]:
        """Log-probability of every response token, chosen responses first."""
        import torch

        from dcr2ad.training.batches import completion_logprobs

        with torch.no_grad():
            found = completion_logprobs(self.vlm, rows)
        return [float(x) for which in (0, 1) for values in found for x in values[which]]

    def loss(self, rows: list[Any]) -> Any:
        """Equation (5)."""
        import torch

        from dcr2ad.training.losses import krdpo_loss

        kept = [torch.cat([self.kept[row.id][which] for row in rows]) for which in (0, 1)]
        return krdpo_loss(*self.sums(self.vlm, rows), *kept, beta=BETA).losses.mean()


class Trl:
    """TRL's trainer on the same tokens: its own forward, reference and loss."""

    def __init__(self, vlm: Any, reference: Any) -> None:
        import datasets
        import trl

        message = {"role": "user", "content": "q"}
        data = {
            "prompt": [[message]],
            "chosen": [[{"role": "assistant", "content": "a"}]],
            "rejected": [[{"role": "assistant", "content": "b"}]],
        }
        arguments = trl.DPOConfig(
            output_dir=tempfile.mkdtemp(),
            beta=BETA,
            max_length=None,
            use_cpu=True,
            bf16=False,
            report_to=[],
            gradient_checkpointing=False,
        )
        self.trainer = trl.DPOTrainer(
            model=vlm.model,
            ref_model=reference.model,
            args=arguments,
            train_dataset=datasets.Dataset.from_dict(data),
            processing_class=vlm.processor,
        )
        self.vlm, self.seconds = vlm, 0.0
        forward = self.trainer.ref_model.forward

        def timed(*args: Any, **more: Any) -> Any:
            began = time.process_time()
            output = forward(*args, **more)
            self.seconds += time.process_time() - began
            return output

        self.trainer.ref_model.forward = timed

    def begin(self, batches: list[list[Any]]) -> None:
        """Nothing: the reference is asked in each step."""

    def batch(self, rows: list[Any]) -> dict[str, Any]:
        """Padded rows, all chosen before all rejected."""
        import torch

        both = [(row, row.responses[which]) for which in (0, 1) for row in rows]
        length = max(len(row.prompt.ids) + len(response.ids) for row, response in both)
        batch = {
            name: torch.zeros(len(both), length, dtype=torch.long)
            for name in ("input_ids", "attention_mask", "completion_mask")
        }
        for i, (row, response) in enumerate(both):
            ids = [*row.prompt.ids, *response.ids]
            batch["input_ids"][i, : len(ids)] = torch.tensor(ids)
            batch["attention_mask"][i, : len(ids)] = 1
            batch["completion_mask"][i, len(row.prompt.ids) : len(ids)] = 1
        pixels = [self.vlm.pixel_inputs(path) for row, _ in both for path in row.prompt.images]
        for name in pixels[0]:
            batch[name] = torch.cat([image[name] for image in pixels])
        if "image_grid_thw" in batch:
            batch["mm_token_type_ids"] = (batch["input_ids"] == self.vlm.image_token_id).int()
        return batch

    def logprobs(self, rows: list[Any]) -> list[float]:
        """Log-probability of every response token by the stock forward that TRL makes."""
        import torch

        batch = self.batch(rows)
        mask = batch.pop("completion_mask").bool()[:, 1:]
        with torch.no_grad():
            logits = self.vlm.model(**batch, use_cache=False).logits[:, :-1]
        found = logits.log_softmax(-1).gather(-1, batch["input_ids"][:, 1:, None])[..., 0]
        return [float(x) for x in found[mask]]

    def loss(self, rows: list[Any]) -> Any:
        """TRL's loss."""
        return self.trainer.compute_loss(self.vlm.model, self.batch(rows))


def reset_peak() -> float:
    """Start a new peak of resident memory; returns what stands now, MB."""
    Path("/proc/self/clear_refs").write_text("5")
    return status("VmRSS")


def peak() -> float:
    """Peak of resident memory since, MB."""
    return status("VmHWM")


def status(name: str) -> float:
    """A line of /proc/self/status, MB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    main()
