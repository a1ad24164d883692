"""What queues do by themselves: expire, delete themselves, bound their length, delay, purge."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from kombu import Connection, Consumer, Exchange, Queue

from kombu_sqlite import QueueDatabase
from kombu_sqlite.clock import now_text

Wait = Callable[..., Any]


def states(path: str) -> list[tuple[Any, ...]]:
    """Status and reason of the task rows, oldest first."""
    with QueueDatabase(path) as database:
        rows = database.execute("SELECT status, error_message FROM task_queue ORDER BY id")
    return [tuple(row) for row in rows]


def get(connection: Connection, queue: str = "q") -> Any:
    """The next message, or None."""
    return connection.default_channel.basic_get(queue)


def task(connection: Connection, **headers: Any) -> None:
    """A message as Celery sends one."""
    connection.Producer().publish(
        [[], {}, {}], routing_key="q", headers={"task": "t", "id": "7", **headers}
    )


def test_an_expired_message_is_cancelled_not_delivered(
    connection: Connection, queue_path: str, wait_until: Wait
) -> None:
    """Its ``expiration`` is in seconds at Kombu's door; the sweep needs no consumer's help."""
    connection.Producer().publish("a", routing_key="q", expiration=0.05)
    connection.Producer().publish("b", routing_key="q")
    time.sleep(0.1)  # the time to live itself
    assert get(connection).payload == "b"
    wait_until(lambda: states(queue_path)[0] == ("cancelled", "expired"))


def test_a_queues_time_to_live_holds_for_its_messages(
    connection: Connection, queue_path: str, wait_until: Wait
) -> None:
    """``message_ttl`` in seconds; durable and transient alike."""
    for durable in (True, False):
        queue = Queue(f"d{durable}", durable=durable, message_ttl=0.05, routing_key=f"d{durable}")
        queue(connection.default_channel).declare()
        connection.Producer().publish("a", routing_key=queue.name)
    time.sleep(0.1)  # the time to live itself
    assert get(connection, "dTrue") is None
    assert get(connection, "dFalse") is None
    wait_until(lambda: states(queue_path) == [("cancelled", "expired")])


def test_celerys_expires_header_is_honoured(connection: Connection, queue_path: str) -> None:
    """While the task is queued."""
    past = datetime.now(timezone.utc) - timedelta(seconds=5)
    task(connection, expires=past.isoformat())
    assert get(connection) is None
    assert states(queue_path) == [("cancelled", "expired")]


def test_a_task_with_an_eta_waits_in_the_file(connection: Connection, wait_until: Wait) -> None:
    """And comes when it is due, not before."""
    due = datetime.now(timezone.utc) + timedelta(seconds=0.4)
    task(connection, eta=due.isoformat())
    got: list[datetime] = []
    queue = Queue("q", routing_key="q")
    with Consumer(connection, [queue], on_message=lambda m: got.append(datetime.now(timezone.utc))):
        connection.drain_events(timeout=10)
    assert got[0] >= due - timedelta(milliseconds=1)


def test_many_delayed_tasks_all_come(connection: Connection) -> None:
    """More than one promotion's batch, due together."""
    due = (datetime.now(timezone.utc) + timedelta(seconds=0.5)).isoformat()
    with connection.Producer() as producer:
        for number in range(1200):
            producer.publish(
                number, routing_key="q", headers={"task": "t", "id": str(number), "eta": due}
            )
    got: list[Any] = []
    with Consumer(
        connection,
        [Queue("q", routing_key="q")],
        callbacks=[lambda body, message: (got.append(body), message.ack())],
    ):
        while len(got) < 1200:
            connection.drain_events(timeout=10)
    assert sorted(got) == list(range(1200))


def test_a_queue_keeps_within_its_length(connection: Connection, queue_path: str) -> None:
    """The oldest go, cancelled, with the reason."""
    Queue("q", routing_key="q", max_length=2)(connection.default_channel).declare()
    for body in "abc":
        connection.Producer().publish(body, routing_key="q")
    assert [get(connection).payload for _ in "ab"] == ["b", "c"]
    status, reason = states(queue_path)[0]
    assert status == "cancelled"
    assert "maximum" in reason


def test_a_queue_keeps_within_its_bytes(connection: Connection) -> None:
    """``max_length_bytes`` counts bodies."""
    Queue("q", routing_key="q", max_length_bytes=8)(connection.default_channel).declare()
    for body in ("aaaa", "bbbb", "cccc"):
        connection.Producer().publish(
            body, routing_key="q", content_type="text/plain", content_encoding="utf-8"
        )
    assert [get(connection).payload for _ in "ab"] == ["bbbb", "cccc"]


def test_an_unused_queue_expires(connection: Connection, wait_until: Wait) -> None:
    """After its ``expires``, with what is in it."""
    channel = connection.default_channel
    Queue("brief", routing_key="brief", expires=0.2)(channel).declare()
    connection.Producer().publish("a", routing_key="brief")
    assert get(connection, "other") is None  # this process consumes, so it keeps house
    channel.store.session()
    wait_until(lambda: not channel._has_queue("brief"))


