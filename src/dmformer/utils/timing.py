"""Time several candidates in interleaved rounds."""

import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any


def interleave(
    turns: Sequence[Callable[[], float]], rounds: int, progress: Callable[[int, int, int], None]
) -> list[list[float]]:
    """The result of each turn in each round, (candidates, rounds), after one warm-up round.

    Each round has a new random order, from a fixed seed.
    """
    order, draw = list(range(len(turns))), random.Random(0)
    results: list[list[float]] = [[] for _ in turns]
    for r in range(rounds + 1):
        draw.shuffle(order)
        for n, i in enumerate(order):
            progress(i, r * len(turns) + n, (rounds + 1) * len(turns))
            result = turns[i]()
            if r > 0:
                results[i].append(result)
    return results


def turn(call: Callable[[], Any], seconds: float, clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds per call, averaged over as many calls as fill `seconds`; at least one."""
    start, calls = clock(), 0
    while True:
        call()
        calls += 1
        elapsed = clock() - start
        if elapsed >= seconds:
            return elapsed / calls


def joules(call: Callable[[], Any], seconds: float, counter: Callable[[], float | None]) -> float | None:
    """Joules per call, averaged over as many calls as fill `seconds`; None if the counter cannot be read.

    Args:
        counter: Joules used so far, by everything that its device does.
    """
    before, calls = counter(), 0
    if before is None:
        return None

    def counted() -> None:
        nonlocal calls
        call()
        calls += 1

    turn(counted, seconds)
    used = (counter() or before) - before
    return used / calls if used > 0 else None


def summarise(batch_size: int, times: Sequence[float], baseline: Sequence[float] | None) -> dict[str, Any]:
    """The figures of a row, from its own and its baseline's seconds per call in each round."""
    speeds = [batch_size / t for t in times]
    low, _, high = statistics.quantiles(speeds, n=4, method="inclusive") if len(speeds) > 1 else speeds * 3
    return {
        "images_per_second": statistics.median(speeds),
        "low": low,
        "high": high,
        "latency_ms": 1e3 * statistics.median(times),
        "ratio": None if baseline is None else statistics.median(b / t for b, t in zip(baseline, times, strict=True)),
    }
