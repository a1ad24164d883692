"""One thread's connection to the file, and what is going on in it."""

from __future__ import annotations

import ctypes
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import apsw

from . import native
from .forking import gate
from .sql import statement

if TYPE_CHECKING:
    from .database import Database

__all__ = ("IDENTITY_INTERVAL_S", "Handle", "Params")

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
        self.closes_at_end = False  # a signal handler asked for it while its thread was inside
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
        last = self.depth == 0
        try:
            if last and self.closes_at_end:
                self.close()
            elif last and self.doubts and self.connection is not None:
                self.doubts = False
                self.connection.release_memory()  # SQLite keeps what it misread
        finally:
            if last:
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

        The wait is ours: a constant short one, since SQLite's own grows to 100 ms a try; in turn,
        since whoever came last may be the first to ask; and one that yields to greenlets where
        ``time.sleep`` does.

        Arguments:
            wait_s: None waits for ``busy_timeout``.
        """
        connection = self.connection
        assert connection is not None
        usual_s = self.database.options.busy_timeout
        connection.set_busy_timeout(0)
        try:
            if not (self.database.turns.is_free() and self._try_begin()):
                self._begin_within(usual_s if wait_s is None else min(wait_s, usual_s))
        finally:
            connection.set_busy_timeout(int(usual_s * 1000))

    def _try_begin(self) -> bool:
        try:
            self.cursor.execute("BEGIN IMMEDIATE")
        except apsw.BusyError:
            return False
        return True

    def _begin_within(self, wait_s: float) -> None:
        sleep = time.sleep if self._green is not None else native.sleep
        turns, came_ns = self.database.turns, time.monotonic_ns()
        turns.join()
        try:
            for tried in itertools.count():
                sleep(_FIRST_RETRY_S if tried < _FIRST_RETRIES else _BUSY_RETRY_S)
                if turns.is_mine(came_ns) and self._try_begin():
                    return
                if time.monotonic_ns() - came_ns >= wait_s * 1e9:
                    self.cursor.execute("BEGIN IMMEDIATE")  # out of turn, or it says what is wrong
                    return
        finally:
            turns.give_back(came_ns)

    def close(self) -> None:
        """Close the connection; in a forked child only forget it, since closing loses data."""
        self.closes_at_end = False
        if self.connection is None:
            return
        self.closing = self.pid == os.getpid()
        connection, self.connection = self.connection, None
        if not self.closing:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))  # never finalized
            return
        try:
            connection.close(True)
        finally:
            self.closing = False
