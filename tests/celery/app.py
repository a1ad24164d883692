"""The app of these tests; its broker and ledger come from the environment."""

from __future__ import annotations

import functools
import os
import time
from typing import Any

from celery import Celery
from celery.exceptions import Reject
from kombu import Exchange, Queue
from kombu.common import Broadcast

import celery_integration
import kombu_sqlite  # noqa: F401 - registers sqlite://

assert celery_integration.Leases

app = Celery("app", broker=os.environ["TEST_BROKER"])
app.conf.update(
    task_ignore_result=True,
    broker_connection_retry_on_startup=True,
    worker_cancel_long_running_tasks_on_connection_loss=False,
    task_queues=[
        Queue("celery", Exchange("celery"), routing_key="celery"),
        Queue("other", Exchange("other"), routing_key="other"),
        Queue("topic", Exchange("topic", type="topic"), routing_key="animal.#"),
        Broadcast("all"),
    ],
    task_default_queue="celery",
    task_routes={"app.routed": {"queue": "other"}},
    beat_schedule={"tick": {"task": "app.note", "schedule": 1.0, "args": ("tick",)}},
)


#: Not shared with other apps: each test imports this module anew.
task = functools.partial(app.task, shared=False)


def write(line: object) -> None:
    """Append a line to the ledger, whole."""
    descriptor = os.open(os.environ["TEST_LEDGER"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, f"{line}\n".encode())
    finally:
        os.close(descriptor)


@task()
def note(*values: Any, **named: Any) -> None:
    """Write the arguments."""
    write(" ".join([*map(str, values), *(f"{key}={named[key]}" for key in sorted(named))]))


@task(acks_late=True)
def late(value: Any, seconds: float = 0.0) -> None:
    """Write the argument after a while; acknowledged at the end."""
    time.sleep(seconds)
    write(value)


@task()
def stamped(x: int, y: int) -> None:
    """Write the sum and when it was made."""
    write(f"{x + y} {time.time()}")


@task(acks_late=True)
def spanned(value: Any, seconds: float) -> None:
    """Write when it begins and when it ends."""
    write(f"begin {value}")
    time.sleep(seconds)
    write(f"end {value}")


@task()
def fail(value: Any) -> None:
    """Raise."""
    raise ValueError(value)


@task()
def failed(task_id: str) -> None:
    """Write that another task failed; an errback in the old style is given the id alone."""
    write(f"failed {task_id}")


@task(bind=True, acks_late=True)
def rejected(self: Any) -> None:
    """Go back into the queue once, then be refused for good."""
    write(f"redelivered {self.request.delivery_info['redelivered']}")
    raise Reject("no", requeue=not self.request.delivery_info["redelivered"])


@task(acks_late=True, reject_on_worker_lost=True)
def fatal(value: Any) -> None:
    """Kill the pool's process once; the marker beside the ledger says that it has happened."""
    marker = f"{os.environ['TEST_LEDGER']}-{value}"
    if not os.path.exists(marker):
        os.close(os.open(marker, os.O_CREAT, 0o600))
        os.kill(os.getpid(), 9)
    write(value)


@task(name="app.routed")
def routed(value: Any) -> None:
    """Has a queue of its own."""
    write(value)


@task()
def add(x: int, y: int) -> int:
    """Write the sum and hand it on."""
    write(f"sum {x + y}")
    return x + y


@task()
def total(numbers: list[int]) -> int:
    """Add up."""
    return sum(numbers)


@task(bind=True, max_retries=3)
def flaky(self: Any) -> None:
    """Succeed at the third try."""
    write(f"try {self.request.retries}")
    if self.request.retries < 2:
        raise self.retry(countdown=0.1)


@task(bind=True)
def timed(self: Any) -> None:
    """Write when it ran and when it was to run."""
    write(f"{time.time()} {self.request.eta}")


@task(bind=True, acks_late=True)
def redelivered(self: Any, value: Any) -> None:
    """Write whether the message says redelivered."""
    write(f"{value} {self.request.delivery_info['redelivered']}")


@task(acks_late=True)
def deadly() -> None:
    """Kill the worker, as a crash in native code or a full memory would."""
    write("deadly")
    os.kill(
        int(os.environ["TEST_WORKER_PID"]) if "TEST_WORKER_PID" in os.environ else os.getppid(), 9
    )
    time.sleep(60)
