"""Consumers that die, stop, fork and come back: shown with real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from kombu_sqlite import QueueBusyError, QueueDatabase, QueueDatabaseError
from kombu_sqlite.options import Options
from kombu_sqlite.store import Store

Wait = Callable[..., Any]

CONSUMER = """
import sys
sys.path[:0] = {path!r}
from kombu_sqlite import LeaseLost, QueueDatabase
from kombu_sqlite.options import Options
from kombu_sqlite.store import Store
db = QueueDatabase({url!r})
{body}
"""


class Child:
    """A Python process that has the queue open as ``db``; lines are read from it."""

    def __init__(self, url: str, body: str) -> None:
        script = CONSUMER.format(path=sys.path, url=url, body=body)
        self.process = subprocess.Popen(
            [sys.executable, "-c", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def line(self) -> str:
        """The next line it prints."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def tell(self, text: str) -> None:
        """Write a line to it."""
        assert self.process.stdin is not None
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()

    def end(self) -> None:
        """Kill it."""
        self.process.send_signal(signal.SIGCONT)
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def child(broker_url: str) -> Iterator[Callable[..., Child]]:
    """Start processes; all are killed at the end."""
    started: list[Child] = []

    def start(body: str, query: str = "") -> Child:
        started.append(Child(broker_url + query, body))
        return started[-1]

    yield start
    for process in started:
        process.end()


HOLD = "d = db.claim(limit={n}); print('held', len(d), flush=True); input()"


def keep_house(path: str) -> QueueDatabase:
    """A database whose process consumes, and so stands for the election."""
    database = QueueDatabase(path)
    database.claim("nothing here")
    return database


def test_no_message_goes_to_two_processes(
    queue_path: str, child: Callable[..., Child], wait_until: Wait
) -> None:
    """Four claim 400 in batches and singly."""
    with QueueDatabase(queue_path) as database:
        database.enqueue_many([{"type": "t"} for _ in range(400)])
        body = (
            "got = []\n"
            "while (found := db.claim(limit={n})):\n"
            "    for d in found: got.append(d.tag.row_id); db.complete(d)\n"
            "print(*got, flush=True)"
        )
        children = [child(body.format(n=n)) for n in (1, 3, 7, 20)]
        rows = [int(number) for process in children for number in process.line().split()]
        assert sorted(rows) == list(range(1, 401))
        assert database.stats().completed_tasks == 400


def test_a_killed_processes_messages_are_queued_again(
    queue_path: str, child: Callable[..., Child], wait_until: Wait
) -> None:
    """Soon, though its lease would last a minute; the death is counted."""
    with keep_house(queue_path) as database:
        database.enqueue_many([{"type": "t"}, {"type": "t"}])
        victim = child(HOLD.format(n=2))
        assert victim.line() == "held 2"
        victim.process.kill()
        wait_until(lambda: database.stats().queued_tasks == 2, 5)
        assert {(t.deaths, t.attempts) for t in database.list()} == {(1, 1)}
        (again,) = database.claim()
        assert (again.tag.row_id, again.redelivered) == (1, True)


def test_what_was_only_prefetched_counts_no_death(
    queue_path: str, child: Callable[..., Child], wait_until: Wait
) -> None:
    """Where the application reports starts by itself."""
    with keep_house(queue_path) as database:
        database.enqueue_many([{"type": "t"}, {"type": "t"}])
        body = (
            "store = Store(Options(db.path))\n"
            "ds = store.claim(store.claimant(started=False), ['celery'], 2)\n"
            "store.deliveries.start([(ds[0].tag, False)]); print('held', flush=True); input()"
        )
        victim = child(body)
        assert victim.line() == "held"
        victim.process.kill()
        wait_until(lambda: database.stats().queued_tasks == 2, 5)
        assert [(t.deaths, t.attempts) for t in database.list()] == [(0, 0), (1, 1)]


def test_deaths_are_bounded(queue_path: str, child: Callable[..., Child], wait_until: Wait) -> None:
    """At ``max_attempts`` the message fails, with the reason, and its result is owed."""
    with keep_house(queue_path) as database:
        database.enqueue("t", max_attempts=2)
        for _ in range(2):
            victim = child(HOLD.format(n=1))
            assert victim.line() == "held 1"
            victim.process.kill()
            wait_until(lambda: database.stats().processing_tasks == 0, 5)
        task = database.get(1)
        assert task.status == "failed"
        assert task.error_message == "delivery attempts exhausted: 2 of 2 executions died"
        assert database.execute("SELECT outcome_pending FROM task_queue")[0][0] == 1


