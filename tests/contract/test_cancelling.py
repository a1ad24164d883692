"""Cancelling in the store: the row's own state decides, whoever holds it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from kombu_sqlite import QueueDatabase
from kombu_sqlite.models import Delivery, Envelope, Settlement
from kombu_sqlite.options import Options
from kombu_sqlite.store import Store

Wait = Callable[..., Any]


def message(task_id: str, headers: str = "{}", **fields: Any) -> Envelope:
    """A task's message."""
    return Envelope("t", 100, "[[], {}, {}]", headers, "{}", task_id=task_id, **fields)


def stamped(task_id: str, value: str, **fields: Any) -> Envelope:
    """One that carries a stamp."""
    headers = f'{{"stamped_headers": ["customer"], "stamps": {{"customer": {value}}}}}'
    return message(task_id, headers, **fields)


@pytest.fixture
def store(queue_path: str) -> Iterator[Store]:
    """The store of that path, closed at the end."""
    opened = Store(Options(queue_path))
    yield opened
    opened.close()


def publish(store: Store, *messages: Envelope, queue: str = "q") -> None:
    """Publish to one queue."""
    store.publish(("", queue, message) for message in messages)


def claim(store: Store, queue: str = "q", started: bool = False) -> list[Delivery]:
    """Claim what there is, as a worker does that reports its starts."""
    return store.claim(store.claimant(started), [queue], 99)


def rows(database: QueueDatabase, columns: str) -> list[tuple[Any, ...]]:
    """Those columns of every task row, oldest first."""
    found = database.execute(f"SELECT {columns} FROM task_queue ORDER BY id")
    return [tuple(row) for row in found]


def test_what_waits_or_is_prefetched_is_cancelled(store: Store, database: QueueDatabase) -> None:
    """Its start then finds nothing to start; its own end changes nothing; a result is owed."""
    publish(store, message("held"))
    (delivery,) = claim(store)
    publish(store, message("ready"), message("waits", run_after="2999-01-01 00:00:00.000"))
    found = store.canceller.cancel([1, 2, 3, 4], "why")
    assert [(row.row_id, row.task_id, row.status) for row in found] == [
        (1, "held", "cancelled"),
        (2, "ready", "cancelled"),
        (3, "waits", "cancelled"),
    ]
    assert store.deliveries.start([(delivery.tag, False)]) == set()
    assert store.settle([Settlement(delivery.tag, "requeue", quiet=True)]) == []
    ended = rows(database, "status, error_message, outcome_pending, attempts")
    assert ended == [("cancelled", "why", 1, 0)] * 3
    assert store.owed.find(0, 9) == [1, 2, 3]


def test_a_cancel_takes_back_no_attempt_that_was_made(
    store: Store, database: QueueDatabase
) -> None:
    """Of rows that ran once: one waits again, one is prefetched again, one by a plain UPDATE."""
    publish(store, *map(message, ("waits", "prefetched", "by hand")))
    for delivery in claim(store):
        assert store.deliveries.start([(delivery.tag, False)])
        assert store.settle([Settlement(delivery.tag, "requeue")]) == []
    database.execute("UPDATE task_queue SET run_after_utc = '2999-01-01' WHERE id = 1")
    assert len(claim(store)) == 2
    database.execute("UPDATE task_queue SET attempts = 0 WHERE id = 3")
    store.canceller.cancel([1, 2, 3], "why")
    assert rows(database, "status, attempts") == [
        ("cancelled", 1),
        ("cancelled", 1),
        ("cancelled", 0),
    ]


def test_what_runs_is_marked_and_does_not_run_again(store: Store, database: QueueDatabase) -> None:
    """By a requeue, a retry in its queue or another, or the death of its owner."""
    publish(store, *[message(str(number)) for number in range(4)])
    tags = [delivery.tag for delivery in claim(store)]
    assert store.deliveries.start([(tag, False) for tag in tags]) == set(tags)
    found = store.canceller.cancel([1, 2, 3, 4], "why")
    assert {row.status for row in found} == {"running"}
    store.settle([Settlement(tags[0], "requeue")])
    publish(store, message("1", continues=tags[1]))
    publish(store, message("2", continues=tags[2]), queue="other")
    store.settle([Settlement(tags[3], "died")])
    assert claim(store) == claim(store, "other") == []
    states = rows(database, "task_id, queue, status")
    assert states == [
        ("0", "q", "cancelled"),
        ("1", "q", "cancelled"),
        ("2", "q", "completed"),
        ("3", "q", "cancelled"),
        ("2", "other", "cancelled"),
    ]


def test_a_run_that_was_cancelled_may_still_end(store: Store, database: QueueDatabase) -> None:
    """What it has done stays done."""
    publish(store, message("one"))
    (delivery,) = claim(store, started=True)
    assert store.canceller.cancel([1], "why")[0].status == "running"
    assert store.settle([Settlement(delivery.tag, "completed")]) == []
    assert store.canceller.cancel([1], "why")[0].status == "completed"


def test_a_retry_state_comes_too_late_for_a_cancelled_run(store: Store) -> None:
    """It would hide that the task was revoked."""
    publish(store, message("one"))
    (delivery,) = claim(store, started=True)
    with store.deliveries.continuing(delivery.tag, "because") as mine:
        assert mine
    store.canceller.cancel([1], "why")
    publish(store, message("one", continues=delivery.tag))
    with store.deliveries.continuing(delivery.tag, "because") as mine:
        assert not mine


