"""The schema as documented, open to other programs, upgraded in place."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import apsw
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kombu_sqlite import Options, QueueDatabase, QueueLocationError, QueueSchemaError, schema
from kombu_sqlite.schema import SCHEMA_VERSION

DOCUMENTED = [
    ("id", "INTEGER", 0, None),
    ("type", "TEXT", 1, None),
    ("priority", "INTEGER", 1, "100"),
    ("payload", "TEXT", 1, None),
    ("compatibility", "TEXT", 1, "'{}'"),
    ("status", "TEXT", 1, "'queued'"),
    ("attempts", "INTEGER", 1, "0"),
    ("max_attempts", "INTEGER", 1, "5"),
    ("run_after_utc", "DATETIME", 1, "now"),
    ("lease_until_utc", "DATETIME", 0, None),
    ("reserved_at_utc", "DATETIME", 0, None),
    ("processing_started_utc", "DATETIME", 0, None),
    ("finished_at_utc", "DATETIME", 0, None),
    ("locked_by", "TEXT", 0, None),
    ("error_message", "TEXT", 0, None),
    ("idempotency_key", "TEXT", 0, None),
    ("created_at_utc", "DATETIME", 1, "now"),
    ("updated_at_utc", "DATETIME", 1, "now"),
    ("region", "TEXT", 0, None),
    ("format", "TEXT", 0, None),
]

#: An older file: the documented columns only, with other index shapes under the same names.
OLDER = """
CREATE TABLE task_queue (
    id INTEGER PRIMARY KEY AUTOINCREMENT, type TEXT NOT NULL,
    priority INTEGER NOT NULL DEFAULT 100, payload TEXT NOT NULL,
    compatibility TEXT NOT NULL DEFAULT '{}', status TEXT NOT NULL DEFAULT 'queued',
    attempts INTEGER NOT NULL DEFAULT 0, max_attempts INTEGER NOT NULL DEFAULT 5,
    run_after_utc DATETIME NOT NULL DEFAULT CURRENT_TIMESTAMP, lease_until_utc DATETIME,
    reserved_at_utc DATETIME, processing_started_utc DATETIME, finished_at_utc DATETIME,
    locked_by TEXT, error_message TEXT, idempotency_key TEXT,
    created_at_utc DATETIME NOT NULL DEFAULT CURRENT_TIMESTAMP,
    updated_at_utc DATETIME NOT NULL DEFAULT CURRENT_TIMESTAMP,
    region TEXT GENERATED ALWAYS AS (json_extract(compatibility, '$.region')) VIRTUAL,
    format TEXT GENERATED ALWAYS AS (json_extract(payload, '$.format')) VIRTUAL);
CREATE INDEX ix_task_status_prio_time ON task_queue (status, priority, run_after_utc, id);
CREATE INDEX ix_task_region ON task_queue (region);
CREATE UNIQUE INDEX uq_task_idempotency ON task_queue (idempotency_key)
    WHERE idempotency_key IS NOT NULL;
CREATE TABLE workers (worker_id TEXT PRIMARY KEY, capabilities TEXT NOT NULL,
    heartbeat_utc DATETIME NOT NULL DEFAULT CURRENT_TIMESTAMP);
CREATE TABLE task_logs (log_id INTEGER PRIMARY KEY AUTOINCREMENT,
    task_id INTEGER NOT NULL REFERENCES task_queue(id),
    at_utc DATETIME NOT NULL DEFAULT CURRENT_TIMESTAMP, level TEXT, message TEXT, details TEXT);
CREATE VIEW v_queue_status_summary AS SELECT status, count(*) AS n FROM task_queue GROUP BY status;
INSERT INTO task_queue (type, payload, idempotency_key) VALUES ('tasks.add', '{"x": 1}', 'k');
INSERT INTO task_queue (type, payload, status, finished_at_utc)
    VALUES ('tasks.add', '{}', 'completed', '2020-01-01 00:00:00');
INSERT INTO task_queue (type, payload, status, locked_by, lease_until_utc)
    VALUES ('tasks.add', '{}', 'processing', 'old-worker', '2020-01-01 00:00:00');
INSERT INTO task_queue (type, payload, run_after_utc)
    VALUES ('tasks.add', '{}', '2999-01-01T00:00:00Z');
