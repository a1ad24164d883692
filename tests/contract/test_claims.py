"""Who gets what, in which order, and who may end it: the store without Kombu."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from kombu_sqlite import QueueDatabase, publishing
from kombu_sqlite.models import DeliveryTag, Envelope, Settlement
from kombu_sqlite.options import Options
from kombu_sqlite.routing import Queue
from kombu_sqlite.store import Store
from kombu_sqlite.upkeep import Upkeep

Wait = Callable[..., Any]


def envelope(name: str = "t", **fields: Any) -> Envelope:
    """A message of plain text."""
    priority, payload = fields.pop("priority", 100), fields.pop("payload", "{}")
    return Envelope(name, priority, payload, "{}", "{}", **fields)


@pytest.fixture
def store(queue_path: str) -> Iterator[Store]:
    """The store of that path, closed at the end."""
    opened = Store(Options(queue_path))
    yield opened
    opened.close()


def publish(store: Store, queue: str, *messages: Envelope) -> None:
    """Publish to one queue."""
    store.publish(("", queue, message) for message in messages)


def rows(database: QueueDatabase, columns: str, where: str = "1") -> list[tuple[Any, ...]]:
    """Those columns of every task row, or of some, oldest first."""
    found = database.execute(f"SELECT {columns} FROM task_queue WHERE {where} ORDER BY id")
    return [tuple(row) for row in found]


def test_two_queues_share_a_claim(store: Store) -> None:
    """A flood in the first leaves room for the second; what one lacks the other gets."""
    publish(store, "flood", *[envelope() for _ in range(20)])
    publish(store, "trickle", envelope(), envelope())
    claimant = store.claimant()
    found = store.claim(claimant, ["flood", "trickle"], 8)
    assert [d.queue for d in found].count("trickle") == 2
    assert len(found) == 8
    assert len(store.claim(claimant, ["trickle", "flood"], 100)) == 14


@pytest.mark.parametrize(
    ("scheduling", "order"),
    [("priority", "cabd"), ("fifo", "abcd"), ("lifo", "dcba")],
)
def test_scheduling_is_an_option(queue_path: str, scheduling: str, order: str) -> None:
    """Of whoever claims; across capability lanes as well."""
    with QueueDatabase(queue_path, scheduling=scheduling, capabilities={"gpu": True}) as database:
        for name, priority in (("a", 100), ("b", 100), ("c", 1), ("d", 200)):
            needs = {"gpu": True} if name in "bc" else None
            database.enqueue(name, priority=priority, compatibility=needs)
        assert "".join(d.type for d in database.claim(limit=3)) == order[:3]
        assert database.claim()[0].type == order[3]


def test_weighted_scheduling_prefers_the_urgent_and_starves_nobody(queue_path: str) -> None:
    """Each message comes once."""
    with QueueDatabase(queue_path, scheduling="weighted") as database:
        database.enqueue_many(
            [{"type": t, "priority": p} for t, p in [("low", 200), ("high", 1)] for _ in range(200)]
        )
        first = [d.type for d in database.claim(limit=200)]
        assert first.count("high") > first.count("low") > 0
        rest = [d.type for d in database.claim(limit=400)]
        assert sorted(first + rest) == ["high"] * 200 + ["low"] * 200


def test_a_message_waits_for_a_worker_that_offers_what_it_needs(queue_path: str) -> None:
    """Nobody else gets it, however urgent; an empty need fits all."""
    with (
        QueueDatabase(queue_path) as plain,
        QueueDatabase(queue_path, capabilities={"region": "eu"}) as european,
    ):
        plain.enqueue("anywhere")
        plain.enqueue("eu", compatibility={"region": "eu"}, priority=1)
        plain.enqueue("us", compatibility={"region": "us"}, priority=1)
        assert [d.type for d in plain.claim(limit=5)] == ["anywhere"]
        assert [d.type for d in european.claim(limit=5)] == ["eu"]
        assert plain.list(status="queued")[0].region == "us"
        offered = [worker.get_capabilities_dict() for worker in plain.workers()]
        assert sorted(offered, key=len) == [{}, {"region": "eu"}]


def test_a_delayed_message_is_promoted_when_it_is_due(
    database: QueueDatabase, wait_until: Wait
) -> None:
    """Not claimed before, then ready by itself, in the order of priority."""
    database.claim()  # stands for the election
    due = database.execute("SELECT strftime('%Y-%m-%d %H:%M:%f', 'now', '+0.5 seconds')")[0][0]
    database.enqueue("later", run_after_utc=due, priority=1)
    now = "SELECT strftime('%Y-%m-%d %H:%M:%f', 'now')"
    found = wait_until(database.claim)
    assert database.execute(now)[0][0] >= due
    assert found[0].type == "later"


def test_the_first_of_many_due_at_once_do_not_wait_for_the_last(
    database: QueueDatabase, wait_until: Wait, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They become ready in batches that grow, and consumers are woken after each."""
    ring, ready = Upkeep._ring_all, list[int]()
    count = "SELECT count(*) FROM task_queue WHERE run_after_utc <= updated_at_utc"

    def look_and_ring(self: Upkeep, queues: set[str]) -> None:
        if queues:
            ready.append(database.execute(count)[0][0])
        ring(self, queues)

    monkeypatch.setattr(Upkeep, "_ring_all", look_and_ring)
    database.claim()  # stands for the election
    due = database.execute("SELECT strftime('%Y-%m-%d %H:%M:%f', 'now', '+1.5 seconds')")[0][0]
    database.enqueue_many([{"type": "later", "run_after_utc": due}] * 700)
    wait_until(lambda: ready and ready[-1] == 700)
    assert ready == [20, 120, 620, 700]


