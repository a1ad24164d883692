"""Idempotency keys in the store: which row holds one, for how long, and what moves it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from kombu_sqlite import IdempotencyConflict, LeaseLost, QueueDatabase
from kombu_sqlite.errors import DuplicateTask
from kombu_sqlite.models import Delivery, Envelope, IdempotencyKey, Settlement
from kombu_sqlite.options import Options
from kombu_sqlite.routing import Queue
from kombu_sqlite.store import Store

Wait = Callable[..., Any]


def keyed(
    key: str, task_id: str, scope: str = "row", bare: bool = False, name: str = "t", **fields: Any
) -> Envelope:
    """A message with a key."""
    headers = f'{{"idempotency_key": "{key}", "idempotency_scope": "{scope}"}}'
    payload = fields.pop("payload", "[[], {}, {}]")
    return Envelope(
        name,
        100,
        payload,
        headers,
        "{}",
        task_id=task_id,
        key=IdempotencyKey(key, scope, bare),
        **fields,
    )


@pytest.fixture
def store(queue_path: str) -> Iterator[Store]:
    """The store of that path, closed at the end."""
    opened = Store(Options(queue_path))
    yield opened
    opened.close()


def publish(store: Store, *messages: Envelope, queue: str = "q") -> None:
    """Publish to one queue."""
    store.publish(("", queue, message) for message in messages)


def rows(database: QueueDatabase, columns: str) -> list[tuple[Any, ...]]:
    """Those columns of every task row, oldest first."""
    found = database.execute(f"SELECT {columns} FROM task_queue ORDER BY id")
    return [tuple(row) for row in found]


def claim(store: Store, queue: str = "q") -> Delivery:
    """Claim one message."""
    (delivery,) = store.claim(store.claimant(), [queue], 1)
    return delivery


def end(store: Store, delivery: Delivery, action: str = "completed") -> None:
    """End a delivery, whose tag must be valid."""
    assert store.settle([Settlement(delivery.tag, action)]) == []


def test_a_bare_duplicate_inserts_nothing(store: Store, database: QueueDatabase) -> None:
    """Not even the other messages of its transaction."""
    publish(store, keyed("k", "one"))
    with pytest.raises(DuplicateTask) as caught:
        publish(store, Envelope("other", 100, "{}", "{}", "{}"), keyed("k", "two", bare=True))
    assert (caught.value.task_id, caught.value.row_id) == ("one", 1)
    assert rows(database, "task_id, idempotency_key") == [("one", "k")]


def test_a_duplicate_with_an_id_of_its_own_follows(store: Store, database: QueueDatabase) -> None:
    """It is not claimed and ends as the first one does, owing its result."""
    publish(store, keyed("k", "one"), keyed("k", "two"))
    delivery = claim(store)
    assert delivery.task_id == "one"
    assert store.claim(store.claimant(), ["q"], 9) == []
    assert store.owed.end_followers(9) == 0
    end(store, delivery)
    assert store.owed.end_followers(9) == 1
    assert rows(database, "status, outcome_pending, follows") == [
        ("completed", 0, None),
        ("completed", 1, 1),
    ]


def test_copies_of_one_message_do_not_follow_each_other(
    store: Store, database: QueueDatabase
) -> None:
    """A fan-out into two queues is one task with one key; both copies can be claimed."""
    with store.database.transaction() as handle:
        for name in ("a", "b"):
            store.topology.insert_queue(handle, Queue(name))
    publish(store, keyed("k", "one"), queue="a")
    publish(store, keyed("k", "one"), queue="b")
    assert rows(database, "queue, idempotency_key, follows") == [
        ("a", "k", None),
        ("b", None, None),
    ]
    assert claim(store, "a").task_id == claim(store, "b").task_id == "one"


@pytest.mark.parametrize(("scope", "free"), [("row", False), ("end", True)], ids=["row", "end"])
@pytest.mark.parametrize("status", ["completed", "failed", "cancelled"])
def test_a_scope_says_whether_an_end_frees_the_key(
    store: Store, database: QueueDatabase, scope: str, status: str, free: bool
) -> None:
    """The same for each kind of end; while it lives the key is held anyway."""
    publish(store, keyed("k", "one", scope))
    delivery = claim(store)
    with pytest.raises(DuplicateTask):
        publish(store, keyed("k", "two", bare=True))
    end(store, delivery, status)
    if free:
        publish(store, keyed("k", "two", bare=True))
        assert rows(database, "task_id, idempotency_key") == [("one", None), ("two", "k")]
    else:
        with pytest.raises(DuplicateTask):
            publish(store, keyed("k", "two", bare=True))


def test_seconds_free_a_key_by_themselves(
    store: Store, database: QueueDatabase, wait_until: Wait
) -> None:
    """Whatever its row does meanwhile."""
    publish(store, keyed("k", "one", "0.05"))
    over = time.monotonic() + 0.06
    wait_until(lambda: time.monotonic() > over)
    publish(store, keyed("k", "two", bare=True))
    assert rows(database, "task_id, idempotency_key") == [("one", None), ("two", "k")]


def test_a_key_belongs_to_one_name(store: Store, database: QueueDatabase) -> None:
    """Another task's publish is refused, and nothing is written."""
    publish(store, keyed("k", "one"))
    with pytest.raises(IdempotencyConflict, match="row 1, task id one"):
        publish(store, keyed("k", "two", name="other"))
    assert len(rows(database, "id")) == 1


