"""Remote control between processes: what an operator asks, and what then happens."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

ONLY = {"destination": ["w1@test"], "reply": True, "timeout": 10, "limit": 1}


def ask(lab: Any) -> Any:
    """An inspection that ends with the first answer."""
    return lab.app.control.inspect(timeout=10, limit=1)


@pytest.fixture
def quiet(station: Any) -> Iterator[Any]:
    """The shared worker, idle and with an empty ledger."""
    station.forget_lines()
    before = station.database.stats().total_tasks
    yield station
    station.wait(lambda: station.database.stats().processing_tasks == 0)
    assert station.database.stats().total_tasks >= before


def test_a_worker_tells_what_it_is(quiet: Any) -> None:
    """ping, stats, conf, registered, active_queues."""
    assert ask(quiet).ping() == {"w1@test": {"ok": "pong"}}
    stats = ask(quiet).stats()["w1@test"]
    assert stats["broker"]["transport"] == "sqlite"
    assert len(stats["pool"]["processes"]) == 2
    assert ask(quiet).conf()["w1@test"]["broker_url"].startswith("sqlite:///")
    assert "app.add" in ask(quiet).registered()["w1@test"]
    names = {queue["name"] for queue in ask(quiet).active_queues()["w1@test"]}
    assert {"celery", "other", "topic"} < names


def test_a_worker_tells_what_it_does(quiet: Any) -> None:
    """What runs is active, what is prefetched reserved, what is not due yet is not held."""
    sent = [quiet.tasks.spanned.delay(number, 1.5).id for number in range(4)]
    later = quiet.tasks.note.apply_async(("later",), countdown=4).id
    quiet.wait(lambda: len(quiet.lines()) == 2)
    active = {task["id"] for task in ask(quiet).active()["w1@test"]}
    assert len(active) == 2
    assert active < set(sent)
    assert {task["id"] for task in ask(quiet).reserved()["w1@test"]} == set(sent) - active
    assert ask(quiet).scheduled() == {"w1@test": []}
    found = ask(quiet).query_task(*sent, later)["w1@test"]
    assert {state for state, _ in found.values()} == {"active", "reserved"}
    assert later not in found
    quiet.wait(lambda: "later" in quiet.lines())


def test_commands_and_replies_are_no_tasks(quiet: Any) -> None:
    """Nothing of them is in task_queue, or left anywhere once they are answered."""
    before = quiet.database.stats()
    assert ask(quiet).ping()
    assert quiet.app.control.enable_events(**ONLY)
    assert quiet.app.control.disable_events(**ONLY)
    assert quiet.database.stats() == before
    left = "SELECT count(*) FROM transient_messages WHERE queue NOT LIKE 'celeryev%'"
    quiet.wait(lambda: quiet.database.execute(left)[0][0] == 0)


def test_a_rate_limit_slows_a_task_down(quiet: Any) -> None:
    """And its end lets the rest through."""
    (answer,) = quiet.app.control.rate_limit("app.stamped", "5/s", **ONLY)
    assert "ok" in answer["w1@test"]
    for number in range(6):
        quiet.tasks.stamped.delay(number, 0)
    quiet.wait(lambda: len(quiet.lines()) == 6)
    times = sorted(float(line.split()[1]) for line in quiet.lines())
    assert times[-1] - times[0] > 0.6
    quiet.app.control.rate_limit("app.stamped", None, **ONLY)
    quiet.forget_lines()
    began = time.monotonic()
    for number in range(20):
        quiet.tasks.stamped.delay(number, 0)
    quiet.wait(lambda: len(quiet.lines()) == 20)
    assert time.monotonic() - began < 3


def test_a_time_limit_ends_a_task(quiet: Any) -> None:
    """Its process is killed; it counts as done, as Celery has it, and the next one runs.

    The command is only heard: Celery's requests keep the limit the task had when the worker began.
    """
    (answer,) = quiet.app.control.time_limit("app.note", soft=50, hard=60, **ONLY)
    assert "ok" in answer["w1@test"]
    quiet.tasks.spanned.apply_async(("endless", 60), time_limit=1)
    quiet.tasks.note.delay("beside")
    quiet.wait(lambda: {"begin endless", "beside"} <= set(quiet.lines()))
    quiet.wait(lambda: quiet.database.stats().processing_tasks == 0)
    assert "Hard time limit (1s) exceeded" in quiet.log()
    for number in range(4):
        quiet.tasks.spanned.delay(number, 0)
    quiet.wait(lambda: len(quiet.lines()) == 2 + 8)
    assert "end endless" not in quiet.lines()


def test_a_worker_takes_up_a_queue_and_leaves_it(quiet: Any) -> None:
    """add_consumer declares it, cancel_consumer leaves its messages alone."""
    quiet.app.control.add_consumer("extra", **ONLY)
    quiet.tasks.note.apply_async(("first",), queue="extra")
    quiet.wait(lambda: quiet.lines() == ["first"])
    quiet.app.control.cancel_consumer("extra", **ONLY)
    assert "extra" not in {q["name"] for q in ask(quiet).active_queues()["w1@test"]}
    quiet.tasks.note.apply_async(("waits",), queue="extra")
    quiet.tasks.note.delay("second")
    quiet.wait(lambda: quiet.lines() == ["first", "second"])
    assert quiet.database.stats(queue="extra").queued_tasks == 1
    quiet.app.control.add_consumer("extra", **ONLY)
    quiet.wait(lambda: quiet.lines() == ["first", "second", "waits"])
    quiet.app.control.cancel_consumer("extra", **ONLY)


def test_a_pool_grows_and_shrinks(quiet: Any) -> None:
    """And works with as many processes as it has."""

    def processes() -> int:
        return len(ask(quiet).stats()["w1@test"]["pool"]["processes"])

    quiet.app.control.pool_grow(2, **ONLY)
    quiet.wait(lambda: processes() == 4)
    for number in range(4):
        quiet.tasks.spanned.delay(number, 1)
    quiet.wait(lambda: len(quiet.lines()) == 8)
    assert all(line.startswith("begin") for line in quiet.lines()[:4])
    quiet.app.control.pool_shrink(2, **ONLY)
    quiet.wait(lambda: processes() == 2)
    quiet.tasks.note.delay("after")
    quiet.wait(lambda: "after" in quiet.lines())


def test_a_busy_worker_still_answers(quiet: Any) -> None:
    """A backlog does not stand between an operator and the worker."""
    quiet.database.enqueue_many(
        {"type": "app.note", "payload": [[number], {}, None]} for number in range(1500)
    )
    began = time.monotonic()
    assert ask(quiet).ping() == {"w1@test": {"ok": "pong"}}
    took = time.monotonic() - began
    backlog = quiet.database.stats().queued_tasks
    quiet.wait(lambda: len(quiet.lines()) == 1500)
    assert took < 3
    assert backlog > 0


@pytest.mark.parametrize("pool", ["threads", "gevent", "eventlet"])
def test_other_pools_obey_as_well(lab: Any, pool: str) -> None:
    """Also those on the blocking loop; they are asked while they work, and shut down."""
    worker = lab.worker("-P", pool, "-c", "2")
    lab.tasks.spanned.delay("slow", 2)
    lab.wait(lambda: lab.lines() == ["begin slow"])
    assert [task["name"] for task in ask(lab).active()["w1@test"]] == ["app.spanned"]
    lab.app.control.add_consumer("extra", **ONLY)
    lab.tasks.note.apply_async(("extra",), queue="extra")
    lab.wait(lambda: "extra" in lab.lines())
    lab.app.control.shutdown(destination=["w1@test"])
    assert worker.wait(60) == 0
    assert "end slow" in lab.lines()
    assert lab.database.stats().completed_tasks == 2


def test_autoscale_is_set_and_workers_are_shut_down_one_by_one(lab: Any) -> None:
    """Of two workers only the one that is named obeys."""
    first = lab.worker("--autoscale", "3,1")
    lab.worker("-P", "solo", name="w2")
    both = lab.app.control.inspect(timeout=10, limit=2)
    assert both.ping() == {"w1@test": {"ok": "pong"}, "w2@test": {"ok": "pong"}}
    (answer,) = lab.app.control.autoscale(5, 2, **ONLY)
    assert "ok" in answer["w1@test"]
    first_only = lab.app.control.inspect(destination=["w1@test"], timeout=10, limit=1)
    lab.wait(lambda: first_only.stats()["w1@test"]["autoscaler"]["max"] == 5)
    lab.app.control.shutdown(destination=["w1@test"])
    assert first.wait(60) == 0
    assert ask(lab).ping() == {"w2@test": {"ok": "pong"}}
    assert lab.database.stats().total_tasks == 0
