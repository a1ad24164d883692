"""Workers killed, stopped, cut off: every task is done, nobody stays deaf."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kombu_sqlite import QueueBusyError, QueueDatabase
from tests.acceptance.soak import run

ROOT = Path(__file__).parents[2]

#: Another program that keeps the write lock, with SQLite's own library.
LOCK = """
import sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA wal_autocheckpoint=0")
connection.execute("BEGIN IMMEDIATE")
print("locked", flush=True)
time.sleep(8)
connection.execute("ROLLBACK")
"""

#: What a program that has nothing open sees at the path.
COUNT = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA wal_autocheckpoint=0")
print(connection.execute("SELECT count(*) FROM task_queue").fetchone()[0])
"""


def kill(process: subprocess.Popen[str]) -> None:
    """Kill a worker and its pool, as a power switch would."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(10)


def stop_between_writes(lab: Any, process: subprocess.Popen[str]) -> None:
    """Stop a worker while it does not hold the write lock: holding it, it would stop everybody."""

    def stopped() -> bool:
        os.killpg(process.pid, signal.SIGSTOP)
        try:
            with QueueDatabase(lab.path, busy_timeout=0.2) as database, database.transaction():
                return True
        except QueueBusyError:
            os.killpg(process.pid, signal.SIGCONT)
            return False

    lab.wait(stopped)


def test_a_killed_workers_tasks_are_done_by_the_next(make_lab: Callable[..., Any]) -> None:
    """Half-way through; only what ran, or had just ended, in a pool process is done again."""
    lab = make_lab("?immediate_ack=true")
    for number in range(300):
        lab.tasks.late.delay(number, 0.01)
    worker = lab.worker("-c", "2")
    lab.wait(lambda: len(lab.lines()) > 100)
    kill(worker)
    assert lab.database.stats().completed_tasks < 300
    lab.worker("-c", "2", name="w2")
    lab.wait(lambda: lab.database.stats().completed_tasks == 300)
    counts = Counter(lab.lines())
    assert set(counts) == set(map(str, range(300)))
    assert sum(counts.values()) - 300 <= 2


def test_six_kills_lose_nothing_and_exhaust_nobody(make_lab: Callable[..., Any]) -> None:
    """Though the same tasks are prefetched again and again; recovery takes seconds.

    A kill repeats at most one task per process: its effect was written, its ack not committed.
    """
    lab = make_lab("?immediate_ack=true")
    for number in range(1500):
        lab.tasks.late.delay(number, 0.001)
    kills = 6
    worker = lab.worker("-c", "2", name="k0")
    for number in range(1, kills + 1):
        done = len(lab.lines())
        lab.wait(lambda done=done: len(lab.lines()) > done + 30)
        kill(worker)
        worker = lab.worker("-c", "2", name=f"k{number}")
    lab.wait(lambda: lab.database.stats().completed_tasks == 1500, 60)
    counts = Counter(lab.lines())
    assert set(counts) == set(map(str, range(1500)))
    assert sum(counts.values()) - 1500 <= 2 * kills
    assert lab.database.stats().failed_tasks == 0


def test_batched_acks_repeat_no_more_than_they_hold_back(lab: Any) -> None:
    """By default acks commit within 20 ms: a kill repeats what ended meanwhile, nothing lost."""
    for number in range(400):
        lab.tasks.late.delay(number, 0.002)
    worker = lab.worker("-c", "2")
    lab.wait(lambda: len(lab.lines()) > 100)
    kill(worker)
    lab.worker("-c", "2", name="w2")
    lab.wait(lambda: lab.database.stats().completed_tasks == 400)
    counts = Counter(lab.lines())
    assert set(counts) == set(map(str, range(400)))
    assert sum(counts.values()) - 400 <= 64


def test_a_task_that_kills_its_worker_is_stopped(make_lab: Callable[..., Any]) -> None:
    """At ``max_attempts``, with the reason; the tasks beside it are done."""
    lab = make_lab("?max_attempts=2")
    lab.tasks.deadly.delay()
    for number in range(20):
        lab.tasks.late.delay(number)
    for name in ("w1", "w2"):
        worker = lab.worker("-c", "1", name=name)
        lab.wait(lambda worker=worker: worker.poll() is not None)
        kill(worker)
    third = lab.worker("-c", "1", name="w3")
    lab.wait(lambda: lab.database.stats().completed_tasks == 20)
    failed = lab.wait(lambda: lab.database.list(status="failed"))
    assert [t.type for t in failed] == ["app.deadly"]
    assert failed[0].error_message == "delivery attempts exhausted: 2 of 2 executions died"
    assert Counter(lab.lines())["deadly"] == 2
    lab.tasks.late.delay("after")
    lab.wait(lambda: "after" in lab.lines())
    assert third.poll() is None


def test_a_stopped_worker_is_replaced_and_comes_back(make_lab: Callable[..., Any]) -> None:
    """Past its visibility timeout; afterwards it is fenced, and consumes and answers again."""
    lab = make_lab("?visibility_timeout=1.5")
    stopped = lab.worker("-c", "1", "--prefetch-multiplier", "8")
    for number in range(30):
        lab.tasks.late.delay(number, 0.05)
    lab.wait(lambda: len(lab.lines()) > 3)
    stop_between_writes(lab, stopped)
    other = lab.worker("-c", "1", name="w2")
    lab.wait(lambda: set(lab.lines()) == set(map(str, range(30))))
    lab.stop(other)
    os.killpg(stopped.pid, signal.SIGCONT)
    lab.tasks.late.delay("after")
    lab.wait(lambda: "after" in lab.lines())
    lab.wait(lambda: lab.app.control.inspect(timeout=1).ping() == {"w1@test": {"ok": "pong"}})
    lab.wait(lambda: lab.database.stats().processing_tasks == 0)
    assert lab.database.stats().completed_tasks == 31
    assert "was silent longer than its visibility timeout" in lab.log()
    assert stopped.poll() is None


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_worker_survives_a_locked_file(lab: Any, pool: str) -> None:
    """For 8 s, longer than ``busy_timeout``, while it starts and ends tasks; then it goes on."""
    for number in range(200):
        lab.tasks.late.delay(number, 0.03)
    worker = lab.worker("-P", pool, "-c", "2")
    lab.wait(lambda: len(lab.lines()) > 20)
    locker = lab.script(LOCK, lab.path)
    assert locker.stdout.readline() == "locked\n"
    assert lab.database.stats().completed_tasks < 200
    assert locker.wait(30) == 0
    lab.wait(lambda: lab.database.stats().completed_tasks == 200)
    assert sorted(map(int, lab.lines())) == list(range(200))
    assert worker.poll() is None
    assert lab.app.control.inspect(timeout=5, limit=1).ping() == {"w1@test": {"ok": "pong"}}


def move(path: str) -> None:
    """Move the file and what belongs to it away."""
    for suffix in ("", "-wal", "-shm"):
        os.rename(path + suffix, path + ".old" + suffix)


def delete(path: str) -> None:
    """Delete the file and what belongs to it."""
    for suffix in ("", "-wal", "-shm"):
        os.unlink(path + suffix)


def replace(path: str) -> None:
    """Put a new, complete queue in the file's place."""
    with QueueDatabase(path + ".new") as database:
        database.initialize_schema()
    for suffix in ("-wal", "-shm"):
        Path(path + suffix).unlink(missing_ok=True)
        Path(path + ".new" + suffix).unlink(missing_ok=True)
    os.replace(path + ".new", path)


