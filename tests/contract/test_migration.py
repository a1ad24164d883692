"""An older queue of the documented columns becomes one of ours: in place, whole, or not at all."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apsw
import pytest

from kombu_sqlite import QueueDatabase, QueueSchemaError, schema
from kombu_sqlite.options import Options

Wait = Callable[..., Any]

STATES = ("queued", "processing", "completed", "failed", "cancelled")

#: As somebody may have made it: CURRENT_TIMESTAMP, own indexes and views under the known names.
OLDER = """
CREATE TABLE task_queue (
    id INTEGER PRIMARY KEY AUTOINCREMENT, type TEXT NOT NULL,
    priority INTEGER NOT NULL DEFAULT 100, payload TEXT NOT NULL,
    compatibility TEXT NOT NULL DEFAULT '{}', status TEXT NOT NULL DEFAULT 'queued',
    attempts INTEGER NOT NULL DEFAULT 0, max_attempts INTEGER NOT NULL DEFAULT 5,
    run_after_utc DATETIME NOT NULL DEFAULT CURRENT_TIMESTAMP, lease_until_utc DATETIME,
    reserved_at_utc DATETIME, processing_started_utc DATETIME, finished_at_utc DATETIME,
    locked_by TEXT, error_message TEXT, idempotency_key TEXT UNIQUE,
    created_at_utc DATETIME NOT NULL DEFAULT CURRENT_TIMESTAMP,
    updated_at_utc DATETIME NOT NULL DEFAULT CURRENT_TIMESTAMP,
    region TEXT GENERATED ALWAYS AS (json_extract(compatibility, '$.region')) STORED,
    format TEXT GENERATED ALWAYS AS (json_extract(payload, '$.format')) STORED);
CREATE INDEX ix_task_status_prio_time ON task_queue (status, priority, run_after_utc);
CREATE INDEX ix_task_type_status ON task_queue (type, status);
CREATE INDEX ix_task_format ON task_queue (format);
CREATE UNIQUE INDEX uq_task_idempotency ON task_queue (idempotency_key);
CREATE TABLE workers (worker_id TEXT PRIMARY KEY, capabilities TEXT NOT NULL,
    heartbeat_utc DATETIME NOT NULL DEFAULT CURRENT_TIMESTAMP);
CREATE TABLE task_logs (log_id INTEGER PRIMARY KEY AUTOINCREMENT,
    task_id INTEGER NOT NULL REFERENCES task_queue(id),
    at_utc DATETIME NOT NULL DEFAULT CURRENT_TIMESTAMP, level TEXT, message TEXT, details TEXT);
