"""Owners that die or fall silent in the middle of things: nothing lost, nothing ended twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kombu_sqlite import QueueBusyError, QueueDatabase
from kombu_sqlite.leases import LeaseKeeper

Wait = Callable[..., Any]

CONSUMER = """
import os, sys, time
sys.path[:0] = {search!r}
from kombu_sqlite import LeaseLost, QueueDatabase
from kombu_sqlite.options import Options
from kombu_sqlite.store import Store
path, number = {path!r}, sys.argv[1]
db = QueueDatabase(path, visibility_timeout=float(sys.argv[2]))

def say(text):
    with open(path + '.said-' + number, 'a') as file: file.write(text + '\\n')

{body}
"""

#: Ends what it gets and says so only after the commit; stops when told.
WORK = """
while not os.path.exists(path + '.stop'):
    for delivery in db.claim(limit=3):
        time.sleep(0.002)  # the work
        try: db.complete(delivery)
        except LeaseLost: say('lost %d' % delivery.tag.row_id)
        else: say('done %d' % delivery.tag.row_id)
db.close()
say('closed')
"""


class Consumers:
    """Processes that consume one file, and what they said."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, body: str, visibility_timeout: float = 60) -> subprocess.Popen[bytes]:
        """Start one more."""
        script = CONSUMER.format(search=sys.path, path=self.path, body=body)
        arguments = [str(len(self.processes)), str(visibility_timeout)]
        self.processes.append(subprocess.Popen([sys.executable, "-c", script, *arguments]))
        return self.processes[-1]

    def said(self, word: str) -> list[int]:
        """The row ids that somebody said that of."""
        found = []
        for file in Path(self.path).parent.glob("*.said-*"):
            lines = [line.split() for line in file.read_text().splitlines()]
            found += [int(rest[0]) for first, *rest in lines if first == word and rest]
        return found

    def heard(self, word: str) -> bool:
        """Whether somebody said that."""
        files = Path(self.path).parent.glob("*.said-*")
        return any(word in file.read_text().split() for file in files)

    def stop(self) -> None:
        """Let all end in good order."""
        Path(self.path + ".stop").touch()
        for process in self.processes:
            process.wait(20)


@pytest.fixture
def consumers(queue_path: str) -> Iterator[Consumers]:
    """All of them are killed at the end."""
    started = Consumers(queue_path)
    yield started
    for process in started.processes:
        process.kill()
        process.wait()


def test_kills_in_the_middle_lose_nothing_and_repeat_nothing_acknowledged(
    queue_path: str, consumers: Consumers, wait_until: Wait
) -> None:
    """Twelve of them, at any line; what an ``end`` returned for is never delivered again."""
    with QueueDatabase(queue_path) as database:
        database.enqueue_many([{"type": "t", "max_attempts": 50} for _ in range(1500)])
        for _ in range(3):
            consumers.start(WORK)
        for turn in range(12):
            said = len(consumers.said("done"))
            wait_until(lambda said=said: len(consumers.said("done")) > said + 20)
            consumers.processes[turn].kill()
            consumers.start(WORK)
        wait_until(lambda: database.stats().completed_tasks == 1500, 30)
        consumers.stop()
        done = consumers.said("done")
        assert len(done) == len(set(done))
        assert consumers.said("lost") == []
        deaths = database.execute("SELECT sum(deaths), max(deaths) FROM task_queue")[0]
        assert deaths[0] <= 12 * 3
        assert database.execute("PRAGMA integrity_check")[0][0] == "ok"
        assert [worker for worker in database.workers() if worker.lock_byte is not None] == []


def test_stops_past_the_lease_end_nothing_twice(
    queue_path: str, consumers: Consumers, wait_until: Wait
) -> None:
    """Every message ends once, by whoever had its newest tag; the other hears of it."""
    with QueueDatabase(queue_path, busy_timeout=0.2) as database:

        def is_writable() -> bool:
            try:
                with database.transaction():
                    return True
            except QueueBusyError:
                return False

        def held_by(process: subprocess.Popen[bytes]) -> set[int]:
            rows = database.list(status="processing", limit=1000)
            return {row.id for row in rows if f":{process.pid}:" in str(row.locked_by)}

        for _ in range(3):
            consumers.start(WORK.replace("0.002", "0.05"), 0.3)
        for turn in range(4):
            database.enqueue_many([{"type": "t", "max_attempts": 50} for _ in range(60)])
            stopped = consumers.processes[turn % 3]
            while True:
                wait_until(lambda stopped=stopped: held_by(stopped))
                stopped.send_signal(signal.SIGSTOP)
                if is_writable() and held_by(stopped):
                    break  # it was stopped in the middle of them, and not of a transaction
                stopped.send_signal(signal.SIGCONT)
            wait_until(lambda stopped=stopped: not held_by(stopped), 40)
            lost = len(consumers.said("lost"))
            stopped.send_signal(signal.SIGCONT)
            wait_until(lambda lost=lost: len(consumers.said("lost")) > lost)
        wait_until(lambda: database.stats().completed_tasks == 240, 30)
        consumers.stop()
        assert sorted(consumers.said("done")) == list(range(1, 241))


