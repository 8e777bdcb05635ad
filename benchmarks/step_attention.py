"""What attention of a decoding step costs: processor time of one layer, heads by themselves and heads asked together.

    OMP_NUM_THREADS=1 python benchmarks/step_attention.py

One token of each of some sequences, each behind 800 tokens of its own, with the embedded model's heads (9 on 3 of keys), as
`dcr2ad.models.tree_attention` meets them while responses are written. "By themselves" is what transformers calls: torch's
attention with grouped heads.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch
from torch.nn.functional import scaled_dot_product_attention

from dcr2ad.models.tree_attention import tree_attention

HEADS, GROUPS, WIDTH, TOKENS, ROUNDS = 9, 3, 64, 800, 20


def milliseconds(run: Callable[[], object]) -> float:
    """Processor time of one call, the first left out."""
    run()
    start = time.process_time()
    for _ in range(ROUNDS):
        run()
    return 1000 * (time.process_time() - start) / ROUNDS


@torch.inference_mode()
def main() -> None:
    module = torch.nn.Module()
    for dtype in (torch.float32, torch.bfloat16):
        for rows in (1, 8, 30):
            query = torch.randn(rows, HEADS, 1, WIDTH, dtype=dtype)
            key, value = (torch.randn(rows, GROUPS, TOKENS, WIDTH, dtype=dtype) for _ in range(2))
            mask = torch.ones(rows, 1, 1, TOKENS, dtype=torch.bool)
            one = milliseconds(partial(scaled_dot_product_attention, query, key, value, attn_mask=mask, enable_gqa=True))
            two = milliseconds(partial(tree_attention, module, query, key, value, mask))
            kind = str(dtype).removeprefix("torch.")
            print(f"{kind:<9} {rows:>2} sequences: by themselves {one:6.2f} ms, together {two:5.2f} ms, {one / two:.1f} times")


if __name__ == "__main__":
    main()