def test_concurrent_publishers_make_one_row(store: Store, database: QueueDatabase) -> None:
    """Each of the others hears the id of the first."""
    heard: list[str | None] = []
    barrier = threading.Barrier(8)

    def run(number: int) -> None:
        barrier.wait()
        try:
            publish(store, keyed("k", f"task {number}", bare=True))
        except DuplicateTask as duplicate:
            heard.append(duplicate.task_id)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ((task_id,),) = rows(database, "task_id")
    assert heard == [task_id] * 7


def test_a_row_of_another_program_gets_an_id_when_asked_for(
    store: Store, database: QueueDatabase
) -> None:
    """Minted once; its first claim keeps it."""
    database.execute(
        "INSERT INTO task_queue (type, payload, queue, idempotency_key) "
        "VALUES ('t', '[[], {}, {}]', 'q', 'k')"
    )
    ids = []
    for _ in range(2):
        with pytest.raises(DuplicateTask) as caught:
            publish(store, keyed("k", "two", bare=True))
        ids.append(caught.value.task_id)
    assert ids == [claim(store).task_id] * 2


def test_a_retry_keeps_its_key_whatever_the_scope(store: Store, database: QueueDatabase) -> None:
    """In its own queue the row stays; in another one the new row takes the key over."""
    for scope in ("row", "end", "3600"):
        publish(store, keyed(f"k {scope}", scope, scope))
        tag = claim(store).tag
        publish(store, keyed(f"k {scope}", scope, scope, continues=tag))
        tag = claim(store).tag
        publish(store, keyed(f"k {scope}", scope, scope, continues=tag), queue="other")
        with pytest.raises(DuplicateTask) as caught:
            publish(store, keyed(f"k {scope}", "new", bare=True))
        assert caught.value.task_id == scope
        end(store, claim(store, "other"))
    assert rows(database, "queue, status, idempotency_key") == [
        ("q", "completed", None),
        ("other", "completed", "k row"),
        ("q", "completed", None),
        ("other", "completed", "k end"),
        ("q", "completed", None),
        ("other", "completed", "k 3600"),
    ]
    publish(store, keyed("k end", "new", bare=True))  # the terms have moved with the key


def test_a_retry_that_fans_out_keeps_one_key(store: Store, database: QueueDatabase) -> None:
    """Its own queue's copy continues the row, the other is a new one without a key."""
    publish(store, keyed("k", "one"))
    tag = claim(store).tag
    message = keyed("k", "one", continues=tag)
    store.publish([("", "other", message), ("", "q", message)])
    found = rows(database, "queue, status, idempotency_key")
    assert [row[2] for row in found].count("k") == 1


def test_a_superseded_delivery_cannot_publish_a_next_run(
    store: Store, database: QueueDatabase
) -> None:
    """One whose row was cancelled, or ended as lost, neither: it would run again unasked."""
    publish(store, keyed("k", "one"))
    old = claim(store).tag
    assert store.settle([Settlement(old, "requeue")]) == []
    tag = claim(store).tag
    with pytest.raises(LeaseLost):
        publish(store, keyed("k", "one", continues=old))
    for status, error in (("cancelled", None), ("failed", "worker lost: x ended")):
        database.execute("UPDATE task_queue SET status = ?, error_message = ?", (status, error))
        with pytest.raises(LeaseLost):
            publish(store, keyed("k", "one", continues=tag))
    assert len(rows(database, "id")) == 1


def test_a_task_put_back_takes_its_key_again(store: Store, database: QueueDatabase) -> None:
    """On its own terms; refused when another task has it."""
    publish(store, keyed("k", "one", "end"))
    end(store, claim(store), "failed")
    publish(store, keyed("k", "two", "row"))
    with pytest.raises(IdempotencyConflict, match="belongs to row 2"):
        store.put_back(1)
    assert rows(database, "status") == [("failed",), ("queued",)]
    database.execute("DELETE FROM task_queue WHERE id = 2")
    assert store.put_back(1)
    assert rows(database, "idempotency_key") == [("k",)]
    end(store, claim(store), "failed")
    publish(store, keyed("k", "three", bare=True))


def test_a_follower_put_back_after_the_first_freed_the_key_runs(
    store: Store, database: QueueDatabase
) -> None:
    """It is then a task like any other."""
    publish(store, keyed("k", "one", "end"), keyed("k", "two", "end"))
    end(store, claim(store), "failed")
    assert store.owed.end_followers(9) == 1
    assert store.put_back(2)
    assert claim(store).task_id == "two"
    assert rows(database, "follows, idempotency_key") == [(None, None), (None, "k")]