CREATE INDEX ix_logs_task ON task_logs (task_id, at_utc);
CREATE VIEW v_queue_status_summary AS SELECT status FROM task_queue;
CREATE VIEW v_queue_type_summary AS SELECT type FROM task_queue;
CREATE VIEW v_worker_status AS SELECT worker_id FROM workers;
CREATE VIEW v_task_performance AS SELECT id FROM task_queue;
CREATE VIEW v_recent_failures AS SELECT id FROM task_queue;
CREATE VIEW their_own AS SELECT type, count(*) AS n FROM task_queue GROUP BY type;
CREATE TABLE their_table (task INTEGER REFERENCES task_queue(id));
"""


def make_older(path: str) -> None:
    """Write an older file with a row in every state, each with a log line; ids have a gap."""
    connection = apsw.Connection(path)
    connection.execute(OLDER)
    connection.execute("INSERT INTO task_queue (type, payload) VALUES ('gone', '{}')")
    connection.execute("DELETE FROM task_queue")
    for state in STATES:
        connection.execute(
            "INSERT INTO task_queue (type, payload, status, attempts, error_message, priority, "
            "idempotency_key, compatibility, created_at_utc) "
            'VALUES (\'t\', \'{"format": "csv"}\', ?, 2, ?, 7, ?, \'{"region": "eu"}\', '
            "'2024-01-02 03:04:05')",
            (state, f"why {state}", f"key {state}"),
        )
        connection.execute(
            "INSERT INTO task_logs (task_id, level, message, details) "
            "VALUES (last_insert_rowid(), 'INFO', ?, '{}')",
            (state,),
        )
    connection.execute("INSERT INTO their_table SELECT id FROM task_queue")
    connection.execute("INSERT INTO workers (worker_id, capabilities) VALUES ('old', '{\"a\": 1}')")
    connection.close()


def documented(path: str) -> list[Any]:
    """The rows of the documented columns, with their logs, read without this package."""
    connection = apsw.Connection(path)
    try:
        found = connection.execute(
            "SELECT t.id, t.type, t.priority, t.payload, t.compatibility, t.status, t.attempts, "
            "t.max_attempts, t.error_message, t.idempotency_key, t.created_at_utc, t.region, "
            "t.format, l.log_id, l.level, l.message, l.details FROM task_queue t "
            "JOIN task_logs l ON l.task_id = t.id ORDER BY t.id"
        ).fetchall()
    finally:
        connection.close()
    return list(found)


def test_rows_in_every_state_are_kept(queue_path: str) -> None:
    """With keys, logs, ids, the counts, and what others built on them."""
    make_older(queue_path)
    before = documented(queue_path)
    with QueueDatabase(queue_path) as database:
        stats = database.stats()
        assert [getattr(stats, f"{state}_tasks") for state in STATES] == [1] * 5
        assert database.enqueue("new").id == 7
        assert database.enqueue("t", idempotency_key="key failed").id == 5
        assert database.workers()[0].get_capabilities_dict() == {"a": 1}
        assert database.execute("SELECT sum(n) FROM their_own")[0][0] == 6
        assert database.execute("PRAGMA foreign_key_check") == []
        assert database.execute("PRAGMA integrity_check")[0][0] == "ok"
        assert database.execute("PRAGMA legacy_alter_table")[0][0] == 0
    assert documented(queue_path) == before


def test_what_was_running_runs_again_under_the_new_rules(queue_path: str, wait_until: Wait) -> None:
    """Its owner is unknown and its lease over; what was queued comes first come, first served."""
    make_older(queue_path)
    with QueueDatabase(queue_path, capabilities={"region": "eu"}) as database:
        (waiting,) = database.claim()
        assert (waiting.tag.row_id, waiting.attempts) == (2, 3)
        (running,) = wait_until(database.claim)
        assert running.tag.row_id == 3


def test_many_processes_can_open_an_older_file_at_once(queue_path: str) -> None:
    """One upgrades it, the others wait for it; each then publishes."""
    make_older(queue_path)
    script = (
        f"import sys; sys.path[:0] = {sys.path!r}\n"
        "from kombu_sqlite import QueueDatabase\n"
        f"QueueDatabase({queue_path!r}).enqueue('new')\n"
    )
    processes = [subprocess.Popen([sys.executable, "-c", script]) for _ in range(6)]
    assert [process.wait(60) for process in processes] == [0] * 6
    with QueueDatabase(queue_path) as database:
        assert database.stats(type="new").queued_tasks == 6
        versions = database.execute("SELECT count(*) FROM schema_versions")[0][0]
        assert versions == schema.SCHEMA_VERSION


@pytest.mark.parametrize("end", ["raise ZeroDivisionError", "import os; os.kill(os.getpid(), 9)"])
def test_an_upgrade_that_is_cut_off_changes_nothing(queue_path: str, end: str) -> None:
    """By an error or a kill after its last step; the next opening does it whole."""
    make_older(queue_path)
    before = documented(queue_path)
    script = f"""
import sys
sys.path[:0] = {sys.path!r}
import apsw
from kombu_sqlite import schema
from kombu_sqlite.options import Options
connection = apsw.Connection({queue_path!r})
schema.prepare_connection(connection, Options({queue_path!r}))
def steps():
    yield from schema.migrations()
    {end}
