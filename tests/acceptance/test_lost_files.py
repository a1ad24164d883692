"""A backup is put in the file's place, or the file is locked, under a working worker."""

from __future__ import annotations

import os
from typing import Any

import pytest

from kombu_sqlite import QueueReplacedError

#: Each with how long a task takes, in seconds, so that 150 of them take 3 s or more.
POOLS = {
    "solo": (("-P", "solo"), 0.02),
    "gevent": (("-P", "gevent", "-c", "10"), 0.2),
}

PUBLISH = "import sys, app\nfor value in sys.argv[1:]: app.note.delay(value)\n"

#: A program that holds the write lock, as a long transaction of another program would.
LOCK = """
import sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA wal_autocheckpoint=0")
connection.execute("BEGIN IMMEDIATE")
print("locked", flush=True)
time.sleep(float(sys.argv[2]))
connection.execute("ROLLBACK")
"""


def publish(lab: Any, *values: str) -> None:
    """From a program of its own, which has never seen the old file."""
    assert lab.script(PUBLISH, *values).wait(30) == 0


def test_a_worker_takes_up_a_backup_put_in_the_files_place(lab: Any) -> None:
    """While it works: what the backup holds is done, what came after it is gone with the file."""
    kept = [f"kept {number}" for number in range(30)]
    publish(lab, *kept)
    lab.database.execute("VACUUM INTO ?", (lab.path + ".backup",))
    for number in range(400):
        lab.tasks.late.delay(f"after {number}", 0.05)
    worker = lab.worker("-c", "2")
    lab.wait(lambda: sum(line.startswith("after") for line in lab.lines()) > 3)
    lab.database.close()
    os.unlink(lab.path + "-wal")
    os.unlink(lab.path + "-shm")
    os.replace(lab.path + ".backup", lab.path)

    def goes_on() -> bool:
        try:
            return bool(lab.consumes(worker) and lab.database.stats().completed_tasks == 30)
        except QueueReplacedError:
            return False  # the test's own publishers had it open, too

    lab.wait(goes_on)
    assert {t.type for t in lab.database.list()} == {"app.note"}
    assert sorted(line for line in lab.lines() if line.startswith("kept")) == sorted(2 * kept)
    publish(lab, "new")
    lab.wait(lambda: "new" in lab.lines())
    assert sum(line.startswith("after") for line in lab.lines()) < 200


@pytest.mark.parametrize(("pool", "seconds"), POOLS.values(), ids=POOLS.keys())
def test_a_worker_outlasts_a_lock_that_outlasts_its_patience(
    lab: Any, pool: tuple[str, ...], seconds: float
) -> None:
    """7 s of another program's transaction, with 5 s of ``busy_timeout``: then it just goes on."""
    worker = lab.worker(*pool)
    for number in range(150):
        lab.tasks.late.delay(number, seconds)
    lab.wait(lambda: len(lab.lines()) > 10)
    locker = lab.script(LOCK, lab.path, "7")
    assert locker.stdout.readline() == "locked\n"
    done = lab.database.stats().completed_tasks
    assert locker.wait(30) == 0
    assert done < 150
    lab.wait(lambda: lab.database.stats().completed_tasks == 150)
    assert sorted(map(int, lab.lines())) == list(range(150))
    rows = lab.database.execute("SELECT DISTINCT attempts, deaths FROM task_queue")
    assert [tuple(row) for row in rows] == [(1, 0)]
    assert worker.poll() is None
