"""The documented Python face, without Kombu and Celery."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import apsw
import pytest

from kombu_sqlite import (
    IdempotencyConflict,
    LeaseLost,
    QueueBusyError,
    QueueDatabase,
    QueueDatabaseError,
)


def test_a_task_goes_through_its_life(database: QueueDatabase) -> None:
    """Enqueued, claimed, completed."""
    task = database.enqueue("tasks.add", {"x": 1}, priority=7, max_attempts=3)
    assert (task.status, task.priority, task.get_payload_dict()) == ("queued", 7, {"x": 1})
    (delivery,) = database.claim()
    running = database.get(task.id)
    assert (running.status, running.attempts, running.delivery_no) == ("processing", 1, 1)
    assert running.locked_by == database.workers()[0].worker_id
    assert running.lease_until_utc > datetime.now(timezone.utc)
    database.complete(delivery)
    ended = database.get(task.id)
    assert (ended.status, ended.lease_until_utc) == ("completed", None)
    assert ended.finished_at_utc >= ended.processing_started_utc


def test_opening_a_file_to_read_it_writes_nothing(database: QueueDatabase) -> None:
    """It works while another has the write lock, and no consumer is woken by it."""
    database.enqueue("t")

    def version() -> tuple[int, int]:
        log = os.path.getsize(database.path + "-wal")
        return database.execute("PRAGMA data_version")[0][0], log

    before = version()
    with database.transaction(), QueueDatabase(database.path, busy_timeout=0.1) as other:
        assert other.stats().queued_tasks == 1
    assert version() == before


def test_a_transaction_outlives_the_loss_of_the_session(database: QueueDatabase) -> None:
    """All of it is committed, through one connection; the next claim is under a new name."""
    store = database._store
    worker = store.session().worker_id
    with database.transaction():
        database.enqueue("a")
        store.session().give_up()
        database.enqueue("b")
        assert database._store is store
    assert [delivery.type for delivery in database.claim(limit=2)] == ["a", "b"]
    assert database.get(1).locked_by != worker


def test_who_was_silent_too_long_claims_under_a_new_name(database: QueueDatabase) -> None:
    """What it held is another's; the next claim needs no help."""
    database.enqueue("a")
    (lost,) = database.claim()
    database._store.session().give_up()
    database.enqueue("b")
    found = database.claim()
    assert [delivery.type for delivery in found] in (["a"], ["b"])
    with pytest.raises(LeaseLost):
        database.complete(lost)
    database.complete(found[0])


def test_a_failed_task_says_why_and_can_be_retried(database: QueueDatabase) -> None:
    """Its row is the same."""
    task = database.enqueue("t")
    database.fail(database.claim()[0], "disk on fire")
    assert database.get(task.id).error_message == "disk on fire"
    assert [t.id for t in database.list(status="failed")] == [task.id]
    assert database.retry(task.id)
    assert not database.retry(task.id)
    (again,) = database.claim()
    assert (again.tag.row_id, again.redelivered) == (task.id, True)


def test_a_cancelled_task_is_never_claimed(database: QueueDatabase) -> None:
    """One that somebody holds is not cancelled this way."""
    task = database.enqueue("t")
    assert database.cancel(task.id)
    assert not database.cancel(task.id)
    assert database.claim() == []
    held = database.enqueue("t")
    database.claim()
    assert not database.cancel(held.id)


def test_priority_then_age(database: QueueDatabase) -> None:
    """The lower number first."""
    for name, priority in (("c", 100), ("a", 1), ("d", 100), ("b", 50)):
        database.enqueue(name, priority=priority)
    assert [d.type for d in database.claim(limit=10)] == ["a", "b", "c", "d"]


def test_a_delayed_task_is_not_claimed_before_its_time(database: QueueDatabase) -> None:
    """It is listed and counted meanwhile."""
    later = datetime.now(timezone.utc) + timedelta(hours=1)
    task = database.enqueue("t", run_after_utc=later)
    assert database.claim() == []
    assert database.stats().queued_tasks == 1
    assert abs(database.get(task.id).run_after_utc - later) < timedelta(milliseconds=2)


def test_keys_return_the_first_row(database: QueueDatabase) -> None:
    """Whatever state it is in."""
    first = database.enqueue("t", {"n": 1}, idempotency_key="k")
    assert database.enqueue("t", {"n": 2}, idempotency_key="k") == first
    database.complete(database.claim()[0])
    assert database.enqueue("t", idempotency_key="k").id == first.id
    assert database.stats().total_tasks == 1


def test_concurrent_processes_with_one_key_make_one_row(queue_path: str) -> None:
    """All are told the same row."""
    script = (
        f"import sys; sys.path[:0] = {sys.path!r}\n"
        "from kombu_sqlite import QueueDatabase\n"
        f"db = QueueDatabase({queue_path!r})\n"
        "print({db.enqueue('t', idempotency_key='k').id for _ in range(20)})\n"
    )

    def run(_: int) -> str:
        command = [sys.executable, "-c", script]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    with ThreadPoolExecutor(6) as pool:
        assert set(pool.map(run, range(6))) == {"{1}\n"}


