"""Times things against the stock way, in turns, so that a busy moment of the machine meets all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping


def interleaved(runs: Mapping[str, Callable[[], object]], rounds: int) -> tuple[dict[str, list[float]], dict[str, object]]:
    """(seconds of every round of every run, in turns; what each run gave last)."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    results: dict[str, object] = {}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            results[name] = run()
            seconds[name].append(time.perf_counter() - start)
    return seconds, results


def ratios_to_stock(runs: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, object]:
    """Medians of interleaved runs as ratios to the run "stock", with the spread (the middle half of the rounds)."""
    seconds, _ = interleaved(runs, rounds)
    ratios = {name: sorted(ours / stock for ours, stock in zip(times, seconds["stock"], strict=True)) for name, times in seconds.items()}
    return {
        "stock_milliseconds": round(1000 * statistics.median(seconds["stock"]), 1),
        "ratio": {name: round(statistics.median(times), 3) for name, times in ratios.items()},
        "spread": {name: [round(times[rounds // 4], 3), round(times[-1 - rounds // 4], 3)] for name, times in ratios.items()},
    }
