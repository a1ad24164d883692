"""The queue's public face, usable without Kombu and Celery."""

from __future__ import annotations

import builtins
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from types import TracebackType
from typing import Any, NoReturn, TypeVar

import apsw

from .clock import now_text, parse_time
from .errors import LeaseLost, SessionLost
from .foreign import readable
from .handles import Params, execute_many
from .location import default_path
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
)
from .options import Options, path_from_url
from .rows import Rows, fetch, read_records, task_values
from .sql import statement
from .store import Store, open_store

__all__ = ("QueueDatabase",)

R = TypeVar("R", bound=Record)


class QueueDatabase:
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
        chosen = str(path) if path is not None else default_path()
        parameters: Mapping[str, Any] = {}
        if chosen.startswith("sqlite://"):
            chosen, parameters = path_from_url(chosen)
        self._options = Options.load(chosen, parameters, options)
        self._opened: Store | None = None
        self._claimed: dict[DeliveryTag, Store] = {}  # which file a delivery is of, if replaced

    @property
    def _store(self) -> Store:
        store = self._opened
        if store is None or store.retired:
            self.close()
            store = self._opened = open_store(self._options)
        return store

    @property
    def path(self) -> str:
        """The absolute path of the file."""
        return self._store.database.path

    # -- the database --------------------------------------------------------------------------

    def initialize_schema(self) -> None:
        """Create the schema, or migrate an older file; repeatable. Opening does it as well."""
        with self._store.database.reading():
            pass

    def get_connection(self) -> apsw.Connection:
        """Return this thread's APSW connection; the same one at each call.

        It is closed before a fork and by ``close()``: ask again rather than keep it.
        """
        with self._store.database.reading() as handle:
            assert handle.connection is not None
            return handle.connection

    def execute(self, sql: str, params: Params = ()) -> Rows:
        """Execute one statement; return its rows. Outside a transaction it commits by itself."""
        with self._store.database.reading() as handle:
            assert handle.connection is not None
            return fetch(handle.connection, sql, params)

    def execute_many(self, sql: str, rows: Iterable[Params]) -> None:
        """Execute one statement per row of parameters, in one transaction."""
        with self._store.database.transaction() as handle:
            execute_many(handle, sql, rows)

    @contextmanager
    def transaction(self) -> Iterator[apsw.Connection]:
        """Write: BEGIN IMMEDIATE, COMMIT at the end, ROLLBACK on any exception; nests.

        Raises:
            QueueBusyError: the write lock was not to be had within ``busy_timeout``.
        """
        with self._store.database.transaction() as handle:
            assert handle.connection is not None
            yield handle.connection

    @contextmanager
    def connection(self) -> Iterator[apsw.Connection]:
        """Read with this thread's connection."""
        with self._store.database.reading() as handle:
            assert handle.connection is not None
            yield handle.connection

    def close(self) -> None:
        """Close all connections and leave the file; the next use opens it again."""
        store, self._opened = self._opened, None
        if store is not None:
            store.release()

    def __enter__(self) -> QueueDatabase:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, _: TracebackType | None
    ) -> None:
        self.close()

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

        With an ``idempotency_key`` that a row already has, nothing is inserted and that row is
        returned; concurrent callers included.

        Arguments:
            type: the task's name.
            payload: keyword arguments (an object), or a Celery body (an array), or JSON text.
            priority: lower goes first; 100 is normal.
            run_after_utc: not before this time; without an offset it is taken as UTC.

        Raises:
            ValueError: payload is not JSON, or the time is none.
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
                inserted = handle.one(statement("insert_task"), values)
                if inserted is not None:
                    found.append(self._one("get_task", id=inserted[0]))
                else:
                    found.append(self._one("get_by_key", key=values["idempotency_key"]))
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
        if isinstance(id, int):
            found: Task | None = self._one("get_task", id=id)
        else:
            found = self._one("get_by_task_id", task_id=id)
        return found

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
        """Return rows that match every filter given, newest first.

        Text that is not UTF-8 is shown with U+FFFD, here and wherever rows are returned.

        Arguments:
            format: ``$.format`` of the payload; only rows written by other programs have one.
            before_id: only rows older than this one; the cursor of the next page.
        """
        values = {
            "status": status,
            "type": type,
            "queue": queue,
            "before": before_id,
            "limit": limit,
        }
        if format is not None:
            return self._read(Task, "list_tasks_of_format", format=format, **values)
        if type is not None and status in ("failed", "cancelled"):
            return self._read(Task, "list_tasks_of_type", **values)
        return self._read(Task, "list_tasks", **values)

    def stats(self, *, queue: str | None = None, type: str | None = None) -> QueueStats:
        """Return how many tasks are in which state, of all or of one queue or type."""
        values = {"queue": queue, "type": type}
        with self._store.database.reading() as handle:
            counts = dict(handle.all(statement("count_by_status"), values))
            name = "oldest_queued" if type is None else "oldest_queued_of_type"
            oldest = parse_time(readable(handle.one(statement(name), values)[0]))
        age = None if oldest is None else max(0.0, time.time() - oldest.timestamp())
        return QueueStats.of(counts, age)

    def workers(self) -> builtins.list[Worker]:
        """Return every worker in the file."""
        return self._read(Worker, "list_workers")

    def logs(self, id: int) -> builtins.list[TaskLog]:
        """Return the story of one row, oldest line first."""
        return self._read(TaskLog, "list_logs", task_id=id)

    # -- ending from outside -------------------------------------------------------------------

    def cancel(self, id: int, reason: str = "cancelled") -> bool:
        """Cancel a row that nobody has leased; return False when it is not queued (any more)."""
        with self._store.database.transaction() as handle:
            handle.run(statement("cancel_queued"), {"id": id, "now": now_text(), "error": reason})
            return bool(handle.changes())

    def retry(self, id: int) -> bool:
        """Queue a failed or cancelled row again; return False when it is neither."""
        with self._store.database.transaction() as handle:
            rows = handle.all(statement("retry_ended"), {"id": id, "now": now_text()})
        self._store.ring(readable(queue) for (queue,) in rows)
        return bool(rows)

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