def test_many_at_once_are_all_or_none(database: QueueDatabase) -> None:
    """One transaction."""
    database.enqueue_many([{"type": "t", "payload": {"n": n}} for n in range(10)])
    with pytest.raises(ValueError, match="type"):
        database.enqueue_many([{"type": "t"}, {"type": ""}])
    assert database.stats().total_tasks == 10


@pytest.mark.parametrize(
    "arguments",
    [{"payload": "{"}, {"run_after_utc": "soon"}, {"type": ""}, {"priority": "high"}],
)
def test_nonsense_is_refused(database: QueueDatabase, arguments: dict[str, Any]) -> None:
    """Before anything is written."""
    with pytest.raises(ValueError, match=r".+"):
        database.enqueue(**{"type": "t", **arguments})
    assert database.stats().total_tasks == 0


def test_stats_by_queue_and_type(database: QueueDatabase) -> None:
    """With the documented names; the age only where something waits."""
    database.enqueue("a", queue="one")
    database.enqueue("b", queue="two")
    database.complete(database.claim("one")[0])
    assert database.stats(queue="one").completed_tasks == 1
    assert database.stats(queue="one").oldest_queued_age_seconds is None
    assert database.stats(type="b").queued_tasks == 1
    age = database.stats().oldest_queued_age_seconds
    assert age is not None
    assert 0 <= age < 60
    assert database.stats(type="b").oldest_queued_age_seconds is not None
    assert list(database.stats().to_dict()) == [
        "total_tasks",
        "queued_tasks",
        "processing_tasks",
        "completed_tasks",
        "failed_tasks",
        "cancelled_tasks",
        "oldest_queued_age_seconds",
    ]


def test_lists_are_paged_newest_first(database: QueueDatabase) -> None:
    """And filtered, also by the format of foreign payloads."""
    for number in range(5):
        database.enqueue(f"t{number % 2}", {"format": "csv" if number else "pdf"})
    page = database.list(limit=2)
    assert [t.id for t in page] == [5, 4]
    assert [t.id for t in database.list(limit=2, before_id=4)] == [3, 2]
    assert [t.id for t in database.list(type="t1")] == [4, 2]
    assert [t.id for t in database.list(format="pdf")] == [1]


def test_a_task_id_finds_its_newest_row(database: QueueDatabase) -> None:
    """Minted at the first claim of a foreign row."""
    database.enqueue("t")
    (delivery,) = database.claim()
    assert database.get(delivery.task_id).id == 1
    assert database.get("nothing") is None
    assert database.get(99) is None


def test_an_end_needs_the_tag_of_the_last_delivery(database: QueueDatabase) -> None:
    """Whoever lost the lease can end, extend or take back nothing."""
    database.enqueue("t")
    (stale,) = database.claim()
    database.requeue(stale)
    (fresh,) = database.claim()
    assert fresh.tag.delivery_no == 2
    for attempt in (
        lambda: database.complete(stale),
        lambda: database.fail(stale, "x"),
        lambda: database.requeue(stale),
        lambda: database.renew(stale),
    ):
        with pytest.raises(LeaseLost):
            attempt()
    assert database.get(1).status == "processing"
    database.renew(fresh, 500)
    database.complete(fresh)
    database.complete(fresh)  # its own end, a second time: nothing to say


def test_transactions_commit_roll_back_and_nest(database: QueueDatabase) -> None:
    """By savepoints; any exception undoes its own level only."""
    insert = "INSERT INTO task_queue (type, payload) VALUES (?, '{}')"

    def fail_inside() -> None:
        with database.transaction() as inner:
            inner.execute(insert, ("lost",))
            raise ZeroDivisionError

    with database.transaction() as connection:
        connection.execute(insert, ("kept",))
        with pytest.raises(ZeroDivisionError):
            fail_inside()
        with database.transaction() as inner:
            inner.execute(insert, ("kept too",))
    with pytest.raises(ZeroDivisionError):
        fail_inside()
    assert [t.type for t in database.list()] == ["kept too", "kept"]


def test_statements_return_rows_by_name_and_position(database: QueueDatabase) -> None:
    """And what a DB-API cursor would tell."""
    database.execute_many(
        "INSERT INTO task_queue (type, payload) VALUES (?, '{}')", [("a",), ("b",)]
    )
    rows = database.execute("SELECT id, type FROM task_queue WHERE type = :t", {"t": "b"})
    row = rows.fetchone()
    assert (row["type"], row[0], dict(row)) == ("b", 2, {"id": 2, "type": "b"})
    assert rows.fetchone() is None
    assert database.execute("UPDATE task_queue SET priority = 1").rowcount == 2
    with pytest.raises(KeyError):
        row["nothing"]
    with pytest.raises(QueueDatabaseError, match="no such table"):
        database.execute("SELECT * FROM no_table")


