"""A disk that fails at chosen moments: aloud, nothing lost or doubled, and everything goes on."""

from __future__ import annotations

import itertools
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import apsw
import pytest
from kombu import Connection, Queue

from kombu_sqlite import QueueDatabase, QueueDatabaseError, QueueDiskError
from tests.acceptance.faults import Faults

Wait = Callable[..., Any]

#: What fails, and whether it fails on a connection that is yet to be opened.
WRITING = [
    ("write -wal IOERR_WRITE", "open"),
    ("write -wal FULL", "open"),
    ("write -wal READONLY", "open"),
    ("sync -wal IOERR_FSYNC", "open"),
    ("read -wal IOERR_READ", "open"),
    ("read -wal SHORT", "open"),
    ("read db IOERR_READ", "open"),
    ("read db SHORT", "open"),
    ("read db IOERR_READ", "closed"),
    ("read db SHORT", "closed"),
    ("sync -wal IOERR_FSYNC", "closed"),
    ("lock db IOERR_LOCK", "closed"),
    ("open db CANTOPEN", "closed"),
    ("open -wal CANTOPEN", "closed"),
]

#: What a commit does not need: it stands, and the log is moved into the file later.
CHECKPOINTING = ["write db IOERR_WRITE", "write db FULL", "sync db IOERR_FSYNC"]

every_fault = pytest.mark.parametrize(
    ("fault", "state"), WRITING, ids=[f"{fault}, {state}" for fault, state in WRITING]
)


@pytest.fixture
def faults() -> Iterator[Faults]:
    """A disk that fails when told to."""
    with Faults() as made:
        yield made


@pytest.fixture
def connection(faults: Faults, broker_url: str) -> Iterator[Connection]:
    """A connection on it, which syncs at each commit; six messages wait in ``q``."""
    with Connection(broker_url + "?synchronous=FULL") as made:
        for number in range(6):
            publish(made, number)
        yield made
        faults.end()


def publish(connection: Connection, body: Any) -> None:
    """Publish, without trying again."""
    connection.default_channel  # noqa: B018 - connects
    connection.Producer().publish(body, routing_key="q", declare=[Queue("q")], retry=False)


def prepare(connection: Connection, fault: str, state: str, wait_until: Wait) -> None:
    """Let the next statement read what it needs, from where it is to fail, or open the file."""
    database = connection.default_channel.store.database
    with database.reading() as handle:

        def move_log() -> bool:
            try:
                return bool(handle.connection.wal_checkpoint())
            except apsw.BusyError:
                return False  # upkeep is at it

        if fault.startswith("read db"):
            wait_until(move_log)
        handle.connection.release_memory()
    if state == "closed":
        database.close()


def assert_sound(path: str, total: int) -> None:
    """The file is whole, and its statistics are what is counted."""
    with QueueDatabase(path) as database:
        assert database.execute("PRAGMA integrity_check")[0][0] == "ok"
        assert database.execute("SELECT count(*) FROM task_queue")[0][0] == total
        counted = dict(database.execute("SELECT status, count(*) FROM task_queue GROUP BY status"))
        stats = database.stats()
        assert stats.total_tasks == total
        for status in ("queued", "processing", "completed", "failed", "cancelled"):
            assert getattr(stats, f"{status}_tasks") == counted.get(status, 0)


@every_fault
def test_a_publish_raises_and_leaves_nothing(
    faults: Faults,
    connection: Connection,
    queue_path: str,
    wait_until: Wait,
    fault: str,
    state: str,
) -> None:
    """With one sentence that says what to do; the next one, on the same connection, is there."""
    prepare(connection, fault, state, wait_until)
    faults.begin(fault)
    with pytest.raises(QueueDiskError, match="then try again") as caught:
        publish(connection, "x" * 9000)
    assert queue_path in str(caught.value)
    assert faults.met
    faults.end()
    publish(connection, "after")
    assert_sound(queue_path, 7)


