"""Prepares a connection, creates the schema or brings an older file's up to date."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import apsw

from . import native
from .checkpoints import LogKeeper
from .errors import QueueLocationError, QueueSchemaError
from .older import MADE_ANEW_AT, ensure_upgradable, list_additions, restore_additions
from .options import Options
from .sql import migrations

__all__ = ("SCHEMA_VERSION", "ensure_schema", "prepare_connection")

#: The version this code reads and writes, kept in ``PRAGMA user_version`` and ``schema_versions``.
SCHEMA_VERSION = migrations()[-1][0]

_VERSIONS_TABLE = """
CREATE TABLE IF NOT EXISTS schema_versions (
    version INTEGER PRIMARY KEY,
    name TEXT NOT NULL,
    applied_at_utc DATETIME NOT NULL DEFAULT (strftime('%Y-%m-%d %H:%M:%f', 'now'))
)"""


def prepare_connection(connection: apsw.Connection, options: Options) -> None:
    """Set every pragma; each function below states its reason."""
    _keep_plans(connection)
    _wait_when_busy(connection, options.busy_timeout)
    _peek_version(connection, options.path)  # a file that is refused stays as it is
    _lay_out_new_file(connection)
    _use_write_ahead_log(connection, options.busy_timeout)
    _sync_at(connection, options.synchronous)
    _check_references(connection)
    _keep_temporaries_in_memory(connection)
    _cache_pages(connection, options.cache_size)
    _map_memory(connection, options.mmap_size)
    _checkpoint_at(connection, options)
    _bound_log_file(connection)


def _keep_plans(connection: apsw.Connection) -> None:
    """Compile each statement once.

    Otherwise the planner looks at the values bound to ``LIMIT`` and to columns of partial indexes,
    and SQLite parses such a statement anew whenever values are bound: 17 µs instead of 5 for that
    which finds the next messages, several times that where the processor's caches are cold. No plan
    here depends on values: each statement names its index, or has only one.
    """
    connection.config(apsw.SQLITE_DBCONFIG_ENABLE_QPSG, 1)


def _wait_when_busy(connection: apsw.Connection, timeout_s: float) -> None:
    """Bound the wait for locks; APSW's build of SQLite then retries each millisecond."""
    connection.execute(f"PRAGMA busy_timeout = {int(timeout_s * 1000)}")


def _lay_out_new_file(connection: apsw.Connection) -> None:
    """Fix what only an empty file can take: 4 KiB pages, and pages that can be given back.

    On any other file it would change nothing, yet take the write lock and write a page.
    """
    if connection.execute("PRAGMA page_count").fetchall()[0][0]:
        return
    connection.execute("PRAGMA page_size = 4096")
    connection.execute("PRAGMA auto_vacuum = INCREMENTAL")


def _use_write_ahead_log(connection: apsw.Connection, timeout_s: float) -> None:
    """Let readers and one writer work side by side, with one sequential write per commit."""
    deadline = time.monotonic() + max(timeout_s, 1.0)
    while True:
        try:
            mode = connection.execute("PRAGMA journal_mode = WAL").fetchall()[0][0]
            break
        except apsw.BusyError:  # another process is switching; SQLite does not wait here
            if time.monotonic() >= deadline:
                raise
            native.sleep(0.002)
    if mode != "wal":
        raise QueueLocationError(
            f"SQLite cannot keep a write-ahead log here (journal mode {mode!r}); "
            "choose a local disk."
        )


def _sync_at(connection: apsw.Connection, synchronous: str) -> None:
    """NORMAL syncs at checkpoints: safe against the death of processes, fast."""
    connection.execute(f"PRAGMA synchronous = {synchronous}")


def _check_references(connection: apsw.Connection) -> None:
    """Keep task_logs from naming rows that do not exist."""
    connection.execute("PRAGMA foreign_keys = ON")


def _keep_temporaries_in_memory(connection: apsw.Connection) -> None:
    """Sorters and temporary tables never touch the disk."""
    connection.execute("PRAGMA temp_store = MEMORY")


