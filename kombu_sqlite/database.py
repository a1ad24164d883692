"""Connections to one file: one per thread and process, short transactions, safe over fork.

What survives: a transaction is in the file, whole, once ``transaction()`` has exited without an
exception; otherwise nothing of it is.
"""

from __future__ import annotations

import ctypes
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Any

import apsw

from . import location, native, schema
from .errors import (
    QueueBusyError,
    QueueDatabaseError,
    QueueDiskError,
    QueueLocationError,
    QueueReplacedError,
    QueueSchemaError,
)
from .options import Options

__all__ = ("Database", "Handle", "ensure_library_safe", "translate")

#: First releases without the race between a checkpoint and a commit that loses committed rows
#: (sqlite.org/wal.html, "The WAL-reset bug"), oldest branch last.
_FIXED_VERSIONS = ((3, 51, 3), (3, 50, 7), (3, 44, 6))

#: A file's identity is compared at most this often on the way into a transaction, in seconds.
_IDENTITY_INTERVAL_S = 1.0
_FORK_WAIT_S = 15.0  # longer than any wait for the write lock
_BUSY_RETRY_S = 0.001
_GATE_RETRY_S = 0.0005

Params = dict[str, Any] | Sequence[Any]


def ensure_library_safe(version: str) -> None:
    """Refuse SQLite libraries that lose committed rows when several processes use one file.

    Raises:
        QueueSchemaError: ``version`` is older than the fix.
    """
    number = tuple(int(part) for part in version.split("."))[:3]
    newest, *branches = _FIXED_VERSIONS
    if number >= newest or any(number[:2] == fix[:2] and number >= fix for fix in branches):
        return
    raise QueueSchemaError(
        f"SQLite {version} can lose committed rows when several processes use one file; "
        "install a newer apsw, which carries SQLite 3.51.3 or later."
    )


def translate(exc: apsw.Error, path: str) -> QueueDatabaseError:
    """Return the error of this package that says what an error of APSW means for the caller."""
    if isinstance(exc, (apsw.BusyError, apsw.LockedError)):
        return QueueBusyError(f"{path!r} stayed locked by another process; try again.")
    if isinstance(exc, apsw.FullError):
        return QueueDiskError(f"The disk of {path!r} is full; make room, then try again.")
    if isinstance(exc, apsw.NotADBError):
        return QueueLocationError(f"{path!r} is not a SQLite database; choose another path.")
    if isinstance(exc, apsw.ReadOnlyError):
        return QueueLocationError(f"{path!r} cannot be written; change its owner or mode.")
    if isinstance(exc, (apsw.CantOpenError, apsw.PermissionsError, apsw.AuthError)):
        return QueueLocationError(f"{path!r} cannot be opened ({exc}); check path and permissions.")
    if isinstance(exc, apsw.IOError):
        return QueueDiskError(f"The disk of {path!r} failed ({exc}); check it, then try again.")
    if isinstance(exc, apsw.CorruptError):
        return QueueSchemaError(f"{path!r} is damaged ({exc}); restore a backup.")
    return QueueDatabaseError(f"{exc} (in {path!r})")


