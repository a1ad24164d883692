"""Remote control and events, between processes, through the file."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner

from kombu_sqlite import Transport


def run(lab: Any, *arguments: str) -> str:
    """Run a ``celery`` command to its end; return what it prints."""
    done = subprocess.run(
        [sys.executable, "-m", "celery", "-A", "app", *arguments],
        env=lab.environment,
        cwd=lab.folder,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_workers_answer_inspection_and_obey(lab: Any) -> None:
    """Every command an operator uses; nothing of it is in task_queue."""
    worker = lab.worker("-c", "2")
    lab.worker("-P", "solo", name="w2")
    inspect = lab.app.control.inspect(timeout=2, limit=2)
    control = lab.app.control
    assert inspect.ping() == {"w1@test": {"ok": "pong"}, "w2@test": {"ok": "pong"}}
    lab.tasks.late.delay("slow", 3)
    lab.wait(lambda: any(a and a[0]["name"] == "app.late" for a in inspect.active().values()))
    assert set(inspect.reserved()) == {"w1@test", "w2@test"}
    assert inspect.scheduled() == {"w1@test": [], "w2@test": []}
    assert "app.add" in inspect.registered()["w1@test"]
    assert inspect.conf()["w1@test"]["broker_url"].startswith("sqlite:///")
    stats = inspect.stats()
    assert stats["w1@test"]["broker"]["transport"] == "sqlite"
    names = {queue["name"] for queue in inspect.active_queues()["w1@test"]}
    assert {"celery", "other", "topic"} < names
    only_w1 = {"destination": ["w1@test"], "reply": True, "timeout": 5, "limit": 1}
    for command in (
        lambda: control.rate_limit("app.note", "100/s", **only_w1),
        lambda: control.time_limit("app.note", soft=5, hard=10, **only_w1),
        lambda: control.add_consumer("extra", **only_w1),
        lambda: control.cancel_consumer("extra", **only_w1),
        lambda: control.pool_grow(1, **only_w1),
        lambda: control.pool_shrink(1, **only_w1),
        lambda: control.enable_events(**only_w1),
    ):
        (answer,) = command()
        assert "ok" in answer["w1@test"], answer
    control.shutdown(destination=["w1@test"])
    assert worker.wait(60) == 0
    assert inspect.ping() == {"w2@test": {"ok": "pong"}}
    assert lab.database.stats().total_tasks == 1


def test_the_command_line_tools_work(lab: Any) -> None:
    """status, inspect, purge."""
    lab.worker("-P", "solo", "-Q", "celery")
    assert "1 node online" in run(lab, "status", "--timeout", "2")
    assert "pong" in run(lab, "inspect", "ping", "--timeout", "2")
    lab.tasks.routed.delay(1)
    lab.tasks.routed.delay(2)
    assert "2 messages" in run(lab, "purge", "-f", "-Q", "other")
    assert lab.database.stats().cancelled_tasks == 2


def test_events_reach_another_process(lab: Any) -> None:
    """``celery events --dump`` sees a task's life."""
    lab.worker("-P", "solo", "-E")
    lab.celery("events", "--dump", log="events.log")
    bound = "SELECT count(*) FROM bindings WHERE exchange = 'celeryev'"
    lab.wait(lambda: lab.database.execute(bound)[0][0] > 0)
    lab.tasks.note.delay("seen")
    wanted = ("task received", "task started", "task succeeded")
    lab.wait(lambda: all(text in lab.log("events") for text in wanted))
    assert lab.database.stats().total_tasks == 1


def test_a_broadcast_reaches_every_worker(lab: Any) -> None:
    """A fanout exchange with a queue for each."""
    lab.worker("-P", "solo")
    lab.worker("-P", "solo", name="w2")
    lab.tasks.note.apply_async(("to all",), exchange="all", routing_key="any")
    lab.wait(lambda: lab.lines() == ["to all", "to all"])


def test_beat_sends_and_a_worker_runs(lab: Any) -> None:
    """Its schedule file lies beside; each tick is a row."""
    lab.worker("-P", "solo")
    lab.celery("beat", "-s", str(lab.folder / "schedule"), log="beat.log")
    lab.wait(lambda: lab.lines().count("tick") >= 2)


def test_workers_and_producers_share_the_work(lab: Any) -> None:
    """Two of each, in processes of their own: all of it, once."""
    script = "import app, sys\nfor n in range(500): app.late.delay(int(sys.argv[1]) + n)\n"
    lab.worker("-c", "2")
    lab.worker("-P", "threads", "-c", "2", name="w2")
    producers = [
        subprocess.Popen([sys.executable, "-c", script, first], env=lab.environment)
        for first in ("0", "500")
    ]
    assert [producer.wait(60) for producer in producers] == [0, 0]
    lab.wait(lambda: len(lab.lines()) >= 1000)
    assert sorted(map(int, lab.lines())) == list(range(1000))


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
    assert '"queued_tasks": 0' in as_json.output
    other = runner.invoke(celery, ["-A", "app", "-b", "memory://", "queue", "stats"])
    assert other.exit_code == 1
    assert "not a queue file" in other.output


def test_an_embedded_worker_runs_tasks(lab: Any) -> None:
    """Celery's own testing helper."""
    from celery.contrib.testing.worker import start_worker

    with start_worker(lab.app, perform_ping_check=False, pool="solo", shutdown_timeout=30):
        lab.tasks.note.delay("embedded")
        lab.wait(lambda: lab.lines() == ["embedded"])


def test_an_app_on_another_broker_is_untouched(lab: Any) -> None:
    """Its requests are Celery's own."""
    from celery import Celery
    from celery.contrib.testing.worker import start_worker

    other = Celery("other", broker="memory://", set_as_current=False)
    seen: list[Any] = []

    @other.task(shared=False, bind=True)
    def look(self: Any) -> None:
        seen.append(self.Request)

    with start_worker(other, perform_ping_check=False, pool="solo", shutdown_timeout=30):
        look.delay()
        lab.wait(lambda: seen)
    assert seen == ["celery.worker.request:Request"]
    assert other.steps["consumer"] == set()


def test_a_users_own_request_class_is_kept(lab: Any) -> None:
    """Ours is mixed in."""
    from celery.contrib.testing.worker import start_worker
    from celery.worker.request import Request

    calls: list[str] = []

    class Mine(Request):
        def on_accepted(self, pid: int, time_accepted: float) -> None:
            calls.append(self.id)
            super().on_accepted(pid, time_accepted)

    lab.tasks.note.Request = Mine
    with start_worker(lab.app, perform_ping_check=False, pool="solo", shutdown_timeout=30):
        result = lab.tasks.note.delay("mine")
        lab.wait(lambda: lab.lines() == ["mine"])
    assert calls == [result.id]
    assert issubclass(lab.tasks.note.Request, Mine)
    assert lab.database.get(1).processing_started_utc is not None


def test_the_broker_can_be_named_by_its_class(
    lab: Any, monkeypatch: Any, make_lab: Callable[..., Any]
) -> None:
    """``broker_transport`` instead of an import."""
    lab.app.conf.broker_transport = "kombu_sqlite:Transport"
    with lab.app.connection_for_write() as connection:
        assert isinstance(connection.transport, Transport)
        connection.Producer().publish(1, routing_key="celery")
