"""The queue's public face, usable without Kombu and Celery."""

from __future__ import annotations

import builtins
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn, TypeVar

from .errors import LeaseLost, SessionLost
from .keys import find_holder
from .listing import find_tasks, find_waiting
from .models import (
    NORMAL_PRIORITY,
    Delivery,
    DeliveryTag,
    QueueStats,
    Record,
    Settlement,
    Task,
    TaskLog,
    Worker,
    WorkerState,
)
from .queue_file import QueueFile
from .rows import read_records, task_values
from .sql import statement
from .statistics import Statistics, count_tasks, measure, read_worker_states
from .store import Store
from .stories import read_off

__all__ = ("QueueDatabase",)

R = TypeVar("R", bound=Record)


class QueueDatabase(QueueFile):
    """One queue file.

    Arguments:
        path: the file, or a ``sqlite:///`` URL with options; without it ``$KOMBU_SQLITE_PATH``,
            else a file in the user's data folder. Parent folders are made.
        options: any option of the transport, by keyword.

    Safe to use from many threads; each has its own connection, reused. After a fork the child's
    first use opens a new one.

    Raises:
        QueueLocationError: the path cannot hold a queue.
        QueueOptionError: an option is unknown or ill-typed.
    """

    def __init__(self, path: str | None = None, **options: Any) -> None:
        super().__init__(path, **options)
        self._claimed: dict[DeliveryTag, Store] = {}  # which file a delivery is of, if replaced

    # -- publishing ----------------------------------------------------------------------------

    def enqueue(
        self,
        type: str,
        payload: Mapping[str, Any] | Sequence[Any] | str = "{}",
        *,
        queue: str = "celery",
        priority: int = NORMAL_PRIORITY,
        compatibility: Mapping[str, Any] | None = None,
        max_attempts: int = 5,
        run_after_utc: datetime | str | None = None,
        idempotency_key: str | None = None,
    ) -> Task:
        """Put one task into the file and return its row.

        With an ``idempotency_key`` that a row holds, nothing is inserted and that row is returned;
        concurrent callers included.

        Arguments:
            type: the task's name.
            payload: keyword arguments (an object), or a Celery body (an array), or JSON text.
            priority: lower goes first; 100 is normal.
            run_after_utc: not before this time; without an offset it is taken as UTC.

        Raises:
            ValueError: payload is not JSON, or the time is none.
            IdempotencyConflict: the key belongs to a task of another type.
            QueueBusyError, QueueDiskError: nothing was written.
        """
        return self.enqueue_many(
            [
                {
                    "type": type,
                    "payload": payload,
                    "queue": queue,
                    "priority": priority,
                    "compatibility": compatibility,
                    "max_attempts": max_attempts,
                    "run_after_utc": run_after_utc,
                    "idempotency_key": idempotency_key,
                }
            ]
        )[0]

    def enqueue_many(self, tasks: Iterable[Mapping[str, Any]]) -> list[Task]:
        """Put several tasks, each a mapping of ``enqueue``'s arguments, in one transaction."""
        store = self._store
        rows = [task_values(**task) for task in tasks]
        found: list[Task] = []
        with store.database.transaction() as handle:
            for values in rows:
                key, now = values["idempotency_key"], values["now"]
                holder = key and find_holder(handle, key, values["type"], values["payload"], now)
                id = holder.row_id if holder else handle.one(statement("insert_task"), values)[0]
                found.append(self._one("get_task", id=id))
            topology = store.topology.current(handle)
            names = {values["queue"] for values in rows}
            handle.after_commit.append(lambda: store.ringer.ring_each(topology, names))
        return found

    # -- looking -------------------------------------------------------------------------------

    def _read(self, kind: builtins.type[R], name: str, **values: Any) -> builtins.list[R]:
        with self._store.database.reading() as handle:
            assert handle.connection is not None
            return read_records(handle.connection, kind, name, values)

    def _one(self, name: str, **values: Any) -> Any:
        found = self._read(Task, name, **values)
        return found[0] if found else None

    def get(self, id: int | str) -> Task | None:
        """Return a row by its id, or the newest of a Celery task id; None when there is none."""
        return self._store.find(id)

    def list(
        self,
        *,
        status: str | None = None,
        type: str | None = None,
        queue: str | None = None,
        format: str | None = None,
        before_id: int | None = None,
        limit: int = 100,
    ) -> list[Task]:
        """Return rows that match every filter given, newest first, all of one moment.

        Text that is not UTF-8 is shown with U+FFFD, here and wherever rows are returned.

        Arguments:
            format: ``$.format`` of the payload; only rows written by other programs have one.
            before_id: only rows older than this one; the cursor of the next page.
        """
        with self._store.database.snapshot() as handle:
            found = find_tasks(
                handle,
                status=status,
                type=type,
                queue=queue,
                format=format,
                before_id=before_id,
                limit=limit,
            )
            return [self._one("get_task", id=id) for id in found]

    def scheduled(
        self,
        *,
        type: str | None = None,
        queue: str | None = None,
        after_id: int | None = None,
        limit: int = 100,
    ) -> builtins.list[Task]:
        """Return queued rows that wait for their time, the next to fall due first.

        Arguments:
            after_id: only rows that come after this one; the cursor of the next page.
        """
        with self._store.database.snapshot() as handle:
            found = find_waiting(handle, type=type, queue=queue, after_id=after_id, limit=limit)
            return [self._one("get_task", id=id) for id in found]

    def stats(self, *, queue: str | None = None, type: str | None = None) -> QueueStats:
        """Return how many tasks are in which state, of all or of one queue or type."""
        with self._store.database.snapshot() as handle:
            return count_tasks(handle, queue, type)

    def statistics(
        self,
        *,
        queue: str | None = None,
        type: str | None = None,
        window: int = 10_000,
        window_s: float | None = None,
    ) -> Statistics:
        """Return counts, depths, rates and durations, all of one moment of the file.

        Arguments:
            window: measure over at most so many of the rows that ended last, whatever their queue
                and type; those of the chosen ones among them count.
            window_s: and only over those that ended within so many seconds.

        Raises:
            ValueError: a window is not positive.
        """
        with self._store.database.snapshot() as handle:
            return measure(handle, queue, type, window, window_s)

    def worker_states(self) -> builtins.list[WorkerState]:
        """Return every worker with whether it is alive and how many rows it holds."""
        with self._store.database.snapshot() as handle:
            return read_worker_states(handle)

    def workers(self) -> builtins.list[Worker]:
        """Return every worker in the file."""
        return self._read(Worker, "list_workers")

    def logs(self, id: int) -> builtins.list[TaskLog]:
        """Return the story of one row, oldest line first.

        What the row's columns tell of its last delivery comes with what ``task_logs`` keeps.
        """
        told = [line for row in self._read(Task, "get_task", id=id) for line in read_off(row)]
        lines = told + self._read(TaskLog, "list_logs", task_id=id)
        ended = "ended "  # within one millisecond the end is told last
        return sorted(lines, key=lambda at: (str(at.at_utc), str(at.message).startswith(ended)))

    # -- ending from outside -------------------------------------------------------------------

    def cancel(self, id: int, reason: str = "cancelled") -> bool:
        """Cancel a row that nobody has leased; return False when it is not queued (any more)."""
        return self._store.canceller.cancel_queued(id, reason)

    def retry(self, id: int) -> bool:
        """Queue a failed or cancelled row again; return False when it is neither.

        Its result is pending again.

        Raises:
            IdempotencyConflict: its key belongs to another task by now.
        """
        return self._store.put_back(id)

    # -- consuming -----------------------------------------------------------------------------

    def claim(self, queue: str = "celery", limit: int = 1) -> builtins.list[Delivery]:
        """Lease up to ``limit`` messages, each with a delivery tag of its own.

        The leases are renewed by a thread for as long as this process lives. When it dies the
        messages are delivered again, at most ``max_attempts`` times.
        """
        try:
            found = self._store.claim(self._store.claimant(), [queue], limit)
        except SessionLost:
            found = self._store.claim(self._store.claimant(), [queue], limit)  # under a new name
        self._claimed.update((delivery.tag, self._store) for delivery in found)
        return found

    def complete(self, delivery: Delivery) -> None:
        """End a delivery as completed.

        Raises:
            LeaseLost: it belongs to somebody else by now; nothing was changed.
        """
        self._settle(delivery, "completed")

    def fail(self, delivery: Delivery, error: str) -> None:
        """End a delivery as failed, with the reason.

        Raises:
            LeaseLost: it belongs to somebody else by now; nothing was changed.
        """
        self._settle(delivery, "failed", error)

    def requeue(self, delivery: Delivery) -> None:
        """Put a delivery back at the front of its queue.

        Raises:
            LeaseLost: it belongs to somebody else by now; nothing was changed.
        """
        self._settle(delivery, "requeue")

    def renew(self, delivery: Delivery, lease_s: float | None = None) -> None:
        """Extend the lease of one delivery, where a human should see it; threads renew anyhow.

        Raises:
            LeaseLost: it belongs to somebody else by now.
        """
        seconds = self._options.visibility_timeout if lease_s is None else lease_s
        self._check_file(delivery)
        if not self._store.deliveries.renew(delivery.tag, seconds):
            _raise_lost(delivery)

    def _check_file(self, delivery: Delivery) -> None:
        """Refuse a delivery of a file that was replaced: the new one has tags like it."""
        if self._claimed.get(delivery.tag, self._store) is not self._store:
            _raise_lost(delivery)

    def _settle(self, delivery: Delivery, action: str, error: str | None = None) -> None:
        self._check_file(delivery)
        self._claimed.pop(delivery.tag, None)
        if self._store.settle([Settlement(delivery.tag, action, error)]):
            _raise_lost(delivery)


def _raise_lost(delivery: Delivery) -> NoReturn:
    raise LeaseLost(
        f"Delivery {delivery.tag} of queue {delivery.queue!r} belongs to somebody else by now."
    )
