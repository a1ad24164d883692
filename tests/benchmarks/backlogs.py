"""Celery working off a backlog of tasks that do nothing: prefork, threads, solo."""

from __future__ import annotations

from typing import Any

import psutil
from celery.contrib.testing.worker import start_worker

from tests.benchmarks.app import STORED, make_app
from tests.benchmarks.brokers import BROKERS
from tests.benchmarks.crew import Port, alone
from tests.benchmarks.measures import Benchmark, Metric, Values
from tests.benchmarks.messages import fill
from tests.benchmarks.sizes import Sizes
from tests.benchmarks.spaces import Space
from tests.benchmarks.workers import (
    Workers,
    count_stamps,
    cpu_of_s,
    first_stamps,
    read_stamps,
    wait,
)

__all__ = ("CEILING", "PREFORK", "SOLO", "THREADS", "TWO_SOLO")

#: The first tasks meet a worker that is still starting.
_SKIPPED = 0.1


def steady_rate(stamps: list[float]) -> float:
    """Tasks per second once the worker has found its pace."""
    first = int(len(stamps) * _SKIPPED)
    return (len(stamps) - 1 - first) / (stamps[-1] - stamps[first])


def run_prefork(space: Space, sizes: Sizes) -> Values:
    """A worker with two processes; first tasks without, then tasks with results."""
    plain = fill(space, sizes.tasks, sizes.fill_seconds)
    stored = fill(space, sizes.stored_tasks, sizes.fill_seconds, task=STORED)
    with Workers(space) as workers:
        parent = psutil.Process(workers.start("-c", "2").pid)
        workers.wait_for_stamps(max(1, int(plain * _SKIPPED)))
        seen, cpu = count_stamps(space), cpu_of_s(parent)
        workers.wait_for_stamps(int(plain * 0.95))
        cpu = (cpu_of_s(parent) - cpu) / max(1, count_stamps(space) - seen)
        workers.wait_for_stamps(plain + stored)
    return {
        "rate": steady_rate(read_stamps(space, 0.0)),
        "stored-rate": steady_rate(read_stamps(space, 1.0)),
        "parent-cpu": cpu * 1e6,
    }


def _run(space: Space, sizes: Sizes, *arguments: str) -> Values:
    """A worker begins on a backlog, until that is done or the time is up."""
    sent = fill(space, sizes.backlog, sizes.fill_seconds)
    with Workers(space) as workers:
        workers.start(*arguments)
        workers.wait_for_stamps(1)
        workers.wait_for_stamps(sent, sizes.work_seconds)
    return {"rate": steady_rate(read_stamps(space, 0.0))}


def run_threads(space: Space, sizes: Sizes) -> Values:
    """A worker with two threads."""
    return _run(space, sizes, "-P", "threads", "-c", "2")


def run_solo(space: Space, sizes: Sizes) -> Values:
    """A worker of one process."""
    return _run(space, sizes, "-P", "solo")


def run_two_solo(space: Space, sizes: Sizes) -> Values:
    """Two workers of one process each on one backlog; counted while both are at work."""
    sent = fill(space, sizes.shared_backlog, sizes.fill_seconds)
    with Workers(space) as workers:
        for _ in range(2):
            workers.start("-P", "solo")
        workers.wait_for_stamps(1)
        workers.wait_for_stamps(sent, sizes.work_seconds)
    first = first_stamps(space).values()
    if len(first) < 2:
        raise RuntimeError("one worker had done all before the other began")
    stamps = [at for at in read_stamps(space) if at >= max(first)]
    return {"rate": (len(stamps) - 1) / (stamps[-1] - stamps[0])}


def _within_one_process(port: Port, space: Space, sizes: Sizes) -> Values:
    app: Any = make_app(space)
    with app.connection_for_write() as connection:
        sent = fill(space, sizes.backlog, sizes.fill_seconds, connection=connection)
        port.ready()
        with start_worker(app, pool="solo", perform_ping_check=False, loglevel="warning"):
            wait(lambda: count_stamps(space) >= sent, f"{sent} tasks")
    return {"rate": steady_rate(read_stamps(space, 0.0))}


def run_ceiling(space: Space, sizes: Sizes) -> Values:
    """A worker in a thread of the process that has sent."""
    values: Values = alone(_within_one_process, space, sizes)
    return values


def _rate(text: str) -> tuple[Metric, ...]:
    return (Metric("rate", f"Celery: no-op tasks, {text}", "/s", higher=True),)


_REMOTE = tuple(
    name
    for name, broker in BROKERS.items()
    if not (broker.local or broker.variant) and name != "rabbitmq"
)
_SWIFT = tuple(name for name in _REMOTE if not BROKERS[name].slow)
PREFORK = Benchmark(
    "celery-prefork",
    run_prefork,
    (
        *_rate("prefork -c 2"),
        Metric("stored-rate", "Celery: no-op tasks with results, prefork -c 2", "/s", higher=True),
        Metric("parent-cpu", "Celery: CPU of the prefork worker's main process per task", "µs"),
    ),
    (*_REMOTE, "bare"),
    slow_rounds=1,
)
THREADS = Benchmark("celery-threads", run_threads, _rate("-P threads -c 2"), _SWIFT, rounds=2)
SOLO = Benchmark("celery-solo", run_solo, _rate("-P solo"), _SWIFT, rounds=2)
TWO_SOLO = Benchmark("celery-two-solo", run_two_solo, _rate("two -P solo workers"), _SWIFT)
CEILING = Benchmark(
    "celery-embedded",
    run_ceiling,
    _rate("solo worker within the sender"),
    ("sqlite", "memory"),
    rounds=2,
)