def test_getting_from_a_queue_keeps_it(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its expiry counts from the last time somebody asked, though there was no message."""
    channel = connection.default_channel
    Queue("brief", routing_key="brief", expires=60)(channel).declare()
    start = time.time()

    def exists_after(seconds: float) -> bool:
        monkeypatch.setattr(time, "time", lambda: start + seconds)
        with channel.store.database.transaction() as handle:
            channel.store.topology.delete_unused(handle, now=now_text())
        return bool(channel._has_queue("brief"))

    assert exists_after(50)
    assert get(connection, "brief") is None
    assert exists_after(105)
    assert not exists_after(120)


def test_asking_again_soon_writes_nothing(connection: Connection, queue_path: str) -> None:
    """A renewal reaches so far ahead that an empty queue can be asked at any rate."""
    channel = connection.default_channel
    Queue("brief", routing_key="brief", expires=3600)(channel).declare()
    with QueueDatabase(queue_path) as database:
        sql = "SELECT last_used_utc FROM queues WHERE name = 'brief'"
        declared = database.execute(sql)[0][0]
        assert get(connection, "brief") is None
        asked = database.execute(sql)[0][0]
        assert asked > declared
        channel.store._used_until["brief"] += 60
        assert get(connection, "brief") is None
        assert database.execute(sql)[0][0] == asked
        with database.transaction():  # as long as another writes
            channel.store._used_until.clear()
            assert get(connection, "brief") is None


@pytest.mark.parametrize("durable", [True, False])
def test_an_exclusive_queue_goes_with_its_connection(
    connection: Connection, broker_url: str, queue_path: str, durable: bool
) -> None:
    """With what is in it; not with a channel, nor with another connection that declares it."""
    connection.default_channel.queue_declare("theirs", durable=durable)
    with Connection(broker_url) as owner:
        owner.channel().queue_declare("mine", exclusive=True, durable=durable)
        owner.channel().queue_declare("theirs", exclusive=True, durable=durable)
        connection.Producer().publish("a", routing_key="mine")
        with Connection(broker_url) as other:
            other.channel().queue_declare("mine", exclusive=True, durable=durable)
        owner.channel().close()
        assert connection.default_channel._has_queue("mine")
        assert get(owner, "mine").payload == "a"
        connection.Producer().publish("b", routing_key="mine")
    assert not connection.default_channel._has_queue("mine")
    assert connection.default_channel._has_queue("theirs")
    ended = ("cancelled", "the queue was deleted")
    assert states(queue_path) == ([ended] * 2 if durable else [])


def test_an_exclusive_queue_deleted_and_made_by_others_stays(
    connection: Connection, broker_url: str
) -> None:
    """It is no longer its first maker's."""
    channel = connection.default_channel
    with Connection(broker_url) as owner:
        for name in ("deleted", "replaced"):
            owner.default_channel.queue_declare(name, exclusive=True)
        owner.default_channel.queue_delete("deleted")
        channel.queue_declare("deleted", exclusive=True)
        channel.queue_delete("replaced")
        channel.queue_declare("replaced")
    assert channel._has_queue("deleted")
    assert channel._has_queue("replaced")


def test_an_auto_delete_queue_goes_with_its_last_consumer(connection: Connection) -> None:
    """Not before its first."""
    channel = connection.default_channel
    queue = Queue("mine", Exchange("fan", type="fanout"), auto_delete=True)
    queue(channel).declare()
    assert channel._has_queue("mine")
    with Consumer(channel, [queue]):
        assert channel.queue_declare("mine", passive=True).consumer_count == 1
    assert not channel._has_queue("mine")
    assert not [b for b in channel.list_bindings() if b[0] == "mine"]


def test_transient_queues_never_enter_task_queue(connection: Connection, queue_path: str) -> None:
    """Not durable, or deleting themselves."""
    for name, durable, auto_delete in (("a", False, False), ("b", True, True)):
        Queue(name, routing_key=name, durable=durable, auto_delete=auto_delete)(
            connection.default_channel
        ).declare()
        connection.Producer().publish(name, routing_key=name)
        message = get(connection, name)
        assert message.payload == name
        message.requeue()
        assert get(connection, name).delivery_info["redelivered"] is True
    assert states(queue_path) == []


def test_purging_ends_what_waits(connection: Connection, queue_path: str) -> None:
    """Delayed messages too; what somebody holds stays."""
    for body in "abc":
        connection.Producer().publish(body, routing_key="q")
    task(connection, eta=(datetime.now(timezone.utc) + timedelta(hours=1)).isoformat())
    held = get(connection)
    assert connection.default_channel.queue_purge("q") == 3
    held.ack()
    assert connection.default_channel.queue_purge("q") == 0
    connection.release()
    assert [status for status, _ in states(queue_path)] == ["completed", *["cancelled"] * 3]


def test_deleting_a_queue_ends_what_waits(connection: Connection, queue_path: str) -> None:
    """Unless it is to be empty, or unused."""
    channel = connection.default_channel
    connection.Producer().publish("a", routing_key="q")
    channel.queue_delete("q", if_empty=True)
    assert channel._has_queue("q")
    channel.queue_delete("q")
    assert not channel._has_queue("q")
    assert states(queue_path) == [("cancelled", "the queue was deleted")]


def test_a_reply_queue_is_deleted_after_its_reply(connection: Connection) -> None:
    """Kombu's remote control asks for it."""
    channel = connection.default_channel
    Queue("reply", routing_key="reply", auto_delete=True)(channel).declare()
    channel.after_reply_message_received("reply")
    assert not channel._has_queue("reply")


def test_a_queue_cannot_change_how_it_is_kept(connection: Connection) -> None:
    """Its messages would be in the wrong table."""
    from kombu.exceptions import ChannelError

    channel = connection.default_channel
    channel.queue_declare("q", durable=True)
    with pytest.raises(ChannelError, match="exists as durable"):
        channel.queue_declare("q", durable=False)