class Handle:
    """One thread's connection and what is going on in it."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.pid = os.getpid()
        self.ident = native.get_ident()
        self.connection: apsw.Connection | None = None
        self.cursor: apsw.Cursor
        self.depth = 0
        self.after_commit: list[Callable[[], None]] = []
        self.check_at = 0.0
        self.in_use = native.lock()  # held from begin to end; the fork gate waits for it
        self._green = threading.RLock() if native.is_green() else None

    def acquire(self) -> None:
        """Enter, opening the connection when there is none."""
        if self._green is not None:
            self._green.acquire()
        if self.depth == 0:
            self._pass_fork_gate()
            try:
                if self.connection is None:
                    self.database.open_handle(self)
                elif time.monotonic() > self.check_at:
                    self.database.check_identity()
                    self.check_at = time.monotonic() + _IDENTITY_INTERVAL_S
            except BaseException:
                self.in_use.release()
                if self._green is not None:
                    self._green.release()
                raise
        self.depth += 1

    def _pass_fork_gate(self) -> None:
        """Take ``in_use`` at a moment at which no thread of this process is forking."""
        while True:
            self.in_use.acquire()
            if not _fork_gate.closed:
                return
            self.in_use.release()
            native.sleep(_GATE_RETRY_S)

    def release(self) -> None:
        """Leave."""
        self.depth -= 1
        if self.depth == 0:
            self.in_use.release()
        if self._green is not None:
            self._green.release()

    def run(self, sql: str, params: Params | None = None) -> None:
        """Execute a statement whose rows, if any, do not matter."""
        self.cursor.execute(sql, params)

    def all(self, sql: str, params: Params | None = None) -> list[Any]:
        """Execute a statement and return all its rows (RETURNING needs that before COMMIT)."""
        return self.cursor.execute(sql, params).fetchall()

    def one(self, sql: str, params: Params | None = None) -> Any:
        """Execute a statement and return its first row, or None."""
        rows = self.cursor.execute(sql, params).fetchall()
        return rows[0] if rows else None

    def changes(self) -> int:
        """Return how many rows the last statement inserted, updated or deleted."""
        assert self.connection is not None
        return self.connection.changes()

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
        while True:
            sleep(_BUSY_RETRY_S)
            try:
                self.cursor.execute("BEGIN IMMEDIATE")
                return
            except apsw.BusyError:
                if time.monotonic() >= deadline:
                    raise

    def close(self) -> None:
        """Close the connection; in a forked child only forget it, since closing loses data."""
        connection, self.connection = self.connection, None
        if connection is None:
            return
        if self.pid != os.getpid():
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))  # never finalized
            return
        connection.close(True)


class _Scope:
    """Common part of ``transaction()`` and ``reading()``."""

    __slots__ = ("_database", "_handle")

    def __init__(self, database: Database) -> None:
        self._database = database

    def _enter(self) -> Handle:
        handle = self._handle = self._database.handle()
        try:
            handle.acquire()
        except apsw.Error as exc:
            raise translate(exc, self._database.path) from exc
        return handle


class Reading(_Scope):
    """Reads outside a write transaction; each statement sees one moment of the file."""

    def __enter__(self) -> Handle:
        return self._enter()

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, _: TracebackType | None
    ) -> None:
        self._handle.release()
        if isinstance(exc, apsw.Error):
            raise translate(exc, self._database.path) from exc


class Transaction(_Scope):
    """A write transaction (BEGIN IMMEDIATE), or a savepoint inside one."""

    __slots__ = ("_nested", "_wait_s")

    def __init__(self, database: Database, wait_s: float | None) -> None:
        super().__init__(database)
        self._wait_s = wait_s

    def __enter__(self) -> Handle:
        handle = self._enter()
        try:
            self._nested = handle.connection.in_transaction  # type: ignore[union-attr]
            if self._nested:
                handle.run("SAVEPOINT nested")
            else:
                handle.begin(self._wait_s)
        except BaseException as exc:
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
        try:
            if exc is None:
                if self._nested:
                    handle.run("RELEASE nested")
                else:
                    handle.run("COMMIT")
                    callbacks, handle.after_commit = handle.after_commit, callbacks
        except apsw.Error as failure:
            self._undo(handle)
            raise translate(failure, self._database.path) from failure
        else:
            if exc is not None:
                self._undo(handle)
        finally:
            handle.release()
        for callback in callbacks:
            callback()
        if isinstance(exc, apsw.Error):
            raise translate(exc, self._database.path) from exc

    def _undo(self, handle: Handle) -> None:
        connection = handle.connection
        if connection is None or not connection.in_transaction:
            handle.after_commit.clear()
            return  # SQLite rolled back by itself, or the file was closed as replaced
        if self._nested:
            handle.run("ROLLBACK TO nested")
            handle.run("RELEASE nested")
        else:
            handle.after_commit.clear()
            handle.run("ROLLBACK")


class Database:
    """The connections of this process to one file.

    Arguments:
        options: the path and how to open it.

    Raises:
        QueueLocationError: the path cannot hold a queue. Nothing is opened before the first use.
    """

    def __init__(self, options: Options) -> None:
        ensure_library_safe(apsw.sqlite_lib_version())
        self.options = options
        self.path = location.ensure_usable(options.path)
        self._local = native.local()
        self._lock = native.lock()
        self._handles: set[Handle] = set()
        self._file: location.Identity | None = None
        self._wal: location.Identity | None = None
        self._pid = os.getpid()
        self._forked_while_open = False
        #: Whether the file was found moved, deleted or replaced; every further use then raises.
        self.replaced = False
        _databases.add(self)

    # -- use -----------------------------------------------------------------------------------

    def transaction(self, wait_s: float | None = None) -> Transaction:
        """Return a context for writing: BEGIN IMMEDIATE, then COMMIT, or ROLLBACK on exception.

        Inside another one of the same thread it is a savepoint.

        Arguments:
            wait_s: how long to wait for the write lock; None waits for ``busy_timeout``.

        Raises:
            QueueBusyError: the write lock was not to be had within ``busy_timeout``.
        """
        return Transaction(self, wait_s)

    def reading(self) -> Reading:
        """Return a context for reading."""
        return Reading(self)

    def handle(self) -> Handle:
        """Return this thread's handle, making it at the first call."""
        try:
            keeper: _Keeper = self._local.keeper
        except AttributeError:
            keeper = self._local.keeper = _Keeper(Handle(self))
            with self._lock:
                self._handles.add(keeper.handle)
        return keeper.handle

    def close(self) -> None:
        """Close the connections of all threads; the next use opens new ones."""
        with self._lock:
            handles = list(self._handles)
        for handle in handles:
            mine = handle.ident == native.get_ident() and handle.depth > 0
            if mine or handle.in_use.acquire(True, _FORK_WAIT_S):
                try:
                    handle.close()
                finally:
                    if not mine:
                        handle.in_use.release()

    # -- opening -------------------------------------------------------------------------------

    def open_handle(self, handle: Handle) -> None:
        """Open ``handle``'s connection, the file and its schema as needed.

        One thread at a time, so that none takes another's half-opened file for a foreign one.
        """
        with _fork_gate.opening:
            self._open_handle(handle)

    def _open_handle(self, handle: Handle) -> None:
        if self.replaced:
            raise self._replaced_error()
        if self._forked_while_open:
            raise QueueDatabaseError(
                "This process was forked inside an open transaction on the queue's file and "
                "cannot use it safely; fork outside of transactions, or start it by spawn."
            )
        with self._lock:
            first = not any(other.connection is not None for other in self._handles)
        if first and not _opened_elsewhere(self) and location.held_by_other_library(self.path):
            raise QueueLocationError(
                f"Another SQLite library of this process has {self.path!r} open, which makes "
                "both lose their locks; close it there, or use QueueDatabase.get_connection()."
            )
        location.create_file(self.path, self.options.file_mode)
        connection = apsw.Connection(self.path, flags=apsw.SQLITE_OPEN_READWRITE)
        try:
            schema.prepare_connection(connection, self.options)
            if first:
                schema.ensure_schema(connection, self.path)
        except BaseException:
            connection.close(True)
            raise
        handle.connection = connection
        handle.cursor = connection.cursor()
        handle.check_at = time.monotonic() + _IDENTITY_INTERVAL_S
        if first:
            self._file = location.identity(self.path)
            self._wal = location.identity(self.path + "-wal")

    def check_identity(self) -> None:
        """Notice a file that was moved, deleted or replaced underneath.

        Raises:
            QueueReplacedError: it was; our connections to the old one are closed. (An INSERT into
                an unlinked file reports success.)
        """
        wal = location.identity(self.path + "-wal")
        if self._wal is None:
            self._wal = wal
        if location.identity(self.path) == self._file and wal == self._wal:
            return
        self.replaced = True
        self._drop_connections()
        raise self._replaced_error()

    def _replaced_error(self) -> QueueReplacedError:
        return QueueReplacedError(
            f"{self.path!r} or its -wal was moved, deleted or replaced while in use; connect again."
        )

    def _drop_connections(self) -> None:
        """Close what can be closed now; handles in use find out at their next check."""
        self._file = self._wal = None
        with self._lock:
            handles = list(self._handles)
        for handle in handles:
            mine = handle.ident == native.get_ident()
            if mine or handle.in_use.acquire(True, 0.1):
                try:
                    handle.close()
                finally:
                    if not mine:
                        handle.in_use.release()

    def discard_handle(self, handle: Handle) -> None:
        """Close the connection of a thread that has ended."""
        if handle.in_use.acquire(True, _FORK_WAIT_S):
            try:
                handle.close()
            finally:
                handle.in_use.release()
        with self._lock:
            self._handles.discard(handle)

    # -- fork ----------------------------------------------------------------------------------

    def close_before_fork(self) -> list[Handle]:
        """Close every connection and keep them from opening until the fork is over.

        SQLite keeps its locks per process and remembers them in memory, so a child that inherits
        that memory believes to hold locks it has not: its new connections take none, and a lock
        that was held at the moment of the fork seems held for ever (both measured).
        """
        held = []
        for handle in list(self._handles):
            mine = handle.ident == native.get_ident() and handle.depth > 0
            if not mine and handle.in_use.acquire(True, _FORK_WAIT_S):
                handle.close()
                held.append(handle)
            elif handle.connection is not None:
                self._forked_while_open = True  # only the child looks at it
        return held

    def reset_in_child(self) -> None:
        """Start afresh in a forked child, without touching what was inherited."""
        for handle in self._handles:
            handle.close()
        self._handles = set()
        self._local = native.local()
        self._lock = native.lock()
        self._file = self._wal = None
        self._pid = os.getpid()

    def reset_in_parent(self) -> None:
        """Go on after a fork."""
        self._forked_while_open = False