@pytest.mark.parametrize("fault", CHECKPOINTING)
def test_a_commit_stands_where_only_its_checkpoint_fails(
    faults: Faults, broker_url: str, queue_path: str, fault: str
) -> None:
    """The message is in the log, whole, and is read from there."""
    with Connection(broker_url + "?wal_autocheckpoint=100") as connection:
        publish(connection, "first")
        faults.begin(fault)
        for number in range(40):
            publish(connection, str(number) * 9000)
        assert faults.met
        faults.end()
        publish(connection, "after")
        assert connection.default_channel.basic_get("q").payload == "first"
    assert_sound(queue_path, 42)


def test_a_publish_is_tried_again_by_kombu(
    faults: Faults, connection: Connection, queue_path: str
) -> None:
    """Where it is asked to: the first try fails, the second one is there, once."""
    faults.begin("write -wal IOERR_WRITE", times=1)
    connection.Producer().publish("again", routing_key="q", retry=True)
    assert faults.met == 1
    assert_sound(queue_path, 7)


@every_fault
def test_a_consumer_goes_on(
    faults: Faults,
    connection: Connection,
    queue_path: str,
    wait_until: Wait,
    fault: str,
    state: str,
) -> None:
    """Each message comes once; what was acknowledged meanwhile is written; it is not deaf."""
    bodies: list[Any] = []
    unacked: list[Any] = []

    def on_message(body: Any, message: Any) -> None:
        bodies.append(body)
        unacked.append(message)

    def drain() -> None:
        with suppress(TimeoutError, QueueDatabaseError):
            connection.drain_events(timeout=0.05)
        for message in unacked[1:]:
            unacked.remove(message)
            message.ack()

    consumer = connection.Consumer([Queue("q")], callbacks=[on_message])
    consumer.qos(prefetch_count=3)
    consumer.consume()
    while len(bodies) < 3:
        drain()
    prepare(connection, fault, state, wait_until)
    faults.begin(fault)
    unacked.pop().ack()
    wait_until(lambda: drain() or faults.met > 3)
    faults.end()
    publish(connection, "after")
    wait_until(lambda: drain() or "after" in bodies)
    assert bodies == [0, 1, 2, 3, 4, 5, "after"]
    unacked.pop().ack()
    connection.default_channel.store.settler.flush()
    assert_sound(queue_path, 7)
    with QueueDatabase(queue_path) as database:
        assert database.stats().completed_tasks == 7
        rows = database.execute("SELECT DISTINCT attempts, deaths FROM task_queue")
        assert [tuple(row) for row in rows] == [(1, 0)]


