"""Cancel and retry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kombu_sqlite import QueueDatabase, Task

from .queue_file import open_queue

__all__ = ("CancelOutcome", "cancel", "retry")


@dataclass(frozen=True)
class CancelOutcome:
    """What a cancel came to."""

    row_id: int | None
    task_id: str | None
    status: str
    message: str


def cancel(
    app: Any,
    id: int | str,
    *,
    terminate: bool = False,
    signal: str = "SIGTERM",
    reason: str = "cancelled",
) -> CancelOutcome:
    """Cancel a row that waits."""
    with open_queue(app) as database:
        task = database.get(id)
        if task is None or task.id is None:
            return CancelOutcome(None, None, "unknown", f"There is no task {id}.")
        if database.cancel(task.id, reason):
            return CancelOutcome(task.id, task.task_id, "cancelled", f"Row {task.id} is cancelled.")
        if task.status == "processing":
            return CancelOutcome(task.id, task.task_id, "running", f"Row {task.id} is running.")
        message = f"Row {task.id} is already {task.status}, cannot cancel."
        return CancelOutcome(task.id, task.task_id, task.status, message)


def retry(app: Any, id: int | str) -> Task | None:
    """Queue a failed or cancelled row again."""
    with open_queue(app) as database:
        return _retry(database, id)


def _retry(database: QueueDatabase, id: int | str) -> Task | None:
    task = database.get(id)
    if task is None or task.id is None:
        return None
    if not database.retry(task.id):
        raise ValueError(f"Row {task.id} is {task.status}, neither failed nor cancelled.")
    return database.get(task.id)
