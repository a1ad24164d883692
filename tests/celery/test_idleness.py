"""A worker with nothing to do does nothing."""

from __future__ import annotations

import time
from typing import Any

import psutil
import pytest

_MEASURED_S = 4.0


def spent_s(process: psutil.Process) -> float:
    """Processor seconds of a worker and its pool so far."""
    family = [process, *process.children(recursive=True)]
    return sum(sum(member.cpu_times()[:2]) for member in family)


@pytest.mark.parametrize("pool", ["prefork", "gevent"])
def test_an_idle_worker_hardly_uses_the_processor(lab: Any, pool: str) -> None:
    """On either event loop, also behind tasks that are due later: no loop spins."""
    worker = psutil.Process(lab.worker("-P", pool, "-c", "2").pid)
    lab.tasks.note.delay("awake")
    for _ in range(100):
        lab.tasks.note.apply_async(("later",), countdown=3600)
    lab.wait(lambda: lab.lines() == ["awake"])
    lab.wait(lambda: lab.database.stats().processing_tasks == 0)
    before, began = spent_s(worker), time.monotonic()
    lab.wait(lambda: time.monotonic() - began > _MEASURED_S)
    assert (spent_s(worker) - before) / (time.monotonic() - began) < 0.05
