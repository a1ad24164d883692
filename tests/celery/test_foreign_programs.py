"""Workers run the rows that other programs insert."""

from __future__ import annotations

from typing import Any

import pytest

#: A program that knows SQLite and nothing of Celery: it prints when its rows were committed.
INSERT = """
import sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute(sys.argv[2])
put = "INSERT INTO task_queue(type, payload) VALUES (?, ?)"
for payload in sys.argv[3:]:
    connection.execute(put, ("app.stamped", payload))
    print(time.time(), flush=True)
"""

BAD_ROWS = r"""
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA wal_autocheckpoint=0")
put = "INSERT INTO task_queue(type, payload) VALUES (?, ?)"
for bad in ("{", "5", "[1]", b"\xff"):
    connection.execute(put, ("app.add", bad))
connection.execute(put, ("no.such.task", "{}"))
connection.execute(put, ("app.add", '{"x": 1, "y": 2}'))
connection.execute(put, ("app.add", "[[3, 4], {}, null]"))
put = "INSERT INTO task_queue(type, payload, run_after_utc) VALUES (?, ?, datetime('now', ?))"
connection.execute(put, ("app.add", '{"x": 5, "y": 6}', "+1 second"))
"""

ORDERED_ROWS = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
put = "INSERT INTO task_queue(type, payload, priority, queue) VALUES ('app.add', ?, ?, ?)"
for number, queue in ((900, "celery"), (100, "celery"), (1, "celery"), (1, "nobody")):
    connection.execute(put, ('{"x": %d, "y": 0}' % number, number, queue))
"""


@pytest.mark.parametrize(
    "first",
    ["SELECT 1", "PRAGMA wal_autocheckpoint=0"],
    ids=["as it comes", "without checkpoints"],
)
def test_an_inserted_row_runs_within_a_second(lab: Any, first: str) -> None:
    """Its payload an object of keyword arguments, or an array that is a message's body."""
    lab.worker("-P", "solo")
    program = lab.script(INSERT, lab.path, first, '{"x": 1, "y": 2}', "[[3, 4], {}, null]")
    committed = [float(line) for line in program.communicate(timeout=30)[0].split()]
    lab.wait(lambda: len(lab.lines()) == 2)
    ran = dict(line.split() for line in lab.lines())
    assert ran.keys() == {"3", "7"}
    assert float(ran["3"]) - committed[0] < 1
    assert float(ran["7"]) - committed[1] < 1
    assert {task.status for task in lab.database.list()} <= {"processing", "completed"}
    assert all(task.task_id for task in lab.database.list())


def test_bad_rows_of_other_programs_stop_nobody(lab: Any) -> None:
    """They are failed, with the reason; those behind them run, the delayed one included."""
    lab.worker("-P", "solo")
    program = lab.script(BAD_ROWS, lab.path)
    assert program.wait(30) == 0
    lab.wait(lambda: sorted(lab.lines()) == ["sum 11", "sum 3", "sum 7"])
    failed = lab.database.list(status="failed")
    assert len(failed) == 5
    assert all("malformed row" in t.error_message for t in failed if t.type != "no.such.task")


def test_rows_of_other_programs_keep_their_order_and_queue(lab: Any) -> None:
    """A lower number first; a row of a queue nobody serves here stays."""
    lab.database.initialize_schema()
    program = lab.script(ORDERED_ROWS, lab.path)
    assert program.wait(30) == 0
    lab.worker("-P", "solo", "--prefetch-multiplier", "1")
    lab.wait(lambda: lab.database.stats().completed_tasks == 3)
    assert lab.lines() == ["sum 1", "sum 100", "sum 900"]
    assert lab.database.stats(queue="nobody").queued_tasks == 1
