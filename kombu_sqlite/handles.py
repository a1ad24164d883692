"""One thread's connection, and the two ways to use it: reading, and a write transaction."""

from __future__ import annotations

import ctypes
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

import apsw

from . import native
from .errors import QueueDatabaseError
from .forking import gate
from .sql import statement
from .translating import MISREAD, translate, used_up

if TYPE_CHECKING:
    from .database import Database

__all__ = (
    "IDENTITY_INTERVAL_S",
    "Handle",
    "Params",
    "Reading",
    "Snapshot",
    "Transaction",
)

#: A file's identity is compared at most this often on the way into a transaction, in seconds.
IDENTITY_INTERVAL_S = 1.0

#: A write lock that is taken is tried for again after so long: at first shortly, since most writes
#: take some 50 µs; then in steps that cost the processor little.
_BUSY_RETRY_S = 0.001
_FIRST_RETRY_S = 0.0002
_FIRST_RETRIES = 20

Params = dict[str, Any] | Sequence[Any]


class Handle:
    """One thread's connection and what is going on in it."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.pid = os.getpid()
        self.ident = native.get_ident()
        self.connection: apsw.Connection | None = None
        self.cursor: apsw.Cursor
        self.closing = False  # it may still have the file open, though there is no connection
        self.opened = 0  # how often; what one connection has counted another begins anew
        self.depth = 0
        self.doubts = False  # whether the file was misread: what is cached of it may be wrong
        self.after_commit: list[Callable[[], None]] = []
        self.check_at = 0.0
        self.in_use = native.rlock()  # held from begin to end; the fork gate waits for it
        self._green: Any = threading.RLock() if native.is_green() else None

    def entered(self) -> int:
        """Return how often this thread, or this greenlet of it, has entered and not left yet."""
        return self.depth if self._green is None or self._green._is_owned() else 0

    def acquire(self) -> None:
        """Enter, opening the connection when there is none."""
        if self._green is not None:
            self._green.acquire()
        if self.depth == 0:
            gate.pass_with(self.in_use)
            try:
                if self.connection is None:
                    self.database.open_handle(self)
                elif time.monotonic() > self.check_at:
                    self.database.check_identity()
                    self.check_at = time.monotonic() + IDENTITY_INTERVAL_S
            except BaseException:
                self.in_use.release()
                if self._green is not None:
                    self._green.release()
                raise
        self.depth += 1

    def release(self) -> None:
        """Leave."""
        self.depth -= 1
        if self.depth == 0:
            if self.doubts and self.connection is not None:
                self.doubts = False
                self.connection.release_memory()  # SQLite keeps what it misread
            self.in_use.release()
        if self._green is not None:
            self._green.release()

    def leave(self, depth: int) -> None:
        """Undo and leave whatever a signal handler's exception kept from being left properly."""
        if depth == 0 < self.entered() and self.connection is not None:
            self.after_commit.clear()
            if self.connection.in_transaction:
                self.run("ROLLBACK")
        while self.entered() > depth:
            self.release()
        while self._green is None and self.depth == 0 and self.in_use._is_owned():
            self.in_use.release()

    def run(self, sql: str, params: Params | None = None) -> None:
        """Execute a statement whose rows, if any, do not matter."""
        self.cursor.execute(sql, params)

    def run_many(self, sql: str, rows: Iterable[Params]) -> None:
        """Execute a statement once per row of parameters."""
        self.cursor.executemany(sql, rows)

    def all(self, sql: str, params: Params | None = None) -> list[Any]:
        """Execute a statement and return all its rows (RETURNING needs that before COMMIT)."""
        return self.cursor.execute(sql, params).fetchall()

    def one(self, sql: str, params: Params | None = None) -> Any:
        """Execute a statement and return its first row, or None."""
        rows = self.cursor.execute(sql, params).fetchall()
        return rows[0] if rows else None

    def end_statement(self) -> None:
        """End a statement that an error left half read; it would keep an old view of the file."""
        if self.connection is not None:
            self.cursor.close(True)
            self.cursor = self.connection.cursor()

    def find_used_up(self) -> str | None:
        """Return a table that can take no further row, since its last row id is given away."""
        try:
            row = self.one(statement("find_used_up"))
        except apsw.Error:
            return None  # the disk is so full, or broken, that not even this can be read
        return None if row is None else str(row[0])

    def changes(self) -> int:
        """Return how many rows the last statement inserted, updated or deleted."""
        assert self.connection is not None
        return self.connection.changes()

    def last_row_id(self) -> int:
        """Return the row id of the last INSERT."""
        assert self.connection is not None
        return self.connection.last_insert_rowid()

    def begin(self, wait_s: float | None) -> None:
        """Take the write lock, or raise BusyError once ``wait_s`` has passed.

        The wait is ours: a constant short one, since SQLite's own grows to 100 ms a try and lets
        whoever came last go first; and one that yields to greenlets where ``time.sleep`` does.

        Arguments:
            wait_s: None waits for ``busy_timeout``.
        """
        connection = self.connection
        assert connection is not None
        usual_s = self.database.options.busy_timeout
        connection.set_busy_timeout(0)
        try:
            self.cursor.execute("BEGIN IMMEDIATE")
        except apsw.BusyError:
            self._begin_by(time.monotonic() + (usual_s if wait_s is None else min(wait_s, usual_s)))
        finally:
            connection.set_busy_timeout(int(usual_s * 1000))

    def _begin_by(self, deadline: float) -> None:
        sleep = time.sleep if self._green is not None else native.sleep
        for tried in itertools.count():
            sleep(_FIRST_RETRY_S if tried < _FIRST_RETRIES else _BUSY_RETRY_S)
            try:
                self.cursor.execute("BEGIN IMMEDIATE")
                return
            except apsw.BusyError:
                if time.monotonic() >= deadline:
                    raise

    def close(self) -> None:
        """Close the connection; in a forked child only forget it, since closing loses data."""
        if self.connection is None:
            return
        if self.pid != os.getpid():
            connection, self.connection = self.connection, None
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))  # never finalized
            return
        self.closing = True
        try:
            connection, self.connection = self.connection, None
            connection.close(True)
        finally:
            self.closing = False


