"""Clocks that step while processes work: every message still comes, once, and no lease is lost."""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from kombu_sqlite import QueueDatabase

Wait = Callable[..., Any]

#: A process whose clock is put an hour forward or back at each use.
PROCESS = """
import os, random, sys, time
sys.path[:0] = {search!r}
real = time.time
time.time = lambda: real() + random.choice([-3600, 0, 3600])
from kombu_sqlite import QueueDatabase

with QueueDatabase({path!r} + '?visibility_timeout=0.5') as db:
    {body}
"""
PRODUCE = "for n in range(150): db.enqueue('t', {'n': n})"
CONSUME = """
    while not os.path.exists(db.path + '.stop'):
        for delivery in db.claim(limit=3):
            time.sleep(0.002)
            if random.random() < 0.1: db.requeue(delivery)
            else: db.complete(delivery); print(delivery.tag.row_id, flush=True)
"""


class Clock:
    """The wall clock of this process; ``step_s`` is added to it."""

    def __init__(self) -> None:
        self.step_s = 0.0
        self._real = time.time

    def __call__(self) -> float:
        """Return what it shows."""
        return self._real() + self.step_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock that the test can step."""
    stepping = Clock()
    monkeypatch.setattr(time, "time", stepping)
    return stepping


def start(queue_path: str, body: str) -> subprocess.Popen[str]:
    """Start a process with a clock that jumps."""
    script = PROCESS.format(search=sys.path, path=f"sqlite:///{queue_path}", body=body.strip())
    return subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)


def test_processes_whose_clocks_jump_do_everything_once(queue_path: str, wait_until: Wait) -> None:
    """An hour, both ways, all the time, each for itself: order may suffer, nothing else."""
    with QueueDatabase(queue_path) as database:
        processes = [start(queue_path, body) for body in (PRODUCE, PRODUCE, CONSUME, CONSUME)]
        try:
            wait_until(lambda: database.stats().completed_tasks == 300, 30)
            Path(queue_path + ".stop").touch()
            printed = [process.communicate(timeout=20)[0].split() for process in processes]
        finally:
            for process in processes:
                process.kill()
                process.wait()
        assert [process.returncode for process in processes] == [0] * 4
        assert sorted(int(id) for ids in printed for id in ids) == list(range(1, 301))
        assert database.execute("SELECT sum(deaths) FROM task_queue")[0][0] == 0


@pytest.fixture
def judge(queue_path: str) -> Iterator[None]:
    """Another process, elected for upkeep, with a clock that goes right."""
    script = (
        f"import sys; sys.path[:0] = {sys.path!r}\nfrom kombu_sqlite import QueueDatabase\n"
        f"db = QueueDatabase({queue_path!r}); db.claim(); print('up', flush=True); input()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    yield
    process.kill()
    process.communicate()


@pytest.mark.usefixtures("judge")
def test_a_lease_outlives_steps(queue_path: str, clock: Clock) -> None:
    """Held for several visibility timeouts while the holder's clock steps, it can still end."""
    with QueueDatabase(queue_path, visibility_timeout=0.5) as database:
        database.enqueue("t")
        (delivery,) = database.claim()
        steps = itertools.cycle([-86400.0, 0.0, 86400.0])
        until = time.monotonic() + 2.5  # far beyond the timeout and the judge's last call
        while time.monotonic() < until:
            clock.step_s = next(steps)
            time.sleep(0.01)
        database.complete(delivery)
        assert database.get(delivery.tag.row_id).attempts == 1  # type: ignore[union-attr]


@pytest.mark.parametrize("step_s", [-3600.0, 3600.0])
def test_a_delayed_message_comes_when_the_clock_says_so(
    database: QueueDatabase, clock: Clock, wait_until: Wait, step_s: float
) -> None:
    """Whichever way it stepped since; the upkeep that sleeps until then hears of it."""
    assert database.claim() == []  # elected for upkeep from here on
    clock.step_s = -step_s
    due = datetime.fromtimestamp(time.time(), timezone.utc) + timedelta(seconds=1800)
    waiting = database.enqueue("t", run_after_utc=due).id
    assert database.claim() == []
    clock.step_s += 3600.0
    (delivery,) = wait_until(database.claim)
    assert delivery.tag.row_id == waiting
    clock.step_s -= 7200.0
    database.requeue(delivery)
    assert [again.tag.row_id for again in database.claim()] == [waiting]


#: A process whose clock is eight hours on once a file says so; it ends what it holds when told.
SLEEPER = """
import os, sys, time
sys.path[:0] = {search!r}
real = time.time
time.time = lambda: real() + 8 * 3600 * os.path.exists({path!r} + '.later')
from kombu_sqlite import QueueDatabase
db = QueueDatabase({path!r}, visibility_timeout={timeout})
held = db.claim({queue!r})
print(len(held), flush=True)
input()
for delivery in held: db.complete(delivery)
print('completed', flush=True)
"""


@pytest.fixture
def sleeper(queue_path: str) -> Iterator[Callable[[str, float], subprocess.Popen[str]]]:
    """Start such processes; all are killed at the end."""
    started: list[subprocess.Popen[str]] = []

    def begin(queue: str, timeout: float) -> subprocess.Popen[str]:
        script = SLEEPER.format(search=sys.path, path=queue_path, queue=queue, timeout=timeout)
        process = subprocess.Popen(
            [sys.executable, "-c", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == f"{int(queue == 'celery')}\n"
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(("everybody", "timeout_s", "asleep_s"), [(False, 6, 1), (True, 3, 3)])
def test_whoever_was_asleep_for_hours_keeps_what_it_holds(
    database: QueueDatabase,
    sleeper: Callable[[str, float], subprocess.Popen[str]],
    wait_until: Wait,
    everybody: bool,
    timeout_s: float,
    asleep_s: float,
) -> None:
    """One process for less than its visibility timeout, or the whole machine for longer.

    The clock says that it was eight hours, and the judge wakes first.
    """
    database.enqueue("t")
    judge = sleeper("nothing", timeout_s)
    holder = sleeper("celery", timeout_s)
    beat = database._store.board.upkeep_beat
    holder.send_signal(signal.SIGSTOP)
    last = beat()
    wait_until(lambda: beat() >= last + 3)  # it has looked, and will not find that the holder beat
    if everybody:
        judge.send_signal(signal.SIGSTOP)
    Path(database.path + ".later").touch()
    time.sleep(asleep_s)  # the sleep itself
    slept = beat()
    judge.send_signal(signal.SIGCONT)
    wait_until(lambda: beat() > slept)
    holder.send_signal(signal.SIGCONT)
    wait_until(lambda: beat() >= slept + 5)
    assert holder.communicate("go\n", timeout=10)[0] == "completed\n"
    (row,) = database.list()
    assert (row.status, row.attempts, row.deaths) == ("completed", 1, 0)