def test_an_expired_message_is_cancelled_and_owes_its_result(
    store: Store, database: QueueDatabase
) -> None:
    """The one behind it is delivered by the same claim."""
    publish(store, "q", envelope("old", expires_at="2020-01-01 00:00:00.000"), envelope("new"))
    (delivery,) = store.claim(store.claimant(), ["q"], 1)
    assert delivery.type == "new"
    assert rows(database, "status, error_message, outcome_pending") == [
        ("cancelled", "expired", 1),
        ("processing", None, 0),
    ]


def test_requeued_messages_go_to_the_front_as_they_were(
    store: Store, database: QueueDatabase
) -> None:
    """A requeue keeps the attempt, a release takes it back; neither counts a death."""
    publish(store, "q", envelope("a"), envelope("b"), envelope("c"))
    first, second = store.claim(store.claimant(), ["q"], 2)
    assert store.settle([Settlement(first.tag, "requeue"), Settlement(second.tag, "release")]) == []
    assert rows(database, "attempts, deaths, delivery_no") == [(1, 0, 1), (0, 0, 1), (0, 0, 0)]
    again = store.claim(store.claimant(), ["q"], 3)
    assert [d.type for d in again] == ["a", "b", "c"]
    assert [d.redelivered for d in again] == [True, True, False]


@pytest.mark.parametrize("action", ["completed", "failed", "cancelled", "requeue", "release"])
def test_a_stale_tag_ends_nothing(store: Store, database: QueueDatabase, action: str) -> None:
    """Of several ends in one transaction only the lost one is refused."""
    publish(store, "q", envelope("a"), envelope("b"))
    stale, other = store.claim(store.claimant(), ["q"], 2)
    store.settle([Settlement(stale.tag, "requeue")])
    late = Settlement(stale.tag, action, "late")
    assert store.settle([late]) == [late]  # nobody has it
    (fresh,) = store.claim(store.claimant(), ["q"], 1)
    assert store.settle([late, Settlement(other.tag, "completed")]) == [late]  # another has it
    assert rows(database, "status, error_message") == [("processing", None), ("completed", None)]
    assert store.settle([Settlement(fresh.tag, "completed")]) == []
    assert store.settle([late]) == [late]  # another has ended it


@pytest.mark.parametrize("action", ["completed", "failed", "requeue", "release"])
def test_an_end_after_the_rows_own_end_is_silent(
    store: Store, database: QueueDatabase, action: str
) -> None:
    """The first end wins; so does a row that is gone."""
    publish(store, "q", envelope())
    (delivery,) = store.claim(store.claimant(), ["q"], 1)
    store.settle([Settlement(delivery.tag, "failed", "first")])
    assert store.settle([Settlement(delivery.tag, action, "second")]) == []
    assert rows(database, "status, error_message") == [("failed", "first")]
    assert store.settle([Settlement(DeliveryTag(99, 1), action)]) == []


def test_only_what_nobody_holds_is_purged_and_counted(
    store: Store, database: QueueDatabase
) -> None:
    """Delayed messages are; the rows stay and owe their results."""
    later = envelope("later", run_after="2999-01-01 00:00:00.000")
    publish(store, "q", envelope("held"), envelope("ready"), later)
    publish(store, "other", envelope())
    (held,) = store.claim(store.claimant(), ["q"], 1)
    assert (store.size("q"), store.size("other"), store.size("unknown")) == (2, 1, 0)
    assert store.purge("q") == 2
    assert (store.size("q"), store.purge("q")) == (0, 0)
    assert rows(database, "status, outcome_pending")[:3] == [
        ("processing", 0),
        ("cancelled", 1),
        ("cancelled", 1),
    ]
    assert store.settle([Settlement(held.tag, "completed")]) == []