def test_an_id_reaches_all_of_its_rows(store: Store, database: QueueDatabase) -> None:
    """Only what has no row at all is revoked beforehand."""
    publish(store, message("one"))
    publish(store, message("one"), queue="other")
    found = store.canceller.cancel_tasks(["one", "to come"], "why", 60)
    assert sorted(row.row_id for row in found) == [1, 2]
    assert store.canceller.is_revoked("to come")
    assert not store.canceller.is_revoked("one")
    publish(store, message("to come"), message("one"))
    assert [delivery.task_id for delivery in claim(store)] == ["one"]
    assert rows(database, "task_id, status, error_message, outcome_pending")[2] == (
        "to come",
        "cancelled",
        "revoked",
        1,
    )


def test_a_revocation_expires(store: Store, wait_until: Wait) -> None:
    """Then the id runs."""
    store.canceller.cancel_tasks(["one"], "why", 0.05)
    over = time.monotonic() + 0.06
    wait_until(lambda: time.monotonic() > over)
    publish(store, message("one"))
    assert [delivery.task_id for delivery in claim(store)] == ["one"]


def test_stamps_reach_rows_and_messages_to_come(store: Store, database: QueueDatabase) -> None:
    """One value or a list of them; headers that are no JSON carry none."""
    publish(
        store,
        stamped("a", '"x"'),
        stamped("b", '["y", "x"]'),
        stamped("c", '"z"'),
        stamped("d", "17"),
        message("e", '{"stamped_headers": [broken'),
    )
    found = store.canceller.cancel_stamped({"customer": ["x", "17"]}, "why", 60)
    assert [row.task_id for row in found] == ["a", "b", "d"]
    publish(store, stamped("f", '"x"'), stamped("g", '"w"'))
    assert [delivery.task_id for delivery in claim(store)] == ["c", "e", "g"]


def test_what_was_put_back_runs_though_it_is_revoked(store: Store, database: QueueDatabase) -> None:
    """By id and by stamp; a later revoke counts again."""
    store.canceller.cancel_tasks(["one"], "why", 60)
    store.canceller.cancel_stamped({"customer": ["x"]}, "why", 60)
    publish(store, stamped("one", '"x"'))
    assert claim(store) == []
    for again in (True, True):
        assert store.put_back(1) is again
        assert [delivery.task_id for delivery in claim(store)] == ["one"]
        assert store.canceller.cancel_stamped({"customer": ["x"]}, "again", 60)[0].row_id == 1
        assert claim(store) == []
    story = [line.message for line in database.logs(1)]
    assert story.count("put back after it had cancelled") == 2


def test_only_what_failed_or_was_cancelled_can_be_put_back(
    store: Store, database: QueueDatabase
) -> None:
    """With its deaths forgotten and its result unknown again."""
    publish(store, message("one"))
    assert store.put_back(1) is False
    assert store.put_back(2) is False
    (delivery,) = claim(store, started=True)
    assert store.put_back(1) is False
    database.execute("UPDATE task_queue SET deaths = 4")
    store.results.store("one", "FAILURE", "{}", expires_s=None)
    store.settle([Settlement(delivery.tag, "failed", "x")])
    assert store.put_back(1)
    assert store.results.get("one") is None
    assert rows(database, "status, deaths, error_message, finished_at_utc, outcome_pending") == [
        ("queued", 0, None, None, 0)
    ]


@pytest.mark.parametrize(("told", "lines"), [("off", 0), ("warning", 1), ("info", 3)])
def test_an_option_says_how_much_is_told(queue_path: str, told: str, lines: int) -> None:
    """task_log: nothing, what went wrong, or all; what the columns tell is always there."""
    store = Store(Options.load(queue_path, {}, {"task_log": told}))
    database = QueueDatabase(queue_path)
    try:
        publish(store, message("one"))
        (delivery,) = claim(store, started=True)
        publish(store, message("one", continues=delivery.tag))
        (delivery,) = claim(store, started=True)
        store.settle([Settlement(delivery.tag, "died")])
        (delivery,) = claim(store, started=True)
        store.canceller.cancel([1], "why")
        store.settle([Settlement(delivery.tag, "completed")])
        kept = database.execute("SELECT count(*) FROM task_logs")[0][0]
        assert kept == lines
        told_of = [line.message for line in database.logs(1)]
        assert told_of[0] == "enqueued"
        assert told_of[-1] == "ended completed"
        assert {"claimed", "started"} <= set(told_of)
    finally:
        database.close()
        store.close()


def test_a_filter_finds_live_rows_only(store: Store) -> None:
    """By queue, type and age, alone and together."""
    publish(store, message("a"), message("b"))
    publish(store, Envelope("other", 100, "{}", "{}", "{}", task_id="c"), queue="r")
    (first, _) = claim(store)
    store.settle([Settlement(first.tag, "completed")])
    find = store.canceller.matching
    assert find() == [2, 3]
    assert find("q") == [2]
    assert find("q", "other") == []
    assert find(type="other") == [3]
    assert find(before="2000-01-01 00:00:00") == []
    assert find(before="2999-01-01 00:00:00") == [2, 3]