INSERT INTO task_queue (type, payload) VALUES ('gone', '{}');
INSERT INTO task_logs (task_id, level, message) VALUES (2, 'INFO', 'done');
INSERT INTO workers (worker_id, capabilities) VALUES ('old-worker', '{}');
DELETE FROM task_queue WHERE type = 'gone';
"""


def make_older(path: str) -> None:
    """Write an older file and close it."""
    connection = apsw.Connection(path)
    connection.execute(OLDER)
    connection.close()


def schema_of(database: QueueDatabase) -> list[tuple[Any, ...]]:
    """Every object of the schema, by name."""
    rows = database.execute("SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY 1, 2")
    return [tuple(row) for row in rows]


def test_the_documented_columns_stand_first_with_their_defaults(database: QueueDatabase) -> None:
    """In the documented order; further ones have defaults."""
    rows = database.execute(
        'SELECT name, type, "notnull", dflt_value FROM pragma_table_xinfo('
        "'task_queue') ORDER BY cid"
    )
    found = [
        (
            name,
            kind.removesuffix(" GENERATED ALWAYS"),
            notnull,
            "now" if default and "'now'" in default else default,
        )
        for name, kind, notnull, default in map(tuple, rows)
    ]
    assert found[: len(DOCUMENTED)] == DOCUMENTED
    assert all(not notnull or default is not None for _, _, notnull, default in found[20:])


def test_documented_indexes_and_views_exist(database: QueueDatabase) -> None:
    """By name; the key's index is plain."""
    names = {row[1]: row[3] for row in schema_of(database)}
    assert {
        "ix_task_status_prio_time",
        "ix_task_type_status",
        "ix_task_region",
        "ix_task_format",
        "uq_task_idempotency",
        "ix_logs_task",
        "v_queue_status_summary",
        "v_queue_type_summary",
        "v_worker_status",
        "v_task_performance",
        "v_recent_failures",
        "workers",
        "task_logs",
    } <= set(names)
    assert "WHERE" not in names["uq_task_idempotency"]
    for view in (name for name in names if name.startswith("v_")):
        database.execute(f"SELECT * FROM {view}")


@pytest.mark.parametrize(
    ("payload", "compatibility", "expected"),
    [
        ('{"format": "csv"}', '{"region": "eu"}', ("eu", "csv")),
        ("not json", "not json", (None, None)),
        ("[1]", "[1]", (None, None)),
        ("", "{", (None, None)),
    ],
)
def test_generated_columns_are_null_where_the_text_is_no_json(
    database: QueueDatabase, payload: str, compatibility: str, expected: tuple[Any, Any]
) -> None:
    """Never an error."""
    database.execute(
        "INSERT INTO task_queue (type, payload, compatibility) VALUES ('t', ?, ?)",
        (payload, compatibility),
    )
    assert tuple(database.execute("SELECT region, format FROM task_queue")[0]) == expected


def test_a_key_is_unique_when_set(database: QueueDatabase) -> None:
    """And other programs' ON CONFLICT names it."""
    insert = "INSERT INTO task_queue (type, payload, idempotency_key) VALUES ('t', '{}', ?) "
    for key in (None, None, "k", "k"):
        database.execute(insert + "ON CONFLICT (idempotency_key) DO NOTHING", (key,))
    assert database.stats().total_tasks == 3


statements = st.lists(
    st.tuples(
        st.sampled_from(["insert", "delete", "status", "queue", "type"]),
        st.integers(1, 6),
        st.sampled_from(["queued", "processing", "completed", "failed", "cancelled"]),
    ),
    max_size=25,
)


@given(statements)
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_counts_are_exact_whatever_others_write(
    database: QueueDatabase, steps: list[tuple[str, int, str]]
) -> None:
    """Inserts, deletes and changes of state, queue or name, by plain SQL."""
    database.execute("DELETE FROM task_queue")
    database.execute("DELETE FROM sqlite_sequence")
    for action, number, status in steps:
        if action == "insert":
            database.execute(
                "INSERT INTO task_queue (type, payload, status, queue) VALUES (?, '{}', ?, ?)",
                (f"t{number % 2}", status, f"q{number % 3}"),
            )
        elif action == "delete":
            database.execute("DELETE FROM task_queue WHERE id = ?", (number,))
        else:
            value = status if action == "status" else f"{action}{number}"
            database.execute(f"UPDATE task_queue SET {action} = ? WHERE id = ?", (value, number))
    counted = database.execute(
        "SELECT queue, type, status, tasks FROM task_counts WHERE tasks <> 0 ORDER BY 1, 2, 3"
    )
    real = database.execute(
        "SELECT queue, type, status, count(*) FROM task_queue GROUP BY 1, 2, 3 ORDER BY 1, 2, 3"
    )
    assert list(counted) == list(real)


