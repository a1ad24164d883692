"""Consumers: prefetch, waiting, waking, threads, forks and Celery's kind of event loop."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from kombu import Connection, Consumer, Queue, eventloop
from kombu.asynchronous import Hub

from kombu_sqlite import QueueDatabase

Q = Queue("q", routing_key="q")


def publish(connection: Connection, *bodies: Any) -> None:
    """Send each body to queue q."""
    producer = connection.Producer()
    for body in bodies:
        producer.publish(body, routing_key="q")


def drain(connection: Connection, times: int = 1) -> None:
    """Deliver that many messages."""
    for _ in range(times):
        connection.drain_events(timeout=10)


def test_the_prefetch_count_bounds_what_is_unacked(connection: Connection) -> None:
    """An ack makes room for one more."""
    publish(connection, 1, 2, 3)
    got: list[Any] = []
    with Consumer(connection, [Q], on_message=got.append) as consumer:
        consumer.qos(prefetch_count=2)
        drain(connection, 2)
        with pytest.raises(TimeoutError):
            connection.drain_events(timeout=0.1)
        got[0].ack()
        drain(connection)
    assert [m.payload for m in got] == [1, 2, 3]


def test_one_call_delivers_one_message(connection: Connection) -> None:
    """However many were leased together."""
    publish(connection, 1, 2)
    got: list[Any] = []
    with Consumer(connection, [Q], callbacks=[lambda body, message: got.append(body)]):
        drain(connection)
        assert got == [1]
        drain(connection)
    assert got == [1, 2]


def test_polling_with_no_timeout_delivers_what_is_there(
    connection: Connection, wait_until: Callable[..., Any]
) -> None:
    """Also what came after the consumer had looked."""
    got: list[Any] = []
    with Consumer(connection, [Q], callbacks=[lambda body, message: got.append(body)]):
        with pytest.raises(TimeoutError):
            connection.drain_events(timeout=0)
        publish(connection, 1)
        connection.drain_events(timeout=0)
    assert got == [1]


def test_cancelling_gives_back_what_was_leased_ahead(
    connection: Connection, queue_path: str
) -> None:
    """Uncounted; what was delivered stays unacked."""
    publish(connection, *range(10))
    got: list[Any] = []
    with Consumer(connection, [Q], on_message=got.append):
        drain(connection)
    assert connection.default_channel.queue_declare("q", passive=True).message_count == 9
    got[0].ack()
    connection.release()
    with QueueDatabase(queue_path) as database:
        assert database.execute("SELECT sum(attempts) FROM task_queue")[0][0] == 1


def test_messages_without_ack_end_when_handed_over(connection: Connection) -> None:
    """What was not handed over is still there."""
    publish(connection, *range(10))
    got: list[Any] = []
    with Consumer(connection, [Q], no_ack=True, on_message=got.append):
        drain(connection, 3)
    assert connection.default_channel.queue_declare("q", passive=True).message_count == 7
    got[0].ack()  # allowed, and means nothing


def test_two_consumers_of_a_channel_take_turns(connection: Connection) -> None:
    """Both get some."""
    publish(connection, *range(10))
    one: list[Any] = []
    two: list[Any] = []
    with (
        Consumer(connection, [Q], callbacks=[lambda body, message: one.append(body)]),
        Consumer(connection, [Q], callbacks=[lambda body, message: two.append(body)]),
    ):
        drain(connection, 10)
    assert sorted(one + two) == list(range(10))
    assert one
    assert two


def test_several_queues_are_served_fairly(connection: Connection) -> None:
    """A flood in one does not hold up a trickle in the other."""
    producer = connection.Producer()
    for number in range(200):
        producer.publish(number, routing_key="flood")
    for number in range(3):
        producer.publish(number, routing_key="trickle")
    order: list[str] = []
    queues = [Queue("flood", routing_key="flood"), Queue("trickle", routing_key="trickle")]
    with Consumer(
        connection,
        queues,
        on_message=lambda m: (order.append(m.delivery_info["routing_key"]), m.ack()),
    ):
        drain(connection, 100)
    assert order.count("trickle") == 3


def test_a_busy_channel_does_not_starve_another(connection: Connection) -> None:
    """Both on one connection."""
    producer = connection.Producer()
    for number in range(500):
        producer.publish(number, routing_key="busy")
    got: list[str] = []
    busy, calm = connection.channel(), connection.channel()
    with (
        Consumer(busy, [Queue("busy", routing_key="busy")], on_message=lambda m: m.ack()),
        Consumer(
            calm,
            [Queue("calm", routing_key="calm")],
            callbacks=[lambda body, message: got.append(body)],
        ),
    ):
        drain(connection, 20)
        producer.publish("here", routing_key="calm")
        drain(connection, 100)
    assert got == ["here"]


def test_an_error_in_a_callback_reaches_the_caller(connection: Connection) -> None:
    """The message stays unacked, the others are delivered."""
    publish(connection, 1, 2)
    seen: list[Any] = []

    def callback(body: Any, message: Any) -> None:
        seen.append(body)
        if body == 1:
            raise ZeroDivisionError

    with Consumer(connection, [Q], callbacks=[callback]):
        with pytest.raises(ZeroDivisionError):
            drain(connection)
        drain(connection)
    assert seen == [1, 2]


def test_a_sleeping_consumer_is_woken_by_another_process(
    connection: Connection, broker_url: str
) -> None:
    """Long before it would look by itself for the deadline given."""
    script = (
        f"import sys, time; sys.path[:0] = {sys.path!r}\n"
        "import kombu, kombu_sqlite\n"
        f"with kombu.Connection({broker_url!r}) as c:\n"
        "    p = c.Producer()\n"
        "    for number in range(5):\n"
        "        p.publish(number, routing_key='q'); time.sleep(0.05)\n"
    )
    got: list[Any] = []
    with Consumer(connection, [Q], callbacks=[lambda body, message: got.append(body)]):
        process = subprocess.Popen([sys.executable, "-c", script])
        drain(connection, 5)
    assert process.wait() == 0
    assert got == [0, 1, 2, 3, 4]


def test_acks_from_other_threads_count(connection: Connection, queue_path: str) -> None:
    """And wake a consumer whose prefetch was full."""
    publish(connection, *range(20))

    def callback(body: Any, message: Any) -> None:
        threading.Timer(0.01, message.ack).start()

    with Consumer(connection, [Q], callbacks=[callback]) as consumer:
        consumer.qos(prefetch_count=1)
        drain(connection, 20)
    deadline = time.monotonic() + 10
    with QueueDatabase(queue_path) as database:
        while database.stats().completed_tasks < 20:
            assert time.monotonic() < deadline


def test_many_threads_publish_on_one_channel(connection: Connection) -> None:
    """Nothing is lost."""
    producer = connection.Producer()
    threads = [
        threading.Thread(target=lambda: [producer.publish(n, routing_key="q") for n in range(50)])
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert connection.default_channel.queue_declare("q", passive=True).message_count == 400


def test_a_forked_child_publishes_and_leaves_the_parents_messages_alone(
    connection: Connection, broker_url: str
) -> None:
    """On a connection of its own and on the one it inherited."""
    publish(connection, "held")
    got: list[Any] = []
    with Consumer(connection, [Q], on_message=got.append):
        drain(connection)
        child = os.fork()
        if child == 0:
            try:
                publish(connection, "inherited")
                with Connection(broker_url) as own:
                    publish(own, "own")
                connection.release()
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
        drain(connection, 2)
        assert sorted(m.payload for m in got) == ["held", "inherited", "own"]
        assert [m.delivery_info["redelivered"] for m in got] == [False, False, False]
        got[0].ack()


def test_simple_queues_put_and_get(connection: Connection) -> None:
    """With timeouts, sizes and clearing."""
    queue = connection.SimpleQueue("simple")
    with pytest.raises(queue.Empty):
        queue.get(timeout=0.05)
    queue.put({"n": 1})
    queue.put({"n": 2})
    assert queue.qsize() == 2
    message = queue.get(timeout=5)
    assert message.payload == {"n": 1}
    message.ack()
    assert queue.get_nowait().payload == {"n": 2}
    queue.put(3)
    assert queue.clear() == 1
    queue.close()


def test_a_simple_buffer_leaves_nothing_behind(connection: Connection, queue_path: str) -> None:
    """Its queue is transient and deletes itself."""
    buffer = connection.SimpleBuffer("buffer")
    buffer.put("x")
    assert buffer.get(timeout=5).payload == "x"
    buffer.close()
    connection.release()
    with QueueDatabase(queue_path) as database:
        assert database.stats().total_tasks == 0
        assert database.execute("SELECT count(*) FROM queues WHERE name = 'buffer'")[0][0] == 0


def test_eventloop_iterates_over_messages(connection: Connection) -> None:
    """Kombu's own helper, with a limit."""
    publish(connection, 1, 2, 3)
    got: list[Any] = []
    with Consumer(connection, [Q], callbacks=[lambda body, message: got.append(body)]):
        for _ in eventloop(connection, limit=3, timeout=5):
            pass
    assert got == [1, 2, 3]


def test_an_event_loop_delivers_and_sleeps(
    connection: Connection, connect: Callable[..., Connection]
) -> None:
    """Kombu's hub, as a Celery worker runs it; messages come from another connection."""
    hub = Hub()
    got: list[Any] = []
    connection.register_with_event_loop(hub)
    consumer = Consumer(
        connection, [Q], callbacks=[lambda body, message: (got.append(body), message.ack())]
    )
    consumer.qos(prefetch_count=4)
    consumer.consume()
    publish(connect(), *range(300))
    deadline = time.monotonic() + 20
    while len(got) < 300:
        assert time.monotonic() < deadline
        hub.run_once()
    assert got == list(range(300))
    assert consumer.channel.bell.fileno() in hub.readers
    connection.release()
    assert hub.readers == {}
    hub.close()
