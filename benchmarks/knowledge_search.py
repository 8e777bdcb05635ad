"""Time of a knowledge query once the base is loaded: run by hand, ``python benchmarks/knowledge_search.py [entries.jsonl]``.

Prints the median (by the clock and in processor time) and the 99th percentile over varied queries, and the time to load the
base and build the index; by words, and by meaning where the extra ``dcr2ad[search]`` is installed (embeddings of the entries
from the cache where they are kept).
"""

import statistics
import sys
import time
from collections.abc import Callable

from dcr2ad.knowledge import KnowledgeBase
from dcr2ad.meaning import BY_MEANING, BY_WORDS, MeaningIndex, model_folder
from dcr2ad.models.sentence import SentenceEncoder

QUERIES = (
    "dark round hole in metal",
    "torn packaging with visible content",
    "thin bright line across the surface",
    "copper missing from track",
    "two pieces stuck together",
    "brown powdery patches near an edge that spread along scratches, rough to the touch and without metallic sheen",
)


def main() -> None:
    started = time.perf_counter()
    base = KnowledgeBase.load(sys.argv[1]) if len(sys.argv) > 1 else KnowledgeBase.builtin()
    loaded = time.perf_counter()
    print(f"entries {len(base)}, load {loaded - started:.3f} s")
    measure(BY_WORDS, lambda: base.search, 200)
    folder = model_folder()
    if folder is not None:
        measure(BY_MEANING, lambda: MeaningIndex(base, SentenceEncoder(folder)).search, 20)


def measure(name: str, build: Callable[[], Callable[[str, int], object]], turns: int) -> None:
    """Print the time to build an index and to ask it."""
    begin = time.perf_counter()
    search = build()
    search(QUERIES[0], 5)
    built = time.perf_counter() - begin
    times, work = [], []
    for turn in range(turns):
        for query in QUERIES:
            begin, begun = time.perf_counter(), time.process_time()
            search(f"{query} {turn}", 5)
            times.append((time.perf_counter() - begin) * 1000)
            work.append((time.process_time() - begun) * 1000)
    times.sort()
    print(f"{name}: ready in {built:.3f} s; query median {statistics.median(times):.3f} ms", end="")
    print(f" (processor {statistics.median(work):.3f} ms), 99 % below {times[int(len(times) * 0.99)]:.3f} ms, n {len(times)}")


if __name__ == "__main__":
    main()
