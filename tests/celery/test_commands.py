"""Celery's command line and its own programs: status, inspect, control, purge, events, beat."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from importlib.metadata import entry_points
from typing import Any

import pytest
from celery import VERSION
from click.testing import CliRunner

INSTALLED = any(point.name == "queue" for point in entry_points(group="celery.commands"))


@pytest.fixture(scope="module")
def obedient(station: Any) -> Any:
    """The shared worker of this module; nothing here stops it."""
    return station


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (("status",), "1 node online"),
        (("inspect", "ping"), "pong"),
        (("inspect", "active_queues"), "animal.#"),
        (("inspect", "registered"), "app.flaky"),
        (("inspect", "stats"), '"transport": "sqlite"'),
        (("control", "rate_limit", "app.flaky", "10/m"), "new rate limit set successfully"),
        (("control", "pool_grow", "1"), "pool will grow"),
        (("control", "pool_shrink", "1"), "pool will shrink"),
        (("control", "add_consumer", "told"), "add consumer told"),
        (("control", "cancel_consumer", "told"), "no longer consuming from told"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_command_is_answered(obedient: Any, arguments: tuple[str, ...], answer: str) -> None:
    """By a worker in another process."""
    assert answer in obedient.run(*arguments)


def test_a_command_says_so_when_nobody_answers(lab: Any) -> None:
    """It waits its second and fails, as with any broker."""
    with pytest.raises(AssertionError, match="No nodes replied within time constraint"):
        lab.run("inspect", "ping")


def test_purge_empties_the_queues_of_the_app(lab: Any) -> None:
    """What waits, delayed tasks included; nothing of it runs afterwards."""
    for number in range(3):
        lab.tasks.note.delay(number)
        lab.tasks.note.apply_async((f"later {number}",), countdown=1)
    lab.tasks.routed.delay("other")
    lab.tasks.note.apply_async(("elsewhere",), queue="elsewhere")
    assert "Purged 7 messages from 4 known task queues" in lab.run("purge", "-f")
    stats = lab.database.stats()
    assert (stats.cancelled_tasks, stats.queued_tasks) == (7, 1)
    lab.worker("-P", "solo", "-Q", "celery,other,elsewhere")
    lab.wait(lambda: lab.lines())
    lab.wait(lambda: lab.database.stats().processing_tasks == 0)
    assert lab.lines() == ["elsewhere"]


def test_events_reach_another_process(lab: Any) -> None:
    """``celery events --dump`` sees a task's life and the worker's."""
    worker = lab.worker("-P", "solo", "-E")
    lab.celery("events", "--dump", log="events.log")
    bound = "SELECT count(*) FROM bindings WHERE exchange = 'celeryev'"
    lab.wait(lambda: lab.database.execute(bound)[0][0] > 0)
    sent = lab.tasks.note.delay("seen").id
    for text in ("task received", "task started", "task succeeded"):
        pattern = re.compile(rf"w1@test .*{text}:.*{sent}" if text == "task received" else text)
        lab.wait(lambda pattern=pattern: pattern.search(lab.log("events")))
    lab.wait(lambda: "heartbeat" in lab.log("events"))
    lab.stop(worker)
    lab.wait(lambda: "shutdown" in lab.log("events"))
    assert lab.database.stats().total_tasks == 1


def test_events_tell_a_receiver_everything(lab: Any) -> None:
    """In this process, through Celery's own receiver, in order and with their fields."""
    # Celery 5.6 loses an event that a thread adds while it writes those before
    lab.worker("-P", "threads" if VERSION[:2] >= (5, 7) else "prefork", "-c", "2", "-E")
    seen: list[dict[str, Any]] = []
    with lab.app.connection_for_read() as connection:
        receiver = lab.app.events.Receiver(connection, handlers={"*": seen.append})
        with receiver.consumer_context() as (own, _, _):
            sent = lab.tasks.add.delay(3, 4).id

            def types() -> list[str]:
                with suppress(TimeoutError):
                    own.drain_events(timeout=0.2)
                return [event["type"] for event in seen if event.get("uuid") == sent]

            wanted = ["task-received", "task-started", "task-succeeded"]
            lab.wait(lambda: types() == wanted)
    assert {event["hostname"] for event in seen if event.get("uuid") == sent} == {"w1@test"}
    assert next(e for e in seen if e["type"] == "task-succeeded")["result"] == "7"
    assert lab.database.stats().total_tasks == 1


@pytest.mark.parametrize("kind", ["a process of its own", "embedded in the worker"])
def test_beat_sends_and_a_worker_runs(lab: Any, kind: str) -> None:
    """Its schedule file lies beside; each tick is a row."""
    schedule = str(lab.folder / "schedule")
    if kind == "a process of its own":
        lab.worker("-P", "solo")
        lab.celery("beat", "-s", schedule, log="beat.log")
    else:
        lab.worker("-c", "1", "-B", "-s", schedule)
    lab.wait(lambda: lab.lines().count("tick") >= 3)
    assert {task.type for task in lab.database.list()} == {"app.note"}


def test_the_queue_command_counts(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As text and as JSON; an app on another broker gets one sentence."""
    from celery.bin.celery import celery

    from celery_integration.cli import queue

    if "queue" not in celery.commands:
        celery.add_command(queue)
    lab.tasks.note.delay(1)
    monkeypatch.setenv("CELERY_BROKER_URL", "")  # the command below sets it for good
    monkeypatch.delenv("CELERY_BROKER_URL")
    runner = CliRunner()
    text = runner.invoke(celery, ["-A", "app", "queue", "stats"])
    assert "queued_tasks                 1" in text.output
    as_json = runner.invoke(celery, ["-A", "app", "queue", "stats", "--json", "-Q", "other"])
    assert json.loads(as_json.output)["queued_tasks"] == 0
    other = runner.invoke(celery, ["-A", "app", "-b", "memory://", "queue", "stats"])
    assert other.exit_code == 1
    assert "not a queue file" in other.output


@pytest.mark.skipif(not INSTALLED, reason="the package is not installed: no entry points")
def test_the_queue_command_is_found_by_celery(lab: Any) -> None:
    """As an entry point, with nothing imported by hand."""
    lab.tasks.note.delay(1)
    assert json.loads(lab.run("queue", "stats", "--json"))["queued_tasks"] == 1
