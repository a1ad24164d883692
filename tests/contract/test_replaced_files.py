"""The file is deleted, moved or restored underneath: noticed, said, and life goes on in the new."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from kombu import Connection

from kombu_sqlite import LeaseLost, QueueDatabase, QueueReplacedError, location

Wait = Callable[..., Any]

SUFFIXES = ("", "-wal", "-shm")


def notice(database: QueueDatabase, wait_until: Wait, old: str = "old") -> None:
    """Use the database until it has left the file with a message of that name.

    It raises once, unless one of its threads noticed first.
    """

    def left() -> bool:
        try:
            return database.stats(type=old).total_tasks == 0
        except QueueReplacedError:
            return False

    wait_until(left, 5)


def delete_everything(path: str) -> None:
    """As ``rm queue.db*`` does."""
    for file in Path(path).parent.glob(Path(path).name + "*"):
        shutil.rmtree(file) if file.is_dir() else file.unlink()


@pytest.mark.parametrize("how", ["deleted", "moved", "everything deleted"])
def test_the_new_file_is_used_soon(queue_path: str, how: str, wait_until: Wait) -> None:
    """Within a second or so; what was claimed from the old one is nobody's here."""
    with QueueDatabase(queue_path) as database:
        database.enqueue("old")
        (stale,) = database.claim()
        if how == "everything deleted":
            delete_everything(queue_path)
        for suffix in SUFFIXES if how != "everything deleted" else ():
            if how == "deleted":
                os.unlink(queue_path + suffix)
            else:
                os.rename(queue_path + suffix, queue_path + ".moved" + suffix)
        notice(database, wait_until)
        assert database.stats().total_tasks == 0
        assert database.enqueue("new").id == 1
        with pytest.raises(LeaseLost):
            database.complete(stale)
        (delivery,) = database.claim()
        database.complete(delivery)
        assert database.stats().completed_tasks == 1
    if how == "moved":
        with QueueDatabase(queue_path + ".moved") as moved:
            assert moved.list()[0].type == "old"
            assert moved.execute("PRAGMA integrity_check")[0][0] == "ok"


def test_a_backup_put_in_its_place_is_used(queue_path: str, wait_until: Wait) -> None:
    """With the messages it had."""
    with QueueDatabase(queue_path) as database:
        database.enqueue("kept")
        database.execute("VACUUM INTO ?", (queue_path + ".backup",))
        database.enqueue("after the backup")
        os.unlink(queue_path + "-wal")
        os.unlink(queue_path + "-shm")
        os.replace(queue_path + ".backup", queue_path)
        notice(database, wait_until, "after the backup")
        assert [task.type for task in database.list()] == ["kept"]
        assert database.claim()[0].type == "kept"


def test_a_worker_is_not_taken_for_dead_in_the_new_file(queue_path: str, wait_until: Wait) -> None:
    """Though another store of its process still holds on to the old file's signs of life."""
    with (
        QueueDatabase(queue_path, visibility_timeout=60) as first,
        QueueDatabase(queue_path, visibility_timeout=59) as second,
    ):
        first.enqueue("old", queue="other")
        first.claim()
        second.claim()
        delete_everything(queue_path)
        notice(first, wait_until)
        first.enqueue("t")
        (held,) = first.claim()
        script = f"""
import sys, time
sys.path[:0] = {sys.path!r}
from kombu_sqlite.options import Options
from kombu_sqlite.store import Store
store = Store(Options({queue_path!r}))
store.session()
rows = store.database.handle().all("SELECT lock_byte FROM workers WHERE lock_byte IS NOT NULL")
print(len(rows), all(store._locks.is_alive(byte) for (byte,) in rows))
store.close()
"""
        command = [sys.executable, "-c", script]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        assert done.stdout.split() == ["2", "True"]
        notice(second, wait_until)
        second.claim("nothing")
        assert len(first.workers()) == 2
        first.complete(held)


