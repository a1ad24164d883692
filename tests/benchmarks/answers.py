"""Celery with results: one call and its answer, groups, chords."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from celery import chord, group

from tests.benchmarks.app import make_app
from tests.benchmarks.brokers import BROKERS
from tests.benchmarks.crew import Port, alone
from tests.benchmarks.measures import Benchmark, Metric, Skip, Values, percentile
from tests.benchmarks.servers import REDIS_URL
from tests.benchmarks.sizes import Sizes
from tests.benchmarks.spaces import Space
from tests.benchmarks.workers import Workers

__all__ = ("CHORDS", "RESULTS")

_ANSWER_S = 120.0
_WARM_UP = 10


def _ask(port: Port, space: Space, sizes: Sizes, ask: Callable[[Any, Sizes], Values]) -> Values:
    """Be a client of the space's workers, once these answer."""
    app = make_app(space)
    add = app.tasks["tests.benchmarks.add"]
    for number in range(_WARM_UP):
        if add.delay(number, 1).get(timeout=_ANSWER_S) != number + 1:
            raise ValueError("a wrong answer")
    port.ready()
    return ask(app, sizes)


def _run(space: Space, sizes: Sizes, ask: Callable[[Any, Sizes], Values]) -> Values:
    with Workers(space) as workers:
        workers.start("-c", "2")
        values: Values = alone(_ask, space, sizes, ask)
    return values


def _get(app: Any, sizes: Sizes) -> Values:
    add = app.tasks["tests.benchmarks.add"]
    spent: list[float] = []
    end = time.monotonic() + sizes.ping_seconds
    while len(spent) < sizes.pings and (time.monotonic() < end or not spent):
        begun = time.perf_counter()
        add.delay(1, 2).get(timeout=_ANSWER_S)
        spent.append((time.perf_counter() - begun) * 1e3)
    return {"p50": percentile(spent, 50), "p99": percentile(spent, 99)}


def _group(app: Any, sizes: Sizes) -> Values:
    add = app.tasks["tests.benchmarks.add"]
    tasks = group(add.s(number, 1) for number in range(sizes.group))
    begun = time.perf_counter()
    sums = tasks.apply_async().get(timeout=_ANSWER_S)
    seconds = time.perf_counter() - begun
    if sums != [number + 1 for number in range(sizes.group)]:
        raise ValueError("a wrong answer")
    return {"group": sizes.group / seconds}


def _chord(app: Any, size: int) -> float:
    add, total = app.tasks["tests.benchmarks.add"], app.tasks["tests.benchmarks.total"]
    begun = time.perf_counter()
    found = chord([add.s(number, 1) for number in range(size)], total.s()).apply_async()
    value = found.get(timeout=_ANSWER_S)
    seconds = time.perf_counter() - begun
    if value != size * (size + 1) // 2:
        raise ValueError("a wrong answer")
    return seconds


def _chords(app: Any, sizes: Sizes) -> Values:
    small = [_chord(app, sizes.small_chord) for _ in range(3)]
    return {"small": percentile(small, 50), "large": _chord(app, sizes.large_chord)}


def _calls_and_group(app: Any, sizes: Sizes) -> Values:
    return {**_get(app, sizes), **_group(app, sizes)}


def run_results(space: Space, sizes: Sizes) -> Values:
    """One call after the other, then one large group."""
    return _run(space, sizes, _calls_and_group)


def run_chords(space: Space, sizes: Sizes) -> Values:
    """Chords, small and large; with RabbitMQ the results are in Redis: rpc:// has no chords."""
    if space.results == "rpc://":
        reason = BROKERS["redis"].why_not()
        if reason is not None:
            raise Skip(f"rpc:// has no chords, and for Redis as result backend: {reason}")
        space = replace(space, results=REDIS_URL)
        with BROKERS["redis"].space():
            return _run(space, sizes, _chords)
    return _run(space, sizes, _chords)


_PEERS = tuple(
    name
    for name, broker in BROKERS.items()
    if not (broker.local or broker.variant) and name != "rabbitmq"
)
RESULTS = Benchmark(
    "celery-results",
    run_results,
    (
        Metric("p50", "Celery: delay().get(), prefork -c 2, p50", "ms"),
        Metric("p99", "Celery: delay().get(), prefork -c 2, p99", "ms"),
        Metric("group", "Celery: tasks of a group of {group:,} with results", "/s", higher=True),
    ),
    (*_PEERS, "bare"),
    slow_rounds=1,
)
CHORDS = Benchmark(
    "celery-chords",
    run_chords,
    (
        Metric("small", "Celery: chord of {small_chord:,}", "s"),
        Metric("large", "Celery: chord of {large_chord:,}", "s"),
    ),
    _PEERS,
    slow_rounds=1,
)
