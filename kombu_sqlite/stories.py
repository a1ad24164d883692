"""The story of each row: what its columns cannot tell, written when it happens; the rest read off.

Only what is rare is written (retries, lost leases, cancels), so it costs an ordinary task nothing.
"""

from __future__ import annotations

from .clock import now_text
from .handles import Handle
from .models import Task, TaskLog
from .sql import statement

__all__ = ("LEVELS", "read_off", "tell", "tell_leased")

#: By how much each level of the option ``task_log`` tells.
LEVELS = {"off": 0, "warning": 1, "info": 2}

#: Columns with the moment of an event, and what it is called.
_EVENTS = (
    ("created_at_utc", "enqueued", "queue"),
    ("reserved_at_utc", "claimed", "locked_by"),
    ("processing_started_utc", "started", "locked_by"),
    ("finished_at_utc", "ended", "error_message"),
)


def tell(
    handle: Handle, told: str, row_id: int, level: str, message: str, details: str | None = None
) -> None:
    """Add a line to a row's story, within ``handle``'s transaction.

    Arguments:
        told: the option ``task_log``.
        level: ``warning`` or ``info``.
    """
    if LEVELS[level] <= LEVELS[told]:
        handle.run(
            statement("insert_log"),
            {
                "id": row_id,
                "now": now_text(),
                "level": level,
                "message": message,
                "details": details,
            },
        )


def tell_leased(handle: Handle, told: str, worker: str, reason: str) -> None:
    """Tell of every row that ``worker`` holds that it ``reason`` (is dead, was silent)."""
    if LEVELS["warning"] <= LEVELS[told]:
        values = {"worker": worker, "now": now_text(), "details": f"{worker} {reason}"}
        handle.run(statement("log_leased_of"), values)


def read_off(row: Task) -> list[TaskLog]:
    """Return the lines that a row's own columns tell, in the form of ``task_logs``."""
    lines = []
    for column, message, about in _EVENTS:
        moment = getattr(row, column)
        if moment is not None:
            text = f"{message} {row.status}" if message == "ended" else message
            lines.append(
                TaskLog(
                    task_id=row.id,
                    at_utc=moment,
                    level="info",
                    message=text,
                    details=getattr(row, about),
                )
            )
    return lines
