"""Process ids and host names that several processes share: nobody is taken for another.

An id comes again after a while, every container's first process has the id 1, and containers that
are started anew, or side by side, may have one host name.
"""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from kombu_sqlite import QueueDatabase

Wait = Callable[..., Any]

#: What a process in a namespace of its own does: prints who it is there, then serves its input.
CONTAINED = """
import os, sys
sys.path[:0] = {search!r}
from kombu_sqlite import QueueDatabase
db = QueueDatabase({path!r})
held = db.claim({queue!r}, limit={limit})
print(os.getpid(), len(held), flush=True)
for line in sys.stdin:
    for delivery in held: db.complete(delivery)
    print('completed', flush=True)
    held = []
"""

UNSHARE = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")


def may_unshare() -> bool:
    """Whether process namespaces can be made here."""
    try:
        return subprocess.run([*UNSHARE, "true"], capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


needs_namespaces = pytest.mark.skipif(
    not may_unshare(), reason="needs the right to make process namespaces (unshare --pid)"
)


@pytest.fixture
def keeper(database: QueueDatabase) -> QueueDatabase:
    """The database of a process that is elected for upkeep."""
    assert database.claim("nothing here") == []
    return database


class Container:
    """A process that is the first of its process namespace and claims at once."""

    def __init__(self, path: str, queue: str, limit: int) -> None:
        script = CONTAINED.format(search=sys.path, path=path, queue=queue, limit=limit)
        self.process = subprocess.Popen(
            [*UNSHARE, sys.executable, "-c", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid, self.held = map(int, self.line().split())

    def line(self) -> str:
        """The next line it prints."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def complete(self) -> str:
        """Let it end what it holds; return what it says."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.line()

    def kill(self) -> None:
        """Kill it by the kernel: ``unshare`` takes it along."""
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def contain(queue_path: str) -> Iterator[Callable[..., Container]]:
    """Start processes in namespaces of their own; all are killed at the end."""
    started: list[Container] = []

    def start(queue: str = "celery", limit: int = 10) -> Container:
        started.append(Container(queue_path, queue, limit))
        return started[-1]

    yield start
    for container in started:
        container.kill()


def insert_dead_worker(database: QueueDatabase, pid: int, byte: int) -> str:
    """Leave the row of a worker that has died, and a message that it held; return its name."""
    name = f"{socket.gethostname()}:{pid}:{secrets.token_hex(3)}"
    with database.transaction() as connection:
        connection.execute(
            "INSERT INTO workers (worker_id, capabilities, host, pid, lock_byte, "
            "visibility_timeout_s) VALUES (?, '{}', ?, ?, ?, 60)",
            (name, socket.gethostname(), pid, byte),
        )
        connection.execute(
            "INSERT INTO task_queue (type, payload, status, locked_by, attempts, delivery_no, "
            "lease_until_utc, processing_started_utc) VALUES ('orphan', '{}', 'processing', ?, 1, "
            "1, '2999-01-01 00:00:00', '2026-01-01 00:00:00')",
            (name,),
        )
    return name


def wait_for_checks(keeper: QueueDatabase, number: int, wait_until: Wait) -> None:
    """Wait until upkeep has found the owner of so many orphans dead, one after the other.

    Each is a check that has looked at every worker.
    """
    for turn in range(number):
        name = insert_dead_worker(keeper, 10**6 + turn, 7000 + turn)
        wait_until(
            lambda name=name: keeper.execute(
                "SELECT lock_byte IS NULL FROM workers WHERE worker_id = ?", (name,)
            )[0][0],
            5,
        )


def test_a_dead_workers_reused_pid_does_not_keep_it_alive(
    keeper: QueueDatabase, wait_until: Wait
) -> None:
    """Its messages are queued again within 2 s, though a process of that id is there."""
    other = subprocess.Popen(["sleep", "60"])
    try:
        for pid in (other.pid, os.getpid()):
            insert_dead_worker(keeper, pid, 5)
            wait_until(lambda: keeper.stats(type="orphan").processing_tasks == 0, 2)
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()
    assert [(t.status, t.deaths) for t in keeper.list(type="orphan")] == [("queued", 1)] * 2


@pytest.mark.parametrize("whose", ["nobody", "another"])
def test_a_living_worker_is_not_judged_by_its_pid(
    keeper: QueueDatabase, queue_path: str, wait_until: Wait, whose: str
) -> None:
    """Its row may name an id that is nobody's, or another's, for as long as its byte is held."""
    script = CONTAINED.format(search=sys.path, path=queue_path, queue="celery", limit=1)
    keeper.enqueue("kept")
    holder = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline().split() == [str(holder.pid), "1"]
        gone = subprocess.Popen(["true"])
        gone.wait()
        pid = gone.pid if whose == "nobody" else os.getpid()
        keeper.execute("UPDATE workers SET pid = ? WHERE pid = ?", (pid, holder.pid))
        wait_for_checks(keeper, 3, wait_until)
        kept = keeper.list(type="kept")
        assert [(task.status, task.deaths) for task in kept] == [("processing", 0)]
        assert holder.communicate("go\n", timeout=10)[0] == "completed\n"
    finally:
        holder.kill()
        holder.communicate()
    assert keeper.get(1).status == "completed"


@needs_namespaces
def test_a_container_started_anew_is_not_the_one_before(
    queue_path: str, contain: Callable[..., Container], wait_until: Wait
) -> None:
    """Same host, same id: it finds the other's messages, and ends its own under its own name."""
    with QueueDatabase(queue_path) as database:  # never consumes: the new one finds the old one
        database.enqueue_many([{"type": "t"}, {"type": "t"}])
        database.enqueue("t", queue="later")
        first = contain()
        assert (first.pid, first.held) == (1, 2)
        first.kill()
        second = contain("later")
        assert (second.pid, second.held) == (1, 1)
        wait_until(lambda: database.stats(queue="celery").queued_tasks == 2, 5)
        old, new = sorted(database.workers(), key=lambda worker: worker.lock_byte is not None)
        assert (old.host, old.pid) == (new.host, new.pid) == (socket.gethostname(), 1)
        assert old.worker_id != new.worker_id
        assert [task.locked_by for task in database.list(queue="later")] == [new.worker_id]
        assert second.complete() == "completed"
        found = database.execute("SELECT queue, status, deaths FROM task_queue ORDER BY id")
        assert list(map(tuple, found)) == [
            ("celery", "queued", 1),
            ("celery", "queued", 1),
            ("later", "completed", 0),
        ]


@needs_namespaces
def test_processes_of_several_namespaces_see_each_other_live_and_die(
    keeper: QueueDatabase, contain: Callable[..., Container], wait_until: Wait
) -> None:
    """Two that are both process 1 of one host, judged from a third namespace."""
    keeper.enqueue_many([{"type": name} for name in "ab"])
    one, other = contain(limit=1), contain(limit=1)
    assert (one.pid, one.held, other.pid, other.held) == (1, 1, 1, 1)
    wait_for_checks(keeper, 4, wait_until)
    assert {task.deaths for task in keeper.list(status="processing")} == {0}
    assert keeper.stats(type="a").processing_tasks == keeper.stats(type="b").processing_tasks == 1
    one.kill()
    wait_until(lambda: keeper.stats(type="a").queued_tasks == 1, 5)
    wait_for_checks(keeper, 2, wait_until)
    assert other.complete() == "completed"
    assert [(task.status, task.deaths) for task in keeper.list(type="b")] == [("completed", 0)]


@needs_namespaces
def test_upkeep_in_a_namespace_judges_those_outside_rightly(
    queue_path: str, contain: Callable[..., Container], wait_until: Wait
) -> None:
    """It cannot see their processes, only the bytes they hold."""
    with QueueDatabase(queue_path) as database:
        database.enqueue("mine")
        elected = contain("nothing here")
        assert elected.held == 0
        (mine,) = database.claim()
        wait_for_checks(database, 3, wait_until)
        database.complete(mine)
        assert database.get(1).deaths == 0
