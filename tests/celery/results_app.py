"""The same app with results, in the broker's file unless the environment names another backend."""

from __future__ import annotations

import functools
import os
import time
from typing import Any

from app import app, write
from celery import chain, chord, group
from celery.exceptions import Ignore
from kombu import Exchange, Queue

app.conf.update(
    result_backend=os.environ.get("TEST_RESULTS") or os.environ["TEST_BROKER"],
    task_ignore_result=False,
    task_track_started=True,
    task_queues=[
        *app.conf.task_queues,
        Queue("transient", Exchange("transient", durable=False), "transient", durable=False),
    ],
)

task = functools.partial(app.task, shared=False)


class Odd(Exception):
    """An error whose arguments are no text."""


@task()
def add(x: Any, y: Any) -> Any:
    """Add."""
    return x + y


@task()
def identity(value: Any = None) -> Any:
    """Hand on."""
    return value


@task()
def total(numbers: Any, more: int = 0) -> Any:
    """Add up a list whose elements may be lists."""

    def flat(value: Any) -> int:
        return sum(map(flat, value)) if isinstance(value, list) else value

    return flat(numbers) + more


@task()
def count(numbers: list[Any]) -> int:
    """How many."""
    return len(numbers)


@task()
def sleeping(seconds: float, value: Any = None) -> Any:
    """Hand on after a while."""
    time.sleep(seconds)
    return value


@task()
def broken(*values: Any) -> None:
    """Raise."""
    raise ValueError("on purpose", *values)


@task()
def odd() -> None:
    """Raise an error of our own."""
    raise Odd({"number": 7}, 8)


@task()
def unserializable() -> object:
    """Return what JSON cannot hold."""
    return object()


@task()
def big(size: int) -> str:
    """Return much."""
    return "x" * size


@task()
def old_errback(task_id: str) -> None:
    """An errback in the old style, which is given an id."""
    write(f"errback {task_id}")


@task()
def new_errback(request: Any, exc: BaseException, traceback: Any) -> None:
    """An errback in the new style, which is called in the worker."""
    write(f"errback {request.id} {exc!r}")


@task(bind=True)
def progressing(self: Any, steps: int) -> int:
    """Report a state of its own, then end once it may."""
    for step in range(steps):
        self.update_state(state="PROGRESS", meta={"step": step})
        waited = time.monotonic() + 20
        while not os.path.exists(f"{os.environ['TEST_LEDGER']}-step-{step}"):
            if time.monotonic() > waited:
                raise TimeoutError(step)
            time.sleep(0.01)
    return steps


@task(bind=True, max_retries=3)
def retrying(self: Any, value: Any, times: int = 2) -> Any:
    """Succeed after some tries."""
    if self.request.retries < times:
        raise self.retry(countdown=0, exc=ValueError(f"try {self.request.retries}"))
    return value


@task(bind=True)
def replaced(self: Any, kind: str, value: int) -> Any:
    """Be replaced by a canvas that in the end adds 10."""
    kinds = {
        "task": add.s(value, 10),
        "chain": chain(add.s(value, 3), add.s(7)),
        "group": group([add.s(value, 4), add.s(0, 6)]),
        "chord": chord([add.s(value, 4), add.s(0, 6)], total.s()),
    }
    raise self.replace(kinds[kind])


@task(bind=True)
def joining(self: Any, number: int) -> int:
    """Add one more task to the chord this one is part of."""
    self.add_to_chord(identity.s(number * 10))
    return number


@task(bind=True)
def parent(self: Any) -> Any:
    """Have children."""
    return group(add.s(number, number) for number in range(3)).apply_async()


@task(bind=True)
def ignoring(self: Any) -> None:
    """End with a state it has stored itself."""
    self.update_state(state="FAILURE", meta=ValueError("stored"))
    raise Ignore


@task(acks_late=True, reject_on_worker_lost=True)
def fatal(value: Any) -> Any:
    """Kill the pool's process once, then hand on."""
    marker = f"{os.environ['TEST_LEDGER']}-fatal"
    if not os.path.exists(marker):
        os.close(os.open(marker, os.O_CREAT, 0o600))
        os.kill(os.getpid(), 9)
    return value


@task(acks_late=True, reject_on_worker_lost=True)
def surviving(value: Any) -> Any:
    """Hand on, whatever dies meanwhile."""
    time.sleep(0.002)
    return value


@task(ignore_result=True)
def quiet(value: Any) -> Any:
    """Leave no result."""
    write(f"quiet {value}")
    return value


@task(bind=True)
def stamps(self: Any) -> Any:
    """Return the stamps it was sent with."""
    return dict(self.request.stamps or {})
