"""A known amount of Python work: fixed rounds, not a stretch of a clock, so that what is done can be compared.

A round is what agents do all day: JSON decoded and encoded, words, a small dictionary. A bare loop over integers would
not do: it takes up to 1.8 times as long in one process as in another beside it, depending on where its memory is, and
workers, being forked, all share the layout of their forkserver. This differs by 3 % from process to process.

``burn`` by the clock would do less on a machine that is slow for a moment and call it the same. So milliseconds are
turned into rounds once (``rounds_for``), by the benchmark, just before it measures.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

CORES = len(os.sched_getaffinity(0))
"""The CPUs that this process may use."""

_SAMPLE = 1000
_DOCUMENT = {"title": "How do I read a CSV file?", "tags": ["csv", "files"], "score": 0.5}


def burn(rounds: int) -> int:
    """Compute; about 6 us a round."""
    total = 0
    for _ in range(rounds):
        document = json.loads(json.dumps(_DOCUMENT))
        words = sorted(document["title"].split(), key=len)
        total += len({word.lower(): place for place, word in enumerate(words)})
    return total


def rounds_for(ms: float) -> int:
    """So many rounds take so many milliseconds of CPU here and now, with nothing else running."""
    seconds = min(_timed() for _ in range(25))
    return max(1, round(ms / 1e3 / seconds * _SAMPLE))


def _timed() -> float:
    begun = time.thread_time()
    burn(_SAMPLE)
    return time.thread_time() - begun


def bare(rounds: int, seconds: float) -> float:
    """Calls of ``burn(rounds)`` a second that one bare process on each core gets done, all together."""
    begin = time.monotonic() + 0.3
    command = [sys.executable, "-m", "bench.work", str(rounds), str(begin), str(seconds)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[1]) for _ in range(CORES)]
    return sum(float(process.communicate()[0]) for process in processes)


def _bare(rounds: int, begin: float, seconds: float) -> float:
    time.sleep(max(0.0, begin - time.monotonic()))
    begun = time.monotonic()
    count = 0
    while time.monotonic() < begin + seconds:
        burn(rounds)
        count += 1
    return count / (time.monotonic() - begun)


if __name__ == "__main__":
    print(_bare(int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])))
