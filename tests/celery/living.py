"""An app whose results are in the broker's file: its tasks end in every way there is."""

from __future__ import annotations

import functools
import os
import signal
import time
from pathlib import Path
from typing import Any

import celery
from celery import Celery, chain, group
from celery.exceptions import Ignore, Reject
from celery.signals import task_revoked

import celery_integration

app = Celery("living", broker=os.environ["TEST_BROKER"])
app.conf.update(
    result_backend=os.environ.get("TEST_BACKEND", os.environ["TEST_BROKER"]),
    broker_connection_retry_on_startup=True,
    worker_cancel_long_running_tasks_on_connection_loss=bool(os.environ.get("TEST_CANCEL_ON_LOSS")),
    # where results are disabled Celery cannot look for one, and fails the task
    worker_deduplicate_successful_tasks=os.environ.get("TEST_BACKEND") != "disabled://",
    worker_prefetch_multiplier=int(os.environ.get("TEST_PREFETCH", "4")),
    result_extended=True,
    result_backend_transport_options={
        "global_keyprefix": os.environ.get("TEST_RESULT_PREFIX", ""),
    },
    task_acks_on_failure_or_timeout=True,
    task_create_missing_queues=True,
)
if not os.environ.get("TEST_PLAIN"):
    celery_integration.setup(app)

if os.environ.get("TEST_SIGNALS"):

    @task_revoked.connect(weak=False)
    def note_revoked(sender: Any, request: Any, expired: bool, **_: Any) -> None:
        """Write what was revoked, and whether it has expired."""
        write(f"signal {sender.name} {request.id} {expired}")


#: Not shared with other apps: each test imports this module anew.
task = functools.partial(app.task, shared=False)


