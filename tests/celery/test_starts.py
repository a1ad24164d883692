"""Where the pool's own threads begin a task: it begins here or goes back, never both."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery
from celery.exceptions import TaskRevokedError
from kombu.asynchronous import Hub

from celery_integration.requests import combine
from celery_integration.starting import Starter
from kombu_sqlite import QueueDatabase
from kombu_sqlite.channel import Channel

Request = combine("celery.worker.request:Request")


@pytest.fixture
def request_(broker_url: str) -> Iterator[Any]:
    """A worker's request for a task that it has received and not begun."""
    app = Celery("starting", broker=broker_url, set_as_current=False)
    app.conf.task_ignore_result = True

    @app.task(name="starting.task", shared=False)
    def task() -> None:
        """Nothing."""

    task.delay()
    with app.connection_for_read() as connection:
        channel = connection.channel()
        channel.explicit_start = True
        message = channel.basic_get("celery")
        yield Request(message, app=app, task=task, hostname="w1@test")
    app.close()


def accept(request: Any) -> None:
    """What a thread of the pool does first."""
    request.on_accepted(os.getpid(), time.time())


def test_it_is_kept_from_the_moment_a_thread_has_it(
    request_: Any, database: QueueDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A channel that closes before its start is written does not give it back."""
    channel = request_.lease_channel
    start = Channel.start

    def start_late(self: Channel, *args: Any) -> bool:
        channel.give_back()
        return start(self, *args)

    monkeypatch.setattr(Channel, "start", start_late)
    accept(request_)
    row = database.list()[0]
    assert (row.status, row.attempts) == ("processing", 1)


def test_what_was_given_back_before_is_not_executed(request_: Any, database: QueueDatabase) -> None:
    """Another worker may have it by now."""
    request_.lease_channel.give_back()
    with pytest.raises(TaskRevokedError):
        accept(request_)
    row = database.list()[0]
    assert (row.status, row.attempts) == ("queued", 0)


def test_a_start_from_a_timer_waits_for_no_event(request_: Any) -> None:
    """A rate limit's timer may be the last thing for a long time that wakes the worker's loop."""
    executed: list[str] = []
    before_sleep: list[list[str]] = []

    def poll(timeout: float) -> None:
        before_sleep.append(list(executed))

    hub = Hub()
    hub.poller.poll = poll
    hub.readers[-1] = None  # a loop without any does not poll
    starter = Starter(request_.lease_channel, hub)
    hub.call_later(0, starter.add, request_, lambda: executed.append(request_.id))
    next(hub.create_loop())
    assert before_sleep == [[request_.id]]
    hub.readers.clear()
    hub.close()
