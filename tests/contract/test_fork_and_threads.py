"""Many threads, forked children that consume themselves, and nothing left open behind them."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import apsw
import pytest

from kombu_sqlite import QueueDatabase
from kombu_sqlite.options import Options
from kombu_sqlite.store import Store

Wait = Callable[..., Any]


def in_child(work: Callable[[], bool]) -> bool:
    """Whether ``work`` returned true in a forked child; an exception there is shown."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = 0 if work() else 2
        except Exception:  # noqa: BLE001 - shown, and the child's exit code tells
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_thirty_threads_publish_and_nothing_is_lost(database: QueueDatabase) -> None:
    """Each with a connection of its own, all closed with their threads."""
    connections: list[apsw.Connection] = []
    start = threading.Barrier(30)

    def work(number: int) -> None:
        start.wait(30)
        for turn in range(10):
            database.enqueue(f"t{number}", {"turn": turn})
        connections.append(database.get_connection())

    threads = [threading.Thread(target=work, args=(number,)) for number in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert database.stats().queued_tasks == 300
    assert [database.stats(type=f"t{number}").queued_tasks for number in range(30)] == [10] * 30
    assert len(set(map(id, connections))) == 30
    for connection in connections:
        with pytest.raises(apsw.ConnectionClosedError):
            connection.execute("SELECT 1")


def test_threads_share_one_worker(database: QueueDatabase) -> None:
    """Ten claim and complete; each message once, under one row of ``workers``."""
    database.enqueue_many([{"type": "t"} for _ in range(200)])

    def work(_: int) -> list[int]:
        done = []
        while found := database.claim(limit=3):
            for delivery in found:
                database.complete(delivery)
                done.append(delivery.tag.row_id)
        return done

    with ThreadPoolExecutor(10) as pool:
        done = sorted(row for part in pool.map(work, range(10)) for row in part)
    assert done == list(range(1, 201))
    assert len(database.workers()) == 1


def test_opening_and_closing_leaks_no_descriptor(queue_path: str, wait_until: Wait) -> None:
    """Publishing, consuming, from a thread as well; two hundred times. Nor threads."""

    def cycle(turn: int) -> None:
        with QueueDatabase(queue_path) as database:
            database.enqueue("t")
            if turn % 10 == 0:
                database.complete(database.claim()[0])
                thread = threading.Thread(target=database.stats)
                thread.start()
                thread.join()

    def open_now() -> tuple[int, int]:
        gc.collect()
        return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))

    cycle(0)
    before = open_now()
    for turn in range(200):
        cycle(turn)
    wait_until(lambda: open_now() == before, 5)


def test_a_forked_child_is_a_worker_of_its_own(queue_path: str, wait_until: Wait) -> None:
    """What it held is queued again at its death; what the parent holds stays the parent's."""
    with QueueDatabase(queue_path) as database:
        database.enqueue_many([{"type": "a"}, {"type": "b"}, {"type": "c"}])
        (mine,) = database.claim()

        def work() -> bool:
            done, held = database.claim(limit=2)
            database.complete(done)
            owners = {task.locked_by for task in database.list() if task.id != done.tag.row_id}
            return len(owners) == 2 and held.type == "c"

        assert in_child(work)
        wait_until(lambda: database.get(3).status == "queued", 5)
        assert (database.get(2).status, database.get(3).deaths) == ("completed", 1)
        database.complete(mine)
        assert database.get(1).deaths == 0


def test_a_child_that_closes_gives_back_only_its_own(queue_path: str) -> None:
    """Though it inherited the parent's object."""
    with QueueDatabase(queue_path) as database:
        database.enqueue_many([{"type": "a"}, {"type": "b"}])
        (mine,) = database.claim()

        def work() -> bool:
            (theirs,) = database.claim()
            database.close()
            return theirs.type == "b"

        assert in_child(work)
        assert (database.get(1).status, database.get(2).status) == ("processing", "queued")
        assert database.get(2).attempts == 0
        database.complete(mine)


def test_a_grandchild_publishes_too(queue_path: str) -> None:
    """Forks nest."""
    with QueueDatabase(queue_path) as database:
        database.enqueue("parent")

        def work() -> bool:
            database.enqueue("child")
            return in_child(lambda: database.enqueue("grandchild").id == 3)

        assert in_child(work)
        assert {task.type for task in database.list()} == {"parent", "child", "grandchild"}


def test_a_child_outlives_its_parent(queue_path: str, wait_until: Wait) -> None:
    """Whose death ends the parent's leases and not the child's."""
    script = f"""
import os, sys, time
sys.path[:0] = {sys.path!r}
from kombu_sqlite import QueueDatabase
db = QueueDatabase({queue_path!r})
db.enqueue_many([{{'type': 'parents'}}, {{'type': 'childs'}}])
db.claim()
ready, ready_w = os.pipe()
if os.fork() == 0:
    held, = db.claim()
    os.write(ready_w, b'x')
    end = time.monotonic() + 30
    while not os.path.exists({queue_path + ".go"!r}) and time.monotonic() < end: time.sleep(0.01)
    db.complete(held)
    os._exit(0)
os.read(ready, 1)
os._exit(0)
"""
    with QueueDatabase(queue_path) as database:
        database.claim()
        subprocess.run([sys.executable, "-c", script], check=True)
        wait_until(lambda: database.list(type="parents", status="queued"), 5)
        (childs,) = database.list(type="childs")
        assert (childs.status, childs.deaths) == ("processing", 0)
        with open(queue_path + ".go", "w", encoding="ascii"):
            pass
        wait_until(lambda: database.get(childs.id).status == "completed", 5)


def test_a_store_per_set_of_options_shares_the_signs_of_life(queue_path: str) -> None:
    """Closing one store of a process does not make the other look dead."""
    with QueueDatabase(queue_path) as database:
        database.enqueue("t")
        (held,) = database.claim()
        for _ in range(5):
            other = Store(Options(queue_path, visibility_timeout=30))
            other.session()
            other.close()
        script = f"""
import sys
sys.path[:0] = {sys.path!r}
from kombu_sqlite.options import Options
from kombu_sqlite.store import Store
store = Store(Options({queue_path!r}))
store.session()
rows = store.database.handle().all("SELECT lock_byte FROM workers")
print(all(store._locks.is_alive(byte) for (byte,) in rows), len(rows))
store.close()
"""
        command = [sys.executable, "-c", script]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        assert done.stdout.split() == ["True", "2"]
        database.complete(held)


@pytest.mark.parametrize("end", ["pass", "sys.exit(0)", "os.kill(os.getpid(), 2)"])
def test_a_process_that_never_closes_leaves_at_once(queue_path: str, end: str) -> None:
    """Its threads are cut off wherever they stand; nothing waits for what they hold."""
    script = f"""
import os, signal, sys
sys.path[:0] = {sys.path!r}
from kombu_sqlite import QueueDatabase
signal.signal(2, lambda *_: sys.exit(0))
db = QueueDatabase({queue_path!r} + sys.argv[1])  # each is elected for its upkeep
db.enqueue_many([{{'type': 'a'}}, {{'type': 'b'}}])
db.claim()
{end}
"""

    def run(number: int) -> str:
        command = [sys.executable, "-c", script, str(number)]
        return subprocess.run(
            command, check=True, capture_output=True, text=True, timeout=40
        ).stderr

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(run, range(8))) == [""] * 8
    for number in range(8):
        with QueueDatabase(queue_path + str(number)) as database:
            assert database.stats().total_tasks == 2
            assert database.execute("PRAGMA integrity_check")[0][0] == "ok"