def write(line: object) -> None:
    """Append a line to the ledger, whole."""
    descriptor = os.open(os.environ["TEST_LEDGER"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, f"{line}\n".encode())
    finally:
        os.close(descriptor)


def wait_for_gate(name: str) -> None:
    """Wait until the test opens a gate: makes a file beside the ledger."""
    while not os.path.exists(f"{os.environ['TEST_LEDGER']}-{name}"):
        time.sleep(0.01)


def first_time(name: str) -> bool:
    """Whether this is the first call with this name, whichever process calls."""
    try:
        os.close(os.open(f"{os.environ['TEST_LEDGER']}-{name}", os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        return False
    return True


@task()
def add(x: int, y: int = 0) -> int:
    """Write the sum and return it."""
    write(f"sum {x + y}")
    return x + y


@task()
def total(numbers: list[int]) -> int:
    """Add up."""
    return sum(numbers)


@task()
def gated(name: str, value: Any = None) -> Any:
    """Begin, wait for a gate, end."""
    write(f"begin {name}")
    wait_for_gate(name)
    write(f"end {name}")
    return value


@task(acks_late=True)
def gated_late(name: str, value: Any = None) -> Any:
    """As gated, acknowledged late."""
    write(f"begin {name}")
    wait_for_gate(name)
    write(f"end {name}")
    return value


@task()
def boom(value: Any = "on purpose") -> None:
    """Raise."""
    raise ValueError(value)


@task(acks_late=True, acks_on_failure_or_timeout=False, ignore_result=True)
def boom_unacked() -> None:
    """Raise; a failure is no acknowledgement."""
    raise ValueError("unacked")


@task()
def heard(request: Any, exc: Any, traceback: Any) -> None:
    """Write, as an errback, what failed how."""
    write(f"heard {request.id} {type(exc).__name__}")


@task(bind=True, max_retries=5, default_retry_delay=0)
def flaky(self: Any, times: int, queue: str | None = None) -> int:
    """Fail so many times, then return how often it was tried."""
    if self.request.retries < times:
        options = {} if queue is None else {"queue": queue}
        raise self.retry(exc=ValueError("flaky"), countdown=0, **options)
    return int(self.request.retries)


@task(bind=True, max_retries=5)
def gated_retry(self: Any, name: str) -> None:
    """Begin, wait for a gate, then ask to run again."""
    write(f"try {self.request.retries}")
    wait_for_gate(name)
    raise self.retry(countdown=0)


@task(bind=True)
def patient(self: Any) -> None:
    """Ask to run again in an hour."""
    raise self.retry(countdown=3600)


@task(bind=True)
def replaced(self: Any, how: str) -> Any:
    """Be replaced by a plain task, a chain or a group."""
    other = {
        "plain": add.s(1, 2),
        "same": replaced.s("done"),
        "chain": chain(add.s(1, 2), add.s(10)),
        "group": group(add.s(1, 2), add.s(10, 20)),
    }.get(how)
    if other is None:
        return how
    return self.replace(other)


@task()
def refused(requeue: bool = False) -> None:
    """Reject after an early ack."""
    raise Reject("no", requeue=requeue)


@task(acks_late=True)
def refused_late(name: str | None = None) -> str:
    """Reject; with a name back into the queue, once."""
    if name is None:
        raise Reject("no")
    if first_time(name):
        raise Reject("later", requeue=True)
    return name


@task(bind=True)
def ignored(self: Any, state: str | None = None, text: str = "") -> None:
    """Be ignored, with or without a state stored by itself."""
    if state is not None:
        meta: Any = ValueError("own") if state in ("FAILURE", "REVOKED") and not text else "own"
        self.update_state(state=state, meta=meta)
    raise Ignore


@task(ignore_result=True)
def forgotten(fails: bool = False) -> None:
    """Have no result."""
    write("forgotten")
    if fails:
        raise ValueError("forgotten")


@task()
def leaves(code: int = 3) -> None:
    """Exit."""
    raise SystemExit(code)


def die() -> None:
    """Kill this process, as a crash in native code would."""
    os.kill(os.getpid(), signal.SIGKILL)


@task()
def dies() -> None:
    """Die after an early ack."""
    write("dies")
    die()


@task(acks_late=True)
def dies_late() -> None:
    """Die before a late ack; it is one nevertheless, which is Celery's default."""
    write("dies late")
    die()


@task(acks_late=True, reject_on_worker_lost=True)
def dies_again(name: str | None = None) -> Any:
    """Die each time, or only once where it has a name."""
    write("dies again")
    if name is None or first_time(name):
        die()
    return name


@task(bind=True, acks_late=True, reject_on_worker_lost=True)
def retries_and_dies(self: Any, name: str) -> None:
    """Say whether the message was delivered before; retry, die once, return."""
    write(f"run {self.request.retries} {self.request.delivery_info['redelivered']}")
    if self.request.retries == 0:
        raise self.retry(countdown=0)
    if first_time(name):
        die()


@task(retry_on_worker_lost=True, default_retry_delay=0, max_retries=1)
def dies_retried(name: str | None = None) -> Any:
    """Die each time, or only once where it has a name; Celery retries it."""
    write("dies retried")
    if name is None or first_time(name):
        die()
    return name


@task()
def endless() -> None:
    """Run until it is stopped."""
    write("endless")
    time.sleep(60)


@task(acks_late=True)
def endless_late() -> None:
    """As endless, acknowledged late."""
    write("endless late")
    time.sleep(60)


@task(acks_late=True, acks_on_failure_or_timeout=False)
def endless_unacked(name: str) -> str:
    """Run until stopped, the first time; a time limit is no acknowledgement."""
    write("endless unacked")
    if first_time(name):
        time.sleep(60)
    return name


@task(idempotent=True)
def once(value: int) -> int:
    """Run once for each argument."""
    write(f"once {value}")
    return value


@task()
def publishes_twice(key: str) -> list[str]:
    """Publish with the same key twice, from inside a worker."""
    return [add.apply_async((5, 5), idempotency_key=key).id for _ in range(2)]


def kill_worker() -> None:
    """Kill this worker, its pool's process and the main one."""
    parent = os.getppid()
    if os.environ["TEST_WORKER"] in Path(f"/proc/{parent}/cmdline").read_text(encoding="utf-8"):
        os.kill(parent, signal.SIGKILL)
    die()


class Killing(celery.Task):  # type: ignore[misc]
    """Kills its worker, the first time, in one of Celery's hooks."""

    def on_retry(self, *args: Any, **kwargs: Any) -> None:
        """Called when the next run is published and the state stored."""
        if first_time("on_retry"):
            kill_worker()

    def on_success(self, *args: Any, **kwargs: Any) -> None:
        """Called when the result is stored; the ack comes later."""
        if first_time("on_success"):
            kill_worker()

    def on_failure(self, *args: Any, **kwargs: Any) -> None:
        """As on_success, for a failure."""
        if first_time("on_failure"):
            kill_worker()


@task(bind=True, max_retries=3)
def killed_retrying(self: Any, where: str) -> int:
    """Be killed right after the publish of its retry, or once its state is stored."""
    write(f"try {self.request.retries}")
    if self.request.retries:
        return int(self.request.retries)
    retry = self.retry(countdown=0, throw=False)
    if where == "publish" and first_time("publish"):
        kill_worker()
    raise retry


def end_as_told(self: Any, how: str) -> Any:
    """Be killed in the hook that belongs to how it ends."""
    write(how)
    if how == "on_retry":
        if self.request.retries:
            return how
        raise self.retry(countdown=0)
    if how == "on_failure":
        raise ValueError(how)
    return how


killed_in_hook = task(bind=True, base=Killing, name="living.killed_in_hook")(end_as_told)
killed_in_hook_late = task(
    bind=True, base=Killing, name="living.killed_in_hook_late", acks_late=True
)(end_as_told)


@task(bind=True)
def killed_replacing(self: Any, how: str) -> None:
    """Be killed right after its replacement is published."""
    other = add.s(1, 2) if how == "plain" else chain(add.s(1, 2), add.s(10))
    try:
        self.replace(other)
    finally:
        if first_time("replace"):
            kill_worker()
