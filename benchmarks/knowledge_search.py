"""Time of a knowledge query once the base is loaded: run by hand, ``python benchmarks/knowledge_search.py [entries.jsonl]``.

Prints the median and the 99th percentile over varied queries, and the time to load the base and build the index.
"""

import statistics
import sys
import time

from dcr2ad.knowledge import KnowledgeBase

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
    base.search(QUERIES[0])
    indexed = time.perf_counter()
    times = []
    for turn in range(200):
        for query in QUERIES:
            begin = time.perf_counter()
            base.search(f"{query} {turn}", 5)
            times.append((time.perf_counter() - begin) * 1000)
    times.sort()
    print(f"entries {len(base)}, load {loaded - started:.3f} s, index {indexed - loaded:.3f} s")
    print(f"query median {statistics.median(times):.3f} ms, 99 % below {times[int(len(times) * 0.99)]:.3f} ms, n {len(times)}")


if __name__ == "__main__":
    main()
