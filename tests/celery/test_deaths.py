"""What becomes of running tasks when a worker dies, stops or loses its connection."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest
from celery.exceptions import WorkerLostError


def open_gate(lab: Any, name: str) -> None:
    """Let a task that waits for a gate go on."""
    Path(f"{lab.ledger}-{name}").touch()


def states(lab: Any) -> dict[int, tuple[str, int, int]]:
    """Status, attempts and deaths of every row."""
    rows = lab.database.execute("SELECT id, status, attempts, deaths FROM task_queue")
    return {row[0]: tuple(row)[1:] for row in rows}


def settled(lab: Any) -> bool:
    """Whether nothing runs and nothing is owed."""
    busy = "SELECT count(*) FROM task_queue WHERE outcome_pending OR status = 'processing'"
    return bool(lab.database.execute(busy)[0][0] == 0)


def kill_family(pid: int) -> None:
    """Kill a worker with its pool, as the end of its container does."""
    parent = psutil.Process(pid)
    for process in [parent, *parent.children(recursive=True)]:
        process.kill()


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_killed_worker_loses_nothing(house: Any, pool: str) -> None:
    """What it had acknowledged early ends failed, "worker lost"; the rest runs again.

    A death is counted only where the task had begun. Callers are told.
    """
    worker = house.worker("-P", pool, "-c", "2")
    early = house.tasks.gated.delay("early")
    late = house.tasks.gated_late.delay("late", 7)
    house.wait(lambda: sorted(house.lines()) == ["begin early", "begin late"])
    waiting = house.tasks.add.delay(20, 2)
    house.wait(lambda: house.database.get(waiting.id).status == "processing")
    kill_family(worker.pid)
    house.worker("-P", pool, "-c", "2", name="w2")
    with pytest.raises(WorkerLostError, match="ended while it ran the task"):
        early.get(timeout=20)
    assert waiting.get(timeout=20) == 22
    open_gate(house, "late")
    assert late.get(timeout=20) == 7
    house.wait(lambda: settled(house))
    assert states(house) == {
        1: ("failed", 1, 1),
        2: ("completed", 2, 1),
        3: ("completed", 1, 0),
    }
    assert house.database.get(early.id).error_message.startswith("worker lost: ")
    story = [line.message for line in house.database.logs(house.database.get(late.id).id)]
    assert story[0] == "enqueued"
    assert story.count("lease lost while running") == 1
    assert story[-1] == "ended completed"
    before = [line.message for line in house.database.logs(house.database.get(waiting.id).id)]
    assert "given back before its start" in before
    gone, alive = house.database.execute(
        "SELECT status, hostname, concurrency FROM v_worker_status ORDER BY started_at_utc"
    )
    assert tuple(gone) == ("gone", "w1@test", 2)
    assert tuple(alive) == ("active", "w2@test", 2)


@pytest.mark.parametrize("pool", ["prefork", "gevent", "eventlet"])
def test_a_cold_shutdown_fails_what_was_acknowledged(house: Any, pool: str) -> None:
    """And gives back what was not; the caller of the former hears of it from the next worker."""
    worker = house.worker("-P", pool, "-c", "2")
    early = house.tasks.gated.delay("early")
    late = house.tasks.gated_late.delay("late", 7)
    house.wait(lambda: sorted(house.lines()) == ["begin early", "begin late"])
    worker.send_signal(signal.SIGQUIT)
    worker.wait(60)
    house.worker("-P", pool, "-c", "2", name="w2")
    with pytest.raises(WorkerLostError):
        early.get(timeout=20)
    open_gate(house, "late")
    assert late.get(timeout=20) == 7
    house.wait(lambda: settled(house))
    assert house.database.get(early.id).status == "failed"
    assert house.database.get(late.id).status == "completed"
    assert "end early" not in house.lines()


def test_a_warm_shutdown_waits_for_what_runs(house: Any) -> None:
    """And gives the rest back as if it had never been taken."""
    worker = house.worker("-c", "1")
    running = house.tasks.gated.delay("one", 1)
    house.wait(lambda: house.lines() == ["begin one"])
    waiting = house.tasks.add.delay(1, 1)
    house.wait(lambda: house.database.get(waiting.id).status == "processing")
    worker.send_signal(signal.SIGTERM)
    house.wait(lambda: "Warm shutdown" in house.log())
    open_gate(house, "one")
    assert worker.wait(60) == 0
    assert running.get(timeout=5) == 1
    assert states(house) == {1: ("completed", 1, 0), 2: ("queued", 0, 0)}


def test_a_stopped_worker_cannot_end_what_went_to_another(make_lab: Any) -> None:
    """SIGSTOP for longer than the visibility timeout, then SIGCONT: only the newer run counts.

    What it ran after an early ack has failed; its own late result is refused.
    """
    house = make_lab("?visibility_timeout=1", module="living")
    worker = house.worker("-c", "2")
    early = house.tasks.gated.delay("early", 1)
    late = house.tasks.gated_late.delay("late", 7)
    house.wait(lambda: sorted(house.lines()) == ["begin early", "begin late"])
    family = [psutil.Process(worker.pid), *psutil.Process(worker.pid).children(recursive=True)]
    for process in family:
        process.suspend()
    house.worker("-c", "2", name="w2")
    with pytest.raises(WorkerLostError):
        early.get(timeout=30)
    house.wait(lambda: house.lines().count("begin late") == 2)
    for process in reversed(family):
        process.resume()
    open_gate(house, "early")
    house.wait(lambda: "end early" in house.lines())
    open_gate(house, "late")
    assert late.get(timeout=20) == 7
    house.wait(lambda: house.lines().count("end late") == 2)
    house.wait(lambda: settled(house))
    assert states(house) == {1: ("failed", 1, 1), 2: ("completed", 2, 1)}
    assert early.state == "FAILURE"
    assert house.tasks.add.delay(1, 1).get(timeout=20) == 2
    house.wait(lambda: house.consumes(worker))


def test_a_lost_connection_may_take_late_tasks_from_their_processes(
    make_lab: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """worker_cancel_long_running_tasks_on_connection_loss: they run again, whoever gets them."""
    monkeypatch.setenv("TEST_CANCEL_ON_LOSS", "1")
    house = make_lab("?visibility_timeout=1", module="living")
    worker = house.worker("-c", "2")
    early = house.tasks.gated.delay("early", 1)
    late = house.tasks.gated_late.delay("late", 7)
    house.wait(lambda: sorted(house.lines()) == ["begin early", "begin late"])
    # the parent alone is stopped: its pool goes on
    os.kill(worker.pid, signal.SIGSTOP)
    other = house.worker("-P", "solo", name="w2")
    house.wait(lambda: house.lines().count("begin late") == 2)
    open_gate(house, "late")
    os.kill(worker.pid, signal.SIGCONT)
    assert late.get(timeout=30) == 7
    with pytest.raises(WorkerLostError):
        early.get(timeout=30)
    open_gate(house, "early")
    house.wait(lambda: settled(house))
    house.wait(lambda: house.consumes(worker))
    assert house.stop(other) == 0
    assert house.tasks.add.delay(1, 1).get(timeout=20) == 2


def test_an_exiting_task_ends_in_pools_without_processes(house: Any) -> None:
    """SystemExit in a thread: failed, with a WorkerLostError; the worker goes on."""
    house.worker("-P", "threads", "-c", "2")
    result = house.tasks.leaves.delay()
    with pytest.raises(WorkerLostError):
        result.get(timeout=20)
    house.wait(lambda: settled(house))
    assert house.tasks.add.delay(1, 1).get(timeout=20) == 2
