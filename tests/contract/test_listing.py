"""Listings: the rows that match, newest first, without reading those that do not."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from kombu_sqlite import QueueDatabase, Task, listing

STATUSES = ("queued", "processing", "completed", "failed", "cancelled")


def fill(database: QueueDatabase, count: int, seed: int = 1) -> list[dict[str, Any]]:
    """Rows of three queues, two types and all states; some wait. Returned as they are stored."""
    random_ = random.Random(seed)  # noqa: S311 - chance, no secret
    future = datetime.now(timezone.utc) + timedelta(days=1)
    database.execute_many(
        "INSERT INTO task_queue (type, queue, status, payload, run_after_utc, finished_at_utc)"
        " VALUES (?, ?, ?, ?, ?, ?)",
        [
            (
                f"t{random_.randrange(2)}",
                f"q{random_.randrange(3)}",
                random_.choice(STATUSES),
                f'{{"format": "f{random_.randrange(2)}"}}',
                f"{future + timedelta(seconds=random_.randrange(9)):%Y-%m-%d %H:%M:%S}"
                if random_.random() < 0.3
                else "2020-01-01 00:00:00",
                "2020-01-01 00:00:00" if random_.random() < 0.5 else None,
            )
            for _ in range(count)
        ],
    )
    return [dict(row) for row in database.execute("SELECT * FROM task_queue ORDER BY id DESC")]


def pages(read: Callable[[int | None], list[Task]]) -> list[int]:
    """The ids of all pages, by the cursor."""
    found: list[int] = []
    while page := read(found[-1] if found else None):
        found += [task.id for task in page if task.id is not None]
    return found


FILTERS = [
    {name: value for name, value in (("status", status), ("type", type), ("queue", queue)) if value}
    for status in (None, *STATUSES)
    for type in (None, "t1", "none")
    for queue in (None, "q2", "none")
]


@pytest.mark.parametrize("filters", FILTERS, ids=lambda f: " ".join(f.values()) or "all")
def test_a_listing_is_what_filtering_all_rows_gives(
    database: QueueDatabase, filters: dict[str, str]
) -> None:
    """Each row once, whatever the size of a page; also among the rows of one format."""
    rows = fill(database, 60)
    for extra in ({}, {"format": "f1"}):
        wanted = {**filters, **extra}
        expected = [r["id"] for r in rows if all(r[key] == wanted[key] for key in wanted)]
        for limit in (1, 7, 1000):
            read = pages(
                lambda before, limit=limit, wanted=wanted: database.list(
                    before_id=before, limit=limit, **wanted
                )
            )
            assert read == expected


@pytest.mark.parametrize("few", [0, 1000])
@pytest.mark.parametrize(
    "filters", [{}, {"type": "t1"}, {"queue": "q2"}, {"queue": "none"}], ids=str
)
def test_what_waits_is_listed_by_its_time(
    database: QueueDatabase, filters: dict[str, str], few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next to fall due first; several may fall due at once. Few are read another way."""
    rows = [r for r in fill(database, 200) if r["status"] == "queued"]
    waiting = [
        r
        for r in sorted(rows, key=lambda r: (r["run_after_utc"], r["id"]))
        if r["run_after_utc"] > r["updated_at_utc"]
        and all(r[key] == filters[key] for key in filters)
    ]
    monkeypatch.setattr(listing, "_FEW", few)
    for limit in (1, 7, 1000):
        read = pages(
            lambda after, limit=limit: database.scheduled(after_id=after, limit=limit, **filters)
        )
        assert read == [r["id"] for r in waiting]
    assert database.scheduled(after_id=12345) == []


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_of_nothing_lists_nothing(database: QueueDatabase, limit: int) -> None:
    """Rather than everything."""
    fill(database, 5)
    assert database.list(limit=limit) == database.list(limit=limit, status="queued") == []
    assert database.scheduled(limit=limit) == []


READS: dict[str, Callable[[QueueDatabase], Any]] = {
    "newest": lambda db: db.list(limit=2),
    **{f"status {s}": lambda db, s=s: db.list(status=s, limit=2) for s in STATUSES},
    "queue": lambda db: db.list(queue="q1", before_id=40, limit=2),
    "type": lambda db: db.list(type="t1", limit=2),
    "all filters": lambda db: db.list(type="t1", queue="q1", status="failed", limit=2),
    "format": lambda db: db.list(format="f1", limit=2),
    "scheduled": lambda db: db.scheduled(queue="q1", limit=2),
    "scheduled later": lambda db: db.scheduled(limit=2, after_id=db.scheduled(limit=1)[0].id),
    "stats": lambda db: db.stats(),
    "stats of a queue": lambda db: db.stats(queue="q1"),
    "stats of a type": lambda db: db.stats(type="t1"),
    "statistics": lambda db: db.statistics(),
    "statistics of a queue and type": lambda db: db.statistics(queue="q1", type="t1"),
    "statistics of an hour": lambda db: db.statistics(window_s=3600),
    "workers": lambda db: db.worker_states(),
}


@pytest.mark.parametrize("name", READS)
def test_nothing_reads_the_whole_table(database: QueueDatabase, name: str) -> None:
    """By the plans of the statements it executes; a walk down the ids ends at the limit."""
    fill(database, 60)
    executed: list[tuple[str, Any]] = []
    connection = database.get_connection()
    connection.exec_trace = lambda _, sql, values: executed.append((sql, values)) or True
    try:
        READS[name](database)
    finally:
        connection.exec_trace = None
    plans = [
        row[3]
        for sql, values in executed
        if re.search(r"^(SELECT|WITH)", sql, re.M)
        for row in connection.execute("EXPLAIN QUERY PLAN " + sql, values)
    ]
    assert plans
    for line in plans:
        assert not re.match(r"SCAN (task_queue|t|n)\b(?! USING INDEX ix_task_format)", line), plans


def test_a_listing_sees_its_transactions_own_rows(database: QueueDatabase) -> None:
    """Inside one it reads on, and leaves it open; an error inside ends nothing else."""
    with database.transaction():
        first = database.enqueue("t")
        assert [task.id for task in database.list(type="t")] == [first.id]
        with pytest.raises(ValueError, match="positive"):
            database.statistics(window=0)
        database.enqueue("t")
    assert not database.get_connection().in_transaction
    with pytest.raises(ValueError, match="positive"):
        database.statistics(window=0)
    assert not database.get_connection().in_transaction
    assert database.stats(type="t").queued_tasks == 2