def test_a_stopped_process_loses_its_messages_and_hears_of_it(
    queue_path: str, child: Callable[..., Child], wait_until: Wait
) -> None:
    """Past its visibility timeout, by the checker's own clock; only the newer tag can end it."""
    with keep_house(queue_path) as database:
        database.enqueue("t")
        body = (
            "d, = db.claim(); print('held', flush=True); input()\n"
            "try: db.complete(d); print('completed', flush=True)\n"
            "except LeaseLost: print('lost', flush=True)\n"
            "db.enqueue('more'); print(len(db.claim()), flush=True)"
        )
        stopped = child(body, "?visibility_timeout=0.8")
        assert stopped.line() == "held"
        stopped.process.send_signal(signal.SIGSTOP)
        wait_until(lambda: database.stats().queued_tasks == 1, 15)
        (delivery,) = database.claim()
        stopped.process.send_signal(signal.SIGCONT)
        stopped.tell("go")
        assert stopped.line() == "lost"
        assert stopped.line() == "1"  # it goes on, under a new name
        database.complete(delivery)


def test_a_busy_but_living_process_keeps_its_messages(
    queue_path: str, child: Callable[..., Child]
) -> None:
    """For many times its visibility timeout: a thread renews."""
    with keep_house(queue_path) as database:
        database.enqueue("t")
        body = (
            "import time\nd, = db.claim(); print('held', flush=True)\n"
            "end = time.monotonic() + 2.5\n"
            "while time.monotonic() < end: sum(range(1000))\n"
            "db.complete(d); print('completed', flush=True)"
        )
        busy = child(body, "?visibility_timeout=0.6")
        assert (busy.line(), busy.line()) == ("held", "completed")
        assert database.get(1).deaths == 0


def test_a_lock_held_for_long_is_nobodys_silence(
    queue_path: str, child: Callable[..., Child]
) -> None:
    """Nobody can renew while somebody else has the write lock."""
    with keep_house(queue_path) as database:
        database.enqueue("t")
        body = (
            "d, = db.claim(); print('held', flush=True); input()\n"
            "db.complete(d); print('ok', flush=True)"
        )
        holder = child(body, "?visibility_timeout=0.5")
        assert holder.line() == "held"
        with database.transaction():
            time.sleep(2.5)  # the lock itself
        holder.tell("go")
        assert holder.line() == "ok"


def test_a_process_stopped_inside_a_transaction_keeps_writers_out(
    queue_path: str, child: Callable[..., Child]
) -> None:
    """As the document says: they raise after ``busy_timeout``, until it goes on or dies."""
    with QueueDatabase(queue_path, busy_timeout=0.2) as database:
        database.enqueue("before")
        writer = child("with db.transaction(): print('in', flush=True); input()\nprint('out')")
        assert writer.line() == "in"
        writer.process.send_signal(signal.SIGSTOP)
        for write in (lambda: database.enqueue("t"), database.claim):
            with pytest.raises(QueueBusyError):
                write()
        assert database.stats().total_tasks == 1  # reading goes on
        writer.process.send_signal(signal.SIGCONT)
        writer.tell("")
        assert writer.line() == "out"
        database.enqueue("after")


def test_upkeep_goes_on_when_the_elected_process_dies_or_stops(
    queue_path: str, child: Callable[..., Child], wait_until: Wait
) -> None:
    """Another takes over: it promotes what falls due."""
    for how in (signal.SIGKILL, signal.SIGSTOP):
        elected = child("db.claim(); print('up', flush=True); input()", "?visibility_timeout=1")
        assert elected.line() == "up"
        other = child("db.claim(); print('up', flush=True); input()", "?visibility_timeout=1")
        assert other.line() == "up"
        elected.process.send_signal(how)
        with QueueDatabase(queue_path) as database:
            due = time.time() + 0.5
            stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(due))
            task = database.enqueue("t", queue="later", run_after_utc=stamp + ".900")
            wait_until(
                lambda id_=task.id: database.execute(
                    "SELECT run_after_utc <= updated_at_utc FROM task_queue WHERE id = ?", (id_,)
                )[0][0],
                15,
            )
        elected.end()
        other.end()


