"""Statistics and listings of a million rows; prints what each costs, asserts what it says.

``pytest -m slow -s tests/contract/test_a_million_rows.py``
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from kombu_sqlite import QueueDatabase

#: 195,000 rows that have ended, 5,000 in process, 400,000 ready and 400,000 waiting, strewn over
#: the file, of 20 types in 5 queues.
FILL = """
WITH RECURSIVE number(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM number WHERE n < 999999),
kind AS (SELECT n, (n * 7919) % 1000 AS k, unixepoch() - 1000000 + n AS born FROM number)
INSERT INTO task_queue (
    type, queue, status, attempts, payload, headers, properties, task_id, locked_by,
    created_at_utc, run_after_utc, updated_at_utc, processing_started_utc, finished_at_utc)
SELECT 'app.task' || ((n * 31) % 20), 'q' || ((n * 17) % 5),
       CASE WHEN k < 175 THEN 'completed' WHEN k < 190 THEN 'failed' WHEN k < 195 THEN 'cancelled'
            WHEN k < 200 THEN 'processing' ELSE 'queued' END,
       CASE WHEN k < 20 THEN 2 WHEN k < 200 THEN 1 ELSE 0 END,
       '[[' || n || '], {}, {}]', printf('%500s', ''), printf('%100s', ''), 'id-' || n,
       CASE WHEN k BETWEEN 195 AND 199 THEN 'w' || (n % 10) END,
       datetime(born, 'unixepoch'), datetime(born + 1000000 * (k >= 600) * 2, 'unixepoch'),
       datetime(born, 'unixepoch'),
       CASE WHEN k < 200 THEN datetime(born + n % 100, 'unixepoch') END,
       CASE WHEN k < 195 THEN datetime(born + n % 100 + n % 7, 'unixepoch') END
FROM kind
"""

READS: dict[str, Callable[[QueueDatabase], Any]] = {
    "stats": lambda db: db.stats(),
    "stats of a queue": lambda db: db.stats(queue="q1"),
    "stats of a type": lambda db: db.stats(type="app.task3"),
    "statistics": lambda db: db.statistics(),
    "statistics of a queue": lambda db: db.statistics(queue="q1"),
    "statistics of a type": lambda db: db.statistics(type="app.task3"),
    "statistics of a day": lambda db: db.statistics(window_s=86400),
    "list": lambda db: db.list(),
    "list of a queue": lambda db: db.list(queue="q1"),
    "list of a type": lambda db: db.list(type="app.task3"),
    "list of an unknown type": lambda db: db.list(type="none"),
    "scheduled": lambda db: db.scheduled(),
    "scheduled of an unknown queue": lambda db: db.scheduled(queue="none"),
    **{
        f"list of {status}, second half": lambda db, status=status: db.list(
            status=status, before_id=500_000
        )
        for status in ("queued", "processing", "completed", "failed", "cancelled")
    },
}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_million_rows_are_counted_as_they_are(database: QueueDatabase) -> None:
    """With 400,000 ready and 400,000 waiting among them."""
    database.execute(FILL)
    sys.stdout.write("\nmilliseconds: the first call, the quickest of ten\n")
    for name, read in READS.items():
        spent = []
        for _ in range(10):
            begun = time.perf_counter()
            read(database)
            spent.append((time.perf_counter() - begun) * 1e3)
        sys.stdout.write(f"{name:34} {spent[0]:8.2f} {min(spent):8.2f}\n")
    found = database.statistics()
    assert found.total_tasks == 1_000_000
    assert (found.queued_tasks, found.processing_tasks) == (800_000, 5_000)
    assert found.window.ended == 10_000
    waiting = database.execute(
        "SELECT count(*) FROM task_queue WHERE run_after_utc > updated_at_utc"
    )
    assert waiting[0][0] == 400_000
    oldest = database.execute(
        "SELECT unixepoch() - min(unixepoch(created_at_utc)) FROM task_queue"
        " WHERE status = 'queued'"
    )
    assert found.oldest_queued_age_seconds == pytest.approx(oldest[0][0], abs=5)
