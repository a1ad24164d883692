"""The Celery app of a space, which a worker finds through its environment."""

from __future__ import annotations

import json
import os
import struct
import time
from dataclasses import asdict
from typing import Any

from celery import Celery
from celery.signals import worker_process_init

from tests.benchmarks.messages import NOOP
from tests.benchmarks.spaces import Space

__all__ = ("STAMP", "STORED", "environment", "make_app")

STORED = "tests.benchmarks.stored"
#: What a task leaves behind when it runs: its kind, its process, and the time on the clock that all
#: processes share.
STAMP = struct.Struct("dqd")
_VARIABLE = "BENCHMARK_SPACE"


class Stamps:
    """A file to which each task appends a stamp; one write, so that none is torn."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._descriptor = -1

    def forget(self) -> None:
        """Open anew in a forked child."""
        self._descriptor = -1

    def add(self, kind: float) -> None:
        """Leave a stamp."""
        if self._descriptor < 0:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
            self._descriptor = os.open(self._path, flags, 0o600)
        os.write(self._descriptor, STAMP.pack(kind, os.getpid(), time.monotonic()))


def environment(space: Space, **more: str) -> dict[str, str]:
    """The environment of a worker for a space."""
    return {**os.environ, _VARIABLE: json.dumps(asdict(space)), "PYTHONWARNINGS": "ignore", **more}


def make_app(space: Space) -> Celery:
    """An app whose only queue is the space's."""
    application = Celery("benchmark", broker=space.url, backend=space.results, set_as_current=True)
    application.conf.update(
        broker_transport_options=dict(space.options),
        broker_connection_retry_on_startup=True,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        task_queues=[space.queue()],
        task_default_queue=space.queue().name,
        control_exchange=space.name,
        event_exchange=f"{space.name}.ev",
        result_expires=3600,
        task_ignore_result=False,
    )
    stamps = Stamps(f"{space.folder}/stamps")
    worker_process_init.connect(lambda **_: stamps.forget(), weak=False)

    def task(**options: Any) -> Any:
        return application.task(shared=False, **options)

    @task(name=NOOP, ignore_result=True)
    def noop(*_: Any) -> None:
        """Nothing, and no result."""
        stamps.add(0.0)

    @task(name=STORED)
    def stored(*_: Any) -> int:
        """Nothing, and a result."""
        stamps.add(1.0)
        return 1

    @task(name="tests.benchmarks.add")
    def add(x: int, y: int) -> int:
        """Add."""
        return x + y

    @task(name="tests.benchmarks.total")
    def total(numbers: list[int]) -> int:
        """Add up."""
        return sum(numbers)

    return application


def __getattr__(name: str) -> Any:
    """Make ``app`` where it is asked for: in a worker, not in who imports ``make_app``."""
    if name != "app":
        raise AttributeError(name)
    found = globals()["app"] = make_app(Space(**json.loads(os.environ[_VARIABLE])))
    return found
