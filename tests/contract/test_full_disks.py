"""A disk that fills up and is cleared again: aloud, nothing lost, and everything goes on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kombu_sqlite import QueueDatabase

#: A process whose files cannot grow while the disk is "full"; what exists can be overwritten.
PRELUDE = """
import logging, os, resource, signal, sys, time
import apsw
sys.path[:0] = {search!r}
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from kombu import Connection
from kombu_sqlite import QueueDatabase, QueueDiskError
logging.disable()
path = {path!r}

def disk(full, at_all=False):
    size = resource.RLIM_INFINITY
    if full:  # at all: a log that was begun anew cannot be overwritten either
        size = 0 if at_all else os.path.getsize(path + '-wal')
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

def until(condition):
    end = time.monotonic() + 15
    while not (found := condition()):
        assert time.monotonic() < end, 'not so within 15 s'
        time.sleep(0.01)
    return found

def refused(action):
    try: action()
    except QueueDiskError as exc: return 'then try again' in str(exc)
    return False

db = QueueDatabase(path)
"""


def run(path: str, script: str) -> list[str]:
    """Run a script in a process of its own, return the words it prints."""
    text = PRELUDE.format(search=sys.path, path=path) + script
    done = subprocess.run([sys.executable, "-c", text], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def assert_sound(path: str) -> None:
    """The file is whole."""
    with QueueDatabase(path) as database:
        assert database.execute("PRAGMA integrity_check")[0][0] == "ok"


@pytest.mark.parametrize(
    "write",
    [
        "db.complete(held)",
        "db.fail(held, 'x' * 9000)",
        "db.requeue(held)",
        "db.cancel(2)",
        "db.claim()",
        "db.enqueue('t')",
        "db.enqueue_many([{'type': 't'}] * 3)",
    ],
)
def test_a_write_that_finds_no_room_raises_and_works_later(queue_path: str, write: str) -> None:
    """Nothing of it is in the file meanwhile; whoever holds a message still does."""
    script = f"""
db.enqueue_many([{{'type': 'a', 'priority': 1}}] + [{{'type': 't'}}] * 3)
held, = db.claim()
def snapshot():
    return [tuple(row) for row in db.execute('SELECT id, status, delivery_no FROM task_queue')]
before = snapshot()
disk(full=True, at_all=True)
print(refused(lambda: {write}), snapshot() == before)
disk(full=False)
{write}
print(snapshot() != before)
"""
    assert run(queue_path, script) == ["True", "True", "True"]
    assert_sound(queue_path)


def test_upkeep_goes_on_after_a_full_disk(queue_path: str) -> None:
    """What fell due meanwhile is promoted, and what expired is cancelled."""
    script = """
db.claim()
soon = "strftime('%Y-%m-%d %H:%M:%f', 'now', '+0.3 seconds')"
db.execute("INSERT INTO task_queue (type, payload, run_after_utc) VALUES ('t', '{}', %s)" % soon)
db.execute("INSERT INTO task_queue (type, payload, queue, expires_at_utc) "
           "VALUES ('old', '{}', 'q', %s)" % soon)
disk(full=True)
time.sleep(1)  # it is full for that long
cpu = time.process_time()
time.sleep(1)
print(time.process_time() - cpu < 0.5)
disk(full=False)
print(until(db.claim)[0].type)
print(until(lambda: db.stats(queue='q').cancelled_tasks))
"""
    assert run(queue_path, script) == ["True", "t", "1"]


def test_acknowledgements_wait_until_there_is_room(queue_path: str) -> None:
    """They are never dropped, and the consumer hears of no error."""
    script = """
connection = Connection('sqlite:///' + path)
producer = connection.Producer()
for n in range(3): producer.publish(n, routing_key='q')
reader = apsw.Connection(path)  # keeps the log from beginning anew, where it has room
reader.execute('BEGIN; SELECT count(*) FROM task_queue').fetchall()
channel = connection.default_channel
first, second = channel.basic_get('q'), channel.basic_get('q')
disk(full=True)
first.ack()
time.sleep(0.3)  # the flusher has tried
print(db.stats().completed_tasks)
print(refused(lambda: producer.publish('lost?', routing_key='q', retry=False)))
disk(full=False)
reader.close()
until(lambda: db.stats().completed_tasks == 1)
second.ack()
until(lambda: db.stats().completed_tasks == 2)
print(channel.basic_get('q').payload)
connection.release()
"""
    assert run(queue_path, script) == ["0", "True", "2"]
    assert_sound(queue_path)


def test_a_new_file_without_room_can_be_opened_later(tmp_path: Path) -> None:
    """A schema half made is no schema."""
    path = str(tmp_path / "new.db")
    script = """
resource.setrlimit(resource.RLIMIT_FSIZE, (8192, resource.RLIM_INFINITY))
print(refused(db.initialize_schema))
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(db.enqueue('t').id)
"""
    assert run(path, script) == ["True", "1"]
    assert_sound(path)