def _cache_pages(connection: apsw.Connection, cache_size: int) -> None:
    """20 MB hold the hot ends of table and indexes."""
    connection.execute(f"PRAGMA cache_size = {cache_size}")


def _map_memory(connection: apsw.Connection, mmap_size: int) -> None:
    """Zero: mapping brought nothing measurable and turns small faults into corruption."""
    connection.execute(f"PRAGMA mmap_size = {mmap_size}")


def _checkpoint_at(connection: apsw.Connection, options: Options) -> None:
    """Checkpoint by our own hook: SQLite's never starts the log anew while there are readers."""
    keeper = LogKeeper(options.wal_autocheckpoint, int(options.busy_timeout * 1000))
    connection.set_wal_hook(keeper)


def _bound_log_file(connection: apsw.Connection) -> None:
    """Cut the log file back to 64 MB after it was reset."""
    connection.execute("PRAGMA journal_size_limit = 67108864")


def ensure_schema(
    connection: apsw.Connection,
    path: str,
    _steps: Callable[[], list[tuple[int, str, str]]] = migrations,
) -> None:
    """Create the schema, or migrate an older one in place; all steps in one transaction.

    Raises:
        QueueSchemaError: the file's schema is newer than this code, or cannot be migrated whole;
            its tables and rows are as they were.
    """
    if _peek_version(connection, path) == SCHEMA_VERSION:
        return
    connection.execute("PRAGMA foreign_keys = OFF")  # a rebuilt table is dropped under its readers
    connection.execute("PRAGMA legacy_alter_table = ON")  # and under users' own views of it
    try:
        connection.execute("BEGIN IMMEDIATE")
        try:
            _migrate(connection, _version(connection, path), _steps())
            connection.execute("COMMIT")
        except BaseException as exc:
            connection.execute("ROLLBACK")
            if isinstance(exc, (apsw.SQLError, apsw.ConstraintError, apsw.MismatchError)):
                raise QueueSchemaError(
                    f"{path!r} cannot be upgraded and was left as it was: {exc}. Rename or mend "
                    "what is in the way, then try again."
                ) from exc
            raise
    finally:
        connection.execute("PRAGMA legacy_alter_table = OFF")
        connection.execute("PRAGMA foreign_keys = ON")


def _migrate(
    connection: apsw.Connection, current: int, steps: Iterable[tuple[int, str, str]]
) -> None:
    """Take the steps beyond version ``current`` inside a transaction."""
    additions = list_additions(connection)
    connection.execute(_VERSIONS_TABLE)
    for version, name, script in steps:
        if version > current:
            connection.execute(script)
            connection.execute(
                "INSERT INTO schema_versions (version, name) VALUES (:version, :name)",
                {"version": version, "name": name},
            )
    restore_additions(connection, additions)
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def _peek_version(connection: apsw.Connection, path: str) -> int:
    """Return the version as it is at one moment: another process may be creating the file."""
    connection.execute("BEGIN")
    try:
        return _version(connection, path)
    finally:
        if connection.in_transaction:  # an error of the disk has ended it by itself
            connection.execute("ROLLBACK")


def _version(connection: apsw.Connection, path: str) -> int:
    """Return the version of a file that is ours, or empty, or an older one; refuse any other.

    In a transaction: it is several reads.
    """
    version = int(connection.execute("PRAGMA user_version").fetchall()[0][0])  # type: ignore[arg-type]
    if version > SCHEMA_VERSION:
        raise QueueSchemaError(
            f"{path!r} has schema version {version}, this code knows {SCHEMA_VERSION}; "
            "upgrade kombu-sqlite."
        )
    present = connection.execute(
        "SELECT type, name FROM sqlite_schema "
        "WHERE type IN ('table', 'view') AND name NOT GLOB 'sqlite_*'"
    ).fetchall()
    ours = [("table", "task_queue"), *([("table", "schema_versions")] if version else [])]
    if (version or present) and not set(ours) <= set(present):
        raise QueueSchemaError(
            f"{path!r} is a SQLite database of another program; choose another path."
        )
    if present and version < MADE_ANEW_AT:
        ensure_upgradable(connection, path)
    return version
