"""Importing the integration changes nothing for an app on another broker."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery
from celery.contrib.testing.worker import start_worker

import celery_integration

REDIS = "redis://127.0.0.1:6379/11"


@pytest.fixture
def redis_app() -> Iterator[Celery]:
    """An app on a local Redis, with a key prefix and a queue of its own."""
    redis = pytest.importorskip("redis", reason="the redis client is not installed")
    server = redis.Redis.from_url(REDIS, socket_connect_timeout=1)
    try:
        server.ping()
    except redis.exceptions.ConnectionError:
        server.close()
        pytest.skip(f"no Redis at {REDIS}")
    prefix = f"kombu-sqlite-test-{uuid.uuid4().hex}:"
    app = Celery("other", broker=REDIS, set_as_current=False)
    app.conf.update(
        broker_transport_options={"global_keyprefix": prefix},
        task_default_queue=prefix + "queue",
        task_ignore_result=True,
    )
    yield app
    app.close()
    if keys := server.keys(prefix + "*"):
        server.delete(*keys)
    server.close()


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