def test_a_process_that_closes_gives_back_uncounted(
    queue_path: str, consumers: Consumers, wait_until: Wait
) -> None:
    """At once, and in the order it was; what it has ended stays ended."""
    with QueueDatabase(queue_path) as database:
        database.enqueue_many([{"type": name} for name in "abc"])
        consumers.start("db.complete(db.claim(limit=3)[1]); db.close(); say('closed')")
        wait_until(lambda: consumers.heard("closed"))
        found = database.execute("SELECT status, attempts, deaths FROM task_queue ORDER BY id")
        assert list(map(tuple, found)) == [
            ("queued", 0, 0),
            ("completed", 1, 0),
            ("queued", 0, 0),
        ]
        assert [delivery.type for delivery in database.claim(limit=3)] == ["a", "c"]


def test_only_what_had_begun_counts_towards_the_bound(
    queue_path: str, consumers: Consumers, wait_until: Wait
) -> None:
    """Of two messages that die with their worker again and again, only one is exhausted."""
    body = (
        "store = Store(Options(path))\n"
        "found = store.claim(store.claimant(started=False), ['celery'], 2)\n"
        "store.deliveries.start([(d.tag, False) for d in found if d.type == 'begun'])\n"
        "say('held'); time.sleep(60)"
    )
    with QueueDatabase(queue_path) as database:
        database.claim("nothing")  # stands for the election
        database.enqueue_many([{"type": t, "max_attempts": 2} for t in ("begun", "prefetched")])
        for turn in range(3):
            victim = consumers.start(body)
            file = Path(f"{queue_path}.said-{turn}")
            wait_until(file.exists)
            began = time.monotonic()
            victim.kill()
            wait_until(lambda: database.stats().processing_tasks == 0, 5)
            assert time.monotonic() - began < 5
        begun, prefetched = database.get(1), database.get(2)
        assert (begun.status, begun.deaths) == ("failed", 2)
        assert begun.error_message == "delivery attempts exhausted: 2 of 2 executions died"
        assert (prefetched.status, prefetched.deaths, prefetched.attempts) == ("queued", 0, 0)
        assert prefetched.delivery_no == 3


def test_a_worker_judged_dead_frees_its_place(
    queue_path: str, consumers: Consumers, wait_until: Wait
) -> None:
    """Its row says so; the next worker of the file takes over its byte of the side file."""
    with QueueDatabase(queue_path) as database:
        database.claim()
        database.enqueue("t")
        victim = consumers.start("db.claim(); say('held'); time.sleep(60)")
        wait_until(lambda: consumers.heard("held"))
        (byte,) = [w.lock_byte for w in database.workers() if w.pid == victim.pid]
        victim.kill()
        wait_until(lambda: database.stats().queued_tasks == 1, 5)
        states = dict(database.execute("SELECT pid, status FROM v_worker_status"))
        assert states == {victim.pid: "gone", os.getpid(): "active"}
        heir = consumers.start("db.claim(); say('heir'); time.sleep(60)")
        wait_until(lambda: consumers.heard("heir"))
        assert [w.lock_byte for w in database.workers() if w.pid == heir.pid] == [byte]


@pytest.mark.parametrize(
    ("early", "reason"), [(True, "worker lost: "), (False, "delivery attempts exhausted: ")]
)
def test_a_failure_that_comes_after_the_brokers_own_is_refused(
    queue_path: str, early: bool, reason: str
) -> None:
    """Whoever was only stopped owns nothing any more, though both say that the task has failed."""
    with QueueDatabase(queue_path) as database:
        database.enqueue("a", max_attempts=1)
        (delivery,) = database.claim()
        store = database._store
        assert store.deliveries.start([(delivery.tag, early)])
        worker = store.session().worker_id
        (row,) = (each for each in database.workers() if each.worker_id == worker)
        LeaseKeeper(store.database, store._locks).reclaim(worker, "was silent", row.beat)
        ended = database.get(1)
        assert (ended.status, ended.outcome_pending) == ("failed", 1)
        assert ended.error_message.startswith(reason)
        with store.deliveries.ending(delivery.tag, "failed", "mine") as mine:
            assert not mine
        assert database.get(1) == ended
