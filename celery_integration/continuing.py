"""Tells the broker under which delivery a task is published again, so that it stays one row.

A retry, a replacement by a plain task and a run after a lost pool process are published with the
id of the task that is being executed: they continue its row instead of adding one.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from celery._state import get_current_worker_task

from kombu_sqlite import DELIVERY_HEADER

__all__ = ("LiveDelivery", "continuing", "live_delivery")

#: Path of the file and delivery tag.
LiveDelivery = tuple[str, str]

_said = threading.local()


@contextmanager
def continuing(task_id: str, delivery: LiveDelivery | None) -> Iterator[None]:
    """In this block, publishing ``task_id`` continues ``delivery``: no task is being executed."""
    before = getattr(_said, "task", None)
    _said.task = (task_id, delivery)
    try:
        yield
    finally:
        _said.task = before


def live_delivery(task_id: str) -> LiveDelivery | None:
    """Return the delivery of ``task_id`` that this thread or greenlet executes, if any."""
    said = getattr(_said, "task", None)
    if said is not None and said[0] == task_id:
        found: LiveDelivery | None = said[1]
        return found
    task = get_current_worker_task()
    if task is None or task.request.id != task_id:
        return None
    return getattr(task.request, DELIVERY_HEADER, None)
