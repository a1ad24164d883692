"""All benchmarks, in the order they run."""

from __future__ import annotations

from tests.benchmarks.answers import CHORDS, GET, GROUP
from tests.benchmarks.backlogs import CEILING, PREFORK, SOLO, THREADS, TWO_SOLO
from tests.benchmarks.consuming import CONSUME, CONSUME_TOGETHER
from tests.benchmarks.measures import Benchmark
from tests.benchmarks.publishing import PUBLISH, PUBLISH_TOGETHER
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
        PREFORK,
        THREADS,
        SOLO,
        TWO_SOLO,
        CEILING,
        GET,
        GROUP,
        CHORDS,
    )
}
