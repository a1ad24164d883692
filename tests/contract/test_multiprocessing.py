"""Processes that a program with open connections starts, in each way that Python knows."""

from __future__ import annotations

import gc
import multiprocessing
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from kombu import Connection

from kombu_sqlite import QueueBusyError, QueueDatabase, QueueDatabaseError
from kombu_sqlite.sessions import LockFile

from .test_fork_and_threads import in_child

FORKS = 8

#: Run by the child: a module of its own, found by name, as spawn and forkserver need it.
CHILD = """
from kombu import Connection
from kombu_sqlite import QueueDatabase


def publish_and_consume(url, name):
    with Connection(url) as connection:
        queue = connection.SimpleQueue("kombu")
        for number in range(20):
            queue.put([name, number])
        for _ in range(20):
            message = queue.get(timeout=20)
            message.ack()
        queue.close()
    with QueueDatabase(url) as database:
        database.enqueue_many([{"type": name}] * 20)
        got = 0
        while got < 20:
            for delivery in database.claim("celery", limit=5):
                database.complete(delivery)
                got += 1
"""

OTHER_PROCESS = """
import sys
sys.path[:0] = {search!r}
from kombu_sqlite import QueueDatabase
with QueueDatabase({path!r}) as db: print(*sorted(task.type for task in db.list(limit=1000)))
"""

#: Forks inside a transaction; the child leaves it by an exception and ends as programs do.
FORK_INSIDE = """
import gc, os, sys
sys.path[:0] = {search!r}
from kombu_sqlite import QueueDatabase
db = QueueDatabase({path!r})
insert = "INSERT INTO task_queue (type, payload) VALUES (?, '{{}}')"
with db.transaction() as connection:
    connection.execute(insert, ("before",))
    cursor = connection.execute("SELECT * FROM task_queue UNION ALL SELECT * FROM task_queue")
    if os.fork() == 0:
        del cursor, connection
        gc.collect()
        sys.exit(0)
    assert os.wait()[1] == 0
    print("forked", flush=True)
    sys.stdin.readline()
    connection.execute(insert, ("after",))
db.enqueue("later")
print("done", flush=True)
"""


