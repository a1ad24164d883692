"""Rows by other programs that are worse than wrong: none of them stops what lies behind it."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from kombu import Connection

from kombu_sqlite import QueueDatabase, QueueSchemaError
from kombu_sqlite.errors import QueueDiskError
from kombu_sqlite.sql import statement
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


@pytest.mark.parametrize("run_after_utc", ["'2020-01-01 00:00:00'", "'2999-01-01 00:00:00'"])
def test_a_queue_nobody_can_name_keeps_no_row(
    database: QueueDatabase, wait_until: Wait, run_after_utc: str
) -> None:
    """No claim ever asks for it: its rows fail within a second, ready or waiting; again, too."""
    insert(database, "bad", queue=BROKEN, run_after_utc=run_after_utc)
    insert(database)
    assert [d.type for d in database.claim(limit=2)] == ["good"]
    for _ in range(2):
        wait_until(lambda: state(database)[0] == "failed")
        assert "malformed row: queue is not UTF-8 text" in state(database)[1]
        assert database.retry(1)


@pytest.mark.parametrize("text", ["gpu", "[1]", "5", "null", "{", "", "[" * 50000])
def test_a_compatibility_nobody_can_meet_keeps_no_row(
    database: QueueDatabase, wait_until: Wait, text: str
) -> None:
    """It fails with the reason; one that nobody happens to meet waits on."""
    database.claim()  # stands for the election
    insert(database, "rare", compatibility="""'{"gpu": true}'""")
    sql = "INSERT INTO task_queue (type, payload, compatibility) VALUES ('bad', '{}', ?)"
    database.execute(sql, (text,))
    wait_until(lambda: state(database, 2)[0] == "failed")
    assert "malformed row: compatibility is not a JSON object" in state(database, 2)[1]
    assert state(database, 1)[0] == "queued"


COUNTERS = ["delivery_no", "attempts", "max_attempts", "deaths"]
NO_COUNTS = ["1.5", "1e300", "9.3e18", "'some'", "x'00'", BROKEN]


@pytest.mark.parametrize("value", NO_COUNTS)
@pytest.mark.parametrize("column", COUNTERS)
def test_a_counter_that_is_no_whole_number_fails_with_the_reason(
    database: QueueDatabase, wait_until: Wait, column: str, value: str
) -> None:
    """Whoever wrote the row: from a fraction no delivery tag can be made that ends it."""
    insert(database, "bad", priority="1", headers="'{}'", **{column: value})
    insert(database, "also bad", priority="1", **{column: value})
    insert(database)
    deliveries: list[Any] = []

    def good_came() -> bool:
        deliveries.extend(database.claim(limit=3))
        return bool(deliveries)

    wait_until(good_came)
    assert [d.type for d in deliveries] == ["good"]
    for id in (1, 2):
        status, reason = state(database, id)
        assert status == "failed"
        assert "malformed row: " in reason
        assert value == BROKEN or column in reason


@pytest.mark.parametrize("column", COUNTERS)
def test_the_largest_number_is_a_bound_and_no_count(database: QueueDatabase, column: str) -> None:
    """One more would be a fraction; as ``max_attempts`` it means for ever."""
    insert(database, "large", **{column: str(2**63 - 1)})
    deliveries = database.claim()
    assert bool(deliveries) == (column == "max_attempts")
    assert deliveries or "cannot grow" in state(database)[1]


def test_a_leased_row_with_a_fraction_fails_once_its_lease_is_over(
    database: QueueDatabase, wait_until: Wait
) -> None:
    """Another program may have claimed by its own SQL."""
    database.claim()  # stands for the election
    insert(database, "bad", status="'processing'", locked_by="'ghost'", delivery_no="1.5")
    wait_until(lambda: database.claim() == [] and state(database)[0] == "failed")
    assert "delivery_no" in state(database)[1]


TEXT_COLUMNS = [
    *["type", "payload", "compatibility", "status", "locked_by", "error_message", "queue"],
    *["idempotency_key", "task_id", "headers", "properties", "run_after_utc", "finished_at_utc"],
    *["priority", "attempts", "max_attempts", "deaths", "delivery_no"],
]


@pytest.mark.parametrize("column", TEXT_COLUMNS)
def test_broken_text_is_shown_with_what_can_be_read(database: QueueDatabase, column: str) -> None:
    """By ``get`` and ``list``; the other rows, a binary payload included, look as ever."""
    insert(database, "whole", payload="x'ff'", task_id="'7'", idempotency_key="'k'")
    whole = database.get(1)
    insert(database, "bad", **{column: "CAST(x'61ff62' AS TEXT)"})
    bad = database.get(2)
    assert getattr(bad, column) == "a\ufffdb"
    assert database.list() == [bad, whole]
    assert database.list(before_id=2) == [whole]
    assert database.list(type="whole", status="queued", queue="celery") == [whole]
    assert whole is not None
    assert whole.payload == b"\xff"


def test_a_broken_row_is_found_by_each_of_its_names(database: QueueDatabase) -> None:
    """Its task id, its key, its format."""
    columns = {"task_id": "'7'", "idempotency_key": "'k'", "payload": """'{"format": "csv"}'"""}
    insert(database, "older", task_id="'7'")
    insert(database, "bad", error_message=BROKEN, **columns)
    insert(database, "newer")
    bad = database.get(2)
    assert database.get("7") == bad
    assert database.enqueue("bad", idempotency_key="k") == bad
    assert database.list(format="csv") == [bad]
    assert database.get(99) is None


def test_broken_workers_and_logs_are_shown_too(database: QueueDatabase) -> None:
    """With all their columns."""
    insert(database)
    database.execute("INSERT INTO workers (worker_id, capabilities) VALUES ('old', '{}')")
    database.execute("INSERT INTO task_logs (task_id, level) VALUES (1, 'INFO')")
    workers, (enqueued, log) = database.workers(), database.logs(1)
    if enqueued.log_id is not None:  # both of the same moment
        enqueued, log = log, enqueued
    database.execute(f"UPDATE workers SET host = {BROKEN}, beat = 4")
    database.execute(f"UPDATE task_logs SET message = {BROKEN}")
    assert database.workers() == [replace(workers[0], host="\ufffd", beat=4)]
    assert replace(log, message="\ufffd") in database.logs(1)


@pytest.mark.parametrize(
    ("table", "name"),
    [
        ("task_queue", "list_tasks_as_bytes"),
        ("workers", "list_workers_as_bytes"),
        ("task_logs", "list_logs_as_bytes"),
    ],
)
def test_reading_as_bytes_leaves_no_column_out(
    database: QueueDatabase, table: str, name: str
) -> None:
    """The statement names them one by one."""
    wanted = {
        row[0] for row in database.execute("SELECT name FROM pragma_table_xinfo(?)", (table,))
    }
    cursor = database.get_connection().cursor()
    insert(database)
    database.execute("INSERT INTO task_logs (task_id) VALUES (1)")
    database.execute("INSERT INTO workers (worker_id, capabilities) VALUES ('w', '{}')")
    values: dict[str, Any] = dict.fromkeys(re.findall(r":(\w+)", statement(name)))
    if table == "task_logs":
        values["task_id"] = 1
    found = {column for column, _ in cursor.execute(statement(name), values).get_description()}
    assert found - {"opaque"} == wanted


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


LARGEST = "9223372036854775807"


def test_the_largest_row_id_is_no_full_disk(database: QueueDatabase, broker_url: str) -> None:
    """Each way to insert says what to do; once it is done, publishing works again."""
    insert(database)
    insert(database, "last", id=LARGEST)
    clear = "row ids of table 'task_queue' .* used up.*sqlite_sequence"
    with pytest.raises(QueueSchemaError, match=clear):
        insert(database)
    with pytest.raises(QueueSchemaError, match=clear):
        database.enqueue("t")
    with Connection(broker_url) as connection, pytest.raises(QueueSchemaError, match=clear):
        connection.Producer().publish("a", routing_key="celery")
    assert [d.type for d in database.claim(limit=5)] == ["good", "last"]
    database.execute(f"UPDATE task_queue SET id = 2 WHERE id = {LARGEST}")
    database.execute("UPDATE sqlite_sequence SET seq = 2 WHERE name = 'task_queue'")
    assert database.enqueue("t").id == 3


def test_the_largest_row_id_is_found_before_it_is_rolled_back(database: QueueDatabase) -> None:
    """Written and met in one transaction; the file is as it was before."""
    sql = (
        f"INSERT INTO task_queue (id, type, payload) VALUES ({LARGEST}, 't', '');"
        "INSERT INTO task_queue (type, payload) VALUES ('t', '')"
    )
    with (
        pytest.raises(QueueSchemaError, match="used up"),
        database.transaction() as connection,
    ):
        connection.execute(sql)
    assert database.enqueue("t").id == 1
