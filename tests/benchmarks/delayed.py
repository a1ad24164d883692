"""Tasks with an ETA that all fall due in one moment, and the memory a worker holds until then."""

from __future__ import annotations

import time
from datetime import datetime, timedelta, timezone

import psutil

from tests.benchmarks.measures import Benchmark, Metric, Values
from tests.benchmarks.messages import NOOP, Sender
from tests.benchmarks.sizes import Sizes
from tests.benchmarks.spaces import Space
from tests.benchmarks.workers import Workers, count_stamps, read_stamps

__all__ = ("DELAYED",)

#: A long stretch of publishing may go so much slower than a short one, with checkpoints between.
_SLOWER_BY = 2.0
#: After the last publish, until the tasks fall due.
_MARGIN_S = 3.0
_PROBE = 200
#: Received by then, if the broker hands them out before they are due.
_SETTLE_S = 2.0


def run_delayed(space: Space, sizes: Sizes) -> Values:
    """A worker that is ready, then the tasks, then their time."""
    with Workers(space) as workers, space.connection() as connection:
        worker = psutil.Process(workers.start("-c", "2").pid)
        sender = Sender(space, connection, task=NOOP)
        begun = time.monotonic()
        probe = min(_PROBE, sizes.delayed)
        for _ in range(probe):
            sender.send()
        estimate_s = (time.monotonic() - begun) / probe * sizes.delayed * _SLOWER_BY
        workers.wait_for_stamps(probe)
        memory = worker.memory_info().rss

        wait_s = estimate_s + _MARGIN_S
        due = time.monotonic() + wait_s
        eta = (datetime.now(timezone.utc) + timedelta(seconds=wait_s)).isoformat()
        for _ in range(sizes.delayed):
            sender.send(eta=eta)
        late = time.monotonic() + _SETTLE_S > due
        time.sleep(max(0.0, due - time.monotonic() - 0.2))
        held = worker.memory_info().rss - memory
        early = count_stamps(space) - probe
        workers.wait_for_stamps(probe + sizes.delayed)
    stamps = read_stamps(space)[probe:]
    if early or late or stamps[0] < due:
        raise RuntimeError(f"publishing took too long, or tasks ran before their time ({early})")
    return {
        "first": (stamps[0] - due) * 1e3,
        "all": stamps[-1] - due,
        "memory": held / 2**20,
    }


DELAYED = Benchmark(
    "delayed",
    run_delayed,
    (
        Metric("first", "{delayed:,} tasks due at once: until the first runs", "ms"),
        Metric("all", "{delayed:,} tasks due at once: until all have run, prefork -c 2", "s"),
        Metric("memory", "{delayed:,} tasks due at once: memory the worker holds before", "MiB"),
    ),
    ("sqlite", "redis", "rabbitmq-unconfirmed"),
    rounds=1,
)