def test_a_transaction_on_a_deleted_file_raises_before_it_begins(
    queue_path: str, wait_until: Wait
) -> None:
    """An INSERT into it would report success; nothing of it appears in the new file."""
    with QueueDatabase(queue_path) as database:
        database.enqueue("old")
        for suffix in SUFFIXES:
            os.unlink(queue_path + suffix)
        database._store.database.handle().check_at = 0.0  # its next look at the file is due

        def insert() -> None:
            with database.transaction() as connection:
                connection.execute("INSERT INTO task_queue (type, payload) VALUES ('t', '{}')")

        with pytest.raises(QueueReplacedError, match="connect again"):
            insert()
        insert()
        assert database.stats().total_tasks == 1


def test_a_thread_that_comes_late_does_not_bring_a_deleted_file_back(queue_path: str) -> None:
    """Its first connection would make an empty one."""
    with QueueDatabase(queue_path) as database:
        database.enqueue("old")
        for suffix in SUFFIXES:
            os.unlink(queue_path + suffix)
        with ThreadPoolExecutor(1) as pool:
            late = pool.submit(database.stats)
            with pytest.raises(QueueReplacedError):
                late.result()
        assert not os.path.exists(queue_path)
        assert database.stats().total_tasks == 0


def test_threads_that_come_and_go_are_no_replaced_file(
    queue_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last connection deletes the log; one opened at that moment makes another."""
    database = QueueDatabase(queue_path)
    inside, leave = threading.Event(), threading.Event()

    def publish_and_stay() -> None:
        database.enqueue("t")
        inside.set()
        leave.wait(10)

    thread = threading.Thread(target=publish_and_stay)
    thread.start()
    inside.wait(10)
    real = location.create_file

    def create_file(path: str, mode: int) -> None:
        leave.set()
        thread.join()  # with its connection, the only one so far
        Path(path + ".other").touch()  # takes the log's inode, lest it be used again
        real(path, mode)

    monkeypatch.setattr(location, "create_file", create_file)
    database.enqueue("t")
    monkeypatch.undo()
    database._store.database.handle().check_at = 0.0  # its next look at the file is due
    assert database.stats().queued_tasks == 2
    database.close()


def test_a_delivery_of_the_old_file_ends_nothing_in_the_new_one(
    queue_path: str, wait_until: Wait
) -> None:
    """Though the new file's first row has the same tag."""
    with QueueDatabase(queue_path) as database:
        database.enqueue("old")
        (stale,) = database.claim()
        for suffix in ("", "-wal", "-shm"):
            os.unlink(queue_path + suffix)
        notice(database, wait_until)
        database.enqueue("new")
        with QueueDatabase(queue_path, busy_timeout=4) as other:
            (fresh,) = other.claim()
            assert fresh.tag == stale.tag
            with pytest.raises(LeaseLost):
                database.complete(stale)
            other.complete(fresh)


def test_a_publish_right_after_the_file_was_replaced_raises(
    broker_url: str, queue_path: str
) -> None:
    """It would report success and reach nobody."""
    with Connection(broker_url) as connection:
        producer = connection.Producer()
        producer.publish("old", routing_key="q")
        for suffix in ("", "-wal", "-shm"):
            os.rename(queue_path + suffix, queue_path + ".old" + suffix)
        with pytest.raises(QueueReplacedError):
            producer.publish("lost", routing_key="q")
        producer.publish("new", routing_key="q", retry=True)
        assert connection.default_channel.basic_get("q").payload == "new"


def test_connecting_waits_for_a_locked_file(broker_url: str, queue_path: str) -> None:
    """Where it is still to be made: longer than ``busy_timeout``, as a starting worker does."""
    script = (
        "import apsw, sys\n"
        f"c = apsw.Connection({queue_path!r}); c.execute('BEGIN IMMEDIATE')\n"
        "print('locked', flush=True); sys.stdin.readline(); c.execute('ROLLBACK')\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    assert holder.stdout.readline() == "locked\n"
    tries: list[Exception] = []

    def failed(exc: Exception, interval: float) -> None:
        tries.append(exc)
        if len(tries) == 2:
            holder.communicate("go\n")

    with Connection(broker_url + "?busy_timeout=0.05") as connection:
        connection.ensure_connection(failed, interval_start=0, interval_step=0)
        assert connection.connected
    assert len(tries) == 2
