"""Rows, names and paths that Hypothesis made up: the queue goes on, and loses nothing."""

from __future__ import annotations

import json
import os
import pickle
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from kombu import Connection, Exchange, Queue
from kombu.exceptions import ContentDisallowed

from kombu_sqlite import QueueDatabase, QueueDatabaseError, QueueLocationError
from tests.traps import Trap

#: Text that no program can read.
BROKEN = "CAST(x'ff' AS TEXT)"

#: SQL expressions of every storage class, and of what other columns mean.
VALUES = [
    *["NULL", "0", "-1", "1.5", "9e999", "-9e999", "9223372036854775807", "''", "'x'"],
    *["x''", "x'00ff'", "x'7b7d'", BROKEN, "'a' || char(0) || 'b'", "'{}'", "'[]'", "'null'"],
    *["printf('%.*c', 20000, '[')", "printf('%.*c', 20000, '9')", "CAST('celery' AS BLOB)"],
    *["'2999-01-01 00:00:00'", "'2020-01-01T00:00:00Z'", "'0001-01-01T00:00:00+14:00'", "'now'"],
    *["CAST('2020-01-01 00:00:00' AS BLOB)", "12345678901", "'queued'", "'processing'"],
    *["'completed'", "CAST('queued' AS BLOB)", "'celery'", """'{"a": NaN, "a": 1e400}'"""],
    *["""'{"task": [1], "id": {}}'""", """'{"compression": "zlib"}'"""],
    """'{"delivery_info": null, "content_type": 5}'""",
]
#: What another program can write; its row's id it need not.
COLUMNS = [
    *["type", "priority", "payload", "compatibility", "status", "attempts", "max_attempts"],
    *["run_after_utc", "lease_until_utc", "reserved_at_utc", "processing_started_utc"],
    *["finished_at_utc", "locked_by", "error_message", "idempotency_key", "created_at_utc"],
    *["updated_at_utc", "queue", "task_id", "headers", "properties", "expires_at_utc"],
    *["delivery_no", "deaths", "outcome_pending", "writer", "acked_early", "cancel_requested"],
    *["follows", "pad"],
]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[QueueDatabase, Connection]]:
    """One queue and a connection to it: what one example leaves is there for the next.

    Without retention: a row may say that it ended long ago.
    """
    url = f"sqlite:///{tmp_path_factory.mktemp('hostile')}/queue.db?retention=0"
    with QueueDatabase(url) as database, Connection(url) as connection:
        database.claim("nothing")
        yield database, connection


def test_every_column_is_tried(shared: tuple[QueueDatabase, Connection]) -> None:
    """The list above leaves none out."""
    database, _ = shared
    found = database.execute("SELECT name FROM pragma_table_info('task_queue')")
    assert {name for (name,) in found} - {"id"} == set(COLUMNS)


@given(
    st.dictionaries(st.sampled_from(COLUMNS), st.sampled_from(VALUES), min_size=1, max_size=5),
    st.booleans(),
)
@settings(max_examples=120, deadline=None)
@example({"cancel_requested": BROKEN}, True)
@example({"payload": "printf('%.*c', 20000, '[')", "updated_at_utc": "'z'"}, False)
@example({"task_id": "x'00ff'"}, False)
def test_no_row_stops_what_lies_behind_it(
    shared: tuple[QueueDatabase, Connection], columns: dict[str, str], kombus: bool
) -> None:
    """Through Kombu; and whoever looks at the queue sees it."""
    database, connection = shared
    values = {
        "type": "'t'",
        "payload": "'{}'",
        **({"headers": "'{}'"} if kombus else {}),
        **columns,
    }
    try:
        database.execute(
            f"INSERT INTO task_queue ({', '.join(values)}) VALUES ({', '.join(values.values())})"
        )
    except QueueDatabaseError as exc:
        assume("constraint failed" not in str(exc))
        raise
    good = database.enqueue("good")
    channel = connection.default_channel
    for _ in range(1000):
        message = channel.basic_get("celery")
        if message is not None:
            message.ack()
            if message.delivery.tag.row_id == good.id:
                break
    else:
        pytest.fail("the good row did not come")
    assert good.id is not None
    bad = database.get(good.id - 1)
    assert bad is not None
    assert bad.id in [task.id for task in database.list()]  # upkeep may fail it in between
    assert bad.to_dict()
    assert isinstance(bad.get_payload_dict(), dict)
    assert isinstance(bad.get_compatibility_dict(), dict)
    assert database.stats().total_tasks == good.id
    assert database.statistics().total_tasks == good.id


@pytest.mark.parametrize("column", ["queue", "compatibility"])
def test_a_blob_for_a_name_keeps_no_row_of_kombus_either(
    database: QueueDatabase, wait_until: Any, column: str
) -> None:
    """No claim ever asks for it; the row whose name is the same text is delivered."""
    database.claim("nothing")  # stands for the election
    text = "celery" if column == "queue" else "{}"
    for value in (f"CAST('{text}' AS BLOB)", f"'{text}'"):
        database.execute(
            f"INSERT INTO task_queue (type, payload, headers, {column}) "
            f"VALUES ('t', '', '{{}}', {value})"
        )
    wait_until(lambda: database.stats().failed_tasks == 1)
    bad = database.get(1)
    assert bad is not None
    assert column in str(bad.error_message)
    assert [delivery.tag.row_id for delivery in database.claim(limit=2)] == [2]