class _Keeper:
    """Lives in a thread's storage; closes the thread's connection when the thread ends."""

    __slots__ = ("__weakref__", "handle")

    def __init__(self, handle: Handle) -> None:
        self.handle = handle

    def __del__(self) -> None:
        if self.handle.pid == os.getpid():
            self.handle.database.discard_handle(self.handle)
        else:  # the threads of the parent, gone in a forked child
            self.handle.close()


class _ForkGate:
    """Keeps every connection of this process closed while one of its threads forks."""

    def __init__(self) -> None:
        self.closed = False
        self.opening = native.lock()
        self._forking = native.lock()
        self._held: list[Handle] = []

    def close(self) -> None:
        """Before a fork: close what is open, let nobody open anything."""
        self._forking.acquire()
        self.closed = True
        for database in list(_databases):
            self._held.extend(database.close_before_fork())

    def open_in_parent(self) -> None:
        """After a fork: go on."""
        for database in list(_databases):
            database.reset_in_parent()
        for handle in self._held:
            handle.in_use.release()
        self._held.clear()
        self.closed = False
        self._forking.release()

    def open_in_child(self) -> None:
        """After a fork: start afresh."""
        for database in list(_databases):
            database.reset_in_child()
        self.__init__()  # type: ignore[misc]


_databases: weakref.WeakSet[Database] = weakref.WeakSet()
_fork_gate = _ForkGate()


def _opened_elsewhere(database: Database) -> bool:
    """Return whether another Database object of this process has the same file open."""
    return any(
        other is not database
        and other.path == database.path
        and any(handle.connection is not None for handle in list(other._handles))
        for other in list(_databases)
    )


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_fork_gate.close,
        after_in_parent=_fork_gate.open_in_parent,
        after_in_child=_fork_gate.open_in_child,
    )


def execute_many(handle: Handle, sql: str, rows: Iterable[Params]) -> None:
    """Execute ``sql`` once per row of parameters."""
    handle.cursor.executemany(sql, rows)
