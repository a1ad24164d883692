"""Kombu's own helpers, which rely on what a transport does: mixins, retries, replies, consumers."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import redis
from kombu import Connection, Consumer, Exchange, Queue, pools
from kombu.common import Broadcast, collect_replies, itermessages, maybe_declare, send_reply
from kombu.exceptions import ChannelError, OperationalError
from kombu.mixins import ConsumerMixin, ConsumerProducerMixin
from kombu.utils.uuid import uuid

from kombu_sqlite import QueueBusyError, QueueDatabase

Connect = Callable[..., Connection]
Q = Queue("q", routing_key="q")


def publish(connection: Connection, *bodies: Any, queue: str = "q", **how: Any) -> None:
    """Send each body to a queue."""
    producer = connection.Producer()
    for body in bodies:
        producer.publish(body, routing_key=queue, **how)


def nothing_comes(connection: Connection) -> None:
    """A moment of waiting brings no message."""
    with pytest.raises(TimeoutError):
        connection.drain_events(timeout=0.1)


def test_itermessages_ends_at_its_limit(connection: Connection) -> None:
    """And leaves the rest in the queue."""
    publish(connection, 1, 2, 3)
    found = []
    for body, message in itermessages(connection, connection.channel(), Q, limit=2, timeout=5):
        found.append(body)
        message.ack()
    assert found == [1, 2]
    assert connection.default_channel.queue_declare("q", passive=True).message_count == 1


class Collector(ConsumerMixin):  # type: ignore[misc]
    """Collects a number of bodies, then stops."""

    def __init__(self, connection: Connection, wanted: int) -> None:
        self.connection = connection
        self.wanted = wanted
        self.got: list[Any] = []

    def get_consumers(self, consumer: Any, channel: Any) -> list[Any]:
        """One consumer of queue q."""
        return [consumer([Q], callbacks=[self.on_message], accept=["json"])]

    def on_message(self, body: Any, message: Any) -> None:
        """Keep and acknowledge."""
        self.got.append(body)
        message.ack()
        self.should_stop = len(self.got) >= self.wanted


def test_a_consumer_mixin_runs_until_it_is_to_stop(connection: Connection) -> None:
    """On a clone of its connection."""
    publish(connection, *range(5))
    collector = Collector(connection, 5)
    collector.run()
    assert collector.got == list(range(5))
    assert connection.default_channel.queue_declare("q", passive=True).message_count == 0


class Answering(ConsumerProducerMixin):  # type: ignore[misc]
    """Answers one request, on a connection of its own for publishing."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def get_consumers(self, consumer: Any, channel: Any) -> list[Any]:
        """One consumer of queue q."""
        return [consumer([Q], on_message=self.on_message)]

    def on_message(self, message: Any) -> None:
        """Send twice the number back."""
        send_reply(Exchange(""), message, {"twice": message.payload * 2}, self.producer)
        message.ack()
        self.should_stop = True


def test_a_request_is_answered_to_its_reply_queue(connect: Connect) -> None:
    """The reply names its request, and the reply queue deletes itself."""
    asking = connect()
    reply = Queue(uuid(), routing_key="", exclusive=True, auto_delete=True)
    bound = reply(asking.default_channel)
    bound.declare()
    asking.Producer().publish(21, routing_key="q", reply_to=reply.name, correlation_id="c-1")
    server = Answering(connect())
    thread = threading.Thread(target=server.run)
    thread.start()
    answers = list(collect_replies(asking, asking.channel(), reply, limit=1, timeout=10))
    thread.join(10)
    assert not thread.is_alive()
    assert answers == [{"twice": 42}]
    assert not asking.default_channel._has_queue(reply.name)


def test_a_broadcast_reaches_everybody_once(connect: Connect) -> None:
    """Each has a queue of its own on a fanout exchange."""
    got: list[tuple[int, Any]] = []
    connections = [connect(), connect()]
    consumers = [
        Consumer(c, [Broadcast("all")], callbacks=[lambda body, _, n=n: got.append((n, body))])
        for n, c in enumerate(connections)
    ]
    for consumer in consumers:
        consumer.consume()
    connect().Producer().publish("hear", exchange=Exchange("all", type="fanout"))
    for each in connections:
        each.drain_events(timeout=10)
        nothing_comes(each)
    assert sorted(got) == [(0, "hear"), (1, "hear")]


