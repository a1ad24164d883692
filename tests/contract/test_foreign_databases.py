"""Databases that are no queue are refused as they are; other libraries can make and change ours."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import apsw
import pytest

from kombu_sqlite import QueueDatabase, QueueDatabaseError, QueueSchemaError
from kombu_sqlite.sql import migrations

FOREIGN = {
    "of a web application": "CREATE TABLE auth_user (id INTEGER PRIMARY KEY)",
    "with a version of its own": "CREATE TABLE mine (x); PRAGMA user_version = 2",
    "with a version and a table of our name": (
        "CREATE TABLE task_queue (x); PRAGMA user_version = 1"
    ),
    "with a table of our name": "CREATE TABLE task_queue (job, done)",
    "with a table of our name and of our other tables": (
        "CREATE TABLE workers (x); CREATE TABLE task_logs (x)"
    ),
    "with a view of our name": "CREATE VIEW task_queue AS SELECT 1",
    "of the future": (
        "CREATE TABLE task_queue (x); CREATE TABLE schema_versions (x); PRAGMA user_version = 999"
    ),
}


#: What an index or a trigger must not call, or read from a generated column.
FUNCTIONS = (
    r"json|->|\b(julianday|unixepoch|strftime|datetime|date|time|printf|format|region|random)\b"
)


def contents(path: str) -> dict[str, bytes]:
    """Every file beside ``path``, whole; nothing has it open."""
    return {file.name: file.read_bytes() for file in Path(path).parent.iterdir() if file.is_file()}


@pytest.mark.parametrize("sql", FOREIGN.values(), ids=FOREIGN.keys())
@pytest.mark.parametrize("journal", ["delete", "wal"])
def test_a_foreign_database_is_refused(queue_path: str, sql: str, journal: str) -> None:
    """Also by the second try, and by another thread's connection; its tables stay as they were."""
    connection = apsw.Connection(queue_path)
    connection.execute(f"PRAGMA journal_mode = {journal}").fetchall()
    connection.execute(sql)
    schema = connection.execute("SELECT * FROM sqlite_schema").fetchall()
    connection.close()
    before = contents(queue_path)
    database = QueueDatabase(queue_path)
    for action in (database.initialize_schema, lambda: database.enqueue("t"), database.claim):
        with pytest.raises(QueueDatabaseError):
            action()
    database.close()
    connection = apsw.Connection(queue_path)
    assert connection.execute("SELECT * FROM sqlite_schema").fetchall() == schema
    connection.close()
    assert contents(queue_path) == before


@pytest.mark.parametrize(
    "sql",
    [
        FOREIGN["of a web application"],
        FOREIGN["with a table of our name"],
        FOREIGN["with a view of our name"],
        FOREIGN["of the future"],
    ],
)
def test_the_refusal_says_what_to_do(queue_path: str, sql: str) -> None:
    """In one sentence that names the file."""
    connection = apsw.Connection(queue_path)
    connection.execute(sql)
    connection.close()
    expected = f"{re.escape(repr(queue_path))} .*(choose another path|upgrade kombu-sqlite)"
    with pytest.raises(QueueSchemaError, match=expected):
        QueueDatabase(queue_path).initialize_schema()


def test_an_empty_file_is_a_new_queue(queue_path: str) -> None:
    """As ``touch`` or ``mktemp`` leave one; its layout is that of a new file."""
    Path(queue_path).touch()
    with QueueDatabase(queue_path) as database:
        assert database.enqueue("t").id == 1
        assert database.execute("PRAGMA auto_vacuum")[0][0] == 2


def run_old(script: str) -> str:
    """Run a script with Python's own SQLite in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", f"import sqlite3\n{script}"],
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip()


def test_the_schema_can_be_made_and_used_by_an_older_library(queue_path: str) -> None:
    """Every migration, index, trigger and view; this one then finds the file sound."""
    scripts = [script for _, _, script in migrations()]
    version = run_old(f"""
