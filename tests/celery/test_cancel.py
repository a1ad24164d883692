"""Cancelling, revoking and putting back: by rows, with a worker or without."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from celery import chain, chord
from celery.app.control import Control
from celery.exceptions import TaskRevokedError
from celery.signals import task_revoked

import celery_integration
from celery_integration.control import combine_control


def open_gate(lab: Any, name: str) -> None:
    """Let a task that waits for a gate go on."""
    Path(f"{lab.ledger}-{name}").touch()


def assert_revoked(result: Any, reason: str | None = None) -> None:
    """The caller hears of it."""
    with pytest.raises(TaskRevokedError, match=reason):
        result.get(timeout=20)
    assert result.state == "REVOKED"


def settled(lab: Any) -> bool:
    """Whether nothing runs and nothing is owed."""
    busy = "SELECT count(*) FROM task_queue WHERE outcome_pending OR status = 'processing'"
    return bool(lab.database.execute(busy)[0][0] == 0)


def test_a_queued_task_is_cancelled_without_a_worker(house: Any) -> None:
    """By task id and by row id; the caller is told at once, and no worker ever starts it."""
    first, second = house.tasks.add.delay(1, 1), house.tasks.add.delay(2, 2)
    later = house.tasks.add.apply_async((3, 3), countdown=3600)
    outcome = celery_integration.cancel(house.app, first.id, reason="not wanted")
    assert (outcome.status, outcome.row_id, outcome.task_id) == ("cancelled", 1, first.id)
    assert_revoked(first, "not wanted")
    assert celery_integration.cancel(house.app, 2).status == "cancelled"
    assert_revoked(second)
    later.revoke()
    assert_revoked(later)
    again = celery_integration.cancel(house.app, first.id)
    assert (again.status, again.row_id) == ("cancelled", 1)
    house.worker("-P", "solo")
    assert house.tasks.add.delay(5, 5).get(timeout=20) == 10
    assert house.lines() == ["sum 10"]
    row = house.database.get(first.id)
    assert (row.status, row.error_message, row.attempts) == ("cancelled", "not wanted", 0)


def test_many_are_cancelled_by_queue_type_and_age(house: Any) -> None:
    """Every filter given must match."""
    for number in range(3):
        house.tasks.add.delay(number, 1)
        house.tasks.add.apply_async((number, 1), queue="other")
    house.tasks.gated.delay("one")
    assert celery_integration.cancel_many(house.app, queue="celery", older_than_s=3600) == []
    found = celery_integration.cancel_many(house.app, queue="other")
    assert [outcome.status for outcome in found] == ["cancelled"] * 3
    found = celery_integration.cancel_many(house.app, type="living.add", older_than_s=0)
    assert len(found) == 3
    assert house.database.stats().queued_tasks == 1
    assert house.database.get(found[0].row_id).status == "cancelled"


def test_a_producer_that_knows_tasks_by_name_alone_cancels_too(house: Any) -> None:
    """Its caller is told although no process knows the task."""
    result = house.app.send_task("elsewhere.task", (1,))
    assert celery_integration.cancel(house.app, result.id).status == "cancelled"
    assert_revoked(result)


@pytest.mark.parametrize(
    "pool",
    ["prefork", "threads", "solo", "gevent", "eventlet"],
)
def test_a_prefetched_task_never_starts(house: Any, pool: str) -> None:
    """In no pool; the one that runs goes on, "running"."""
    house.worker("-P", pool, "-c", "1")
    running = house.tasks.gated.delay("one", 1)
    house.wait(lambda: house.lines() == ["begin one"])
    waiting = [house.tasks.add.delay(number, 100) for number in range(3)]
    if pool != "solo":  # a full pool of greenlets takes one at a time
        held = waiting[:1] if pool in ("gevent", "eventlet") else waiting
        house.wait(lambda: all(house.database.get(one.id).status == "processing" for one in held))
    outcomes = [celery_integration.cancel(house.app, one.id) for one in (running, *waiting[:2])]
    assert [outcome.status for outcome in outcomes] == ["running", "cancelled", "cancelled"]
    for one in waiting[:2]:
        assert_revoked(one)
    open_gate(house, "one")
    assert running.get(timeout=20) == 1
    assert waiting[2].get(timeout=20) == 102
    assert house.tasks.add.delay(0, 0).get(timeout=20) == 0
    house.wait(lambda: settled(house))
    assert house.lines() == ["begin one", "end one", "sum 102", "sum 0"]


def test_a_prefetched_next_run_never_starts(house: Any) -> None:
    """Its caller hears of the cancel, though the message was made by the run before."""
    house.worker("-c", "1")
    retried = house.tasks.gated_retry.delay("first")
    house.wait(lambda: house.lines() == ["try 0"])
    blocking = house.tasks.gated.delay("second", 2)
    house.wait(lambda: house.database.get(blocking.id).status == "processing")
    open_gate(house, "first")
    house.wait(lambda: house.lines() == ["try 0", "begin second"])
    house.wait(lambda: house.database.get(retried.id).attempts == 2)  # leased, in turn
    assert house.database.get(retried.id).processing_started_utc is None
    assert celery_integration.cancel(house.app, retried.id).status == "cancelled"
    assert_revoked(retried)
    headers = house.database.execute("SELECT headers FROM task_queue")
    assert all("sqlite_delivery" not in text for (text,) in headers)
    open_gate(house, "second")
    assert blocking.get(timeout=20) == 2
    assert house.database.get(retried.id).status == "cancelled"


@pytest.mark.parametrize("pool", ["prefork", "gevent", "eventlet"])
def test_a_running_task_is_terminated_where_asked(house: Any, pool: str) -> None:
    """Acknowledged early or late; its row and its caller say so; the worker goes on."""
    house.worker("-P", pool, "-c", "2")
    for name in ("gated", "gated_late"):
        result = house.app.tasks[f"living.{name}"].delay(name)
        house.wait(lambda name=name: f"begin {name}" in house.lines())
        outcome = celery_integration.cancel(house.app, result.id, terminate=True)
        assert outcome.status == "running"
        assert_revoked(result)
        house.wait(lambda result=result: house.database.get(result.id).status == "cancelled")
        open_gate(house, name)
    assert house.tasks.add.delay(1, 1).get(timeout=20) == 2
    house.wait(lambda: settled(house))
    assert not any(line.startswith("end") for line in house.lines())


def test_a_running_task_that_was_cancelled_does_not_run_again(house: Any) -> None:
    """Its retry ends cancelled, and so does the row of one put back by its worker's death."""
    worker = house.worker("-c", "2")
    result = house.tasks.gated_retry.delay("retry")
    late = house.tasks.gated_late.delay("late")
    house.wait(lambda: sorted(house.lines()) == ["begin late", "try 0"])
    assert celery_integration.cancel(house.app, result.id).status == "running"
    late.revoke()
    open_gate(house, "retry")
    assert_revoked(result)
    worker.kill()
    house.worker("-P", "solo", name="w2")
    assert_revoked(late)
    house.wait(lambda: house.database.stats().cancelled_tasks == 2)
    assert sorted(house.lines()) == ["begin late", "try 0"]
    story = [line.message for line in house.database.logs(1)]
    assert "cancel requested while running" in story