def test_a_failing_file_is_not_complained_of_without_end(
    faults: Faults,
    connection: Connection,
    queue_path: str,
    wait_until: Wait,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Nor does upkeep spin where something is written beside it all the time."""
    connection.Consumer([Queue("q")], callbacks=[print]).consume()
    prepare(connection, "read db IOERR_READ", "open", wait_until)
    faults.begin("read db IOERR_READ")
    connection.default_channel.store.database.close()  # upkeep opens it again, if it can
    wait_until(lambda: "Upkeep waits for the file" in caplog.text)
    met, writes = faults.met, itertools.count()
    with open(queue_path + "-other", "ab", buffering=0) as file:
        wait_until(lambda: file.write(b"x") and next(writes) > 80)
    assert faults.met - met < 40
    assert caplog.text.count("Upkeep waits for the file") == 1


def test_upkeep_goes_on(faults: Faults, queue_path: str, wait_until: Wait) -> None:
    """What fell due while nothing could be read or written is promoted."""
    with QueueDatabase(queue_path) as database:
        database.claim()
        database.execute(
            "INSERT INTO task_queue (type, payload, run_after_utc) "
            "VALUES ('t', '{}', strftime('%Y-%m-%d %H:%M:%f', 'now', '+0.2 seconds'))"
        )
        faults.begin("write -wal IOERR_WRITE", "read -wal IOERR_READ", "sync db IOERR_FSYNC")
        wait_until(lambda: faults.met > 2)
        faults.end()
        assert wait_until(database.claim)[0].type == "t"
    assert_sound(queue_path, 1)


def test_a_folder_that_comes_back_is_used_again(broker_url: str, queue_path: str) -> None:
    """A path that was good is tried again, where another could only be mended by its owner."""
    folder = Path(queue_path).parent
    with Connection(broker_url) as connection:
        publish(connection, "kept")
    away = folder.with_name("away")
    folder.rename(away)
    folder.write_text("in the way", encoding="ascii")
    with Connection(broker_url) as connection:
        with pytest.raises(connection.recoverable_connection_errors, match="was in use before"):
            connection.connect()
        folder.unlink()
        away.rename(folder)
        connection.connect()
        assert connection.default_channel.basic_get("q").payload == "kept"


PERMISSIONS = """
import logging, os, sys, tempfile
sys.path[:0] = {search!r}
import concurrent.futures.thread
from kombu import Connection
from kombu_sqlite import QueueDiskError
folder, lost, mode = sys.argv[1:]
logging.disable()
with tempfile.TemporaryDirectory() as warm, Connection(f'sqlite:///{{warm}}/queue.db') as once:
    once.Producer().publish('x', routing_key='q')  # imports what the other user may not read
    once.default_channel.basic_get('q').ack()
if os.getuid() == 0:  # who may do everything
    os.chown(folder, 65534, 65534)
    os.setresuid(65534, 65534, 65534)

def use(action):
    with Connection(f'sqlite:///{{folder}}/queue.db?busy_timeout=4') as connection:  # not first's
        connection.connect()
        if action == 'publish':
            return connection.Producer().publish('x', routing_key='q', retry=False)
        message = connection.default_channel.basic_get('q')
        message.ack()
        return message.payload

def refused(action):
    try: use(action)
    except QueueDiskError as exc: return 'try again' in str(exc)
    return False

first = Connection(f'sqlite:///{{folder}}/queue.db')
first.Producer().publish('first', routing_key='q')
first.default_channel.basic_get('q').requeue()
path = os.path.join(folder, lost)
before = os.stat(path).st_mode & 0o777
os.chmod(path, int(mode, 8))
print(refused('publish'))
first.Producer().publish('second', routing_key='q', retry=False)  # it has the file open
os.chmod(path, before)
use('publish')
print(use('get'), use('get'), use('get'))
first.release()
"""


@pytest.mark.parametrize(
    ("lost", "mode"), [("queue.db", "444"), ("queue.db-wal", "444"), (".", "555")]
)
def test_permissions_that_are_lost_and_given_back(lost: str, mode: str) -> None:
    """Whoever opens the file meanwhile hears of it, and may try again; nothing is lost."""
    script = PERMISSIONS.format(search=sys.path)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", script, folder, lost, mode]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["True", "first", "second", "x"]


def test_a_thread_may_come_while_the_last_one_leaves(
    faults: Faults, queue_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its file, half closed, is not taken for one that another library has open."""
    inside, published = threading.Event(), threading.Event()
    errors: list[Exception] = []
    database = QueueDatabase(queue_path)
    database.initialize_schema()
    database.close()

    def check(operation: str, file: str) -> None:
        if (operation, file) == ("sync", "db") and not inside.is_set():
            inside.set()
            published.wait(0.3)  # the checkpoint of the last connection takes a while

    def come() -> None:
        inside.wait(10)
        try:
            database.enqueue("second")
        except Exception as exc:  # noqa: BLE001 - looked at below
            errors.append(exc)
        published.set()

    comer = threading.Thread(target=come)
    comer.start()
    leaver = threading.Thread(target=database.enqueue, args=("first",))
    monkeypatch.setattr(faults, "check", check)
    leaver.start()
    leaver.join()
    comer.join()
    assert inside.is_set()
    assert errors == []
    assert database.stats().total_tasks == 2
    database.close()
