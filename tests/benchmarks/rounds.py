"""Runs benchmarks broker by broker, round by round, and keeps every figure."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from tests.benchmarks.brokers import BROKERS, leave
from tests.benchmarks.environment import describe
from tests.benchmarks.measures import Benchmark, Skip
from tests.benchmarks.sizes import FULL, QUICK, Sizes

__all__ = ("run",)


def _say(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


class Ledger:
    """The figures of a run, in the shape they are written in."""

    def __init__(self, sizes: Sizes) -> None:
        self._sizes = asdict(sizes)
        self.measures: dict[str, Any] = {}

    def _measure(self, benchmark: Benchmark, key: str) -> dict[str, Any]:
        name = f"{benchmark.name}.{key}"
        if name not in self.measures:
            metric = next(metric for metric in benchmark.metrics if metric.key == key)
            self.measures[name] = {
                "text": metric.text.format(**self._sizes),
                "unit": metric.unit,
                "higher": metric.higher,
                "samples": {},
                "skipped": {},
                "failed": {},
            }
        found: dict[str, Any] = self.measures[name]
        return found

    def add(self, benchmark: Benchmark, broker: str, values: dict[str, float | str]) -> None:
        """Keep the figures of one round; a text says why there is none."""
        for metric in benchmark.metrics:
            value = values.get(metric.key, "not measured there")
            measure = self._measure(benchmark, metric.key)
            if isinstance(value, str):
                measure["skipped"][broker] = value
            else:
                measure["samples"].setdefault(broker, []).append(value)

    def miss(self, benchmark: Benchmark, broker: str, how: str, reason: str) -> None:
        """Note that there are no figures, and why."""
        for metric in benchmark.metrics:
            self._measure(benchmark, metric.key)[how][broker] = reason


def _once(benchmark: Benchmark, name: str, sizes: Sizes, folder: str | None, to: Ledger) -> None:
    try:
        with BROKERS[name].space(folder) as space:
            to.add(benchmark, name, benchmark.run(space, sizes))
    except Skip as exc:
        to.miss(benchmark, name, "skipped", str(exc))
    except Exception as exc:  # noqa: BLE001 - one broker's trouble must not cost the others' figures
        to.miss(benchmark, name, "failed", f"{type(exc).__name__}: {exc}")
        _say(f"\n{benchmark.name} on {name} failed: {exc}\n")


def _run_benchmark(
    benchmark: Benchmark,
    rounds: int,
    brokers: Sequence[str],
    sizes: Sizes,
    folder: str | None,
    to: Ledger,
) -> None:
    taken = [name for name in benchmark.brokers if name in brokers]
    for number in range(min(rounds, benchmark.rounds)):
        # to and fro: what changes on the machine meanwhile meets each broker early and late
        for name in taken if number % 2 == 0 else reversed(taken):
            if BROKERS[name].slow and number >= benchmark.slow_rounds:
                continue
            begun = time.monotonic()
            _once(benchmark, name, sizes, folder, to)
            _say(f"{benchmark.name} {number + 1} {name} {time.monotonic() - begun:.1f} s\n")


def run(
    benchmarks: Sequence[Benchmark],
    brokers: Sequence[str],
    rounds: int,
    quick: bool = False,
    folder: str | None = None,
) -> dict[str, Any]:
    """Run benchmarks and return all there is to know about it; see ``Ledger`` for the shape."""
    sizes = QUICK if quick else FULL
    absent = {name: reason for name in brokers if (reason := BROKERS[name].why_not())}
    present = [name for name in brokers if name not in absent]
    begun = time.monotonic()
    environment = describe(present)
    ledger = Ledger(sizes)
    try:
        for benchmark in benchmarks:
            for name in absent:
                if name in benchmark.brokers:
                    ledger.miss(benchmark, name, "skipped", absent[name])
            _run_benchmark(benchmark, rounds, present, sizes, folder, ledger)
    finally:
        leave(present)
    return {
        "quick": quick,
        "rounds": rounds,
        "seconds": round(time.monotonic() - begun),
        "environment": environment,
        "sizes": asdict(sizes),
        "brokers": {
            name: {
                "label": BROKERS[name].label,
                "ceiling": BROKERS[name].ceiling,
                "absent": absent.get(name),
            }
            for name in brokers
        },
        "measures": ledger.measures,
    }
