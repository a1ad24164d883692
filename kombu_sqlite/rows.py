"""Rows as the public face gives and takes them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, TypeVar

import apsw

from .clock import due_text, now_text, parse_time
from .foreign import MAX_INTEGER, readable
from .models import NORMAL_PRIORITY, Record, Task, TaskLog, Worker
from .sql import statement

__all__ = ("Row", "Rows", "as_row", "fetch", "read_records", "task_values")

R = TypeVar("R", bound=Record)

#: The statement that reads text which cannot be decoded, and the filters it knows.
_AS_BYTES = {
    Task: (
        statement("list_tasks_as_bytes"),
        ("id", "task_id", "key", "format", "status", "type", "queue", "before", "limit"),
    ),
    Worker: (statement("list_workers_as_bytes"), ()),
    TaskLog: (statement("list_logs_as_bytes"), ("task_id",)),
}


class Row(tuple[Any, ...]):
    """A row that can be read by position and by column name; ``dict(row)`` works."""

    _names: tuple[str, ...]

    def keys(self) -> tuple[str, ...]:
        """Return the column names, in order."""
        return self._names

    def __getitem__(self, key: Any) -> Any:
        """Return a column by position, slice or name; KeyError when the name is unknown."""
        if isinstance(key, str):
            try:
                return tuple.__getitem__(self, self._names.index(key))
            except ValueError:
                raise KeyError(key) from None
        return tuple.__getitem__(self, key)


def as_row(cursor: apsw.Cursor, values: tuple[Any, ...]) -> Row:
    """Make a row of a cursor's values; an APSW row tracer."""
    row = Row(values)
    row._names = tuple(name for name, _ in cursor.get_description())
    return row


class Rows(list[Row]):
    """The rows of one statement; also answers what a DB-API cursor would.

    Attributes:
        rowcount: rows inserted, updated or deleted.
        lastrowid: the row id of the last INSERT.
    """

    rowcount = 0
    lastrowid = 0
    _read = 0

    def fetchone(self) -> Row | None:
        """Return the next row, or None."""
        if self._read >= len(self):
            return None
        self._read += 1
        return self[self._read - 1]

    def fetchall(self) -> list[Row]:
        """Return the rows not read yet."""
        rest, self._read = self[self._read :], len(self)
        return rest


def fetch(connection: apsw.Connection, sql: str, params: Any = ()) -> Rows:
    """Execute one statement and return its rows.

    Raises:
        UnicodeDecodeError: a text is not UTF-8; the statement is over.
    """
    cursor = connection.cursor()
    cursor.row_trace = as_row
    try:
        rows = Rows(cursor.execute(sql, params))
    finally:
        cursor.close(True)  # half read it would keep an old view of the file
    rows.rowcount = connection.changes()
    rows.lastrowid = connection.last_insert_rowid()
    return rows


def read_records(
    connection: apsw.Connection, kind: type[R], name: str, values: Mapping[str, Any]
) -> list[R]:
    """Return the rows of statement ``name`` as records.

    Text that is not UTF-8 is shown with U+FFFD where it is broken: a listing is how somebody
    finds the row that another program spoiled, and an error would hide all the others with it.
    """
    try:
        rows: Sequence[Mapping[str, Any]] = [
            dict(row) for row in fetch(connection, statement(name), values)
        ]
    except UnicodeDecodeError:
        sql, filters = _AS_BYTES[kind]
        found = fetch(connection, sql, {**dict.fromkeys(filters), **values})
        rows = [_decoded(dict(row)) for row in found]
    return [kind.from_dict(row) for row in rows]


def _decoded(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row read as bytes with its text readable; a payload that is a blob stays one."""
    kept = ("payload",) if row.get("opaque") else ()
    return {
        name: readable(value) if isinstance(value, bytes) and name not in kept else value
        for name, value in row.items()
    }


def task_values(
    type: str,
    payload: Mapping[str, Any] | Sequence[Any] | str = "{}",
    queue: str = "celery",
    priority: int = NORMAL_PRIORITY,
    compatibility: Mapping[str, Any] | None = None,
    max_attempts: int = 5,
    run_after_utc: datetime | str | None = None,
    idempotency_key: str | None = None,
) -> dict[str, Any]:
    """Return the columns of a task to enqueue."""
    try:
        text = payload if isinstance(payload, str) else json.dumps(payload)
        json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise ValueError(f"payload must be JSON: {exc}") from exc
    now = now_text()
    run_after = now
    if run_after_utc is not None:
        moment = parse_time(run_after_utc)
        if moment is None:
            raise ValueError(f"run_after_utc is not a time: {run_after_utc!r}")
        run_after = due_text(moment)
    if compatibility is not None and not isinstance(compatibility, Mapping):
        raise ValueError("compatibility must be an object: a mapping of what a consumer must offer")
    for name, number in (("priority", priority), ("max_attempts", max_attempts)):
        if not -MAX_INTEGER <= int(number) <= MAX_INTEGER:
            raise ValueError(f"{name} must be a whole number of at most 64 bits, not {number!r}")
    if not isinstance(type, str) or not type:
        raise ValueError("type must be the name of a task")
    return {
        "type": type,
        "payload": text,
        "queue": queue,
        "priority": int(priority),
        "compatibility": json.dumps(compatibility, sort_keys=True) if compatibility else "{}",
        "max_attempts": int(max_attempts),
        "run_after": run_after,
        "now": now,
        "idempotency_key": idempotency_key,
    }