def test_a_cancelled_task_leaves_the_queue_of_a_rate_limit(house: Any) -> None:
    """At once and without having run; the others go on at their rate.

    Those that still wait there when the worker is shut down go back, uncounted.
    """
    worker = house.worker("-c", "2", "--prefetch-multiplier", "8")
    slow = house.app.control.rate_limit("living.add", "2/s", reply=True, timeout=10, limit=1)
    assert "ok" in slow[0]["w1@test"]
    sent = [house.tasks.add.delay(number, 100) for number in range(14)]
    held = "SELECT count(*) FROM task_queue WHERE status = 'processing'"
    house.wait(lambda: house.lines())
    house.wait(lambda: house.database.execute(held)[0][0] >= 12)
    began = time.monotonic()
    assert celery_integration.cancel(house.app, sent[5].id).status == "cancelled"
    assert_revoked(sent[5])
    assert time.monotonic() - began < 1
    assert len(house.lines()) < 5
    house.wait(lambda: "sum 106" in house.lines())
    assert time.monotonic() - began > 1
    assert house.stop(worker) == 0
    done = len(house.lines())
    assert sorted(house.lines()) == [f"sum {n + 100}" for n in range(done + 1) if n != 5]
    rows = house.database.execute(
        "SELECT status, attempts, deaths, count(*) FROM task_queue WHERE status <> 'cancelled' "
        "GROUP BY 1, 2, 3 ORDER BY 1"
    )
    assert [tuple(row) for row in rows] == [
        ("completed", 1, 0, done),
        ("queued", 0, 0, 13 - done),
    ]
    house.worker("-c", "2", name="w2")
    assert house.database.get(sent[5].id).processing_started_utc is None
    assert [sent[number].get(timeout=20) for number in (6, 13)] == [106, 113]
    house.wait(lambda: settled(house))
    assert sorted(house.lines()) == sorted(f"sum {n + 100}" for n in range(14) if n != 5)