schema.ensure_schema(connection, {queue_path!r}, steps)
"""
    done = subprocess.run([sys.executable, "-c", script], check=False, stderr=subprocess.DEVNULL)
    assert done.returncode in (1, -9)
    connection = apsw.Connection(queue_path)
    version = connection.execute("PRAGMA user_version").fetchall()
    names = {row[0] for row in connection.execute("SELECT name FROM sqlite_schema")}
    connection.close()
    assert version == [(0,)]
    assert not names & {"schema_versions", "task_counts", "new_task_queue"}
    assert documented(queue_path) == before
    with QueueDatabase(queue_path) as database:
        assert database.stats().total_tasks == 5


def test_opening_again_changes_nothing(queue_path: str) -> None:
    """Of an upgraded file."""
    make_older(queue_path)
    with QueueDatabase(queue_path) as database:
        database.initialize_schema()
    content = Path(queue_path).read_bytes()
    connection = apsw.Connection(queue_path)
    schema.prepare_connection(connection, Options(queue_path))
    schema.ensure_schema(connection, queue_path)
    connection.close()
    assert Path(queue_path).read_bytes() == content


ADDITIONS = {
    "an index": "CREATE INDEX Theirs ON task_queue (payload, priority DESC) WHERE attempts > 0",
    "a unique index": "CREATE UNIQUE INDEX theirs ON workers (worker_id COLLATE NOCASE)",
    "an index on a log": "CREATE INDEX theirs ON TASK_LOGS (level)",
    "a trigger": (
        "CREATE TRIGGER theirs AFTER INSERT ON task_queue WHEN NEW.type = 'new' "
        "BEGIN INSERT INTO their_table VALUES (NEW.id); END"
    ),
    "a trigger on a worker": (
        "CREATE TRIGGER theirs BEFORE DELETE ON Workers BEGIN SELECT raise(ABORT, 'no'); END"
    ),
}


@pytest.mark.parametrize("addition", ADDITIONS.values(), ids=ADDITIONS.keys())
def test_what_others_added_to_our_tables_is_kept(queue_path: str, addition: str) -> None:
    """Word for word, and in force; what bears a name of ours takes our form."""
    make_older(queue_path)
    connection = apsw.Connection(queue_path)
    connection.execute(addition)
    find = "SELECT sql FROM sqlite_schema WHERE name LIKE 'theirs'"
    before = connection.execute(find).fetchall()
    connection.close()
    with QueueDatabase(queue_path) as database:
        assert [tuple(row) for row in database.execute(find)] == before
        database.enqueue("new")
        kept = database.execute("SELECT count(*) FROM their_table")[0][0]
        assert kept == (6 if "NEW.type" in addition else 5)
        assert database.execute("PRAGMA integrity_check")[0][0] == "ok"


KEY = "idempotency_key TEXT UNIQUE"
UNIQUE_INDEX = "CREATE UNIQUE INDEX uq_task_idempotency ON task_queue (idempotency_key);"
UNFIT = {
    "a column of their own": (
        "ALTER TABLE task_queue ADD COLUMN tenant",
        "lose columns .* .tenant",
    ),
    "a generated column of their own": (
        "ALTER TABLE workers ADD COLUMN twice AS (worker_id || worker_id)",
        "lose columns .* .twice",
    ),
    "a log with a column of their own": ("ALTER TABLE task_logs ADD COLUMN x", "lose columns"),
    "a log of another shape": (
        "DROP TABLE task_logs; CREATE TABLE task_logs (log_id, line)",
        "another program .*'task_id'",
    ),
    "a constraint of their own": (
        """DROP TABLE task_logs; CREATE TABLE task_logs (
            log_id, task_id, at_utc, level, message, details, UNIQUE (task_id, message))""",
        "UNIQUE constraint over task_id, message",
    ),
    "a table by a name of ours": ("CREATE TABLE exchanges (x)", "exchanges already exists"),
}


def refused(path: str, match: str) -> None:
    """The file is refused, again and again, and keeps its tables and rows."""
    connection = apsw.Connection(path)
    dump, rows = "SELECT * FROM sqlite_schema ORDER BY name", "SELECT * FROM task_queue"
    before = [list(connection.execute(sql)) for sql in (dump, rows)]
    connection.close()
    database = QueueDatabase(path)
    for _ in range(2):
        with pytest.raises(QueueSchemaError, match=match):
            database.enqueue("t")
    database.close()
    connection = apsw.Connection(path)
    assert [list(connection.execute(sql)) for sql in (dump, rows)] == before
    connection.close()


@pytest.mark.parametrize(("change", "match"), UNFIT.values(), ids=UNFIT.keys())
def test_an_upgrade_that_would_lose_something_is_refused(
    queue_path: str, change: str, match: str
) -> None:
    """In one sentence that names it, before anything is changed."""
    make_older(queue_path)
    connection = apsw.Connection(queue_path)
    connection.execute(change)
    connection.close()
    content = Path(queue_path).read_bytes()
    refused(queue_path, match)
    if "already exists" not in match:  # found out by trying: the journal mode has changed by then
        assert Path(queue_path).read_bytes() == content


def test_keys_that_several_rows_share_are_refused(queue_path: str) -> None:
    """With the key and where to look; mended, the file is upgraded."""
    connection = apsw.Connection(queue_path)
    connection.execute(OLDER.replace(KEY, "idempotency_key TEXT").replace(UNIQUE_INDEX, ""))
    for key in (None, None, "a", "b", "B", "b"):
        insert = "INSERT INTO task_queue (type, payload, idempotency_key) VALUES ('t', '{}', ?)"
        connection.execute(insert, (key,))
    connection.close()
    refused(queue_path, "2 rows .* idempotency key 'b' .ids 4 to 6")
    connection = apsw.Connection(queue_path)
    connection.execute("UPDATE task_queue SET idempotency_key = NULL WHERE id = 6")
    connection.close()
    with QueueDatabase(queue_path) as database:
        assert database.stats().total_tasks == 6


def test_a_row_without_a_value_it_must_have_is_refused(queue_path: str) -> None:
    """Where the older table did not insist on one."""
    connection = apsw.Connection(queue_path)
    connection.execute(OLDER.replace("type TEXT NOT NULL", "type TEXT"))
    connection.execute("INSERT INTO task_queue (payload) VALUES ('{}')")
    connection.close()
    refused(queue_path, "Row 1 of .* has NULL")
