"""Direct, topic and fanout exchanges, across connections and processes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from kombu import Connection, Exchange, Queue
from kombu.exceptions import ChannelError
from kombu.transport.virtual.base import NotEquivalentError


def bodies(connection: Connection, queue: str) -> list[Any]:
    """Everything in a queue, taken out."""
    channel = connection.default_channel
    found = []
    while (message := channel.basic_get(queue)) is not None:
        found.append(message.payload)
        message.ack()
    return found


def declare(connection: Connection, kind: str, bindings: dict[str, str]) -> Exchange:
    """An exchange with queues bound by keys."""
    exchange = Exchange(f"x-{kind}", type=kind)
    for name, key in bindings.items():
        Queue(name, exchange, key)(connection.default_channel).declare()
    return exchange


def test_direct_delivers_to_the_queue_of_the_key(connection: Connection) -> None:
    """And to no other."""
    exchange = declare(connection, "direct", {"one": "k1", "two": "k2"})
    connection.Producer().publish("a", exchange=exchange, routing_key="k1")
    assert (bodies(connection, "one"), bodies(connection, "two")) == (["a"], [])


def test_topic_delivers_by_pattern(connection: Connection) -> None:
    """A star is one word, a hash any number."""
    exchange = declare(connection, "topic", {"stocks": "t.*", "all": "#", "deep": "t.#.z"})
    producer = connection.Producer()
    for key in ("t.nyse", "t.a.z", "other"):
        producer.publish(key, exchange=exchange, routing_key=key)
    assert bodies(connection, "stocks") == ["t.nyse"]
    assert bodies(connection, "all") == ["t.nyse", "t.a.z", "other"]
    assert bodies(connection, "deep") == ["t.a.z"]


def test_fanout_delivers_to_every_queue(connection: Connection) -> None:
    """Whatever the routing key."""
    exchange = declare(connection, "fanout", {"one": "", "two": "ignored"})
    connection.Producer().publish({"n": 1}, exchange=exchange, routing_key="any")
    assert (bodies(connection, "one"), bodies(connection, "two")) == ([{"n": 1}], [{"n": 1}])


def test_another_connection_routes_by_what_this_one_declared(
    connect: Callable[..., Connection],
) -> None:
    """Bindings are in the file, also those made after the other had read it."""
    first, second = connect(), connect()
    exchange = declare(first, "direct", {"one": "k"})
    second.Producer().publish("a", exchange=exchange, routing_key="k")
    declare(first, "direct", {"late": "k"})
    second.Producer().publish("b", exchange=exchange, routing_key="k")
    assert (bodies(first, "one"), bodies(first, "late")) == (["a", "b"], ["b"])


def test_another_process_routes_by_what_this_one_declared(
    connection: Connection, broker_url: str
) -> None:
    """Without declaring anything itself."""
    declare(connection, "topic", {"events": "task.#"})
    script = (
        f"import sys; sys.path[:0] = {sys.path!r}\n"
        "import kombu, kombu_sqlite\n"
        f"with kombu.Connection({broker_url!r}) as c:\n"
        "    c.default_channel.basic_publish(\n"
        "        c.default_channel.prepare_message('hi', content_type='text/plain',\n"
        "                                          content_encoding='utf-8'),\n"
        "        'x-topic', 'task.sent')\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
    assert bodies(connection, "events") == ["hi"]


def test_unbinding_ends_the_route(connection: Connection) -> None:
    """The queue and what is in it stay."""
    exchange = declare(connection, "direct", {"one": "k"})
    producer = connection.Producer()
    producer.publish("a", exchange=exchange, routing_key="k")
    connection.default_channel.queue_unbind("one", "x-direct", "k")
    producer.publish("b", exchange=exchange, routing_key="k")
    assert bodies(connection, "one") == ["a"]


def test_deleting_an_exchange_keeps_its_queues(connection: Connection) -> None:
    """Publishing to it is an error from then on."""
    exchange = declare(connection, "direct", {"one": "k"})
    connection.Producer().publish("a", exchange=exchange, routing_key="k")
    connection.default_channel.exchange_delete("x-direct")
    assert bodies(connection, "one") == ["a"]
    with pytest.raises(ChannelError, match="NOT_FOUND"):
        connection.Producer(auto_declare=False).publish("b", exchange="x-direct", routing_key="k")


def test_passive_declares_only_look(connection: Connection) -> None:
    """What does not exist is an error, and is not made."""
    channel = connection.default_channel
    with pytest.raises(ChannelError, match="no queue 'nothing'"):
        channel.queue_declare("nothing", passive=True)
    with pytest.raises(ChannelError, match="no exchange 'nothing'"):
        channel.exchange_declare("nothing", passive=True)
    channel.queue_declare("something")
    assert channel.queue_declare("something", passive=True).message_count == 0


def test_an_exchange_keeps_its_type(connection: Connection) -> None:
    """Declaring it with another one is refused."""
    channel = connection.default_channel
    channel.exchange_declare("x", "direct")
    channel.exchange_declare("x", "direct", durable=True)
    with pytest.raises(NotEquivalentError):
        channel.exchange_declare("x", "fanout")


def test_an_unknown_exchange_type_is_refused(connection: Connection) -> None:
    """Headers exchanges are not supported."""
    with pytest.raises(ChannelError, match="not supported"):
        connection.default_channel.exchange_declare("x", "headers")
    assert connection.supports_exchange_type("fanout")
    assert not connection.supports_exchange_type("headers")


def test_a_message_for_a_queue_nobody_declared_is_kept(connection: Connection) -> None:
    """The queue is made; it must not get lost."""
    connection.Producer().publish("a", routing_key="new")
    assert bodies(connection, "new") == ["a"]


def test_a_transient_reply_to_a_queue_that_is_gone_is_dropped(connection: Connection) -> None:
    """As AMQP drops it; no queue is left behind for a client that left."""
    connection.Producer().publish("a", routing_key="reply-1", delivery_mode=1)
    assert not connection.default_channel._has_queue("reply-1")


def test_an_exchange_nobody_declared_is_bound_to_nothing(connection: Connection) -> None:
    """The queue stays without it."""
    channel = connection.default_channel
    channel.queue_declare("q")
    with pytest.raises(ChannelError, match="no exchange 'nothing'"):
        channel.queue_bind("q", "nothing", "k")
    assert channel.get_table("nothing") == []


def test_bindings_are_listed(connection: Connection) -> None:
    """For Kombu's management."""
    declare(connection, "direct", {"one": "k"})
    assert ("one", "x-direct", "k") in connection.default_channel.list_bindings()
    assert connection.default_channel.get_table("x-direct") == [("k", None, "one")]
    found = connection.get_manager().get_bindings()
    assert {"destination": "one", "source": "x-direct", "routing_key": "k"} in found
