"""All benchmarks, in the order they run."""

from __future__ import annotations

from tests.benchmarks.answers import CHORDS, RESULTS
from tests.benchmarks.backlogs import CEILING, PREFORK, SOLO, THREADS, TWO_SOLO
from tests.benchmarks.consuming import CONSUME, CONSUME_TOGETHER
from tests.benchmarks.delayed import DELAYED
from tests.benchmarks.fairness import FAIRNESS, PRIORITIES
from tests.benchmarks.history import HISTORY
from tests.benchmarks.idling import IDLE
from tests.benchmarks.measures import Benchmark
from tests.benchmarks.publishing import PUBLISH, PUBLISH_TOGETHER
from tests.benchmarks.storing import STORE
from tests.benchmarks.waking import WAKE, WAKE_LOADED, WAKE_MANY

__all__ = ("SUITE",)

SUITE: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        PUBLISH,
        PUBLISH_TOGETHER,
        CONSUME,
        CONSUME_TOGETHER,
        WAKE,
        WAKE_LOADED,
        WAKE_MANY,
        FAIRNESS,
        PRIORITIES,
        PREFORK,
        THREADS,
        SOLO,
        TWO_SOLO,
        CEILING,
        RESULTS,
        CHORDS,
        DELAYED,
        IDLE,
        STORE,
        HISTORY,
    )
}