def test_deleting_a_queue_leaves_what_is_held_to_its_holder(
    store: Store, database: QueueDatabase
) -> None:
    """What waits ends cancelled, with the reason; put back, the held one waits again."""
    publish(store, "q", envelope("held"), envelope("waiting"))
    (held,) = store.claim(store.claimant(), ["q"], 1)
    store.delete_queue("q")
    assert "q" not in store.topology.read().queues
    assert rows(database, "status, error_message")[1] == ("cancelled", "the queue was deleted")
    assert store.settle([Settlement(held.tag, "requeue")]) == []
    assert store.size("q") == 1


def test_a_queue_expires_only_while_nobody_consumes(
    store: Store, database: QueueDatabase, wait_until: Wait
) -> None:
    """By ``x-expires``, in milliseconds from its last use."""
    store.topology.declare_queue(Queue("q", arguments={"x-expires": 300}))
    bell = store.new_bell()
    store.add_consumer(bell, "q")
    store.topology.declare_queue(Queue("unused", arguments={"x-expires": 1}))
    publish(store, "q", envelope())
    wait_until(lambda: "unused" not in store.topology.read().queues)
    assert "q" in store.topology.read().queues
    store.remove_consumer(bell, "q")
    store.close_bell(bell)
    wait_until(lambda: "q" not in store.topology.read().queues)
    assert rows(database, "status, error_message") == [("cancelled", "the queue expired")]


def test_delayed_messages_take_no_room_in_a_full_queue(
    store: Store, database: QueueDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AMQP knows no delay: they count once they are ready, however many there are."""
    store.topology.declare_queue(Queue("q", arguments={"x-max-length": 2, "x-max-length-bytes": 6}))
    for few in (100, 2):
        monkeypatch.setattr(publishing, "_FEW_WAITING", few)
        later = [envelope(run_after="2999-01-01 00:00:00.000", payload="long" * 9)] * 3
        publish(store, "q", *later, envelope(payload="aa"), *later, envelope(payload="bb"))
        publish(store, "q", envelope(payload="cc"))
        got = store.claim(store.claimant(), ["q"], 9)
        assert [d.payload for d in got] == ["bb", "cc"]
        store.settle([Settlement(d.tag, "completed") for d in got])
    assert rows(database, "count(*)", "status = 'queued'") == [(12,)]
    database.execute("UPDATE task_queue SET updated_at_utc = run_after_utc WHERE status = 'queued'")
    publish(store, "q", envelope(payload="dd"))
    assert [d.payload for d in store.claim(store.claimant(), ["q"], 9)] == ["dd"]


@pytest.mark.parametrize("durable", [True, False])
def test_a_queue_keeps_within_its_bytes(store: Store, durable: bool) -> None:
    """``x-max-length-bytes``: the same go; a body larger than that by itself goes too."""
    arguments = {"x-max-length-bytes": 8}
    store.topology.declare_queue(Queue("q", durable=durable, arguments=arguments))
    publish(store, "q", *(envelope(payload=body) for body in ("aaaa", "bb", "cccc", b"dd", "é")))
    claimant = store.claimant()
    assert [d.payload for d in store.claim(claimant, ["q"], 9)] == ["cccc", b"dd", "é"]
    publish(store, "q", envelope(payload="e" * 9))
    assert store.size("q") == 0


def test_the_least_urgent_go_first_of_all_lanes(store: Store, database: QueueDatabase) -> None:
    """One by one or several at once, the same ones."""
    wanted = [(7, "{}"), (9, '{"b": 1}'), (9, "{}"), (9, '{"a": 1}'), (8, '{"a": 1}'), (1, "{}")]
    messages = [
        envelope(str(number), priority=priority, compatibility=lane)
        for number, (priority, lane) in enumerate(wanted)
    ]
    full = {"x-max-length": 5}
    store.topology.declare_queue(Queue("one by one", arguments=full))
    for message in messages:
        publish(store, "one by one", message)
    publish(store, "at once", *messages)
    store.topology.declare_queue(Queue("at once", arguments=full))
    for queue in ("one by one", "at once"):
        publish(store, queue, envelope("new", priority=5))
        left = rows(database, "type", f"status = 'queued' AND queue = '{queue}'")
        assert [name for (name,) in left] == ["0", "3", "4", "5", "new"]


@pytest.mark.parametrize("durable", [True, False])
def test_the_longest_waiting_go_when_a_queue_is_full(store: Store, durable: bool) -> None:
    """``x-max-length``: of the least urgent the oldest; what is held does not count."""
    store.topology.declare_queue(Queue("q", durable=durable, arguments={"x-max-length": 2}))
    publish(store, "q", envelope("held"))
    claimant = store.claimant()
    assert len(store.claim(claimant, ["q"], 1)) == 1
    publish(store, "q", envelope(priority=1), envelope(priority=50), envelope(priority=60))
    assert store.size("q") == 2
    assert [d.priority for d in store.claim(claimant, ["q"], 5)] == [1, 50]
