"""Time two implementations of the same work in turns, so that a busy machine slows both."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Ratio:
    """Times of two implementations; `ratio` > 1 means that the second one is faster."""

    what: str
    slow: str  # name of the first
    fast: str  # name of the second
    slow_ms: float  # medians
    fast_ms: float
    ratio: float  # median of the ratios of each turn


def measure(what: str, ways: dict[str, Callable[[], object]], *, turns: int = 7) -> Ratio:
    """Run the two `ways` (name -> work) once to warm up, then `turns` times each, alternating."""
    (slow, slow_work), (fast, fast_work) = ways.items()
    times: list[tuple[float, float]] = []
    for turn in range(turns + 1):
        pair = (_milliseconds(slow_work), _milliseconds(fast_work))
        if turn:
            times.append(pair)
    slow_ms, fast_ms = (statistics.median(column) for column in zip(*times, strict=True))
    return Ratio(what, slow, fast, slow_ms, fast_ms, statistics.median(first / second for first, second in times))


def _milliseconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return (time.perf_counter() - started) * 1000
