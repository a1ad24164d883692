"""Acknowledge, reject, requeue; bodies, headers and priorities as they were sent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from kombu import Connection, Consumer, Queue

from kombu_sqlite import QueueDatabase


def get(connection: Connection, queue: str = "q") -> Any:
    """The next message, or None."""
    return connection.default_channel.basic_get(queue)


def rows(path: str, columns: str = "status") -> list[tuple[Any, ...]]:
    """Columns of the task rows, oldest first."""
    with QueueDatabase(path) as database:
        return [
            tuple(row) for row in database.execute(f"SELECT {columns} FROM task_queue ORDER BY id")
        ]


def test_an_acknowledged_message_is_completed(connection: Connection, queue_path: str) -> None:
    """Its row stays."""
    connection.Producer().publish("a", routing_key="q")
    get(connection).ack()
    connection.release()
    assert rows(queue_path) == [("completed",)]


def test_a_rejected_message_is_failed(connection: Connection, queue_path: str) -> None:
    """With the reason."""
    connection.Producer().publish("a", routing_key="q")
    get(connection).reject()
    connection.release()
    assert rows(queue_path, "status, error_message") == [("failed", "rejected")]


def test_failures_are_listed_by_type_newest_first(connection: Connection, queue_path: str) -> None:
    """A page at a time; other types, states and queues are left out."""
    producer = connection.Producer()
    for number in range(6):
        headers = {"task": f"t{number % 2}", "id": str(number)}
        producer.publish(number, routing_key="q", headers=headers)
        message = get(connection)
        message.ack() if number == 4 else message.reject()
    connection.release()
    with QueueDatabase(queue_path) as database:
        assert [t.id for t in database.list(type="t0", status="failed")] == [3, 1]
        assert [t.id for t in database.list(type="t0", status="failed", before_id=3)] == [1]
        assert [t.id for t in database.list(type="t1", status="failed", limit=2)] == [6, 4]
        assert database.list(type="t0", status="cancelled") == []
        assert database.list(type="t0", status="failed", queue="other") == []


def test_a_requeued_message_comes_first_and_says_redelivered(connection: Connection) -> None:
    """Where Celery reads it: in the delivery info."""
    for body in "ab":
        connection.Producer().publish(body, routing_key="q")
    first = get(connection)
    assert first.delivery_info["redelivered"] is False
    first.requeue()
    again = get(connection)
    assert (again.payload, again.delivery_info["redelivered"]) == ("a", True)
    assert again.delivery_tag != first.delivery_tag


def test_a_message_ends_once(connection: Connection) -> None:
    """Kombu refuses the second end."""
    connection.Producer().publish("a", routing_key="q")
    message = get(connection)
    message.ack()
    with pytest.raises(message.MessageStateError):
        message.requeue()


def test_closing_a_channel_gives_back_what_is_unacked(
    connect: Callable[..., Connection], queue_path: str
) -> None:
    """At once, and without counting an attempt."""
    first, second = connect(), connect()
    first.Producer().publish("a", routing_key="q")
    channel = first.channel()
    assert channel.basic_get("q") is not None
    assert get(second) is None
    channel.close()
    message = get(second)
    assert message.payload == "a"
    message.ack()
    second.release()
    first.release()
    assert rows(queue_path, "attempts, deaths, delivery_no") == [(1, 0, 2)]


def test_recover_puts_everything_back(connection: Connection) -> None:
    """In the order it was in."""
    for body in "abc":
        connection.Producer().publish(body, routing_key="q")
    assert [get(connection).payload for _ in "ab"] == ["a", "b"]
    connection.default_channel.basic_recover(requeue=True)
    assert [get(connection).payload for _ in "abc"] == ["a", "b", "c"]


def test_an_ack_can_cover_all_before_it(connection: Connection, queue_path: str) -> None:
    """AMQP's ``multiple``."""
    for body in "abc":
        connection.Producer().publish(body, routing_key="q")
    messages = [get(connection) for _ in "abc"]
    connection.default_channel.basic_ack(messages[1].delivery_tag, multiple=True)
    connection.release()
    assert rows(queue_path) == [("completed",), ("completed",), ("queued",)]


