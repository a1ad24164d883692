"""Workers of every pool run tasks from the file."""

from __future__ import annotations

import time
from collections import Counter
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from celery import chain, group, signature

POOLS = {
    "prefork": ("-P", "prefork", "-c", "2"),
    "threads": ("-P", "threads", "-c", "2"),
    "solo": ("-P", "solo"),
    "gevent": ("-P", "gevent", "-c", "10"),
    "eventlet": ("-P", "eventlet", "-c", "10"),
}


@pytest.mark.parametrize("pool", POOLS.values(), ids=POOLS.keys())
def test_a_pool_runs_everything_once_and_stops(lab: Any, pool: tuple[str, ...]) -> None:
    """Early and late acks, delayed ones, retries, and a link; then a warm shutdown."""
    worker = lab.worker(*pool)
    for number in range(100):
        lab.tasks.note.delay(number)
        lab.tasks.late.delay(f"late {number}")
    lab.tasks.note.apply_async(("delayed",), countdown=0.7)
    lab.tasks.flaky.delay()
    lab.tasks.add.apply_async((1, 2), link=lab.tasks.add.s(10))
    expected = Counter(
        [
            *map(str, range(100)),
            *(f"late {n}" for n in range(100)),
            "delayed",
            "sum 3",
            "sum 13",
            "try 0",
            "try 1",
            "try 2",
        ]
    )
    lab.wait(lambda: sum(Counter(lab.lines()).values()) >= sum(expected.values()))
    assert Counter(lab.lines()) == expected
    lab.wait(lambda: lab.database.stats().processing_tasks == 0)
    assert lab.stop(worker) == 0
    stats = lab.database.stats()
    assert stats.completed_tasks == stats.total_tasks
    assert lab.consumers() == []
    assert lab.database.workers() == []


def test_a_chain_of_tasks_goes_through_the_file(lab: Any) -> None:
    """Without a result backend."""
    lab.worker("-P", "solo")
    chain(lab.tasks.add.s(1, 1), lab.tasks.add.s(1), lab.tasks.add.s(1)).apply_async()
    lab.wait(lambda: lab.lines() == ["sum 2", "sum 3", "sum 4"])


def test_callbacks_and_groups_need_no_results(lab: Any) -> None:
    """A group's tasks, a chain behind a link, a chain that ends in a group, an errback."""
    lab.worker("-c", "2")
    add = lab.tasks.add
    group(add.s(number, 1000) for number in range(20)).apply_async()
    add.apply_async((1, 1), link=chain(add.s(10), add.s(20)))
    (add.s(100, 100) | group(add.s(1), add.s(2))).apply_async()
    broken = lab.tasks.fail.apply_async(("on purpose",), link_error=lab.tasks.failed.s())
    sums = [*range(1000, 1020), 2, 12, 32, 200, 201, 202]
    expected = sorted([*(f"sum {value}" for value in sums), f"failed {broken.id}"])
    lab.wait(lambda: len(lab.lines()) >= len(expected))
    assert sorted(lab.lines()) == expected


def test_a_rejected_task_comes_again_or_ends_as_failed(lab: Any) -> None:
    """``Reject`` with and without requeue; neither counts as a death."""
    lab.worker("-c", "2")
    lab.tasks.rejected.delay()
    lab.wait(lambda: lab.database.stats().failed_tasks == 1)
    assert lab.lines() == ["redelivered False", "redelivered True"]
    row = lab.database.get(1)
    assert (row.attempts, row.error_message) == (2, "rejected: no")


def test_a_lost_pool_process_costs_one_more_run(lab: Any) -> None:
    """With ``reject_on_worker_lost`` its task runs again; the worker stays."""
    worker = lab.worker("-c", "2")
    lab.tasks.fatal.delay("survivor")
    for number in range(20):
        lab.tasks.late.delay(number)
    lab.wait(lambda: lab.database.stats().completed_tasks == 21)
    assert sorted(lab.lines()) == sorted(["survivor", *map(str, range(20))])
    assert worker.poll() is None


def test_delayed_tasks_come_when_they_are_due(lab: Any) -> None:
    """Not before; the request keeps its ETA; nothing is held meanwhile."""
    lab.worker("-c", "2")
    due = datetime.now(timezone.utc) + timedelta(seconds=6)
    for _ in range(500):
        lab.tasks.timed.apply_async(eta=due)
    inspect = lab.app.control.inspect(timeout=2, limit=1)
    assert inspect.scheduled() == inspect.reserved() == {"w1@test": []}
    lab.wait(lambda: len(lab.lines()) == 500)
    for line in lab.lines():
        ran, _, eta = line.partition(" ")
        assert float(ran) >= due.timestamp() - 0.002
        assert datetime.fromisoformat(eta) == due


