"""A queue's file as a SQLite database: connections, transactions, any statement."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, TypeVar

import apsw

from .handles import Params
from .location import default_path
from .options import Options, path_from_url
from .rows import Rows, as_row
from .store import Store, open_store

__all__ = ("QueueFile",)

F = TypeVar("F", bound="QueueFile")


class QueueFile:
    """What ``QueueDatabase`` is apart from being a queue: a file that takes any statement.

    Arguments, errors and guarantees are those of ``QueueDatabase``.
    """

    def __init__(self, path: str | None = None, **options: Any) -> None:
        chosen = str(path) if path is not None else default_path()
        parameters: Mapping[str, Any] = {}
        if chosen.startswith("sqlite://"):
            chosen, parameters = path_from_url(chosen)
        self._options = Options.load(chosen, parameters, options)
        self._opened: Store | None = None

    @property
    def _store(self) -> Store:
        store = self._opened
        if store is not None and store.retired and store.deliveries.in_transaction():
            return store  # to its end; another one's writes would wait for it
        if store is None or store.retired:
            self.close()
            store = self._opened = open_store(self._options)
        return store

    @property
    def path(self) -> str:
        """The absolute path of the file."""
        return self._store.database.path

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
            cursor = handle.connection.cursor()
            cursor.row_trace = as_row
            rows = Rows(cursor.execute(sql, params))
            rows.rowcount = handle.connection.changes()
            rows.lastrowid = handle.connection.last_insert_rowid()
            return rows

    def execute_many(self, sql: str, rows: Iterable[Params]) -> None:
        """Execute one statement per row of parameters, in one transaction."""
        with self._store.database.transaction() as handle:
            handle.run_many(sql, rows)

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

    def __enter__(self: F) -> F:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, _: TracebackType | None
    ) -> None:
        self.close()
