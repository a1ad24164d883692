"""The Celery app of the kill harness; file, folder and name of the process are in the environment.

A task's result tells under which delivery tag it ran: stored results must be those of the rows.
"""

from __future__ import annotations

import functools
import os
import time
from typing import Any

from celery import Celery

import celery_integration
import kombu_sqlite  # noqa: F401 - registers sqlite://

from .ledger import Ledger

app = Celery("killed", broker=os.environ["KILL_URL"], backend=os.environ["KILL_URL"])
app.conf.update(
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    task_default_queue="tasks",
    worker_prefetch_multiplier=4,
    worker_cancel_long_running_tasks_on_connection_loss=False,
    broker_connection_retry_on_startup=True,
    # A file somebody was stopped on, inside a transaction, is free again within seconds.
    broker_connection_max_retries=None,
    beat_schedule={"tick": {"task": "killed.tick", "schedule": 0.5}},
)
celery_integration.setup(app)

_ledgers: dict[str, Ledger] = {}


def note(*words: object) -> None:
    """Note a line in the ledger of the pool's process."""
    ledger = _ledgers.get("mine")
    if ledger is None or not ledger.is_mine:
        ledger = _ledgers["mine"] = Ledger(os.environ["KILL_LEDGERS"], os.environ["KILL_NAME"])
    ledger.note(*words)


#: The same task at each start.
task = functools.partial(app.task, bind=True, shared=False, max_retries=None)


def run(self: Any, seconds: float) -> list[Any]:
    """Note the begin and the effect; return id and tag."""
    tag = self.request.sqlite_delivery[1]
    note("begin", self.request.id, tag, self.request.retries)
    time.sleep(seconds)
    note("done", self.request.id, tag, self.request.retries)
    return [self.request.id, tag]


@task(name="killed.work")
def work(self: Any, seconds: float = 0.0) -> list[Any]:
    """Take a while."""
    return run(self, seconds)


@task(name="killed.flaky")
def flaky(self: Any, tries: int) -> list[Any]:
    """Succeed at the last try."""
    found = run(self, 0.002)
    if self.request.retries + 1 < tries:
        raise self.retry(countdown=0.05)
    return found


@task(name="killed.delayed")
def delayed(self: Any) -> list[Any]:
    """Is published with a countdown."""
    return run(self, 0.0)


@task(name="killed.early", acks_late=False)
def early(self: Any, seconds: float) -> list[Any]:
    """Run at most once: what kills it leaves a failure."""
    return run(self, seconds)


@task(name="killed.collect")
def collect(self: Any, results: list[list[Any]]) -> list[Any]:
    """End a chord; return, after id and tag, whose results it was given."""
    return [*run(self, 0.0), sorted(identity for identity, _ in results)]


@task(name="killed.tick", ignore_result=True)
def tick(self: Any) -> None:
    """Show that beat and workers are there."""
    run(self, 0.0)
