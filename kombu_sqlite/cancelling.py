"""Cancels rows, whoever holds them: what has not started never starts, what runs is marked.

Each cancel is one transaction and needs no worker. The row's own state decides afterwards, so a
cancel survives every restart and ends when the row is put back.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import NamedTuple

from .clock import to_text
from .database import Database
from .foreign import readable
from .handles import Handle
from .keys import reclaim_key
from .revocations import Revocations, Stamps, carries
from .sql import statement
from .stories import tell

__all__ = ("CancelledRow", "Canceller")


class CancelledRow(NamedTuple):
    """What a cancel found.

    ``status`` is ``cancelled`` where this call cancelled it, ``running`` where it had begun (its
    next run will not), otherwise the state in which the row had ended before.
    """

    row_id: int
    task_id: str | None
    status: str
    worker: str | None


class Canceller:
    """Cancels the rows of one file."""

    def __init__(self, database: Database, revocations: Revocations) -> None:
        self._database = database
        self._revocations = revocations
        self._told = database.options.task_log

    def cancel_queued(self, row_id: int, reason: str) -> bool:
        """Cancel a row that nobody has leased; return whether it was queued."""
        values = {"id": row_id, "now": to_text(time.time()), "error": reason}
        with self._database.transaction() as handle:
            handle.run(statement("cancel_queued"), values)
            return bool(handle.changes())

    def put_back(self, row_id: int) -> str | None:
        """Queue a failed or cancelled row again, its result unknown; return its queue.

        Returns:
            None when the row is neither, or there is none.

        Raises:
            IdempotencyConflict: its key belongs to another task by now.
        """
        now = to_text(time.time())
        values = {"id": row_id, "now": now}
        with self._database.transaction() as handle:
            row = handle.one(statement("get_ended"), values)
            queues = handle.all(statement("retry_ended"), values)
            if not queues:
                return None
            task_id = None if row[3] is None else readable(row[3])
            reclaim_key(handle, row_id, row[1], task_id, row[4], now)
            handle.run(statement("delete_result"), {"task_id": task_id})
            handle.run(statement("delete_revocation"), {"value": task_id})
            tell(handle, self._told, row_id, "info", f"put back after it had {row[0]}")
        return readable(queues[0][0])

    def cancel(self, row_ids: Iterable[int], reason: str) -> list[CancelledRow]:
        """Cancel rows in one transaction; ids without a row are passed over."""
        with self._database.transaction() as handle:
            found = [self._cancel(handle, row_id, reason) for row_id in row_ids]
        return [row for row in found if row is not None]

    def _cancel(self, handle: Handle, row_id: int, reason: str) -> CancelledRow | None:
        values = {"id": row_id, "now": to_text(time.time()), "error": reason}
        handle.run(statement("cancel_unstarted"), values)
        cancelled = bool(handle.changes())
        if not cancelled:
            handle.run(statement("request_cancel"), values)
        running = not cancelled and bool(handle.changes())
        if running:
            tell(handle, self._told, row_id, "info", "cancel requested while running", reason)
        row = handle.one(statement("get_live"), values)
        if row is None:
            return None
        _, status, _, task_id, worker = row
        state = "running" if running else status
        return CancelledRow(row_id, None if task_id is None else readable(task_id), state, worker)

    def cancel_tasks(
        self, task_ids: Iterable[str], reason: str, expires_s: float
    ) -> list[CancelledRow]:
        """Cancel all live rows of Celery task ids; ids without any row are revoked beforehand.

        Arguments:
            expires_s: how many seconds an id without a row stays revoked.
        """
        rows: list[int] = []
        unknown: list[str] = []
        with self._database.transaction() as handle:
            for task_id in task_ids:
                found = handle.all(statement("list_rows_of_task"), {"task_id": task_id})
                rows.extend(row[0] for row in found)
                if not found:
                    unknown.append(task_id)
            if unknown:
                self._revocations.add(unknown, {}, expires_s)
            return self.cancel(rows, reason)

    def cancel_stamped(self, stamps: Stamps, reason: str, expires_s: float) -> list[CancelledRow]:
        """Cancel all live rows that carry one of ``stamps``, and those still to come."""
        with self._database.transaction() as handle:
            self._revocations.add([], stamps, expires_s)
            rows = handle.all(statement("list_stamped"))
            return self.cancel([row[0] for row in rows if carries(row[1], stamps)], reason)

    def matching(
        self, queue: str | None = None, type: str | None = None, before: str | None = None
    ) -> list[int]:
        """Return the live rows that match every filter given, oldest first.

        Arguments:
            before: created before this time, as text in the file's form.
        """
        values = {"queue": queue, "type": type, "before": before}
        with self._database.reading() as handle:
            return [row[0] for row in handle.all(statement("list_cancellable"), values)]

    def is_revoked(self, task_id: str) -> bool:
        """Return whether a task id is revoked without having a row."""
        values = {"task_id": task_id, "now": to_text(time.time())}
        with self._database.reading() as handle:
            return handle.one(statement("get_revocation"), values) is not None
