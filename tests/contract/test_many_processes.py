"""Twenty processes on one file, and processes killed while they make or change its schema."""

from __future__ import annotations

import itertools
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import apsw
import pytest

from kombu_sqlite import QueueDatabase
from kombu_sqlite.schema import SCHEMA_VERSION

CROWD = 20
EACH = 30
BATCH = 50

#: All begin at once, on a file that is not there yet; each produces and consumes.
MEMBER = """
import os, sys, time
sys.path[:0] = {search!r}
from kombu_sqlite import QueueDatabase
path, number = {path!r}, sys.argv[1]
db = QueueDatabase(path, busy_timeout=60)
print('ready', flush=True)
sys.stdin.readline()
for n in range({each}):
    db.enqueue('t', {{'id': f'{{number}}-{{n}}'}})
    for delivery in db.claim(limit=2):
        db.complete(delivery)
        print(delivery.payload, flush=True)
while not os.path.exists(path + '.stop'):
    for delivery in db.claim(limit=5):
        db.complete(delivery)
        print(delivery.payload, flush=True)
    time.sleep(0.02)
db.close()
"""

#: Has the write lock almost all the time.
GREEDY = """
import os, sys
sys.path[:0] = {search!r}
from kombu_sqlite import QueueDatabase
db = QueueDatabase({path!r}, busy_timeout=60)
db.enqueue_many([{{'type': 'greedy'}}])
print('ready', flush=True)
while not os.path.exists({path!r} + '.stop'):
    db.enqueue_many([{{'type': 'greedy'}}] * {each})
db.close()
"""

OPEN = """
import sys, time
sys.path[:0] = {search!r}
from kombu_sqlite import QueueDatabase
print('opening', flush=True)
db = QueueDatabase({path!r}, busy_timeout=60)
db.enqueue('t')
print('published', flush=True)
time.sleep(60)
"""

#: An older queue, as another program has made it, with enough rows to take a while.
OLDER = """
CREATE TABLE task_queue (
    id INTEGER PRIMARY KEY AUTOINCREMENT, type TEXT NOT NULL,
    priority INTEGER NOT NULL DEFAULT 100, payload TEXT NOT NULL,
    compatibility TEXT NOT NULL DEFAULT '{}', status TEXT NOT NULL DEFAULT 'queued',
    attempts INTEGER NOT NULL DEFAULT 0, max_attempts INTEGER NOT NULL DEFAULT 5,
    run_after_utc DATETIME NOT NULL DEFAULT CURRENT_TIMESTAMP, lease_until_utc DATETIME,
    reserved_at_utc DATETIME, processing_started_utc DATETIME, finished_at_utc DATETIME,
    locked_by TEXT, error_message TEXT, idempotency_key TEXT UNIQUE,
    created_at_utc DATETIME NOT NULL DEFAULT CURRENT_TIMESTAMP,
    updated_at_utc DATETIME NOT NULL DEFAULT CURRENT_TIMESTAMP);
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 5000)
INSERT INTO task_queue (type, payload) SELECT 'old', '{"i": ' || i || '}' FROM n;
"""


def start(script: str, *arguments: str, **values: Any) -> subprocess.Popen[str]:
    """Start a process from one of the scripts above."""
    text = script.format(search=sys.path, **values)
    return subprocess.Popen(
        [sys.executable, "-c", text, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_twenty_processes_lose_and_repeat_nothing(queue_path: str, wait_until: Any) -> None:
    """All make the file, produce and consume at once; nobody hears that it is locked."""
    members = [start(MEMBER, str(n), path=queue_path, each=EACH) for n in range(CROWD)]
    try:
        for member in members:
            assert member.stdout is not None
            assert member.stdout.readline() == "ready\n"
        for member in members:
            assert member.stdin is not None
            member.stdin.write("go\n")
            member.stdin.flush()
        with QueueDatabase(queue_path, busy_timeout=60) as database:
            wait_until(lambda: database.stats().completed_tasks == CROWD * EACH, 60)
            Path(queue_path + ".stop").touch()
            lines = [member.communicate(timeout=60)[0].splitlines() for member in members]
            assert [member.returncode for member in members] == [0] * CROWD
            done = Counter(line for each in lines for line in each)
            assert done == {f'{{"id": "{m}-{n}"}}': 1 for m in range(CROWD) for n in range(EACH)}
            assert database.workers() == []
            assert database.execute("PRAGMA integrity_check")[0][0] == "ok"
    finally:
        for member in members:
            member.kill()
            member.communicate()


def test_who_writes_little_has_its_turn_among_who_write_always(queue_path: str) -> None:
    """Counted in what the others commit while it waits: some transactions, not hundreds."""
    writers = [start(GREEDY, path=queue_path, each=BATCH) for _ in range(4)]
    try:
        for writer in writers:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "ready\n"
        with QueueDatabase(queue_path, busy_timeout=60) as database:
            places = [database.enqueue("modest").id for _ in range(60)]
        waited = sorted((b - a) // BATCH for a, b in itertools.pairwise(places))
        assert 0 < waited[-1] < 100, waited
        assert waited[len(waited) // 2] < 10, waited
    finally:
        Path(queue_path + ".stop").touch()
        for writer in writers:
            writer.communicate(timeout=60)
    assert [writer.returncode for writer in writers] == [0] * 4


def kill_while_opening(path: str, seed: int) -> bool:
    """Kill two processes some random time into their opening; return whether one published."""
    chance = random.Random(seed)  # noqa: S311 - chance, no secret
    openers = [start(OPEN, path=path) for _ in range(2)]
    for opener in openers:
        assert opener.stdout is not None
        assert opener.stdout.readline() == "opening\n"
    time.sleep(chance.uniform(0.0, 0.05))
    for opener in openers:
        opener.kill()
    said = [opener.communicate()[0] for opener in openers]
    return "published\n" in said


@pytest.mark.parametrize("older", [False, True])
def test_a_kill_while_the_schema_is_made_leaves_a_file_that_opens(
    tmp_path: Path, older: bool
) -> None:
    """At any moment, of a new file or an older one: the next process completes it, rows kept."""
    for seed in range(5):
        path = str(tmp_path / f"{seed}.db")
        if older:
            with apsw.Connection(path) as connection:
                connection.execute(OLDER)
            connection.close()
        published = kill_while_opening(path, seed)
        with QueueDatabase(path) as database:
            assert database.stats(type="old").queued_tasks == (5000 if older else 0)
            assert database.stats(type="t").queued_tasks >= published
            assert database.execute("PRAGMA user_version")[0][0] == SCHEMA_VERSION
            assert database.execute("PRAGMA integrity_check")[0][0] == "ok"
            database.enqueue("t")
            assert len(database.claim(limit=1)) == 1
