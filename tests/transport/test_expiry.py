"""When queues and messages expire: what counts as use, and times beyond any calendar."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from kombu import Connection, Exchange, Queue

from kombu_sqlite import QueueDatabase
from kombu_sqlite.clock import now_text

Wait = Callable[..., Any]

CONSUMER = """
import sys
sys.path[:0] = {path!r}
import kombu, kombu_sqlite
with kombu.Connection({url!r}) as connection:
    queue = kombu.Queue("q", kombu.Exchange("x"), routing_key="q", expires=60)
    consumer = kombu.Consumer(connection, [queue], callbacks=[lambda body, message: None])
    consumer.consume()
    print("consuming", flush=True)
    while True:
        connection.drain_events()
"""


def age(path: str, queue: str) -> None:
    """Let a queue look as if nobody had touched it since long ago."""
    with QueueDatabase(path) as database:
        database.execute(
            "UPDATE queues SET last_used_utc = '2020-01-01 00:00:00' WHERE name = ?", (queue,)
        )


def sweep(connection: Connection) -> None:
    """Delete what is unused, as the elected process does."""
    store = connection.default_channel.store
    with store.database.transaction() as handle:
        store.topology.delete_unused(handle, now=now_text())


def test_a_killed_consumers_queue_is_kept_for_its_expiry(
    connection: Connection, broker_url: str, queue_path: str, wait_until: Wait
) -> None:
    """The time counts from the consumer's death: what it had not done is not cancelled at once."""
    script = CONSUMER.format(path=sys.path, url=broker_url)
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"consuming\n"
        age(queue_path, "q")
        connection.Producer().publish("a", exchange="x", routing_key="q")
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    connection.default_channel.store.session()
    channel = connection.default_channel
    with QueueDatabase(queue_path) as database:
        wait_until(lambda: not database.execute("SELECT 1 FROM consumers WHERE queue = 'q'"))
    sweep(connection)
    assert ("q", "x", "q") in channel.list_bindings()
    assert channel.basic_get("q").payload == "a"


def test_declaring_a_queue_again_counts_as_use(connection: Connection, queue_path: str) -> None:
    """So that a consumer finds it, bindings and all, when it begins to consume."""
    channel = connection.default_channel
    queue = Queue("q", Exchange("x"), routing_key="q", expires=60)(channel)
    queue.declare()
    age(queue_path, "q")
    queue.declare()
    sweep(connection)
    assert ("q", "x", "q") in channel.list_bindings()
    age(queue_path, "q")
    sweep(connection)
    assert not channel._has_queue("q")


@pytest.mark.parametrize("durable", [True, False])
def test_a_message_may_live_longer_than_the_calendar(connection: Connection, durable: bool) -> None:
    """Its own time to live and its queue's."""
    queue = Queue("q", routing_key="q", durable=durable, message_ttl=1e13)
    queue(connection.default_channel).declare()
    connection.Producer().publish("a", routing_key="q", expiration=1e13)
    assert connection.default_channel.basic_get("q").payload == "a"


def test_a_queue_may_live_longer_than_the_calendar(connection: Connection, queue_path: str) -> None:
    """And does not keep others from expiring."""
    channel = connection.default_channel
    for name, expires_s in (("a", 60), ("long", 1e14), ("z", 60)):
        Queue(name, routing_key=name, expires=expires_s)(channel).declare()
        age(queue_path, name)
    sweep(connection)
    assert [name for name in ("a", "long", "z") if channel._has_queue(name)] == ["long"]
