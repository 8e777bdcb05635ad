"""What a type of numbers costs and gains the embedded language model: processor time, and distance from float32.

    OMP_NUM_THREADS=1 python benchmarks/nano_precision.py

A row of 600 random tokens with logits at 400 places, as a routing pass has them, then single tokens on its cache. Processor
time, so that other work on the machine hardly counts; the first row that is printed, float32, is what the others are
compared with. Random tokens have flat distributions: real prompts differ less.
"""

from __future__ import annotations

import copy
import time
import warnings
from typing import Any

import torch

from dcr2ad.models.compact import keep_compact
from dcr2ad.models.nano import build_nano
from dcr2ad.models.vlm import VisionLanguageModel

ROW, PLACES, STEPS = 600, 400, 20


@torch.inference_mode()
def run(model: Any, ids: torch.Tensor) -> tuple[float, float, torch.Tensor]:
    """Seconds of the row and of one token more, and the row's log-probabilities."""
    model(input_ids=ids[:, :32], logits_to_keep=1)
    start = time.process_time()
    output = model(input_ids=ids, logits_to_keep=torch.arange(ROW - PLACES, ROW), use_cache=True)
    row = time.process_time() - start
    cache, start = output.past_key_values, time.process_time()
    for step in range(STEPS):
        model(input_ids=ids[:, step : step + 1], past_key_values=cache, use_cache=True, logits_to_keep=1)
    return row, (time.process_time() - start) / STEPS, output.logits[0].float().log_softmax(-1)


def main() -> None:
    warnings.simplefilter("ignore")
    model = VisionLanguageModel.load(build_nano()).model
    ids = torch.randint(0, model.config.text_config.vocab_size - 1, (1, ROW), generator=torch.Generator().manual_seed(0))
    dynamic = torch.ao.quantization.quantize_dynamic
    kinds = {
        "float32": lambda: model,
        "bfloat16": lambda: copy.deepcopy(model).to(torch.bfloat16),
        "kept compact": lambda: keep_compact(copy.deepcopy(model)),
        "dynamic int8": lambda: dynamic(copy.deepcopy(model), {torch.nn.Linear}, dtype=torch.qint8),
    }
    exact: torch.Tensor | None = None
    for name, make in kinds.items():
        row, token, found = run(make(), ids)
        exact = found if exact is None else exact
        distance = float((exact.exp() * (exact - found)).sum(-1).mean())
        print(f"{name:<14} {ROW} tokens {row:.2f} s, a token {1000 * token:.0f} ms, mean KL {distance:.4f}", flush=True)


if __name__ == "__main__":
    main()
