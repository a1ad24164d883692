"""The ways to use a thread's connection: reading, at one moment or not, and a write transaction."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

import apsw

from .errors import QueueDatabaseError
from .handles import Handle
from .translating import MISREAD, translate, used_up

if TYPE_CHECKING:
    from .database import Database

__all__ = ("Reading", "Snapshot", "Transaction")


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
