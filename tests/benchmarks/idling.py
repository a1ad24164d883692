"""What a worker costs that has nothing to do."""

from __future__ import annotations

import time

from tests.benchmarks.measures import Benchmark, Metric, Values
from tests.benchmarks.messages import fill
from tests.benchmarks.sizes import Sizes
from tests.benchmarks.spaces import Space
from tests.benchmarks.workers import Workers, cpu_of_tree_s

__all__ = ("IDLE",)

#: Greetings between workers, first heartbeats.
_SETTLE_S = 3.0


def run_idle(space: Space, sizes: Sizes) -> Values:
    """A worker as ``celery worker -c 2`` starts it, heartbeats and gossip included."""
    with Workers(space) as workers:
        pid = workers.start("-c", "2", quiet=False).pid
        workers.wait_for_stamps(fill(space, 1, 10.0))
        time.sleep(min(_SETTLE_S, sizes.idle_seconds))
        begun, cpu = time.monotonic(), cpu_of_tree_s(pid)
        time.sleep(sizes.idle_seconds)
        used = cpu_of_tree_s(pid) - cpu
        return {"cpu": used / (time.monotonic() - begun) * 100}


IDLE = Benchmark(
    "idle",
    run_idle,
    (Metric("cpu", "CPU of an idle worker, prefork -c 2", "%"),),
    ("sqlite", "redis", "rabbitmq-unconfirmed"),
    rounds=1,
)
