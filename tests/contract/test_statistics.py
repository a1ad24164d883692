"""Statistics: what a plain computation over all rows gives, at any moment."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
from collections import Counter
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from kombu_sqlite import Percentiles, QueueDatabase, Statistics, WindowStatistics

STATUSES = ("queued", "processing", "completed", "failed", "cancelled")
ENDED = ("completed", "failed", "cancelled")
COLUMNS = (
    "queue",
    "type",
    "status",
    "attempts",
    "created_at_utc",
    "run_after_utc",
    "updated_at_utc",
    "processing_started_utc",
    "finished_at_utc",
)
INSERT = (
    f"INSERT INTO task_queue (payload, {', '.join(COLUMNS)})"
    f" VALUES ('{{}}', {', '.join(f':{name}' for name in COLUMNS)})"
)
NOW = datetime.now(timezone.utc)


@pytest.fixture(autouse=True)
def _begin_now(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ages count from the beginning of the test."""
    monkeypatch.setitem(globals(), "NOW", datetime.now(timezone.utc).replace(microsecond=0))


def text(age_s: float, random_: random.Random | None = None) -> str:
    """A time that is ``age_s`` ago, as we or as another program would write it."""
    moment = f"{NOW - timedelta(seconds=age_s):%Y-%m-%d %H:%M:%S.%f}"
    return moment[:19] if random_ and random_.random() < 0.2 else moment[:23]


def row(age_s: float = 10.0, **values: Any) -> dict[str, Any]:
    """A row; queued unless told otherwise."""
    return {
        **dict.fromkeys(COLUMNS),
        "queue": "celery",
        "type": "t",
        "status": "queued",
        "attempts": 0,
        "created_at_utc": text(age_s),
        "run_after_utc": text(age_s),
        "updated_at_utc": text(age_s),
        **values,
    }


def random_rows(random_: random.Random, count: int) -> list[dict[str, Any]]:
    """Rows in the order of their creation, each in some state of a life."""
    found = []
    for number in range(count):
        age_s = (count - number) * 10.0 + random_.random()
        status = random_.choice(STATUSES)
        due_s = age_s - random_.choice([0, 0, random_.random() * 5])
        begun_s = due_s - random_.random() * 2
        ended = status in ENDED
        begun = status == "processing" or (ended and random_.random() < 0.9)
        waits = status == "queued" and random_.random() < 0.5
        found.append(
            row(
                queue=random_.choice(["a", "b", "c"]),
                type=random_.choice(["t.one", "t.two"]),
                status=status,
                attempts=random_.choice([0, 1, 1, 2, 3]),
                created_at_utc=text(age_s, random_),
                run_after_utc=text(-9999 - random_.random() if waits else due_s, random_),
                updated_at_utc=text(age_s - 9, random_),
                processing_started_utc=text(begun_s, random_) if begun else None,
                finished_at_utc=text(begun_s - random_.random(), random_) if ended else None,
            )
        )
    return found


def seconds(moment: str) -> float:
    """The instant of a time in the file."""
    return datetime.fromisoformat(moment + "+00:00").timestamp()


def percentiles(durations: list[float]) -> Percentiles:
    """By the definition: the smallest that so many of a hundred do not exceed."""
    ordered = sorted(durations)
    if not ordered:
        return Percentiles()
    found = [
        next(d for i, d in enumerate(ordered, 1) if i * 100 >= percent * len(ordered))
        for percent in (50, 95, 99)
    ]
    return Percentiles(*(round(max(0.0, d), 3) for d in found))