def test_an_older_library_can_write_and_the_file_stays_sound(
    database: QueueDatabase, queue_path: str
) -> None:
    """Pythons' own SQLite: inserts, changes and deletes through every index and trigger."""
    database.initialize_schema()
    database.close()
    script = (
        "import sqlite3, sys\n"
        f"c = sqlite3.connect({queue_path!r}, isolation_level=None)\n"
        "c.execute('PRAGMA wal_autocheckpoint=0')\n"
        "for n in range(200):\n"
        "    c.execute('INSERT INTO task_queue (type, payload, compatibility) VALUES (?, ?, ?)',\n"
        "              ('t', '{\"format\": \"x\"}', '{}' if n % 2 else '{\"region\": \"eu\"}'))\n"
        "c.execute(\"UPDATE task_queue SET status = 'failed' WHERE id % 3 = 0\")\n"
        "c.execute('DELETE FROM task_queue WHERE id % 5 = 0')\n"
        "print(sqlite3.sqlite_version)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    )
    assert database.execute("PRAGMA integrity_check")[0][0] == "ok"
    assert database.stats().total_tasks == 160
    writers = {row[0] for row in database.execute("SELECT DISTINCT writer FROM task_queue")}
    assert writers == {done.stdout.strip()}


def test_an_older_file_is_upgraded_with_its_rows(queue_path: str) -> None:
    """Ids, states, logs and the position of AUTOINCREMENT are kept."""
    make_older(queue_path)
    with QueueDatabase(queue_path) as database:
        rows = database.execute("SELECT id, status, queue, attempts FROM task_queue ORDER BY id")
        assert [tuple(row) for row in rows] == [
            (1, "queued", "celery", 0),
            (2, "completed", "celery", 0),
            (3, "processing", "celery", 0),
            (4, "queued", "celery", 0),
        ]
        assert "done" in {line.message for line in database.logs(2)}
        assert database.enqueue("tasks.add", {}).id == 6
        assert database.stats().total_tasks == 5
        assert database.execute("PRAGMA integrity_check")[0][0] == "ok"
        assert database.execute("PRAGMA foreign_key_check") == []
        first = database.claim()[0]
        assert (first.tag.row_id, first.payload) == (1, '{"x": 1}')


def test_an_upgraded_file_equals_a_fresh_one(queue_path: str, tmp_path: Any) -> None:
    """Object by object."""
    make_older(queue_path)
    fresh = QueueDatabase(str(tmp_path / "fresh.db"))
    with QueueDatabase(queue_path) as upgraded, fresh:
        assert schema_of(upgraded) == schema_of(fresh)


def test_versions_are_recorded(database: QueueDatabase) -> None:
    """With when they came."""
    rows = database.execute("SELECT version FROM schema_versions ORDER BY version")
    assert [row[0] for row in rows] == list(range(1, SCHEMA_VERSION + 1))


def test_a_newer_file_is_refused(database: QueueDatabase, queue_path: str) -> None:
    """With what to do."""
    database.execute("PRAGMA user_version = 9999")
    database.close()
    with pytest.raises(QueueSchemaError, match="upgrade kombu-sqlite"):
        QueueDatabase(queue_path).initialize_schema()


def test_another_programs_database_is_refused(queue_path: str) -> None:
    """And left as it was."""
    connection = apsw.Connection(queue_path)
    connection.execute("CREATE TABLE mine (x); PRAGMA user_version = 2")
    connection.close()
    with pytest.raises(QueueSchemaError, match="another program"):
        QueueDatabase(queue_path).initialize_schema()


def test_a_file_that_is_no_database_is_refused(queue_path: str) -> None:
    """And left as it was."""
    with open(queue_path, "w", encoding="utf-8") as file:
        file.write("hello " * 1000)
    with pytest.raises(QueueLocationError, match="not a SQLite database"):
        QueueDatabase(queue_path).initialize_schema()
    with open(queue_path, encoding="utf-8") as file:
        assert file.read() == "hello " * 1000


def test_many_processes_can_open_a_new_file_at_once(queue_path: str) -> None:
    """One makes the schema, the others wait for it."""
    script = (
        f"import sys; sys.path[:0] = {sys.path!r}\n"
        "from kombu_sqlite import QueueDatabase\n"
        f"QueueDatabase({queue_path!r}).enqueue('t', {{}})\n"
    )
    with ThreadPoolExecutor(6) as pool:
        list(
            pool.map(lambda _: subprocess.run([sys.executable, "-c", script], check=True), "abcdef")
        )
    with QueueDatabase(queue_path) as database:
        assert database.stats().queued_tasks == 6


def test_many_threads_can_open_a_new_file_at_once(queue_path: str) -> None:
    """None takes another's half-opened file for a foreign one."""
    with QueueDatabase(queue_path) as database, ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: database.enqueue("t", {"n": n}), range(40)))
        assert database.stats().queued_tasks == 40


@pytest.mark.parametrize("late", [False, True])
def test_a_file_that_another_process_makes_meanwhile_is_no_older_one(
    queue_path: str, late: bool
) -> None:
    """Its version and its tables are looked at in one moment, each time."""
    source = "import sys, kombu_sqlite as k; k.QueueDatabase(sys.argv[1]).initialize_schema()"
    others: list[subprocess.Popen[bytes]] = []

    def trace(cursor: Any, sql: str, bindings: Any) -> bool:
        if "FROM sqlite_schema" in sql and not others:
            others.append(subprocess.Popen([sys.executable, "-c", source, queue_path]))
            with suppress(subprocess.TimeoutExpired):
                others[0].wait(10 if late else 2)  # an empty file is locked by who looks at it
        return True

    connection = apsw.Connection(queue_path)
    if late:
        schema.prepare_connection(connection, Options(queue_path))
        connection.exec_trace = trace
    else:
        connection.exec_trace = trace
        schema.prepare_connection(connection, Options(queue_path))
    schema.ensure_schema(connection, queue_path)
    connection.close()
    assert others[0].wait(60) == 0
    with QueueDatabase(queue_path) as database:
        assert database.enqueue("t").id == 1