@pytest.mark.parametrize(
    ("change", "pool"),
    [
        (move, "prefork"),
        (delete, "prefork"),
        (delete, "gevent"),
        (replace, "prefork"),
        (replace, "threads"),
        (replace, "solo"),
        (replace, "gevent"),
    ],
)
def test_a_worker_follows_a_replaced_file(
    lab: Any, change: Callable[[str], None], pool: str
) -> None:
    """It connects to the new one, and is not deaf there: tasks and remote control."""
    worker = lab.worker("-P", pool, "-c", "2")
    lab.tasks.note.delay("old")
    lab.wait(lambda: lab.lines() == ["old"])
    lab.wait(lambda: lab.database.stats().processing_tasks == 0)
    lab.database.close()
    change(lab.path)
    # from here on other processes look: this one may hold the old file open for another second
    assert lab.script("import app; app.note.delay('new')").wait(30) == 0
    lab.wait(lambda: "new" in lab.lines())
    assert "pong" in lab.run("inspect", "ping", "--timeout", "2")
    assert lab.script(COUNT, lab.path).communicate(timeout=30)[0] == "1\n"
    assert worker.poll() is None


def test_redelivery_is_said_where_celery_reads_it(lab: Any) -> None:
    """In the request's delivery info."""
    for number in range(40):
        lab.tasks.redelivered.delay(number)
    worker = lab.worker("-c", "1", "--prefetch-multiplier", "30")
    lab.wait(lambda: len(lab.lines()) > 1)
    kill(worker)
    lab.worker("-c", "1", name="w2")
    lab.wait(lambda: lab.database.stats().completed_tasks == 40)
    ends = Counter(line.split()[1] for line in lab.lines())
    assert ends["True"] > 0
    assert ends["False"] > 0


def test_a_loaded_file_loses_nothing_and_repeats_nothing(tmp_path: Path) -> None:
    """Four producers and four consumers; the long form is run by hand."""
    summary = run(15.0, str(tmp_path))
    assert summary.good, str(summary)
    assert summary.sent > 1000


def test_the_main_job_counts_every_file_once(tmp_path: Path) -> None:
    """As the README runs it, shortened; and again, with nothing left to do."""
    for script in (ROOT / "examples" / "stdlib_index").glob("*.py"):
        (tmp_path / script.name).write_bytes(script.read_bytes())
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "run.py", "--limit", "40"],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=110,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "40" in done.stdout
