"""What queues hold, as monitors see it."""

from __future__ import annotations

from typing import Any

from kombu import Connection, Consumer, Producer, Queue

from kombu_sqlite import QueueDatabase
from kombu_sqlite.depths import QueueDepth


def test_the_queues_asked_for_come_first_then_all_that_hold_tasks(
    broker_url: str, database: QueueDatabase
) -> None:
    """Each once; one that nobody declared is empty, one whose tasks have ended is left out."""
    for queue in ("b", "a", "c"):
        database.enqueue("task", queue=queue)
    database.enqueue("task", queue="b", run_after_utc="2999-01-01 00:00:00")
    database.complete(database.claim("c")[0])
    database.claim("b")
    with Connection(broker_url) as connection, connection.channel() as channel:
        assert channel.depths(["never", "b"]) == [
            QueueDepth("never"),
            QueueDepth("b", ready=1, unacked=1),
            QueueDepth("a", ready=1),
        ]


def test_consumers_and_transient_messages_count(broker_url: str) -> None:
    """A transient queue's messages are in no statistics, but asked for by name they are counted."""
    queue = Queue("short", durable=False)
    with Connection(broker_url) as connection, connection.channel() as channel:
        bound = queue(channel)
        bound.declare()
        for number in range(3):
            Producer(channel).publish(number, routing_key="short")
        got: list[Any] = []
        channel.basic_qos(0, 1, False)
        with Consumer(channel, [bound], on_message=got.append):
            while not got:
                connection.drain_events(timeout=10)
            assert channel.depths(["short"]) == [QueueDepth("short", 2, 1, 1)]
        got[0].ack()
        assert channel.depths([]) == []


def test_a_queue_with_a_broken_name_hides_no_other(
    broker_url: str, database: QueueDatabase
) -> None:
    """Other programs may write any bytes."""
    database.enqueue("task", queue="whole")
    database.execute(
        "INSERT INTO task_queue(type, payload, queue) VALUES ('t', '{}', CAST(x'ff' AS TEXT))"
    )
    with Connection(broker_url) as connection, connection.channel() as channel:
        assert {depth.queue: depth.ready for depth in channel.depths([])}["whole"] == 1
