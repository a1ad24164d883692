"""Statistics of an app's queue."""

from __future__ import annotations

from typing import Any

import pytest
from celery import Celery

from celery_integration.stats import statistics
from kombu_sqlite import QueueLocationError


def test_an_app_and_its_file_have_the_same_statistics(lab: Any) -> None:
    """Published by Celery, counted by queue and by the task's name."""
    lab.tasks.note.delay(1)
    lab.tasks.routed.delay(2)
    for source in (lab.app, lab.database):
        found = statistics(source)
        assert (found.total_tasks, found.queued_tasks) == (2, 2)
        assert set(found.depth_by_queue) == {"celery", "other"}
        assert set(found.depth_by_type) == {"app.note", "app.routed"}
        assert statistics(source, queue="other", window_s=60).window.seconds == 60
        assert statistics(source, type="app.note", window=5).queued_tasks == 1


def test_a_run_is_measured(lab: Any) -> None:
    """Its worker too, while it lives."""
    lab.worker("-P", "solo")
    lab.tasks.late.delay(1, 0.2)
    found = lab.wait(lambda: (s := statistics(lab.app)).window.ended and s)
    assert found.window.run_seconds.p50 >= 0.2
    assert found.window.wait_seconds.p99 < 30
    assert (found.window.success_rate, found.window.retry_rate) == (1.0, 0.0)
    assert (found.active_workers, found.stale_workers) == (1, 0)


def test_an_app_on_another_broker_is_refused() -> None:
    """With what its broker is."""
    with (
        Celery(broker="memory://", set_as_current=False) as app,
        pytest.raises(QueueLocationError, match=r"memory.*not a queue file"),
    ):
        statistics(app)