def test_a_producer_declares_what_it_is_told_to(connection: Connection) -> None:
    """Once per connection; the message is in the queue bound there."""
    queue = Queue("bound", Exchange("x", type="topic"), routing_key="a.#")
    connection.Producer().publish(
        "hi", exchange=queue.exchange, routing_key="a.b", declare=[queue], retry=True
    )
    assert maybe_declare(queue(connection.default_channel)) is False
    assert queue(connection.default_channel).get().payload == "hi"


def test_publishing_to_an_undeclared_exchange_raises(connection: Connection) -> None:
    """Alone, and in the middle of others: then none of them is published."""
    channel = connection.default_channel
    message = channel.prepare_message("x", content_type="text/plain", content_encoding="utf-8")
    with pytest.raises(ChannelError, match="no exchange 'nowhere'"):
        channel.basic_publish(message, "nowhere", "k")
    messages = [
        (exchange, "q", channel.encode(message, exchange, "q")) for exchange in ("", "nowhere", "")
    ]
    with pytest.raises(ChannelError, match="no exchange 'nowhere'"):
        channel.publish_encoded(messages)
    with pytest.raises(ChannelError, match="no queue 'q'"):
        channel.queue_declare("q", passive=True)


def test_a_message_that_matches_no_binding_is_dropped(
    connection: Connection, queue_path: str
) -> None:
    """As AMQP drops it: the exchange exists, and nobody asked for it."""
    exchange = Exchange("x", type="direct")(connection.default_channel)
    exchange.declare()
    connection.Producer().publish("a", exchange=exchange, routing_key="nobody")
    with QueueDatabase(queue_path) as database:
        assert database.stats().total_tasks == 0


def test_autoretry_waits_for_a_locked_file(connect: Connect, queue_path: str) -> None:
    """The call is made again with a channel, and succeeds once the lock is free."""
    connection = connect("?busy_timeout=0.05")
    connection.default_channel.queue_declare("there")
    calls: list[Any] = []
    released = threading.Event()
    held = threading.Event()

    def hold() -> None:
        with QueueDatabase(queue_path) as database, database.transaction():
            held.set()
            released.wait(10)

    def declare(channel: Any = None) -> Any:
        calls.append(channel)
        if len(calls) == 2:
            released.set()
            holder.join(10)
        return channel.queue_declare("new")

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(10)
    retried = connection.autoretry(
        declare, connection.default_channel, interval_start=0, interval_step=0, max_retries=5
    )
    result, channel = retried()
    assert result.queue == "new"
    assert channel.queue_declare("new", passive=True).message_count == 0
    assert len(calls) == 2


def test_ensure_gives_up_after_its_retries(connect: Connect, queue_path: str) -> None:
    """With Kombu's error, caused by ours; each try was told to the errback."""
    connection = connect("?busy_timeout=0.05")
    producer = connection.Producer()
    publish(connection, "first")
    told: list[BaseException] = []
    failures: list[BaseException] = []

    def send() -> None:
        try:
            policy = {"max_retries": 2, "interval_start": 0, "interval_step": 0}
            producer.publish(
                "x",
                routing_key="q",
                retry=True,
                retry_policy={**policy, "errback": lambda exc, interval: told.append(exc)},
            )
        except OperationalError as exc:
            failures.append(exc)

    with QueueDatabase(queue_path) as database:
        with database.transaction():
            thread = threading.Thread(target=send)
            thread.start()
            thread.join(10)
        assert database.stats().total_tasks == 1
    assert isinstance(failures[0].__cause__, QueueBusyError)
    assert {type(exc) for exc in told} == {QueueBusyError}


def test_pools_reuse_what_was_released(connection: Connection) -> None:
    """A producer given back is the next one taken; a full pool says so."""
    pool = connection.clone().Pool(limit=1)
    with pool.acquire() as first:
        publish(first, "a")
        with pytest.raises(pool.LimitExceeded):
            pool.acquire()
    with pool.acquire() as second:
        assert second is first
        assert second.default_channel.basic_get("q").payload == "a"
    pool.force_close_all()
    producers = pools.ProducerPool(pools.connections[connection], limit=1)
    with producers.acquire() as one:
        one.publish("b", routing_key="q")
    with producers.acquire() as two:
        assert two is one
    producers.force_close_all()
    pools.reset()


