"""How fast messages get into a queue, and how long one publish takes among other writers."""

from __future__ import annotations

import time
from typing import Any

from tests.benchmarks.brokers import BROKERS, WITHOUT_CELERY
from tests.benchmarks.crew import Crew, Port, alone
from tests.benchmarks.measures import Benchmark, Metric, Values, percentile
from tests.benchmarks.messages import BATCH, KILOBYTE, TWENTY, Sender
from tests.benchmarks.sizes import Sizes
from tests.benchmarks.spaces import Space

__all__ = ("PUBLISH", "PUBLISH_TOGETHER")

_WRITERS = 4
_WARM_UP = 20
_NO_BATCHES = "Kombu offers no batches there"


def _rate(sender: Sender, sizes: Sizes) -> float:
    """Messages per second, singly."""
    begun = time.perf_counter()
    sent = 0
    for _ in sender.count_until(sizes.messages, sizes.seconds):
        sender.send()
        sent += 1
    return sent / (time.perf_counter() - begun)


def _batch_rate(sender: Sender, sizes: Sizes) -> float:
    """Messages per second in batches, the last one's commit included."""
    begun = time.perf_counter()
    sent = 0
    with sender.producer.batch(max_size=BATCH):
        for _ in sender.count_until(sizes.messages, sizes.seconds):
            sender.send()
            sent += 1
    return sent / (time.perf_counter() - begun)


def _publish(port: Port, space: Space, sizes: Sizes) -> Values:
    with space.connection() as connection:
        small = Sender(space, connection, size=KILOBYTE)
        large = Sender(space, connection, size=TWENTY)
        for sender in (small, large):
            for _ in range(_WARM_UP):
                sender.send()
        port.ready()
        values: Values = {"small": _rate(small, sizes), "large": _rate(large, sizes)}
        for key, sender in (("small-batch", small), ("large-batch", large)):
            values[key] = _batch_rate(sender, sizes) if sender.batches else _NO_BATCHES
        return values


def run_publish(space: Space, sizes: Sizes) -> Values:
    """One process publishes."""
    values: Values = alone(_publish, space, sizes)
    return values


def _publish_timed(port: Port, space: Space, sizes: Sizes) -> tuple[float, float, list[float]]:
    """Begin and end on the clock all processes share, and how long each publish took."""
    with space.connection() as connection:
        sender = Sender(space, connection, size=KILOBYTE)
        for _ in range(_WARM_UP):
            sender.send()
        spent: list[float] = []
        port.ready()
        begun = last = time.monotonic()
        for _ in sender.count_until(sizes.messages, sizes.seconds):
            sender.send()
            now = time.monotonic()
            spent.append(now - last)
            last = now
        return begun, last, spent


def run_publish_together(space: Space, sizes: Sizes) -> Values:
    """Several processes publish to one queue."""
    with Crew() as crew:
        for _ in range(_WRITERS):
            crew.add(_publish_timed, space, sizes)
        reports: list[Any] = crew.run()
    spent = [duration for _, _, durations in reports for duration in durations]
    seconds = max(end for _, end, _ in reports) - min(begin for begin, _, _ in reports)
    return {
        "rate": len(spent) / seconds,
        "p50": percentile(spent, 50) * 1e3,
        "p99": percentile(spent, 99) * 1e3,
        "p99.9": percentile(spent, 99.9) * 1e3,
        "max": max(spent) * 1e3,
    }


PUBLISH = Benchmark(
    "publish",
    run_publish,
    (
        Metric("small", "publish, one process, 1 KB", "/s", higher=True),
        Metric("small-batch", f"publish, one process, 1 KB, batches of {BATCH}", "/s", higher=True),
        Metric("large", "publish, one process, 20 KB", "/s", higher=True),
        Metric(
            "large-batch", f"publish, one process, 20 KB, batches of {BATCH}", "/s", higher=True
        ),
    ),
    WITHOUT_CELERY,
)
PUBLISH_TOGETHER = Benchmark(
    "publish-together",
    run_publish_together,
    (
        Metric("rate", f"publish, {_WRITERS} processes, 1 KB", "/s", higher=True),
        Metric("p50", f"one publish among {_WRITERS} writers, p50", "ms"),
        Metric("p99", f"one publish among {_WRITERS} writers, p99", "ms"),
        Metric("p99.9", f"one publish among {_WRITERS} writers, p99.9", "ms"),
        Metric("max", f"one publish among {_WRITERS} writers, longest", "ms"),
    ),
    tuple(name for name, broker in BROKERS.items() if not broker.local),
)