def check(
    found: Statistics, rows: list[dict[str, Any]], queue: str | None, type: str | None
) -> None:
    """Compare with all rows, computed one by one."""
    chosen = [r for r in rows if queue in (None, r["queue"]) and type in (None, r["type"])]
    counts = Counter(r["status"] for r in chosen)
    assert found.total_tasks == len(chosen)
    assert [getattr(found, f"{s}_tasks") for s in STATUSES] == [counts[s] for s in STATUSES]
    for depths, name in ((found.depth_by_queue, "queue"), (found.depth_by_type, "type")):
        assert depths == {
            key: {s: sum(r["status"] == s and r[name] == key for r in chosen) for s in STATUSES}
            for key in {r[name] for r in chosen}
        }
    created = [seconds(r["created_at_utc"]) for r in chosen if r["status"] == "queued"]
    age_s = found.oldest_queued_age_seconds
    if created:
        assert age_s == pytest.approx(datetime.now(timezone.utc).timestamp() - min(created), abs=5)
    else:
        assert age_s is None
    ended = [r for r in chosen if r["status"] in ENDED]
    ran = [r for r in ended if r["processing_started_utc"]]
    window = found.window
    assert window.ended == len(ended)
    assert window.throughput == pytest.approx(len(ended) / window.seconds if ended else 0.0)
    full = sum(r["status"] != "cancelled" for r in ended)
    assert window.success_rate == (counts["completed"] / full if full else None)
    retried = sum(r["attempts"] > 1 for r in ended)
    assert window.retry_rate == (retried / len(ended) if ended else None)
    assert window.wait_seconds == percentiles(
        [
            seconds(r["processing_started_utc"])
            - max(seconds(r["created_at_utc"]), seconds(r["run_after_utc"]))
            for r in ran
        ]
    )
    assert window.run_seconds == percentiles(
        [seconds(r["finished_at_utc"]) - seconds(r["processing_started_utc"]) for r in ran]
    )


@pytest.mark.parametrize("seed", range(5))
def test_statistics_are_those_of_a_plain_computation(database: QueueDatabase, seed: int) -> None:
    """Of all, of each queue, of each type, of both, and of what does not exist."""
    random_ = random.Random(seed)  # noqa: S311 - chance, no secret
    rows = random_rows(random_, 300)
    database.execute_many(INSERT, rows)
    for queue in (None, "a", "b", "none"):
        for type in (None, "t.one", "t.two", "none"):
            found = database.statistics(queue=queue, type=type)
            assert (found.queue, found.type) == (queue, type)
            check(found, rows, queue, type)
            plain = database.stats(queue=queue, type=type).to_dict()
            age_s = plain.pop("oldest_queued_age_seconds")
            assert age_s == pytest.approx(found.oldest_queued_age_seconds, abs=5)
            assert {name: getattr(found, name) for name in plain} == plain


def test_an_empty_file_has_nothing_to_measure(database: QueueDatabase) -> None:
    """Zeros where something is counted, None where nothing can be known."""
    assert database.statistics() == Statistics()
    assert database.statistics(window_s=60).window == WindowStatistics(seconds=60)


def test_a_window_of_rows_takes_the_last_that_ended(database: QueueDatabase) -> None:
    """By the time of their end, not by their age; its length reaches back to the first of them."""
    ends = (50, 10, 40, 20, 30)
    database.execute_many(
        INSERT,
        [
            row(100, status=status, processing_started_utc=text(60), finished_at_utc=text(end_s))
            for end_s, status in zip(ends, ("failed", "completed", "failed") * 2, strict=False)
        ],
    )
    window = database.statistics(window=3).window
    assert window.ended == 3
    assert window.run_seconds == Percentiles(40.0, 50.0, 50.0)
    assert window.success_rate == pytest.approx(2 / 3)
    elapsed = datetime.now(timezone.utc) - NOW
    assert window.seconds == pytest.approx(30 + elapsed.total_seconds(), abs=5)


def test_a_window_of_seconds_takes_what_ended_within(database: QueueDatabase) -> None:
    """Throughput is over the stated time, though it was quiet in most of it."""
    database.execute_many(
        INSERT,
        [row(9999, status="completed", finished_at_utc=text(age)) for age in (5000, 900, 800)],
    )
    window = database.statistics(window_s=3600).window
    assert (window.ended, window.seconds) == (2, 3600)
    assert window.throughput == pytest.approx(2 / 3600)
    assert window.wait_seconds == Percentiles()
    narrow = database.statistics(window_s=3600, window=1).window
    assert narrow.ended == 1
    assert narrow.seconds == pytest.approx(800, abs=60)
    assert database.statistics(window_s=math.inf).window.ended == 3