@pytest.mark.parametrize("payload", ["'{'", "printf('%.*c', 20000, '[')", "x'ff'", "'null'"])
def test_a_key_held_by_a_row_that_is_no_task_still_holds(
    database: QueueDatabase, payload: str
) -> None:
    """Whoever publishes with it gets that row."""
    database.execute(
        "INSERT INTO task_queue (type, payload, idempotency_key, run_after_utc) "
        f"VALUES ('t', {payload}, 'k', '2999-01-01 00:00:00')"
    )
    assert database.enqueue("t", {"x": 1}, idempotency_key="k").id == 1
    assert database.stats().total_tasks == 1


#: SQL, patterns, and what ends a C string.
names = st.text(
    st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30
) | st.sampled_from(
    [
        *["'", '"', "x'); DROP TABLE task_queue; --", "%", "_", "*", "#", "a\0b", "\0"],
        *["[x]", ";", "?1", ":a"],
    ]
)


@given(names, names, names, names)
@settings(max_examples=60, deadline=None)
def test_a_name_is_data(
    shared: tuple[QueueDatabase, Connection], queue: str, key: str, task: str, other: str
) -> None:
    """Of a queue, an exchange, a route, a task, a key: it finds its own and nothing else."""
    assume(queue != other)
    database, connection = shared
    channel = connection.default_channel
    exchange = Exchange(f"x{key}", type="direct")
    mine, its = (
        Queue(f"q{name}", exchange, routing_key=f"k{name}")(channel) for name in (queue, other)
    )
    unique = f"{key}{uuid.uuid4()}{task}"
    tables = database.execute("SELECT count(*) FROM sqlite_schema")[0][0]
    for each in (mine, its):
        each.declare()
    connection.Producer().publish(task, exchange=exchange, routing_key=f"k{queue}")
    assert channel.basic_get(its.name) is None
    message = channel.basic_get(mine.name, no_ack=True)
    assert message is not None
    assert message.payload == task
    assert message.delivery_info["routing_key"] == f"k{queue}"
    row = database.enqueue(task, {"format": other}, queue=mine.name, idempotency_key=unique)
    assert database.enqueue(task, idempotency_key=unique).id == row.id
    found = database.list(type=task, queue=mine.name, status="queued")
    assert row.id in [task.id for task in found]
    assert {(task.type, task.queue) for task in found} == {(task, mine.name)}
    assert row.id in [task.id for task in database.list(format=other)]
    assert row.id not in [task.id for task in database.list(format=queue)]
    assert database.stats(queue=its.name).queued_tasks == 0
    database.fail(database.claim(mine.name)[0], task)
    ended = database.list(type=task, status="failed", queue=mine.name)[0]
    assert ended.id == row.id
    assert ended.error_message == task
    for each in (mine, its):
        each.delete()
    assert database.execute("SELECT count(*) FROM sqlite_schema")[0][0] == tables


@pytest.mark.parametrize("name", ["application/x-python-serialize", "pickle"])
@pytest.mark.parametrize("accept", [None, {"application/json"}])
def test_a_row_says_pickle_in_vain(
    shared: tuple[QueueDatabase, Connection], tmp_path: Path, name: str, accept: Any
) -> None:
    """Whatever content type another program's row claims, the consumer decides what it loads."""
    database, connection = shared
    bomb = pickle.dumps(Trap(tmp_path / "sprung"))
    properties = json.dumps({"content_type": name, "content_encoding": "binary"})
    database.execute(
        "INSERT INTO task_queue (type, payload, headers, properties, queue) "
        "VALUES ('t', ?, '{}', ?, 'p')",
        (bomb, properties),
    )
    message = connection.default_channel.basic_get("p", no_ack=True)
    message.accept = accept
    with suppress(ContentDisallowed):
        assert message.decode() == bomb
    assert not (tmp_path / "sprung").exists()
    pickle.loads(bomb)  # noqa: S301 - it would have told
    assert (tmp_path / "sprung").exists()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty folder that stays so."""
    return tmp_path_factory.mktemp("refused")


hostile_names = st.text(min_size=1).map(lambda text: text.replace("/", "|"))


@given(hostile_names)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@example("a\ud800.db")
@example("a\udcff.db")
@example("a\0b.db")
@example("n" * 244)
@example("n" * 245)
@example("n" * 255)
@example("n" * 300)
def test_a_refused_path_leaves_no_file(folder: Path, name: str) -> None:
    """Whatever it is called; what is taken works, and lies where it was said."""
    assume(name not in (".", ".."))

    def use() -> str:
        with QueueDatabase(f"{folder}/{name}") as database:
            database.enqueue("t")
            return database.claim()[0].type

    try:
        assert use() == "t"
    except QueueLocationError:
        assert os.listdir(folder) == []
    else:
        assert name in os.listdir(folder)
        for left in folder.iterdir():
            left.unlink()
