"""Rows by other programs that are worse than wrong: none of them stops what lies behind it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from kombu import Connection

from kombu_sqlite import QueueDatabase
from kombu_sqlite.errors import QueueDiskError
from kombu_sqlite.upkeep import Upkeep

Wait = Callable[..., Any]

#: Text that no program can read.
BROKEN = "CAST(x'ff' AS TEXT)"
SOON = "strftime('%Y-%m-%d %H:%M:%f', 'now', '+0.3 seconds')"


def insert(database: QueueDatabase, name: str = "good", **columns: str) -> None:
    """Insert a row as another program would; each column is an SQL expression."""
    values = {"type": f"'{name}'", "payload": "'{}'", **columns}
    names = ", ".join(values)
    database.execute(f"INSERT INTO task_queue ({names}) VALUES ({', '.join(values.values())})")


def state(database: QueueDatabase, id: int = 1) -> Any:
    """Status and reason of a row, whatever its text."""
    sql = "SELECT CAST(status AS TEXT), error_message FROM task_queue WHERE id = ?"
    return tuple(database.execute(sql, (id,))[0])


@pytest.mark.parametrize("column", ["task_id", "headers", "properties", "compatibility"])
def test_broken_text_fails_with_the_reason(
    queue_path: str, broker_url: str, wait_until: Wait, column: str
) -> None:
    """In each column a claim reads; through Kombu, and the row behind it is delivered."""
    with QueueDatabase(queue_path) as database, Connection(broker_url) as connection:
        insert(database, "bad", priority="1", **{column: BROKEN})
        insert(database)
        channel = connection.default_channel
        message = wait_until(lambda: channel.basic_get("celery"))
        assert message.headers["task"] == "good"
        wait_until(lambda: state(database)[0] == "failed")
        assert "malformed row: text is not UTF-8" in state(database)[1]


@pytest.mark.parametrize(
    "column",
    ["locked_by", "error_message", "idempotency_key", "created_at_utc", "updated_at_utc"],
)
def test_broken_text_in_columns_no_claim_reads_does_not_matter(
    database: QueueDatabase, column: str
) -> None:
    """The row is delivered like any other, and counted."""
    insert(database, "odd", **{column: BROKEN})
    insert(database)
    assert database.stats().queued_tasks == 2
    deliveries = database.claim(limit=2)
    assert [d.type for d in deliveries] == ["odd", "good"]
    for delivery in deliveries:
        database.complete(delivery)
    assert database.stats().completed_tasks == 2


@pytest.mark.parametrize("column", ["queue", "type", "payload", "task_id", "compatibility"])
def test_broken_text_in_a_delayed_row_holds_up_no_other(
    database: QueueDatabase, wait_until: Wait, column: str
) -> None:
    """Both fall due together."""
    database.claim()  # stands for the election
    insert(database, "bad", run_after_utc=SOON, **{column: BROKEN})
    insert(database, run_after_utc=SOON)
    (delivery,) = wait_until(database.claim)
    assert delivery.type == "good"


@pytest.mark.parametrize("column", ["locked_by", "queue", "task_id"])
def test_broken_text_in_a_leased_row_holds_up_no_other(
    database: QueueDatabase, wait_until: Wait, column: str
) -> None:
    """What nobody owns is queued again, or fails once it has died often enough."""
    leased = {"status": "'processing'", "locked_by": "'ghost'"}
    started = {"processing_started_utc": "'2020-01-01 00:00:00'", "max_attempts": "1"}
    insert(database, **leased)
    insert(database, "bad", **{**leased, column: BROKEN})
    insert(database, "dying", **{**leased, **started, column: BROKEN})
    (delivery,) = wait_until(database.claim)
    assert delivery.type == "good"
    assert state(database, 2)[0] != "processing"
    assert state(database, 3) == (
        "failed",
        "delivery attempts exhausted: 1 of 1 executions died",
    )


def test_statistics_outlive_a_state_nobody_can_read(
    database: QueueDatabase, wait_until: Wait
) -> None:
    """Before the row is quarantined, and after."""
    insert(database, "bad", status=BROKEN)
    insert(database, "odd", status="'pending'")
    insert(database)
    stats = database.stats()
    assert (stats.total_tasks, stats.queued_tasks) == (3, 1)
    database.claim()
    wait_until(lambda: database.stats().failed_tasks == 2)
    assert database.stats().total_tasks == 3


def test_the_oldest_age_is_unknown_where_the_time_is_none(database: QueueDatabase) -> None:
    """Instead of an error."""
    insert(database, created_at_utc=BROKEN)
    assert database.stats().oldest_queued_age_seconds is None
    insert(database, priority="1")
    assert database.stats().oldest_queued_age_seconds is not None


def test_a_row_queued_again_by_sql_is_kept_however_old_its_end(
    database: QueueDatabase, wait_until: Wait
) -> None:
    """Retention counts for what has ended; a message waiting or running has not."""
    database.claim()  # stands for the election
    ended = {"finished_at_utc": "'2020-01-01 00:00:00'"}
    insert(database, "again", queue="'later'", **ended)
    insert(database, "running", status="'processing'", lease_until_utc="'2999-01-01'", **ended)
    insert(database, "old", status="'failed'", **ended)
    wait_until(lambda: database.get(3) is None)
    assert database.claim("later")[0].type == "again"
    assert state(database, 2)[0] == "processing"


def test_a_statement_that_failed_half_way_lets_the_file_go(database: QueueDatabase) -> None:
    """A text that cannot be read must not keep an old view of the file open."""
    insert(database, "bad")
    insert(database, "bad")
    with (
        pytest.raises(UnicodeDecodeError),
        database._store.database.reading() as handle,
    ):
        handle.all(f"SELECT {BROKEN} FROM task_queue")
    with ThreadPoolExecutor(1) as pool:
        pool.submit(database.enqueue, "by another thread").result()
    insert(database)  # on a view older than that commit it would be refused


def test_a_promotion_that_fails_comes_again_without_haste(
    database: QueueDatabase,
    monkeypatch: pytest.MonkeyPatch,
    wait_until: Wait,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A full disk, say; the log is not flooded, and the message comes once it is over."""
    real = Upkeep.promote
    failures: list[int] = []

    def fail_twice(self: Upkeep) -> None:
        if len(failures) < 2:
            failures.append(1)
            raise QueueDiskError("full")
        real(self)

    monkeypatch.setattr(Upkeep, "promote", fail_twice)
    caplog.set_level(logging.CRITICAL, "kombu.sqlite")
    database.claim()  # stands for the election
    insert(database, run_after_utc=SOON)
    assert wait_until(database.claim)
    assert len(failures) == 2