def test_a_filter_looks_within_the_window(database: QueueDatabase) -> None:
    """The last rows that ended are chosen first, then those of the queue among them."""
    ends = [("a", 50), ("a", 40), ("b", 30), ("b", 20)]
    database.execute_many(
        INSERT,
        [row(99, status="failed", queue=queue, finished_at_utc=text(age)) for queue, age in ends],
    )
    assert database.statistics(queue="a", window=3).window.ended == 1
    assert database.statistics(queue="a").window.ended == 2


@pytest.mark.parametrize("window", [{"window": 0}, {"window_s": 0}, {"window_s": math.nan}])
def test_a_window_of_nothing_is_refused(database: QueueDatabase, window: dict[str, Any]) -> None:
    """Rows or seconds."""
    with pytest.raises(ValueError, match="positive"):
        database.statistics(**window)


def test_a_clock_that_stepped_back_gives_no_negative_time(database: QueueDatabase) -> None:
    """Neither waiting nor running."""
    values = {"processing_started_utc": text(200), "finished_at_utc": text(300)}
    database.execute_many(INSERT, [row(100, status="completed", **values)])
    window = database.statistics().window
    assert window.wait_seconds == window.run_seconds == Percentiles(0.0, 0.0, 0.0)
    future = {"status": "completed", "finished_at_utc": text(-3600)}
    database.execute_many("DELETE FROM task_queue WHERE id = :id", [{"id": 1}])
    database.execute_many(INSERT, [row(100, **future)])
    assert database.statistics().window.seconds > 0


def test_other_programs_oddities_hurt_no_statistics(database: QueueDatabase) -> None:
    """States of their own are counted as such, broken text and times that are none passed over."""
    database.execute_many(
        INSERT,
        [
            row(status="pending"),
            row(status="completed", finished_at_utc="yesterday", processing_started_utc="x"),
            row(status="queued", finished_at_utc=text(5)),
            row(created_at_utc="now"),
            row(created_at_utc=12, run_after_utc=13),
        ],
    )
    broken = "CAST(x'ff' AS TEXT)"
    columns = "type, queue, payload, status, finished_at_utc"
    database.execute(
        f"INSERT INTO task_queue ({columns})"
        f" VALUES ({broken}, {broken}, {broken}, 'failed', {broken})"
    )
    found = database.statistics()
    assert (found.total_tasks, found.queued_tasks, found.failed_tasks) == (6, 3, 1)
    assert found.depth_by_type["t"]["unknown"] == 1
    assert found.depth_by_queue["�"] == {**dict.fromkeys(STATUSES, 0), "failed": 1}
    assert found.window.ended == 2
    assert found.window.run_seconds == Percentiles()
    assert found.oldest_queued_age_seconds == pytest.approx(10, abs=60)


def test_statistics_can_be_written_as_json(database: QueueDatabase) -> None:
    """With the documented names."""
    database.enqueue("t", queue="q")
    database.complete(database.claim("q")[0])
    found = json.loads(json.dumps(database.statistics().to_dict()))
    assert found["completed_tasks"] == found["total_tasks"] == 1
    assert found["depth_by_queue"]["q"]["completed"] == 1
    assert set(found["window"]["run_seconds"]) == {"p50", "p95", "p99"}


def test_workers_are_active_stale_or_gone(database: QueueDatabase) -> None:
    """By their last sign of life; who has been found gone is neither."""
    insert = (
        "INSERT INTO workers (worker_id, capabilities, heartbeat_utc, lock_byte, host,"
        " visibility_timeout_s) VALUES (?, '{}', ?, ?, 'h', 60)"
    )
    far = [("fresh", text(-30), 9001), ("old", text(999), 9002), ("gone", text(999), None)]
    database.execute_many(insert, far)
    database.execute(
        "INSERT INTO task_queue (type, payload, status, locked_by, lease_until_utc)"
        " VALUES ('t', '{}', 'processing', 'old', '2999-01-01 00:00:00')"
    )
    found = database.statistics(queue="any")
    assert (found.active_workers, found.stale_workers) == (1, 1)
    states = {w.worker_id: (w.status, w.processing) for w in database.worker_states()}
    assert states == {"fresh": ("active", 0), "old": ("stale", 1), "gone": ("gone", 0)}


