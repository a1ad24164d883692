"""Greenlets of one thread share its connection to the file: each waits for its turn in it."""

from __future__ import annotations

import sqlite3
from typing import Any

import pytest

#: Ten greenlets write while the file is locked, and ten once it is free; files are its cues.
WRITERS = """
from gevent import monkey
monkey.patch_all()
import os, sys, gevent
from kombu import Connection
from kombu_sqlite import QueueBusyError, QueueDatabase

def await_cue(name):
    print(name, flush=True)
    while not os.path.exists(name):
        gevent.sleep(0.01)

def patient(number):
    while True:
        try:
            return db.enqueue("patient")
        except QueueBusyError:
            gevent.sleep(0.01)

def hasty(number):
    with gevent.Timeout(0.03 + number / 200, False):
        db.enqueue("hasty")

def publishing(number):
    with Connection("sqlite:///" + sys.argv[1]) as connection:
        with gevent.Timeout(0.03 + number / 200, False):
            connection.Producer().publish("publishing", routing_key="q")

db = QueueDatabase(sys.argv[1], busy_timeout=float(sys.argv[3]))
db.initialize_schema()
await_cue("locked")
first = [gevent.spawn(globals()[sys.argv[2]], number) for number in range(10)]
gevent.sleep(0.6)
await_cue("free")
gevent.joinall(first, timeout=10, raise_error=True)
last = [gevent.spawn(db.enqueue, "last") for number in range(10)]
gevent.joinall(last, timeout=10, raise_error=True)
assert all(greenlet.ready() for greenlet in first + last)
db.close()
"""


@pytest.mark.parametrize(
    ("kind", "patience_s", "written"),
    [
        ("patient", 0.1, {"patient": 10, "last": 10}),
        ("hasty", 5, {"last": 10}),
        ("publishing", 5, {"last": 10}),
    ],
    ids=["busy", "timed out", "timed out in a publish"],
)
def test_nobody_keeps_the_turn_after_a_locked_file(
    lab: Any, kind: str, patience_s: float, written: dict[str, int]
) -> None:
    """Whether the wait for the lock failed, or a timeout ended the wait for a turn."""
    program = lab.script(WRITERS, lab.path, kind, str(patience_s))
    assert program.stdout.readline() == "locked\n"
    lock = sqlite3.connect(lab.path, isolation_level=None)
    lock.execute("PRAGMA wal_autocheckpoint=0")
    lock.execute("BEGIN IMMEDIATE")
    (lab.folder / "locked").touch()
    assert program.stdout.readline() == "free\n"
    lock.execute("ROLLBACK")
    lock.close()
    (lab.folder / "free").touch()
    assert program.wait(40) == 0
    counted = lab.database.execute("SELECT type, count(*) FROM task_queue GROUP BY type")
    assert dict(map(tuple, counted)) == written
