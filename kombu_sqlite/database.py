"""Connections to one file: one per thread and process, short transactions, safe over fork.

What survives: a transaction is in the file, whole, once ``transaction()`` has exited without an
exception; otherwise nothing of it is.
"""

from __future__ import annotations

import os
import sys
import time
import weakref
from typing import Any

import apsw

from . import location, native, schema
from .bells import BellBoard
from .errors import (
    QueueDatabaseError,
    QueueLocationError,
    QueueReplacedError,
    QueueSchemaError,
)
from .forking import gate
from .handles import IDENTITY_INTERVAL_S, Handle
from .options import Options
from .scopes import Reading, Snapshot, Transaction
from .turns import Turns

__all__ = ("Database", "ensure_library_safe")

#: First releases without the race between a checkpoint and a commit that loses committed rows
#: (sqlite.org/wal.html, "The WAL-reset bug"), newest first.
_FIXED_VERSIONS = ((3, 51, 3), (3, 50, 7), (3, 44, 6))

#: How long a fork or a close waits for other threads' transactions; longer than any busy wait.
_FORK_WAIT_S = 15.0


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
        self.board = BellBoard(self.path, options.file_mode)
        self.turns = Turns(self.board)
        self._local = native.local()
        self._lock = native.lock()
        self._handles: set[Handle] = set()
        self._file: location.Identity | None = None
        self._wal: location.Identity | None = None
        self._pid = os.getpid()
        self._forked_while_open = False
        #: Whether the file was found moved, deleted or replaced; every further use then raises.
        self.replaced = False
        gate.join(self)
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

    def joined(self) -> Transaction:
        """Return a context for writing that is a part of the caller's transaction, if there is one.

        It saves the savepoint: whoever catches an exception that leaves it must undo the whole.
        """
        return Transaction(self, None, joins=True)

    def reading(self) -> Reading:
        """Return a context for reading."""
        return Reading(self)

    def snapshot(self) -> Snapshot:
        """Return a context for reading several statements at one moment of the file."""
        return Snapshot(self)

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
        """Close the connections of all threads; the next use opens new ones.

        A signal handler may call it where its thread is inside a transaction: that one's
        connection is closed when the thread leaves it.
        """
        with self._lock:
            handles = list(self._handles)
        for handle in handles:
            if handle.ident == native.get_ident() and handle.depth > 0:
                handle.closes_at_end = True
            elif handle.in_use.acquire(True, _FORK_WAIT_S):
                try:
                    handle.close()
                finally:
                    handle.in_use.release()

    # -- opening -------------------------------------------------------------------------------

    def open_handle(self, handle: Handle) -> None:
        """Open ``handle``'s connection, the file and its schema as needed.

        One thread at a time, so that none takes another's half-opened file for a foreign one.
        """
        with gate.opening:
            self._open_handle(handle)

    def _open_handle(self, handle: Handle) -> None:
        if self.replaced:
            raise self._replaced_error()
        if self.path in _unsafe_paths:
            raise QueueDatabaseError(
                "This process was forked inside an open transaction on the queue's file and "
                "cannot use it safely; fork outside of transactions, or start it by spawn."
            )
        first = self._is_closed()
        if first and not _holds(self.path) and location.held_by_other_library(self.path):
            raise QueueLocationError(
                f"Another SQLite library of this process has {self.path!r} open, which makes "
                "both lose their locks; close it there, or use QueueDatabase.get_connection()."
            )
        if not first and location.identity(self.path) != self._file:
            self.check_identity()
        location.create_file(self.path, self.options.file_mode)
        connection = apsw.Connection(self.path, flags=apsw.SQLITE_OPEN_READWRITE)
        try:
            schema.prepare_connection(connection, self.options)
            first = first or self._is_closed()  # the last other one took the log with it
            if first:
                schema.ensure_schema(connection, self.path)
        except BaseException:
            connection.close(True)
            raise
        location.remember_used(self.path)
        handle.connection = connection
        handle.opened += 1
        handle.cursor = connection.cursor()
        handle.check_at = time.monotonic() + IDENTITY_INTERVAL_S
        if first:
            self._file = location.identity(self.path)
            self._wal = location.identity(self.path + "-wal")

    def _is_closed(self) -> bool:
        with self._lock:
            return not any(handle.connection is not None for handle in self._handles)

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

    def close_before_fork(self) -> list[Any]:
        """Close every connection; return the locks that keep them closed."""
        held = []
        for handle in list(self._handles):
            mine = handle.ident == native.get_ident() and handle.depth > 0
            if not mine and handle.in_use.acquire(True, _FORK_WAIT_S):
                handle.close()
                held.append(handle.in_use)
            elif handle.connection is not None:
                self._forked_while_open = True  # only the child looks at it
        return held

    def reset_in_child(self) -> None:
        """Start afresh in a forked child, without touching what was inherited."""
        for handle in self._handles:
            handle.close()
        if self._forked_while_open:
            _unsafe_paths.add(self.path)
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
        if sys.is_finalizing():
            return  # other threads were cut off where they stood: what they hold is never released
        if self.handle.pid == os.getpid():
            self.handle.database.discard_handle(self.handle)
        else:  # the threads of the parent, gone in a forked child
            self.handle.close()


_databases: weakref.WeakSet[Database] = weakref.WeakSet()

#: Files that had a transaction open when this process was forked off.
_unsafe_paths: set[str] = set()


def _holds(path: str) -> bool:
    """Return whether a Database object of this process has the file open, or is just closing it."""
    return any(
        handle.connection is not None or handle.closing
        for database in list(_databases)
        if database.path == path
        for handle in list(database._handles)
    )