def test_a_consumer_takes_up_and_leaves_queues(connection: Connection) -> None:
    """While it consumes; what is in a queue it left stays there."""
    got: list[Any] = []
    other = Queue("other", routing_key="other")
    consumer = Consumer(connection, [Q], callbacks=[lambda body, message: got.append(body)])
    consumer.consume()
    consumer.add_queue(other)
    publish(connection, "not yet", queue="other")
    nothing_comes(connection)
    consumer.consume()
    connection.drain_events(timeout=10)
    assert consumer.consuming_from("other")
    consumer.cancel_by_queue("other")
    assert not consumer.consuming_from("other")
    publish(connection, "too late", queue="other")
    publish(connection, "here")
    connection.drain_events(timeout=10)
    nothing_comes(connection)
    assert got == ["not yet", "here"]
    consumer.cancel()
    assert connection.default_channel.basic_get("other").payload == "too late"


def test_a_consumer_purges_its_queues(connection: Connection) -> None:
    """All of them; it says how many messages there were."""
    publish(connection, 1, 2)
    publish(connection, 3, queue="other")
    consumer = Consumer(connection, [Q, Queue("other", routing_key="other")])
    assert consumer.purge() == 3
    consumer.consume()
    nothing_comes(connection)


def test_recovering_brings_what_is_unacked_again(connection: Connection) -> None:
    """In its order, marked; without requeue is refused, as AMQP servers do."""
    publish(connection, "a", "b")
    got: list[tuple[Any, bool]] = []
    consumer = Consumer(
        connection,
        [Q],
        on_message=lambda m: got.append((m.payload, m.delivery_info["redelivered"])),
    )
    consumer.consume()
    for _ in "ab":
        connection.drain_events(timeout=10)
    with pytest.raises(NotImplementedError):
        consumer.recover(requeue=False)
    consumer.recover(requeue=True)
    for _ in "ab":
        connection.drain_events(timeout=10)
    assert got == [("a", False), ("b", False), ("a", True), ("b", True)]


def test_the_prefetch_count_can_change_while_consuming(connection: Connection) -> None:
    """More room is used at once; less holds after what is held has been acknowledged."""
    publish(connection, *range(6))
    got: list[Any] = []
    consumer = Consumer(connection, [Q], on_message=got.append, prefetch_count=1)
    consumer.consume()
    connection.drain_events(timeout=10)
    nothing_comes(connection)
    consumer.qos(prefetch_count=3)
    for _ in range(2):
        connection.drain_events(timeout=10)
    nothing_comes(connection)
    consumer.qos(prefetch_count=1)
    for message in got[:2]:
        message.ack()
    nothing_comes(connection)
    consumer.qos(prefetch_count=0)
    for _ in range(3):
        connection.drain_events(timeout=10)
    assert [m.payload for m in got] == list(range(6))


def test_each_channel_has_a_prefetch_count_of_its_own(connection: Connection) -> None:
    """On one queue of one connection."""
    publish(connection, *range(10))
    held: dict[int, list[Any]] = {2: [], 3: []}
    for count, messages in held.items():
        channel = connection.channel()
        Consumer(channel, [Q], on_message=messages.append, prefetch_count=count).consume()
    for _ in range(5):
        connection.drain_events(timeout=10)
    nothing_comes(connection)
    assert {count: len(messages) for count, messages in held.items()} == {2: 2, 3: 3}


def test_rejecting_and_requeueing_make_room(connection: Connection) -> None:
    """As an acknowledgement does."""
    publish(connection, "a", "b")
    got: list[Any] = []
    consumer = Consumer(connection, [Q], on_message=got.append, prefetch_count=1)
    consumer.consume()
    connection.drain_events(timeout=10)
    got[0].requeue()
    connection.drain_events(timeout=10)
    got[1].reject()
    connection.drain_events(timeout=10)
    assert [m.payload for m in got] == ["a", "a", "b"]


