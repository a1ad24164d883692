"""Workers killed, stopped, cut off: every task is done, nobody stays deaf."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kombu_sqlite import QueueReplacedError
from tests.acceptance.soak import run

ROOT = Path(__file__).parents[2]


def kill(process: subprocess.Popen[str]) -> None:
    """Kill a worker and its pool, as a power switch would."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(10)


def test_a_killed_workers_tasks_are_done_by_the_next(lab: Any) -> None:
    """Half-way through; what was running may be done again, nothing else."""
    for number in range(300):
        lab.tasks.late.delay(number, 0.002)
    worker = lab.worker("-c", "2")
    lab.wait(lambda: len(lab.lines()) > 100)
    kill(worker)
    assert lab.database.stats().completed_tasks < 300
    lab.worker("-c", "2", name="w2")
    lab.wait(lambda: lab.database.stats().completed_tasks == 300)
    counts = Counter(lab.lines())
    assert set(counts) == set(map(str, range(300)))
    assert sum(counts.values()) <= 300 + 10


def test_six_kills_lose_nothing_and_exhaust_nobody(lab: Any) -> None:
    """Though the same tasks are prefetched again and again; recovery takes seconds."""
    for number in range(1500):
        lab.tasks.late.delay(number, 0.001)
    killed = 0
    worker = lab.worker("-c", "2", name="k0")
    for number in range(1, 7):
        done = len(lab.lines())
        lab.wait(lambda done=done: len(lab.lines()) > done + 30)
        kill(worker)
        killed += 1
        worker = lab.worker("-c", "2", name=f"k{number}")
    lab.wait(lambda: lab.database.stats().completed_tasks == 1500, 60)
    counts = Counter(lab.lines())
    assert set(counts) == set(map(str, range(1500)))
    assert sum(counts.values()) - 1500 <= killed * 30
    assert lab.database.stats().failed_tasks == 0


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
    lab.worker("-c", "1", name="w3")
    lab.wait(lambda: lab.database.stats().completed_tasks == 20)
    failed = lab.wait(lambda: lab.database.list(status="failed"))
    assert [t.type for t in failed] == ["app.deadly"]
    assert failed[0].error_message == "delivery attempts exhausted: 2 of 2 executions died"
    assert Counter(lab.lines())["deadly"] == 2


def test_a_stopped_worker_is_replaced_and_comes_back(make_lab: Callable[..., Any]) -> None:
    """Past its visibility timeout; afterwards it is fenced, and consumes and answers again."""
    lab = make_lab("?visibility_timeout=1.5")
    stopped = lab.worker("-c", "1", "--prefetch-multiplier", "8")
    for number in range(30):
        lab.tasks.late.delay(number, 0.05)
    lab.wait(lambda: len(lab.lines()) > 3)
    os.killpg(stopped.pid, signal.SIGSTOP)
    other = lab.worker("-c", "1", name="w2")
    lab.wait(lambda: set(lab.lines()) == set(map(str, range(30))))
    lab.stop(other)
    os.killpg(stopped.pid, signal.SIGCONT)
    lab.tasks.late.delay("after")
    lab.wait(lambda: "after" in lab.lines())
    lab.wait(lambda: lab.app.control.inspect(timeout=1).ping() == {"w1@test": {"ok": "pong"}})
    lab.wait(lambda: lab.database.stats().processing_tasks == 0)
    assert lab.database.stats().completed_tasks == 31


def test_a_worker_survives_a_locked_file(make_lab: Callable[..., Any]) -> None:
    """For longer than ``busy_timeout``, while it starts and ends tasks; then it goes on."""
    lab = make_lab("?busy_timeout=0.3")
    for number in range(200):
        lab.tasks.late.delay(number, 0.005)
    worker = lab.worker("-c", "2")
    lab.wait(lambda: len(lab.lines()) > 20)
    with lab.database.transaction():
        time.sleep(3)  # the lock itself
    lab.wait(lambda: lab.database.stats().completed_tasks == 200)
    assert sorted(map(int, lab.lines())) == list(range(200))
    assert worker.poll() is None


def test_a_worker_follows_a_replaced_file(lab: Any) -> None:
    """It connects to the new one, and is not deaf there: tasks and remote control."""
    worker = lab.worker("-c", "2")
    lab.tasks.note.delay("old")
    lab.wait(lambda: lab.lines() == ["old"])
    for suffix in ("", "-wal", "-shm"):
        os.rename(lab.path + suffix, lab.path + ".old" + suffix)
    lab.database.close()

    def answers() -> bool:
        try:
            with lab.app.connection_for_write() as connection:
                inspect = lab.app.control.inspect(timeout=1, connection=connection)
                return bool(inspect.ping() == {"w1@test": {"ok": "pong"}})
        except QueueReplacedError:
            return False  # as with any broker that went away: connect again

    lab.wait(lambda: os.path.exists(lab.path) and answers())
    lab.tasks.note.delay("new")
    lab.wait(lambda: "new" in lab.lines())
    assert lab.database.stats().total_tasks == 1
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
    assert any(line.endswith("False") for line in lab.lines())


def test_a_loaded_file_loses_nothing_and_repeats_nothing(tmp_path: Path) -> None:
    """Four producers and four consumers; the long form is run by hand."""
    summary = run(6.0, str(tmp_path))
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