c = sqlite3.connect({queue_path!r}, isolation_level=None)
for script in {scripts!r}: c.executescript(script)
for n in range(300):
    c.execute("INSERT INTO task_queue (type, payload, compatibility, queue, run_after_utc) "
              "VALUES (?, ?, ?, ?, datetime('now', ?))",
              (f't{{n % 3}}', '{{"format": "x"}}' if n % 2 else 'no json',
               '{{"region": "eu"}}' if n % 5 == 0 else '{{}}', f'q{{n % 4}}',
               '+1 day' if n % 7 == 0 else '-1 day'))
c.execute("UPDATE task_queue SET status = 'processing', locked_by = 'w' WHERE id % 4 = 0")
c.execute("UPDATE task_queue SET status = 'failed', finished_at_utc = datetime('now'), "
          "processing_started_utc = datetime('now') WHERE id % 6 = 0")
c.execute('UPDATE task_queue SET payload = ?, idempotency_key = id WHERE id % 9 = 0', ('[]',))
c.execute('DELETE FROM task_queue WHERE id % 11 = 0')
for view, in c.execute("SELECT name FROM sqlite_master WHERE type = 'view'").fetchall():
    c.execute(f'SELECT * FROM {{view}}').fetchall()
print(sqlite3.sqlite_version)
""")
    assert version != apsw.sqlite_lib_version()
    connection = apsw.Connection(queue_path)
    assert connection.execute("PRAGMA integrity_check").get == "ok"
    counted = connection.execute(
        "SELECT queue, type, status, tasks FROM task_counts WHERE tasks <> 0 ORDER BY 1, 2, 3"
    ).get
    real = connection.execute(
        "SELECT queue, type, status, count(*) FROM task_queue GROUP BY 1, 2, 3 ORDER BY 1, 2, 3"
    ).get
    connection.close()
    assert counted == real


def test_both_libraries_write_in_turn_and_the_file_stays_sound(queue_path: str) -> None:
    """Each changes what the other's indexes hold, in processes of their own."""
    with QueueDatabase(queue_path) as database:
        for turn in range(3):
            for number in range(30):
                database.enqueue(
                    "t", {"n": number}, compatibility={"region": "eu"} if number % 3 else None
                )
            run_old(f"""
c = sqlite3.connect({queue_path!r}, isolation_level=None, timeout=10)
c.execute('PRAGMA wal_autocheckpoint = 0')
c.execute("UPDATE task_queue SET priority = id % 7, payload = '{{\\"format\\": 1}}'")
c.execute("UPDATE task_queue SET status = 'cancelled' WHERE id % 5 = {turn}")
c.execute("INSERT INTO task_queue (type, payload) VALUES ('old', '{{}}')")
""")
            for delivery in database.claim(limit=5):
                database.complete(delivery)
            assert database.execute("PRAGMA integrity_check")[0][0] == "ok"
        assert database.stats(type="old").total_tasks == 3


def test_no_stored_part_of_the_schema_depends_on_the_librarys_version(
    database: QueueDatabase,
) -> None:
    """JSON and date functions differ between versions: never in an index or a trigger."""
    rows = database.execute(
        "SELECT name, sql FROM sqlite_schema WHERE type IN ('index', 'trigger')"
    )
    found = {name: sql for name, sql in rows if sql}
    assert len(found) > 10
    assert [name for name, sql in found.items() if re.search(FUNCTIONS, sql, re.I)] == []
    columns = database.execute("SELECT name, hidden FROM pragma_table_xinfo('task_queue')")
    generated = {name: hidden for name, hidden in columns if hidden}
    assert generated == {"region": 2, "format": 2}  # virtual: nothing of them is stored


def test_the_side_files_of_a_refused_database_are_not_made(queue_path: str) -> None:
    """Nothing is left beside somebody else's file."""
    connection = apsw.Connection(queue_path)
    connection.execute(FOREIGN["of a web application"])
    connection.close()
    with pytest.raises(QueueSchemaError):
        QueueDatabase(queue_path).enqueue("t")
    assert os.listdir(os.path.dirname(queue_path)) == ["queue.db"]