def test_a_callback_may_publish_cancel_and_close(connection: Connection) -> None:
    """On the channel that is delivering to it; what it had not got stays in the queue."""
    publish(connection, 0, 10)
    channel = connection.channel()
    got: list[Any] = []

    def callback(body: Any, message: Any) -> None:
        got.append(body)
        message.ack()
        publish(connection, body + 1)
        consumer.cancel()
        channel.close()

    consumer = Consumer(channel, [Q], callbacks=[callback])
    consumer.consume()
    connection.drain_events(timeout=10)
    nothing_comes(connection)
    assert got == [0]
    get = connection.default_channel.basic_get
    assert [get("q").payload for _ in range(2)] == [10, 1]


def test_a_queue_in_use_or_not_empty_is_deleted_only_when_told_so(connection: Connection) -> None:
    """``if_unused`` and ``if_empty``; an exchange with bindings likewise."""
    channel = connection.default_channel
    queue = Queue("q", Exchange("x"), routing_key="q")(channel)
    queue.declare()
    with Consumer(connection.channel(), [queue]):
        channel.queue_delete("q", if_unused=True)
        assert channel._has_queue("q")
    channel.exchange_delete("x", if_unused=True)
    assert "x" in channel.get_exchanges()
    channel.queue_delete("q", if_unused=True)
    assert not channel._has_queue("q")
    channel.exchange_delete("x", if_unused=True)
    assert "x" not in channel.get_exchanges()


def test_the_count_of_a_queue_is_what_waits(connection: Connection) -> None:
    """Not what somebody holds; consumers are counted beside it."""
    channel = connection.channel()
    publish(connection, 1, 2, 3)
    first = channel.basic_get("q")
    found = connection.default_channel.queue_declare("q", passive=True)
    assert (found.queue, found.message_count, found.consumer_count) == ("q", 2, 0)
    first.requeue()
    with Consumer(channel, [Q], prefetch_count=1):
        found = connection.default_channel.queue_declare("q", passive=True)
        assert (found.message_count, found.consumer_count) == (3, 1)


def test_getting_without_ack_ends_the_message(connection: Connection, queue_path: str) -> None:
    """At once: there is nothing to acknowledge."""
    publish(connection, "a")
    assert connection.default_channel.basic_get("q", no_ack=True).payload == "a"
    connection.release()
    with QueueDatabase(queue_path) as database:
        assert database.stats().completed_tasks == 1


def test_a_transient_queue_keeps_within_its_length(connection: Connection) -> None:
    """The oldest go, as in a durable one."""
    queue = Queue("t", routing_key="t", durable=False, max_length=2)
    queue(connection.default_channel).declare()
    publish(connection, *"abc", queue="t")
    get = connection.default_channel.basic_get
    assert [get("t").payload for _ in range(2)] == ["b", "c"]
    assert get("t") is None


def test_a_consumer_is_not_woken_for_what_it_cannot_do(connect: Connect) -> None:
    """Of two sleeping consumers the one that meets the message gets it."""
    plain, gpu = connect(), connect(capabilities={"gpu": True})
    got: list[Any] = []
    for connection, name in ((plain, "plain"), (gpu, "gpu")):
        Consumer(
            connection, [Q], callbacks=[lambda body, _, name=name: got.append((name, body))]
        ).consume()
        nothing_comes(connection)
    publish(connect(), "work", headers={"compatibility": {"gpu": True}})
    gpu.drain_events(timeout=10)
    nothing_comes(plain)
    assert got == [("gpu", "work")]


def test_a_redis_server_may_be_the_alternate(broker_url: str) -> None:
    """The file comes first; switched to the other, the list goes on and comes back."""
    server = redis.Redis.from_url("redis://127.0.0.1:6379/0")
    try:
        server.ping()
    except redis.exceptions.ConnectionError:
        pytest.skip("no Redis server listens on 127.0.0.1:6379")
    finally:
        server.close()
    options = {"visibility_timeout": 30, "fanout_prefix": True}
    with Connection(
        f"{broker_url};redis://127.0.0.1:6379/0", transport_options=options
    ) as connection:
        publish(connection, "in the file")
        assert connection.transport.driver_type == "sqlite"
        connection.maybe_switch_next()
        connection.ensure_connection(max_retries=2, interval_start=0, interval_step=0)
        assert connection.transport.driver_type == "redis"
        connection.maybe_switch_next()
        connection.ensure_connection(max_retries=2, interval_start=0, interval_step=0)
        assert connection.transport.driver_type == "sqlite"
        assert connection.default_channel.basic_get("q").payload == "in the file"
