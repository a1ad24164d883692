"""Messages that are no task, though they claim to be one: each fails, and no worker with it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from celery.exceptions import NotRegistered
from kombu import Connection

from celery_integration.malformed import refuse_malformed
from kombu_sqlite import QueueBusyError, QueueOptionError

HEADERS = {"task": "app.add", "id": "7", "lang": "py"}
PROPERTIES = {"content_type": "application/json", "content_encoding": "utf-8"}
PICKLED = {"content_type": "application/x-python-serialize", "content_encoding": "utf-8"}
BODY = "[[1, 2], {}, {}]"
DEEP = "[" * 20_000

#: Headers, properties and body of messages that nobody can run; None leaves the headers out.
MALFORMED: dict[str, tuple[Any, Any, str]] = {
    "a list as task": ({**HEADERS, "task": [1]}, PROPERTIES, BODY),
    "a number as task": ({**HEADERS, "task": 5}, PROPERTIES, BODY),
    "no task": ({"id": "7"}, PROPERTIES, BODY),
    "no id": ({"task": "app.add"}, PROPERTIES, BODY),
    "null as id": ({**HEADERS, "id": None}, PROPERTIES, BODY),
    "null as id of an unknown task": ({"task": "no.such", "id": None}, PROPERTIES, BODY),
    "an object as id": ({**HEADERS, "id": {}}, PROPERTIES, BODY),
    "an empty list as eta": ({**HEADERS, "eta": []}, PROPERTIES, BODY),
    "a number as expiry": ({**HEADERS, "expires": 5}, PROPERTIES, BODY),
    "a time limit of one number": ({**HEADERS, "timelimit": [1]}, PROPERTIES, BODY),
    "text as time limits": ({**HEADERS, "timelimit": ["a", "b"]}, PROPERTIES, BODY),
    "a list as shadow": ({**HEADERS, "shadow": [1]}, PROPERTIES, BODY),
    "a compression it has not": ({**HEADERS, "compression": "zlib"}, PROPERTIES, BODY),
    "an unknown encoding": (HEADERS, {**PROPERTIES, "content_encoding": [1]}, BODY),
    "a list as content type": (HEADERS, {"content_type": ["x"]}, BODY),
    "a content type nobody accepts": (HEADERS, {"content_type": "application/x-evil"}, BODY),
    "a pickle": (HEADERS, PICKLED, "cos\nmkdir\n(S'sprung'\ntR."),
    "a body that is no JSON": (HEADERS, PROPERTIES, "{"),
    "an empty body": (HEADERS, PROPERTIES, ""),
    "a deep body": (HEADERS, PROPERTIES, DEEP),
    "a number as body": (HEADERS, PROPERTIES, "5"),
    "a short body": (HEADERS, PROPERTIES, "[1]"),
    "numbers as arguments": (HEADERS, PROPERTIES, "[5, 5, 5]"),
    "a number as embed": (HEADERS, PROPERTIES, "[[1, 2], {}, 5]"),
    "a number as chain": (HEADERS, PROPERTIES, '[[1, 2], {}, {"chain": 5}]'),
    "numbers in a chain": (HEADERS, PROPERTIES, '[[1], {}, {"chain": [5]}]'),
    "numbers as errbacks": (HEADERS, PROPERTIES, '[[1], {}, {"errbacks": [5]}]'),
    "a chord without a task": (HEADERS, PROPERTIES, '[[1, 2], {}, {"chord": {"x": 1}}]'),
    "numbers in a foreign chain": (None, None, '[[1], {}, {"chain": [5], "chord": 5}]'),
}


def insert(database: Any, headers: Any, properties: Any, body: str) -> None:
    """Insert a row as another program would, with headers of its own making."""
    texts = [None if value is None else json.dumps(value) for value in (headers, properties)]
    database.execute(
        "INSERT INTO task_queue (type, headers, properties, payload, task_id) "
        "VALUES ('app.add', ?, ?, ?, '7')",
        (*texts, body),
    )


@pytest.mark.parametrize("pool", ["solo", "threads", "prefork"])
def test_no_malformed_message_ends_a_worker(lab: Any, pool: str) -> None:
    """Each fails with the reason, and the task behind them runs in the same worker."""
    lab.database.initialize_schema()
    for message in MALFORMED.values():
        insert(lab.database, *message)
    lab.database.enqueue("app.add", {"x": 40, "y": 2})
    worker = lab.worker("-P", pool, "-c", "2")
    lab.wait(lambda: worker.poll() is not None or lab.database.stats().total_tasks == ended(lab))
    assert worker.poll() is None
    assert lab.lines() == ["sum 42"]
    failed = {task.id: task.error_message for task in lab.database.list(status="failed")}
    assert len(failed) == len(MALFORMED)
    unknown = {name: failed[id] for id, name in enumerate(MALFORMED, 1)}
    for name in ("a number as task", "null as id of an unknown task"):
        assert "unregistered task" in unknown.pop(name)
    assert all("malformed" in reason for reason in unknown.values())
    assert not (lab.folder / "sprung").exists()  # the workers' folder
    assert len(lab.app.control.inspect(timeout=5).active() or ()) == 1


def test_a_task_that_nobody_registered_says_so(house: Any) -> None:
    """In its row and to its caller."""
    house.worker("-P", "solo")
    result = house.app.send_task("no.such")
    with pytest.raises(NotRegistered):
        result.get(timeout=20)
    house.wait(lambda: house.database.get(result.id).status == "failed")
    assert house.database.get(result.id).error_message == "unregistered task: 'no.such'"


def ended(lab: Any) -> int:
    """How many rows have ended."""
    stats = lab.database.stats()
    return int(stats.completed_tasks + stats.failed_tasks)


@pytest.mark.parametrize(
    "exc", [QueueBusyError("locked"), QueueOptionError("bad"), OSError(), RuntimeError()]
)
def test_what_is_no_messages_fault_fails_none(exc: Exception) -> None:
    """The worker has to hear of it; the message is delivered again."""
    assert not refuse_malformed(None, None, exc)  # type: ignore[arg-type]


def test_without_celery_an_exception_of_a_callback_is_the_callers(broker_url: str) -> None:
    """And the message stays the consumer's."""

    def fail(body: Any, message: Any) -> None:
        raise TypeError("a slip in the program")

    with Connection(broker_url) as connection:
        connection.Producer().publish(
            1, routing_key="q", declare=[connection.SimpleQueue("q").queue]
        )
        with (
            connection.Consumer(connection.SimpleQueue("q").queue, callbacks=[fail]) as consumer,
            pytest.raises(TypeError, match="a slip"),
        ):
            connection.drain_events(timeout=5)
        assert len(consumer.channel.qos) == 1