def test_a_revoke_says_nothing_of_what_runs_or_has_ended(house: Any) -> None:
    """All workers hear it, those that have not got the task as well."""
    failed = house.tasks.boom.delay()
    house.worker("-c", "1")
    with pytest.raises(ValueError, match="on purpose"):
        failed.get(timeout=20)
    running = house.tasks.gated.delay("one", 1)
    house.wait(lambda: house.lines() == ["begin one"])
    house.worker("-P", "solo", name="w2")
    ids = [running.id, failed.id]
    assert len(house.app.control.revoke(ids, reply=True, timeout=10, limit=2)) == 2
    assert (running.state, house.app.AsyncResult(failed.id).state) == ("PENDING", "FAILURE")
    open_gate(house, "one")
    assert running.get(timeout=20) == 1


def test_a_revoke_of_an_unknown_id_lasts(house: Any) -> None:
    """Over restarts, until the task comes: it ends cancelled and its caller is told."""
    assert celery_integration.cancel(house.app, "to-come").status == "unknown"
    house.app.control.revoke(["to-come-2", "to-come-3"])
    worker = house.worker("-P", "solo")
    assert house.stop(worker) == 0
    results = [
        house.tasks.add.apply_async((1, 1), task_id=task_id)
        for task_id in ("to-come", "to-come-2", "to-come-3")
    ]
    house.worker("-P", "solo", name="w2")
    for result in results:
        assert_revoked(result, "revoked")
    assert house.lines() == []


def test_stamps_revoke_what_is_there_and_what_comes(house: Any) -> None:
    """Without a worker and over a restart; tasks with another stamp run."""
    add = house.tasks.add

    def stamped(value: int, **stamps: Any) -> Any:
        signature = add.s(value, 0)
        signature.stamp(**stamps)
        return signature.apply_async()

    here, other = stamped(1, customer="a"), stamped(2, customer="b")
    later = add.s(7, 0)
    later.stamp(customer=["x", "a"])
    delayed = later.apply_async(countdown=3600)
    house.app.control.revoke_by_stamped_headers({"customer": ["a"]})
    assert_revoked(here)
    assert_revoked(delayed)
    house.worker("-P", "solo")
    assert_revoked(stamped(3, customer="a"))
    assert other.get(timeout=20) == 2
    assert celery_integration.retry(house.app, here.id).task_id == here.id
    assert house.app.AsyncResult(here.id).get(timeout=20) == 1
    assert house.lines() == ["sum 2", "sum 1"]


def test_a_revoke_by_a_process_without_setup_lasts_as_well(house: Any) -> None:
    """The worker that hears it writes it into the file."""
    worker = house.worker("-P", "solo")
    house.environment["TEST_PLAIN"] = "1"
    plain = house.script(
        "import living, sys; assert 'send_task' not in vars(living.app); "
        "living.app.control.revoke(sys.argv[1:], reply=True, timeout=10, limit=1)",
        "later",
    )
    assert plain.wait(30) == 0
    house.stop(worker)
    del house.environment["TEST_PLAIN"]
    result = house.tasks.add.apply_async((1, 1), task_id="later")
    house.worker("-P", "solo", name="w2")
    assert_revoked(result)


