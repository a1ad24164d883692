"""How much work a run does."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ("FULL", "QUICK", "Sizes")


@dataclass(frozen=True)
class Sizes:
    """Bounds of every benchmark; a stretch ends at its count or its seconds, whichever is first.

    Slow brokers therefore do less of the same work, at the rate that is measured.
    """

    #: One timed stretch of publishing.
    messages: int = 20_000
    seconds: float = 0.6
    #: Filling a queue before its consumers or workers begin.
    backlog: int = 12_000
    #: The same for workers; with results, and without.
    tasks: int = 4_000
    stored_tasks: int = 2_000
    work_seconds: float = 4.0
    shared_backlog: int = 20_000
    fill_seconds: float = 1.5
    consume_seconds: float = 3.0
    #: Messages sent one by one to a consumer that sleeps.
    pings: int = 150
    ping_seconds: float = 2.0
    loaded_seconds: float = 1.0
    few_consumers: int = 20
    many_consumers: int = 200
    #: Celery.
    group: int = 2_000
    small_chord: int = 100
    large_chord: int = 1_000
    delayed: int = 10_000
    idle_seconds: float = 15.0
    #: Rows that are in the way, and how often the same step is timed among them.
    some_rows: int = 100_000
    many_rows: int = 1_000_000
    queues: int = 1_000
    repeats: int = 60
    steps: int = 20
    stored: int = 1_000
    trickle_seconds: float = 1.2


FULL = Sizes()
#: Proves that everything runs; its figures mean nothing.
QUICK = Sizes(
    messages=200,
    seconds=0.1,
    backlog=60,
    tasks=60,
    stored_tasks=20,
    work_seconds=2.0,
    shared_backlog=2_000,
    fill_seconds=0.3,
    pings=5,
    ping_seconds=1.0,
    loaded_seconds=0.2,
    few_consumers=4,
    many_consumers=8,
    group=20,
    small_chord=5,
    large_chord=10,
    delayed=50,
    idle_seconds=1.0,
    some_rows=500,
    many_rows=2_000,
    queues=20,
    repeats=3,
    steps=3,
    stored=30,
    trickle_seconds=0.3,
)