class _Scope:
    """Common part of ``transaction()`` and ``reading()``."""

    __slots__ = ("_database", "_handle")

    def __init__(self, database: Database) -> None:
        self._database = database

    def _enter(self) -> Handle:
        handle = self._handle = self._database.handle()
        depth = handle.entered()
        try:
            handle.acquire()
        except BaseException as exc:
            if handle.entered() > depth:  # a signal handler raised at the last moment
                handle.release()
            if isinstance(exc, apsw.Error):
                raise translate(exc, self._database.path) from exc
            raise
        return handle

    def _translated(self, exc: BaseException | None) -> QueueDatabaseError | None:
        """Return this package's error for one of APSW's, asking the file where that is unclear."""
        if not isinstance(exc, apsw.Error):
            return None
        self._handle.doubts |= isinstance(exc, MISREAD)
        table = self._handle.find_used_up() if isinstance(exc, apsw.FullError) else None
        path = self._database.path
        return translate(exc, path) if table is None else used_up(table, path)


class Reading(_Scope):
    """Reads outside a write transaction; each statement sees one moment of the file."""

    __enter__ = _Scope._enter

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, _: TracebackType | None
    ) -> None:
        if exc is not None:
            self._handle.end_statement()
        error = self._translated(exc)
        self._handle.release()
        if error is not None:
            raise error from exc


class Snapshot(Reading):
    """Reads whose statements all see the file as it was at the first of them.

    Meanwhile no page of the write-ahead log can be reused: keep it short. Inside a transaction of
    the same thread it sees what that one sees.
    """

    __slots__ = ("_nested",)

    def __enter__(self) -> Handle:
        handle = self._enter()
        self._nested = handle.connection.in_transaction  # type: ignore[union-attr]
        if not self._nested:
            try:
                handle.run("BEGIN")
            except BaseException:
                handle.release()
                raise
        return handle

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, _: TracebackType | None
    ) -> None:
        handle = self._handle
        connection = handle.connection
        try:
            if not self._nested and connection is not None and connection.in_transaction:
                handle.run("ROLLBACK")
        finally:
            super().__exit__(kind, exc, _)


class Transaction(_Scope):
    """A write transaction (BEGIN IMMEDIATE); inside one a savepoint, or a part of it (joins)."""

    __slots__ = ("_joins", "_nested", "_wait_s")

    def __init__(self, database: Database, wait_s: float | None, joins: bool = False) -> None:
        super().__init__(database)
        self._wait_s = wait_s
        self._joins = joins
        self._nested = True  # so far there is nothing to undo

    def __enter__(self) -> Handle:
        handle = self._database.handle()
        depth = handle.entered()
        try:
            self._enter()
            self._nested = handle.connection.in_transaction  # type: ignore[union-attr]
            if not self._nested:
                self._database.check_identity()  # a write to a file that is gone reports success
            if not self._nested:
                handle.begin(self._wait_s)
            elif not self._joins:
                handle.run("SAVEPOINT nested")
        except BaseException as exc:
            if handle.entered() > depth:
                handle.doubts |= isinstance(exc, MISREAD)
                if not self._nested:
                    self._undo(handle)  # a signal handler may have raised right after BEGIN
                handle.release()
            if isinstance(exc, apsw.Error):
                raise translate(exc, self._database.path) from exc
            raise
        return handle

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, _: TracebackType | None
    ) -> None:
        handle = self._handle
        callbacks: list[Callable[[], None]] = []
        error = None if exc is None else self._translated(exc)  # undoing may hide the cause
        try:
            if exc is None:
                if not self._nested:
                    handle.run("COMMIT")
                    callbacks, handle.after_commit = handle.after_commit, callbacks
                elif not self._joins:
                    handle.run("RELEASE nested")
        except BaseException as failure:  # a signal handler's included
            self._undo(handle)
            handle.doubts |= isinstance(failure, MISREAD)
            if isinstance(failure, apsw.Error):
                raise translate(failure, self._database.path) from failure
            raise
        else:
            if exc is not None:
                self._undo(handle)
        finally:
            handle.release()
        for callback in callbacks:
            callback()
        if error is not None:
            raise error from exc

    def _undo(self, handle: Handle) -> None:
        connection = handle.connection
        if connection is None or not connection.in_transaction:
            handle.after_commit.clear()
            return  # SQLite rolled back by itself, or the file was closed as replaced
        if not self._nested:
            handle.after_commit.clear()
            handle.run("ROLLBACK")
        elif not self._joins:
            handle.run("ROLLBACK TO nested")
            handle.run("RELEASE nested")