def test_a_monitor_is_no_worker(database: QueueDatabase) -> None:
    """It consumes events and replies alone; a Celery worker does so too while it shuts down."""
    database.execute_many(
        "INSERT INTO queues (name, durable, auto_delete) VALUES (?, ?, ?)",
        [("tasks", 1, 0), ("events", 0, 1), ("replies", 1, 1)],
    )
    database.execute_many(
        "INSERT INTO workers (worker_id, capabilities, heartbeat_utc, lock_byte, host,"
        " visibility_timeout_s) VALUES (?, '{}', ?, ?, 'h', 60)",
        [(name, text(-30), 9001 + i) for i, name in enumerate(("monitor", "worker", "plain"))],
    )
    database.execute(
        "INSERT INTO workers (worker_id, capabilities, heartbeat_utc, lock_byte, hostname)"
        " VALUES ('stopping', '{}', ?, 9004, 'w1@h')",
        (text(-30),),
    )
    database.execute_many(
        "INSERT INTO consumers (worker_id, bell, queue) VALUES (?, ?, ?)",
        [
            ("monitor", 1, "events"),
            ("monitor", 1, "replies"),
            ("worker", 2, "events"),
            ("worker", 3, "tasks"),
            ("stopping", 4, "replies"),
        ],
    )
    assert database.statistics(queue="any").active_workers == 3
    assert [w.worker_id for w in database.worker_states()] == ["plain", "stopping", "worker"]


WRITER = """
import random, sys
from kombu_sqlite import QueueDatabase
database, random_ = QueueDatabase(sys.argv[1]), random.Random(int(sys.argv[2]))
print("ready", flush=True)
while True:
    database.enqueue(random_.choice("tu"), queue=random_.choice("qr"))
    for delivery in database.claim(random_.choice("qr"), random_.randrange(3)):
        random_.choice([database.complete, database.requeue, lambda d: database.fail(d, "x")])(
            delivery
        )
    database.cancel(random_.randrange(1, 500))
"""


def test_counts_equal_a_full_count_while_others_write(
    database: QueueDatabase, queue_path: str
) -> None:
    """In one read transaction; and each statistics is of one moment by itself."""
    database.initialize_schema()
    command = [sys.executable, "-c", f"import sys; sys.path[:0] = {sys.path!r}\n{WRITER}"]
    writers = [
        subprocess.Popen([*command, queue_path, str(n)], stdout=subprocess.PIPE) for n in range(2)
    ]
    try:
        for writer in writers:
            assert writer.stdout is not None
            assert writer.stdout.readline()
        seen: set[int] = set()
        while len(seen) < 20:
            connection = database.get_connection()
            connection.execute("BEGIN")
            try:
                found = database.statistics()
                counted = database.execute(
                    "SELECT queue, status, count(*) FROM task_queue GROUP BY 1, 2"
                )
            finally:
                connection.execute("ROLLBACK")
            flat = {
                (queue, status): tasks
                for queue, depth in found.depth_by_queue.items()
                for status, tasks in depth.items()
                if tasks
            }
            assert flat == {(queue, status): tasks for queue, status, tasks in counted}
            alone = database.statistics()
            depths = [tasks for by in alone.depth_by_type.values() for tasks in by.values()]
            assert sum(depths) == alone.total_tasks
            ends = alone.completed_tasks + alone.failed_tasks + alone.cancelled_tasks
            assert alone.window.ended == ends
            seen.add(alone.total_tasks)
    finally:
        for writer in writers:
            writer.kill()
            writer.communicate()