def test_delayed_tasks_survive_a_restart(lab: Any) -> None:
    """Also when they fall due while no worker is there."""
    worker = lab.worker("-P", "solo")
    lab.tasks.note.apply_async(("soon",), countdown=0.5)
    lab.tasks.note.apply_async(("later",), countdown=4)
    assert lab.stop(worker) == 0
    seen = lab.lines()
    lab.worker("-P", "solo", name="w2")
    lab.wait(lambda: set(lab.lines()) == {"soon", "later"})
    assert "later" not in seen


def test_an_expired_task_never_runs(lab: Any) -> None:
    """It is cancelled in the file."""
    lab.tasks.note.apply_async(("expired",), expires=0.1)
    over = time.time() + 0.2
    lab.wait(lambda: time.time() > over)
    lab.tasks.note.delay("good")
    lab.worker("-P", "solo")
    lab.tasks.note.apply_async(("too late",), countdown=2, expires=1)
    lab.wait(lambda: lab.database.stats().cancelled_tasks == 2)
    assert lab.lines() == ["good"]
    for row in (1, 3):
        ended = lab.database.get(row)
        assert (ended.status, ended.error_message) == ("cancelled", "expired")


def test_urgent_tasks_go_first(lab: Any) -> None:
    """Of a backlog, by AMQP's meaning of priority."""
    for value, priority in (("low", 1), ("none", None), ("high", 9), ("middle", 5)):
        lab.tasks.note.apply_async((value,), priority=priority)
    lab.worker("-P", "solo", "--prefetch-multiplier", "1")
    lab.wait(lambda: len(lab.lines()) == 4)
    assert lab.lines() == ["high", "middle", "low", "none"]


def test_children_that_are_replaced_lose_nothing(lab: Any) -> None:
    """One task per process, and a pool that grows and shrinks."""
    lab.worker("--autoscale", "4,1", "--max-tasks-per-child", "1")
    for number in range(25):
        lab.tasks.late.delay(number, 0.02)
    lab.wait(lambda: len(lab.lines()) == 25, 60)
    assert sorted(map(int, lab.lines())) == list(range(25))


def test_a_warm_shutdown_gives_back_what_has_not_begun(lab: Any) -> None:
    """At once, uncounted; nothing runs twice."""
    for number in range(400):
        lab.tasks.late.delay(number, 0.003)
    for name in ("w1", "w2"):
        worker = lab.worker("-c", "2", name=name)
        done = len(lab.lines())
        lab.wait(lambda done=done: len(lab.lines()) > done + 60)
        assert lab.stop(worker) == 0
        stats = lab.database.stats()
        assert stats.processing_tasks == 0
        assert stats.queued_tasks > 0
    lab.worker("-c", "2", name="w3")
    lab.wait(lambda: lab.database.stats().completed_tasks == 400, 60)
    assert sorted(map(int, lab.lines())) == list(range(400))
    rows = lab.database.execute("SELECT DISTINCT attempts, deaths FROM task_queue")
    assert [tuple(row) for row in rows] == [(1, 0)]


def test_a_warm_shutdown_leaves_the_file_though_results_are_in_it(lab: Any) -> None:
    """The result backend has the same file open; still nobody has to find the worker gone."""
    worker = lab.celery("--result-backend", lab.url, "worker", "-P", "solo", log="w1.log")
    lab.wait(lambda: lab.consumes(worker) or lab.ended(worker, "w1"))
    lab.tasks.add.apply_async((1, 2), ignore_result=False)
    lab.wait(lambda: lab.database.execute("SELECT status FROM task_results"))
    assert len(lab.database.workers()) == 1
    assert lab.stop(worker) == 0
    assert lab.database.workers() == []


def test_an_unknown_message_stops_nobody(lab: Any) -> None:
    """One that is no task, one of a task nobody knows."""
    lab.worker("-P", "solo")
    with lab.app.connection_for_write() as connection:
        connection.Producer().publish({"not": "a task"}, routing_key="celery")
        connection.Producer().publish(
            b"\xff",
            routing_key="celery",
            content_type="application/x-none",
            content_encoding="binary",
            headers={"task": "app.add", "id": "1"},
        )
    signature("no.such.task", app=lab.app).apply_async()
    lab.tasks.note.delay("good")
    lab.wait(lambda: lab.lines() == ["good"])
    lab.wait(lambda: lab.database.stats().processing_tasks == 0)