def test_rows_nobody_owns_are_queued_again_when_their_lease_is_over(
    queue_path: str, wait_until: Wait
) -> None:
    """From older files and programs that claim by themselves; not before."""
    with keep_house(queue_path) as database:
        for owner, lease in (
            ("ghost", "2020-01-01 00:00:00"),
            (None, None),
            ("ghost", "2999-01-01"),
        ):
            database.execute(
                "INSERT INTO task_queue (type, payload, status, locked_by, lease_until_utc) "
                "VALUES ('t', '{}', 'processing', ?, ?)",
                (owner, lease),
            )
        wait_until(lambda: database.stats().queued_tasks == 2, 15)
        assert database.get(3).status == "processing"


def test_a_fork_gives_the_child_locks_of_its_own(queue_path: str) -> None:
    """Though the parent has connections open; both go on."""
    with QueueDatabase(queue_path) as database:
        database.enqueue("t", {"who": "parent"})
        child = os.fork()
        if child == 0:
            try:
                database.enqueue("t", {"who": "child"})
                inode = os.stat(queue_path).st_ino
                with open("/proc/locks", encoding="ascii") as lines:
                    mine = [ln for ln in lines if f" {os.getpid()} " in ln and f":{inode} " in ln]
                os._exit(0 if mine else 3)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        database.enqueue("t", {"who": "parent again"})
        assert database.stats().queued_tasks == 3
        assert database.execute("PRAGMA integrity_check")[0][0] == "ok"


def test_a_fork_waits_for_other_threads_transactions(queue_path: str) -> None:
    """A lock held at that moment must not seem held for ever in the child."""
    with QueueDatabase(queue_path) as database:
        database.initialize_schema()
        inside, leave = threading.Event(), threading.Event()

        def hold() -> None:
            with database.transaction():
                inside.set()
                leave.wait(10)

        thread = threading.Thread(target=hold)
        thread.start()
        inside.wait(10)
        threading.Timer(0.2, leave.set).start()
        child = os.fork()
        if child == 0:
            try:
                database.enqueue("t")
                os._exit(0)
            finally:
                os._exit(1)
        thread.join()
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert database.stats().queued_tasks == 1


def test_a_fork_inside_a_transaction_makes_the_child_refuse(queue_path: str) -> None:
    """With what to do; the parent goes on."""
    with QueueDatabase(queue_path) as database:
        with database.transaction() as connection:
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    QueueDatabase(queue_path).stats()
                    code = 2
                    database.stats()
                except QueueDatabaseError as exc:
                    code = 0 if "forked inside" in str(exc) else 3
                finally:
                    os._exit(code)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            connection.execute("INSERT INTO task_queue (type, payload) VALUES ('t', '{}')")
        assert database.stats().queued_tasks == 1


def test_forks_and_publishing_threads_do_not_disturb_each_other(queue_path: str) -> None:
    """Every connection closes and opens again."""
    with QueueDatabase(queue_path) as database:
        stop = threading.Event()
        published: list[int] = []
        errors: list[Exception] = []

        def publish() -> None:
            while not stop.is_set():
                try:
                    database.enqueue("t")
                    published.append(1)
                except QueueDatabaseError as exc:
                    errors.append(exc)

        threads = [threading.Thread(target=publish) for _ in range(3)]
        for thread in threads:
            thread.start()
        for _ in range(15):
            child = os.fork()
            if child == 0:
                try:
                    database.enqueue("child")
                    os._exit(0)
                finally:
                    os._exit(1)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        stop.set()
        for thread in threads:
            thread.join()
        assert errors == []
        assert database.stats(type="t").queued_tasks == len(published)
        assert database.stats(type="child").queued_tasks == 15


def test_a_spawned_process_starts_afresh(queue_path: str) -> None:
    """Multiprocessing's other way."""
    import multiprocessing

    with QueueDatabase(queue_path) as database:
        database.enqueue("t")
        process = multiprocessing.get_context("spawn").Process(
            target=_enqueue, args=(queue_path, sys.path)
        )
        process.start()
        process.join(30)
        assert process.exitcode == 0
        assert database.stats().queued_tasks == 2


def _enqueue(path: str, search: list[str]) -> None:
    sys.path[:] = search
    with QueueDatabase(path) as database:
        database.enqueue("t")


def test_the_store_is_shared_by_equal_options(queue_path: str) -> None:
    """And closed by its last user."""
    from kombu_sqlite.store import open_store

    one, two = open_store(Options(queue_path)), open_store(Options(queue_path))
    assert one is two
    one.release()
    session = two.session()
    two.release()
    assert session._closed
    assert isinstance(Store(Options(queue_path)), Store)
