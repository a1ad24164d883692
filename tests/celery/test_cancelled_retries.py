"""A retry that is cancelled before its run could say that there is one."""

from __future__ import annotations

from celery import Celery
from celery.app.task import Context

import kombu_sqlite  # noqa: F401 - registers sqlite://
from celery_integration.control import cancel
from kombu_sqlite import QueueDatabase


def test_a_cancelled_retry_stays_revoked(broker_url: str, queue_path: str) -> None:
    """RETRY, stored late by the run that published it, would have its caller wait for ever."""
    app = Celery("retries", broker=broker_url, backend=broker_url, set_as_current=False)

    @app.task(name="retries.task", shared=False)
    def task() -> None:
        """Never executed here."""

    with QueueDatabase(broker_url) as database:
        task.apply_async(task_id="it")
        (delivery,) = database.claim()
        database.requeue(delivery)  # as a retry's publish does: queued under the same number
        request = Context(id="it", sqlite_delivery=(queue_path, str(delivery.tag)))
        app.backend.mark_as_retry("it", ValueError("again"), request=request)
        assert app.backend.get_state("it") == "RETRY"
        assert cancel(app, "it").status == "cancelled"
        app.backend.mark_as_retry("it", ValueError("again"), request=request)
        assert app.backend.get_state("it") == "REVOKED"
    app.backend.store.close()
    app.close()