def test_each_thread_has_one_connection(database: QueueDatabase) -> None:
    """Reused; closed when the thread ends."""
    mine = database.get_connection()
    assert database.get_connection() is mine
    others: list[apsw.Connection] = []
    thread = threading.Thread(target=lambda: others.append(database.get_connection()))
    thread.start()
    thread.join()
    assert others[0] is not mine
    with pytest.raises(apsw.ConnectionClosedError):
        others[0].execute("SELECT 1")
    with database.connection() as reading:
        assert reading is mine


def test_pragmas_are_as_documented(database: QueueDatabase) -> None:
    """Each can be set by option."""
    found = {
        name: database.execute(f"PRAGMA {name}")[0][0]
        for name in (
            "journal_mode",
            "synchronous",
            "busy_timeout",
            "foreign_keys",
            "temp_store",
            "page_size",
            "cache_size",
            "mmap_size",
            "auto_vacuum",
        )
    }
    assert found == {
        "journal_mode": "wal",
        "synchronous": 1,
        "busy_timeout": 5000,
        "foreign_keys": 1,
        "temp_store": 2,
        "page_size": 4096,
        "cache_size": -20000,
        "mmap_size": 0,
        "auto_vacuum": 2,
    }


def test_options_reach_sqlite(queue_path: str) -> None:
    """By keyword or by URL."""
    with QueueDatabase(queue_path, synchronous="FULL", cache_size=-500) as one:
        assert one.execute("PRAGMA synchronous")[0][0] == 2
        assert one.execute("PRAGMA cache_size")[0][0] == -500
    with QueueDatabase(f"sqlite:///{queue_path}?busy_timeout=1.5") as two:
        assert two.execute("PRAGMA busy_timeout")[0][0] == 1500


def test_the_path_comes_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it lies in the user's data folder; folders are made."""
    monkeypatch.setenv("KOMBU_SQLITE_PATH", str(tmp_path / "deep" / "er" / "q.db"))
    with QueueDatabase() as database:
        database.initialize_schema()
        assert database.path == str(tmp_path / "deep" / "er" / "q.db")
    monkeypatch.delenv("KOMBU_SQLITE_PATH")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    with QueueDatabase() as database:
        assert database.path.startswith(str(tmp_path))
        database.initialize_schema()
        assert os.path.exists(database.path)


def test_a_locked_file_raises_after_the_timeout(queue_path: str) -> None:
    """And works again afterwards."""
    with QueueDatabase(queue_path, busy_timeout=0.05) as database:
        database.initialize_schema()
        other = QueueDatabase(queue_path)
        with (
            other.transaction(),
            ThreadPoolExecutor(1) as pool,
            pytest.raises(QueueBusyError),
        ):
            pool.submit(database.enqueue, "t").result()
        other.close()
        assert database.enqueue("t").id == 1


def test_closing_gives_back_what_was_claimed(queue_path: str) -> None:
    """Uncounted, and the worker's row is gone."""
    with QueueDatabase(queue_path) as database:
        database.enqueue("t")
        database.claim()
    with QueueDatabase(queue_path) as database:
        task = database.get(1)
        assert (task.status, task.attempts, task.deaths, task.delivery_no) == ("queued", 0, 0, 1)
        assert database.workers() == []


def test_a_compatibility_that_is_no_object_is_refused(database: QueueDatabase) -> None:
    """No consumer could ever meet it."""
    with pytest.raises(ValueError, match="compatibility must be an object"):
        database.enqueue("t", compatibility=["gpu"])  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["priority", "max_attempts"])
@pytest.mark.parametrize("number", [2**63, -(2**63) - 1])
def test_a_number_no_column_holds_is_refused(
    database: QueueDatabase, name: str, number: int
) -> None:
    """With the argument's name."""
    with pytest.raises(ValueError, match=f"{name} must be a whole number of at most 64 bits"):
        database.enqueue_many([{"type": "good"}, {"type": "t", name: number}])
    assert database.stats().total_tasks == 0


def test_a_key_of_another_type_is_refused(database: QueueDatabase) -> None:
    """And one that a scope has let go of is free."""
    first = database.enqueue("a", idempotency_key="k")
    assert database.enqueue("a", idempotency_key="k").id == first.id
    with pytest.raises(IdempotencyConflict):
        database.enqueue("b", idempotency_key="k")
    database.execute(
        "INSERT INTO idempotency_keys (key, type, row_id, scope) VALUES ('k', 'a', ?, 'end')",
        (first.id,),
    )
    assert database.cancel(first.id)
    assert database.enqueue("b", idempotency_key="k").id != first.id
