"""Files of before there were versions: what their upgrade keeps, and what it must not touch.

The upgrade makes the documented tables anew. Rows, and others' indexes and triggers, go along. What
cannot be made again from what SQLite tells about it is refused before anything is changed.
"""

from __future__ import annotations

import apsw

from .errors import QueueSchemaError
from .sql import statement

__all__ = ("MADE_ANEW_AT", "ensure_upgradable", "list_additions", "restore_additions")

#: The version whose migration makes the documented tables anew.
MADE_ANEW_AT = 2

#: What the migration reads, and the generated columns that it makes again.
_COLUMNS = {
    "task_queue": (
        *("id", "type", "priority", "payload", "compatibility", "status", "attempts"),
        *("max_attempts", "run_after_utc", "lease_until_utc", "reserved_at_utc"),
        *("processing_started_utc", "finished_at_utc", "locked_by", "error_message"),
        *("idempotency_key", "created_at_utc", "updated_at_utc"),
    ),
    "workers": ("worker_id", "capabilities", "heartbeat_utc"),
    "task_logs": ("log_id", "task_id", "at_utc", "level", "message", "details"),
}
_GENERATED = ("region", "format")
_KEY = "idempotency_key"


def ensure_upgradable(connection: apsw.Connection, path: str) -> None:
    """Refuse a file whose upgrade would fail or lose something; only reads.

    Raises:
        QueueSchemaError: with what to change in the file, or to choose another path.
    """
    for table, wanted in _COLUMNS.items():
        found = [row[0] for row in connection.execute(statement("list_columns"), {"table": table})]
        if not found:
            continue  # the upgrade makes it
        known = {name.lower() for name in found}
        missing = [name for name in wanted if name not in known]
        if missing:
            raise QueueSchemaError(
                f"{path!r} is a SQLite database of another program (its table {table!r} has no "
                f"column {missing[0]!r}); choose another path."
            )
        _refuse_additions(connection, path, table, found)
    _refuse_rows(connection, path)


def _refuse_additions(
    connection: apsw.Connection, path: str, table: str, columns: list[str]
) -> None:
    """Refuse what SQLite does not tell enough about: a column's checks, collation, references."""
    known = {*_COLUMNS[table], *(_GENERATED if table == "task_queue" else ())}
    own = [name for name in columns if name.lower() not in known]
    if own:
        raise QueueSchemaError(
            f"The upgrade of {path!r} would lose columns of your own in its table {table!r} "
            f"({', '.join(own)}); copy them into a table of your own, drop them here, then try "
            "again. Once the file is upgraded they can be added again."
        )
    rows = connection.execute(statement("list_unique_constraints"), {"table": table}).fetchall()
    others = [names for (names,) in rows if (table, names) != ("task_queue", _KEY)]
    if others:
        raise QueueSchemaError(
            f"The upgrade of {path!r} would lose the UNIQUE constraint over {others[0]} in its "
            f"table {table!r}; make it a unique index of your own, which is kept, then try again."
        )


def _refuse_rows(connection: apsw.Connection, path: str) -> None:
    """Refuse rows that the upgraded table could not take."""
    shared = connection.execute(statement("find_shared_key")).fetchall()
    if shared:
        key, count, first, last = shared[0]
        text = bytes(key).decode("utf-8", "replace")  # type: ignore[arg-type]
        raise QueueSchemaError(
            f"{count} rows of {path!r} have the idempotency key {text!r} (ids {first} to {last}), "
            "which is unique from now on; set it to NULL in all but one, then try again."
        )
    empty = connection.execute(statement("find_null")).fetchall()
    if empty:
        raise QueueSchemaError(
            f"Row {empty[0][0]} of {path!r} has NULL where every row must have a value; fill it in "
            "or delete the row, then try again."
        )


def list_additions(connection: apsw.Connection) -> list[tuple[str, str]]:
    """Return name and definition of every index and trigger on the tables made anew."""
    return connection.execute(statement("list_additions")).fetchall()  # type: ignore[return-value]


def restore_additions(connection: apsw.Connection, before: list[tuple[str, str]]) -> None:
    """Make again the indexes and triggers that went with their table, word for word.

    One whose name is ours by now was the older form of that, and stays as we made it.
    """
    present = {name for name, _ in list_additions(connection)}
    for name, definition in before:
        if name not in present:
            connection.execute(definition)
