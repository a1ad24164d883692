"""A real file system that is full, down to its last block: nobody dies of it."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kombu_sqlite import QueueDatabase, QueueDiskError
from kombu_sqlite.options import Options
from kombu_sqlite.store import Store

PRELUDE = """
import logging, os, sys, time
sys.path[:0] = {search!r}
from kombu_sqlite import QueueDatabase, QueueDiskError
logging.disable()
path = {path!r}
filler = os.path.join(os.path.dirname(path), 'filler')

def fill():
    with open(filler, 'ab', buffering=0) as file:
        try:
            while True: file.write(b'x' * 512)
        except OSError: pass

def until(condition):
    end = time.monotonic() + 15
    while True:
        try:
            if found := condition(): return found
        except QueueDiskError: pass
        assert time.monotonic() < end, 'not so within 15 s'
        time.sleep(0.01)

db = QueueDatabase(path)
"""


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[str]:
    """A path on a file system of one megabyte."""
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)]
    if os.getuid() != 0 or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("mounting a file system is not permitted here")
    yield str(tmp_path / "queue.db")
    subprocess.run(["umount", str(tmp_path)], check=True)


def run(path: str, script: str) -> list[str]:
    """Run a script in a process of its own, return the words it prints."""
    text = PRELUDE.format(search=sys.path, path=path) + script
    done = subprocess.run([sys.executable, "-c", text], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr  # -7 would be a bus error
    return done.stdout.split()


def test_publishing_until_the_disk_is_full_keeps_what_was_published(tiny_disk: str) -> None:
    """The one that found no room is not there, not even in part; with room it goes on."""
    script = """
done = 0
try:
    while True: db.enqueue('t', {'x': 'y' * 3000}); done += 1
except QueueDiskError as exc: print('full' if 'make room' in str(exc) else exc)
print(done > 0, db.stats().queued_tasks == done, len(db.list(limit=1000)) == done)
"""
    assert run(tiny_disk, script) == ["full", "True", "True", "True"]
    subprocess.run(["mount", "-o", "remount,size=8m", os.path.dirname(tiny_disk)], check=True)
    with QueueDatabase(tiny_disk) as database:
        before = database.stats().queued_tasks
        database.enqueue("t")
        assert database.stats().queued_tasks == before + 1
        assert database.execute("PRAGMA integrity_check")[0][0] == "ok"


def test_a_consumer_that_starts_on_a_full_disk_lives(tiny_disk: str) -> None:
    """Its side files find no room: an error, not a signal; it consumes once there is room."""
    script = """
db.enqueue('t')
fill()
try: db.claim()
except QueueDiskError: pass
time.sleep(0.7)  # it has stood for the election meanwhile
store = db._store
for bell in (store.board.beat_upkeep, store.board.flags):
    try: bell(); print('mapped')
    except QueueDiskError: print('refused')
print(db.stats().total_tasks)
os.unlink(filler)
until(lambda: db.claim() or db.stats().processing_tasks)
db.enqueue('t')
print(until(db.claim)[0].type)
"""
    assert run(tiny_disk, script) == ["refused", "refused", "1", "t"]


def test_a_publish_that_cannot_ring_has_still_published(
    queue_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sleeping consumer's flag cannot be looked at; the message is in the file, once."""

    def no_room(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    consumer = Store(Options(queue_path, visibility_timeout=30))
    bell = consumer.new_bell()
    consumer.add_consumer(bell, "celery")
    bell.sleep()
    with QueueDatabase(queue_path) as database:
        monkeypatch.setattr(os, "posix_fallocate", no_room)
        assert database.enqueue("t").id == 1
        with pytest.raises(QueueDiskError):
            database._store.board.flags()
        monkeypatch.undo()
        assert database.stats().queued_tasks == 1
    consumer.close_bell(bell)
    consumer.close()


def test_a_bell_that_finds_no_room_raises_and_is_made_later(
    queue_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an error that Kombu connects again for, so that a worker outlasts it."""

    def no_room(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    consumer = Store(Options(queue_path))
    consumer.session()
    monkeypatch.setattr(os, "mkfifo", no_room)
    with pytest.raises(QueueDiskError, match="No space left"):
        consumer.new_bell()
    monkeypatch.undo()
    consumer.close_bell(consumer.new_bell())
    consumer.close()