COMMANDS = {
    "revoke": lambda sent: ["revoke", sent.id],
    "terminate": lambda sent: ["terminate", "SIGTERM", sent.id],
    "stamp": lambda sent: ["revoke_by_stamped_headers", "customer=a", "customer=b"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_command_line_revokes_without_a_worker(house: Any, name: str) -> None:
    """In the file; that nobody answers is said as Celery says it."""
    signature = house.tasks.add.s(1, 1)
    signature.stamp(customer="a")
    for options in ({}, {"countdown": 3600}):
        sent = signature.clone().apply_async(**options)
        house.celery("control", "--timeout", "0.1", *COMMANDS[name](sent)).wait(30)
        assert_revoked(sent, "revoked")


@pytest.mark.parametrize("name", COMMANDS)
def test_the_command_line_revokes_through_a_worker(house: Any, name: str) -> None:
    """Though the process that asks has never heard of ``setup``; what was prefetched never runs."""
    house.worker("-c", "1")
    blocker = house.tasks.gated.delay("one")
    house.wait(lambda: house.lines() == ["begin one"])
    signature = house.tasks.add.s(1, 1)
    signature.stamp(customer="b")
    prefetched, delayed = signature.clone().delay(), signature.clone().apply_async(countdown=3600)
    house.wait(lambda: house.database.get(prefetched.id).status == "processing")
    house.environment["TEST_PLAIN"] = "1"
    for sent in (prefetched, delayed):
        assert "OK" in house.run("control", *COMMANDS[name](sent))
        assert_revoked(sent, "revoked")
    open_gate(house, "one")
    assert blocker.get(timeout=20) is None
    house.wait(lambda: settled(house))
    assert house.lines() == ["begin one", "end one"]


def test_a_revoke_without_an_id_revokes_nothing(house: Any) -> None:
    """In every form that Celery takes; a control class of the app's own may take keywords alone."""
    control = house.app.control
    sent = house.tasks.add.apply_async((1, 1), countdown=3600)
    control.broadcast("revoke")
    control.broadcast("terminate", {"signal": "TERM"})
    control.broadcast("revoke_by_stamped_headers", arguments={"headers": None})
    assert sent.state == "PENDING"
    control.broadcast("revoke", [("task_id", sent.id)])
    assert_revoked(sent)

    class Own(Control):
        def broadcast(self, command: str, **options: Any) -> Any:
            return super().broadcast(command, **options)

    second = house.tasks.add.apply_async((1, 1), countdown=3600)
    combine_control(Own)(house.app).revoke(second.id)
    assert_revoked(second)


@pytest.mark.parametrize("protocol", [1, 2])
def test_a_prefetched_task_of_either_protocol_is_revoked(house: Any, protocol: int) -> None:
    """In protocol 1 the row does not know the task's id; its worker does."""
    house.app.conf.task_protocol = protocol
    house.worker("-c", "1")
    house.tasks.gated.delay("one")
    house.wait(lambda: house.lines() == ["begin one"])
    prefetched = house.tasks.add.delay(1, 1)
    house.wait(lambda: house.database.get(2).status == "processing")
    house.app.control.revoke(prefetched.id, reply=True, timeout=10, limit=1)
    open_gate(house, "one")
    assert_revoked(prefetched)
    house.wait(lambda: settled(house))
    assert (house.lines(), prefetched.state) == (["begin one", "end one"], "REVOKED")


def test_a_task_put_back_runs(house: Any) -> None:
    """After a revoke that a running worker remembers, after a cancel, after a failure.

    Meanwhile its result is pending again.
    """
    house.worker("-c", "1")
    blocker = house.tasks.gated.delay("one")
    house.wait(lambda: house.lines() == ["begin one"])
    revoked = house.tasks.add.delay(1, 1)
    house.wait(lambda: house.database.get(revoked.id).status == "processing")
    house.app.control.revoke(revoked.id, reply=True, timeout=10, limit=1)
    assert_revoked(revoked)
    task = celery_integration.retry(house.app, revoked.id)
    assert task.status in ("queued", "processing")
    assert house.app.AsyncResult(revoked.id).state == "PENDING"
    open_gate(house, "one")
    assert blocker.get(timeout=20) is None
    assert house.app.AsyncResult(revoked.id).get(timeout=20) == 2
    failed = house.tasks.boom.delay("twice")
    with pytest.raises(ValueError, match="twice"):
        failed.get(timeout=20)
    house.wait(lambda: settled(house))
    row = celery_integration.retry(house.app, house.database.get(failed.id).id)
    assert row.task_id == failed.id
    with pytest.raises(ValueError, match="twice"):
        house.app.AsyncResult(failed.id).get(timeout=20)
    house.wait(lambda: house.database.get(failed.id).attempts == 2)
    house.wait(lambda: settled(house))
    completed = house.database.get(revoked.id)
    with pytest.raises(ValueError, match="only failed and cancelled tasks can be put back"):
        celery_integration.retry(house.app, completed.id)
    assert celery_integration.retry(house.app, "unknown") is None


def test_a_delayed_or_expired_task_put_back_runs_at_once(house: Any) -> None:
    """Whoever puts it back wants it now, whatever its ETA and expiry said."""
    house.worker("-P", "solo")
    delayed = house.tasks.add.apply_async((1, 1), countdown=3600)
    expired = house.tasks.add.apply_async((2, 2), countdown=0.5, expires=0.2)
    celery_integration.cancel(house.app, delayed.id)
    for result in (delayed, expired):
        assert_revoked(result)
        house.wait(lambda: settled(house))
        celery_integration.retry(house.app, result.id)
    found = [house.app.AsyncResult(result.id).get(timeout=10) for result in (delayed, expired)]
    assert found == [2, 4]


def test_an_expired_a_purged_and_a_deleted_task_are_revoked(house: Any) -> None:
    """Their callers are told by the next worker; nothing of them runs."""
    expired = house.tasks.add.apply_async((1, 1), expires=0.01)
    purged = house.tasks.add.delay(2, 2)
    assert house.app.control.purge() >= 1
    deleted = house.tasks.add.apply_async((3, 3), queue="doomed")
    with house.app.connection_for_write() as connection:
        connection.default_channel.queue_delete("doomed")
    unknown = house.app.send_task("nobody.knows", expires=0.01)
    house.worker("-P", "solo")
    for result in (expired, purged, deleted, unknown):
        assert_revoked(result)
    late = house.tasks.add.apply_async((4, 4), countdown=1, expires=0.2)
    assert_revoked(late, "expired")
    assert house.lines() == []


def test_a_signal_tells_of_what_never_started(house: Any) -> None:
    """Celery's own, once, in the process that stores the end: who revokes, or a worker."""
    seen: list[Any] = []

    def hear(sender: Any, request: Any, terminated: bool, expired: bool, **_: Any) -> None:
        seen.append((sender.name, request.id, terminated, expired))

    task_revoked.connect(hear)
    revoked = house.tasks.add.apply_async((2, 2), countdown=3600)
    revoked.revoke()
    revoked.revoke()
    task_revoked.disconnect(hear)
    assert seen == [("living.add", revoked.id, False, False)]
    house.environment["TEST_SIGNALS"] = "1"
    expired = house.tasks.add.apply_async((3, 3), expires=0.01)
    house.worker("-P", "solo")
    assert_revoked(expired)
    house.wait(lambda: house.lines() == [f"signal living.add {expired.id} True"])


def test_a_result_that_cannot_be_stored_keeps_no_other_from_it(house: Any) -> None:
    """A row whose message makes no sense to Celery; those after it are told nevertheless."""
    broken = house.tasks.add.apply_async((1, 1))
    house.database.execute(
        "UPDATE task_queue SET payload = ? WHERE id = 1",
        ('[[1, 1], {}, {"chord": 5, "chain": 7, "callbacks": 3, "errbacks": 4}]',),
    )
    house.database.execute(
        "UPDATE task_queue SET status = 'failed', outcome_pending = 1, error_message = 'lost'"
    )
    good = house.tasks.add.apply_async((1, 1), expires=0.01)
    house.worker("-P", "solo")
    assert_revoked(good)
    assert broken.id != good.id


def test_a_cancelled_member_ends_its_chord_and_its_chain(house: Any) -> None:
    """Their callers are told: nobody would ever run the rest."""
    add, total = house.tasks.add, house.tasks.total
    body = chord([add.s(1, 1), add.s(2, 2)], total.s()).apply_async()
    last = chain(add.s(5, 5), add.s(6), add.s(7)).apply_async()
    celery_integration.cancel(house.app, body.parent.results[0].id)
    celery_integration.cancel(house.app, last.parent.parent.id)
    house.worker("-P", "solo")
    found = body.get(timeout=20, propagate=False)
    assert type(found).__name__ == "ChordError"
    assert_revoked(last)
    assert house.lines() == ["sum 4"]