@pytest.mark.parametrize("size", [0, 1, 5000, 20_000_000])
def test_a_body_of_any_size_comes_back(connection: Connection, size: int) -> None:
    """Byte for byte."""
    body = bytes(range(256)) * (size // 256 + 1)
    body = body[:size]
    connection.Producer().publish(
        body, routing_key="q", content_type="application/data", content_encoding="binary"
    )
    message = get(connection)
    assert message.body == body
    message.ack()


@pytest.mark.parametrize("serializer", ["json", "pickle", "yaml"])
@pytest.mark.parametrize("compression", [None, "zlib", "bzip2"])
def test_any_serializer_and_compression(
    connection: Connection, serializer: str, compression: str | None
) -> None:
    """The payload is what was published."""
    payload = {"x": [1, 2.5, None], "ü": "日本語"}
    connection.Producer().publish(
        payload, routing_key="q", serializer=serializer, compression=compression
    )
    message = get(connection)
    message.accept = {
        f"application/{'x-python-serialize' if serializer == 'pickle' else serializer}",
        "application/x-yaml",
    }
    assert message.payload == payload


def test_headers_and_properties_come_back(connection: Connection) -> None:
    """As they were given."""
    headers = {"a": [1, {"b": None}], "ü": True}
    connection.Producer().publish(
        1, routing_key="q", headers=headers, correlation_id="c", reply_to="r", app_id="me"
    )
    message = get(connection)
    assert message.headers == headers
    assert {key: message.properties[key] for key in ("correlation_id", "reply_to", "app_id")} == {
        "correlation_id": "c",
        "reply_to": "r",
        "app_id": "me",
    }
    assert message.delivery_info["routing_key"] == "q"


@pytest.mark.parametrize("name", ["ü" * 255, "a b'c\"; DROP TABLE task_queue --", "\U0001f4ec"])
def test_any_queue_name_is_just_a_name(connection: Connection, name: str) -> None:
    """Up to 255 characters, whatever they are."""
    queue = connection.SimpleQueue(name)
    queue.put("a")
    message = queue.get(timeout=5)
    assert message.payload == "a"
    message.ack()
    queue.close()


@pytest.mark.parametrize(("order", "first"), [("amqp", "nine"), ("redis", "one")])
def test_priorities_mean_what_the_option_says(
    connect: Callable[..., Connection], order: str, first: str
) -> None:
    """A higher one goes first by default; with redis order a lower one."""
    connection = connect(priority_order=order)
    for body, priority in (("one", 1), ("nine", 9), ("five", 5)):
        connection.Producer().publish(body, routing_key="q", priority=priority)
    got = [get(connection) for _ in range(3)]
    assert got[0].payload == first
    assert got[1].payload == "five"
    assert got[0].properties["priority"] == (9 if order == "amqp" else 1)


def test_requeued_messages_keep_their_priority(connection: Connection) -> None:
    """A later, more urgent one still goes first."""
    received: list[Any] = []
    producer = connection.Producer()
    for body, priority in (("first", 3), ("second", 6), ("third", 3)):
        producer.publish(body, routing_key="q", priority=priority)
    queue = Queue("q", routing_key="q")
    with Consumer(connection, [queue], on_message=received.append):
        for _ in range(3):
            connection.drain_events(timeout=5)
    for message in received:
        message.requeue()
    producer.publish("fourth", routing_key="q", priority=9)
    received.clear()
    with Consumer(connection, [queue], on_message=received.append):
        for _ in range(4):
            connection.drain_events(timeout=5)
    assert [m.payload for m in received] == ["fourth", "second", "first", "third"]


@pytest.mark.parametrize(
    ("scheduling", "order"),
    [("fifo", ["a", "b", "c"]), ("lifo", ["c", "b", "a"]), ("priority", ["b", "a", "c"])],
)
def test_scheduling_decides_the_order(
    connect: Callable[..., Connection], scheduling: str, order: list[str]
) -> None:
    """By age, by age backwards, by priority."""
    connection = connect(scheduling=scheduling)
    for body, priority in (("a", 0), ("b", 5), ("c", 0)):
        connection.Producer().publish(body, routing_key="q", priority=priority)
    assert [get(connection).payload for _ in "abc"] == order


def test_weighted_scheduling_serves_everybody(connect: Callable[..., Connection]) -> None:
    """Urgent messages mostly first, the others not last.

    One draw of 21 is for the least urgent: 400 draws miss it once in 300 million runs.
    """
    connection = connect(scheduling="weighted")
    with connection.Producer() as producer:
        for number in range(1200):
            producer.publish(number % 3, routing_key="q", priority=number % 3)
    first = [get(connection).payload for _ in range(400)]
    assert first.count(2) > first.count(0) > 0


def test_messages_wait_for_a_consumer_that_meets_them(connect: Callable[..., Connection]) -> None:
    """By the header ``compatibility``; an empty one fits all."""
    plain, gpu = connect(), connect(capabilities={"gpu": True, "region": ["eu", "us"]})
    producer = plain.Producer()
    producer.publish("gpu", routing_key="q", headers={"compatibility": {"gpu": True}})
    producer.publish("asia", routing_key="q", headers={"compatibility": {"region": "asia"}})
    producer.publish("any", routing_key="q")
    assert [m.payload for m in (get(plain),)] == ["any"]
    assert get(plain) is None
    assert get(gpu).payload == "gpu"
    assert get(gpu) is None


@pytest.mark.parametrize("needs", ["gpu", ["gpu"], 5, "[1]", "null", ""])
def test_a_compatibility_nobody_can_meet_is_refused(connection: Connection, needs: Any) -> None:
    """At the publish: in the file it would wait for ever."""
    with pytest.raises(ValueError, match="'compatibility' must be a JSON object"):
        connection.Producer().publish("a", routing_key="q", headers={"compatibility": needs})
    connection.Producer().publish("b", routing_key="q", headers={"compatibility": '{"a": 1}'})
    assert connection.default_channel.queue_declare("q", passive=True).message_count == 1


@pytest.mark.parametrize("huge", [2**63 - 1, 2**63, 2**70, -(2**63), -(2**70), float("inf")])
@pytest.mark.parametrize("durable", [True, False])
def test_a_priority_beyond_all_numbers_is_first_or_last(
    connection: Connection, huge: float, durable: bool
) -> None:
    """As far as a row can say it; the property comes back as it was sent."""
    Queue("q", routing_key="q", durable=durable)(connection.default_channel).declare()
    for priority in (0, huge, 9):
        connection.Producer().publish("a", routing_key="q", priority=priority)
    found = [get(connection).properties["priority"] for _ in range(3)]
    assert found == sorted([0, huge, 9], reverse=True)
