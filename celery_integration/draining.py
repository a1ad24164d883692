"""Lets a prefork pool learn what its processes have begun, before it discards the rest.

Celery's pool forgets every job it has not seen accepted when its consumer closes, and expects the
broker to deliver it again. A job that a process has just begun is forgotten with them: it runs
twice, and its process waits 30 s at shutdown for a result nobody reads. Reading what the processes
have already written, first, closes that gap.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from celery.concurrency.asynpool import AsynPool
from celery.utils.log import get_logger

__all__ = ("drain_before_flush",)

logger = get_logger(__name__)

#: A process accepts a job it was handed within microseconds; a dead one never does.
_ACCEPT_WITHIN_S = 0.5


def drain_before_flush(pool: Any) -> None:
    """Wrap the ``flush`` of a worker's pool, once; pools of other kinds are left alone.

    Arguments:
        pool: the worker's ``TaskPool``.
    """
    processes = getattr(pool, "_pool", None)
    flush = getattr(pool, "flush", None)
    if isinstance(processes, AsynPool) and flush is not None and not hasattr(flush, "drains"):
        pool.flush = _draining(processes, flush)


def _draining(processes: Any, flush: Callable[[], None]) -> Callable[[], None]:
    def drain_and_flush() -> None:
        deadline = time.monotonic() + _ACCEPT_WITHIN_S
        while _unaccepted(processes) and time.monotonic() < deadline:
            for process in list(processes._pool):
                processes.process_flush_queues(process)
        flush()

    drain_and_flush.drains = True  # type: ignore[attr-defined]
    return drain_and_flush


def _unaccepted(processes: Any) -> bool:
    """Return whether some living process was handed a job it has not accepted yet."""
    return any(
        job._write_to is not None and not job._accepted and job._write_to._is_alive()
        for job in list(processes._cache.values())
    )
