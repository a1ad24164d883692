"""The queue in our file, results in Redis: whoever waits there hears of what the broker ends."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from celery.exceptions import TaskRevokedError, WorkerLostError

import celery_integration

pytestmark = pytest.mark.filterwarnings("ignore:Call to deprecated")  # Celery's use of redis-py


@pytest.fixture
def house(
    redis_url: str, redis_prefix: str, make_lab: Any, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Any]:
    """A lab whose app keeps its results in Redis."""
    monkeypatch.setenv("TEST_BACKEND", redis_url)
    monkeypatch.setenv("TEST_RESULT_PREFIX", redis_prefix)
    lab = make_lab("?max_attempts=2", module="living")
    assert lab.app.backend.as_uri().startswith("redis://")
    yield lab
    lab.app.backend.result_consumer.stop()
    # or Celery 5.6 opens it again whenever a result is garbage
    lab.app.backend.result_consumer._pubsub = None
    lab.app.backend.client.connection_pool.disconnect()


def assert_revoked(result: Any, reason: str) -> None:
    """The caller, who asks Redis, hears of it."""
    with pytest.raises(TaskRevokedError, match=reason):
        result.get(timeout=20)
    assert result.state == "REVOKED"


def test_what_was_cancelled_is_told_with_no_worker_there(house: Any) -> None:
    """At once; a task put back has its value in the end, in Redis as well."""
    first, second = house.tasks.add.delay(1, 1), house.tasks.add.delay(2, 2)
    assert celery_integration.cancel(house.app, first.id, reason="not wanted").row_id == 1
    assert_revoked(first, "not wanted")
    second.revoke()
    assert_revoked(second, "revoked")
    owed = "SELECT count(*) FROM task_queue WHERE outcome_pending"
    assert house.database.execute(owed)[0][0] == 0
    celery_integration.retry(house.app, first.id)
    house.worker("-P", "solo")
    house.wait(lambda: house.app.AsyncResult(first.id).state == "SUCCESS")
    assert house.lines() == ["sum 2"]


def test_what_expired_or_was_purged_is_told_by_the_next_worker(house: Any) -> None:
    """Nothing of it runs."""
    purged = house.tasks.add.delay(2, 2)
    assert house.app.control.purge() == 1
    expired = house.tasks.add.apply_async((1, 1), expires=0.01)
    house.worker("-P", "solo")
    assert_revoked(purged, "purged")
    assert_revoked(expired, "expired")
    late = house.tasks.add.apply_async((4, 4), countdown=1, expires=0.2)
    assert_revoked(late, "expired")
    assert house.lines() == []


def test_what_a_lost_worker_ran_is_told_by_the_next_one(house: Any) -> None:
    """Acknowledged early: WorkerLostError; killing its process too often: the same."""
    worker = house.worker("-c", "1")
    early = house.tasks.gated.delay("early")
    house.wait(lambda: house.lines() == ["begin early"])
    os.killpg(worker.pid, signal.SIGKILL)
    worker.wait(10)
    deadly = house.tasks.dies_again.delay()
    house.worker("-c", "1", name="w2")
    with pytest.raises(WorkerLostError, match="ended while it ran the task"):
        early.get(timeout=20)
    with pytest.raises(WorkerLostError, match="2 of 2"):
        deadly.get(timeout=30)
    assert (early.state, deadly.state) == ("FAILURE", "FAILURE")
