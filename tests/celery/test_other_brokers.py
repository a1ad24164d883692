"""Importing the integration changes nothing for an app on another broker."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery
from celery.contrib.testing.worker import start_worker

import celery_integration


@pytest.fixture
def redis_app(redis_url: str, redis_prefix: str) -> Iterator[Celery]:
    """An app on a local Redis, with a key prefix and a queue of its own."""
    app = Celery("other", broker=redis_url, set_as_current=False)
    app.conf.update(
        broker_transport_options={"global_keyprefix": redis_prefix},
        task_default_queue=redis_prefix + "queue",
        task_ignore_result=True,
    )
    yield app
    app.close()


@pytest.fixture
def memory_app() -> Iterator[Celery]:
    """An app on Kombu's transport in memory."""
    app = Celery("other", broker="memory://", set_as_current=False)
    app.conf.task_ignore_result = True
    yield app
    app.close()


@pytest.mark.parametrize("broker", ["memory", "redis"])
def test_its_requests_and_bootsteps_are_celerys_own(
    broker: str, request: pytest.FixtureRequest, wait_until: Any
) -> None:
    """Before, while and after its worker runs a task."""
    app: Celery = request.getfixturevalue(f"{broker}_app")
    seen: list[Any] = []

    @app.task(shared=False, bind=True)
    def look(self: Any) -> None:
        seen.append(self.Request)

    with start_worker(app, perform_ping_check=False, pool="solo", shutdown_timeout=30):
        look.delay()
        wait_until(lambda: seen, 20)
    assert seen == ["celery.worker.request:Request"]
    assert app.Task.Request == "celery.worker.request:Request"
    assert celery_integration.Leases not in app.steps["consumer"]