def types_seen_by_another_process(path: str) -> list[str]:
    """What a process that has inherited nothing reads."""
    command = [sys.executable, "-c", OTHER_PROCESS.format(search=sys.path, path=path)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_started_processes_publish_and_consume_beside_their_parent(
    queue_path: str,
    broker_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
) -> None:
    """Which consumes and holds a delivery meanwhile: that stays its own, all come once."""
    (tmp_path / "childs_work.py").write_text(CHILD, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    import childs_work  # type: ignore[import-not-found]

    context: Any = multiprocessing.get_context(method)
    with QueueDatabase(queue_path) as database, Connection(broker_url) as connection:
        inbox = connection.SimpleQueue("inbox")
        database.enqueue("parents", queue="parents")
        (mine,) = database.claim("parents")
        children = [
            context.Process(target=childs_work.publish_and_consume, args=(broker_url, name))
            for name in ("one", "two")
        ]
        try:
            for child in children:
                child.start()
            for number in range(20):
                database.enqueue("late", {"n": number}, queue="other")
            for child in children:
                child.join(40)
            assert [child.exitcode for child in children] == [0, 0]
        finally:
            for child in children:
                child.kill()
                child.join()
        database.complete(mine)
        inbox.put("still there")
        inbox.get(timeout=10).ack()
        inbox.close()
        connection.release()
        ended = database.execute(
            "SELECT queue, status, count(*), max(attempts), max(deaths) FROM task_queue "
            "GROUP BY queue, status ORDER BY queue"
        )
        assert list(map(tuple, ended)) == [
            ("celery", "completed", 40, 1, 0),
            ("inbox", "completed", 1, 1, 0),
            ("kombu", "completed", 40, 1, 0),
            ("other", "queued", 20, 0, 0),
            ("parents", "completed", 1, 1, 0),
        ]
        assert database.execute("PRAGMA integrity_check")[0][0] == "ok"
    sys.modules.pop("childs_work")


def test_collecting_what_was_inherited_takes_nothing_from_the_parent(queue_path: str) -> None:
    """Neither its locks, nor its log, nor its sign of life, though many threads had connections."""
    ready, leave = threading.Barrier(6), threading.Event()

    def keep_open(database: QueueDatabase) -> None:
        database.stats()
        ready.wait(10)
        leave.wait(20)

    database = QueueDatabase(queue_path)
    threads = [threading.Thread(target=keep_open, args=(database,)) for _ in range(5)]
    for thread in threads:
        thread.start()
    database.enqueue("first")
    (held,) = database.claim()
    ready.wait(10)

    def collect() -> bool:
        nonlocal database, threads
        del database, threads
        for _ in range(3):
            gc.collect()
        with QueueDatabase(queue_path) as own:
            own.enqueue("child")
        gc.collect()
        return True

    for _ in range(3):
        assert in_child(collect)
        database.enqueue("parent")
    log = os.stat(queue_path + "-wal").st_ino
    seen = ["child"] * 3 + ["first"] + ["parent"] * 3
    assert types_seen_by_another_process(queue_path) == seen
    assert os.stat(queue_path + "-wal").st_ino == log  # the other was not the last to close
    leave.set()
    for thread in threads:
        thread.join()
    database.complete(held)
    assert database.get(held.tag.row_id).deaths == 0  # type: ignore[union-attr]
    assert database.execute("PRAGMA integrity_check")[0][0] == "ok"
    database.close()


def test_a_child_that_ends_inside_its_parents_transaction_leaves_it_alone(queue_path: str) -> None:
    """The parent still has the write lock, and commits all it wrote."""
    script = FORK_INSIDE.format(search=sys.path, path=queue_path)
    with QueueDatabase(queue_path, busy_timeout=0.1) as database:
        database.initialize_schema()
        with subprocess.Popen(
            [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as parent:
            assert parent.stdout is not None
            assert parent.stdout.readline() == "forked\n"
            with pytest.raises(QueueBusyError):
                database.enqueue("meanwhile")
            assert parent.communicate("go\n", timeout=20)[0] == "done\n"
        assert sorted(task.type for task in database.list()) == ["after", "before", "later"]
        assert database.execute("PRAGMA integrity_check")[0][0] == "ok"


def test_a_fork_while_the_side_file_is_closed_leaves_the_child_locks(
    queue_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It opens the file for itself, and uses no number that by then may be another file's."""
    locks = LockFile(queue_path, 0o600)
    assert locks.try_hold(1)
    real_close, outcomes = os.close, []

    def hold_again() -> bool:
        locks.forget()
        return locks.try_hold(1)

    def fork_at_close(descriptor: int) -> None:
        monkeypatch.undo()
        real_close(descriptor)
        outcomes.append(in_child(hold_again))

    monkeypatch.setattr(os, "close", fork_at_close)
    locks.release(1)
    assert outcomes == [True]


def test_forks_at_random_moments_of_fifty_publishing_threads_lose_nothing(queue_path: str) -> None:
    """Each child publishes too, and collects what it inherited."""
    chance = random.Random(50)  # noqa: S311 - chance, no secret
    stop = threading.Event()
    published = [0] * 50
    errors: list[QueueDatabaseError] = []

    with QueueDatabase(queue_path, busy_timeout=30) as database:

        def publish(number: int) -> None:
            while not stop.is_set():
                try:
                    database.enqueue(f"thread{number}")
                except QueueDatabaseError as exc:
                    errors.append(exc)
                published[number] += 1

        def child_publishes() -> bool:
            database.enqueue("child")
            gc.collect()
            database.enqueue("child")
            return True

        threads = [threading.Thread(target=publish, args=(number,)) for number in range(50)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(FORKS):
                time.sleep(chance.uniform(0.0, 0.03))
                assert in_child(child_publishes)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert errors == []
        for number in range(50):
            assert database.stats(type=f"thread{number}").queued_tasks == published[number]
        assert database.stats(type="child").queued_tasks == 2 * FORKS
        assert database.execute("PRAGMA integrity_check")[0][0] == "ok"
