"""Stores the results that the broker's own ends owe, so that no caller waits for ever.

A row that expired, was cancelled, lost its worker or died too often carries a mark. Any worker of
the application stores its result with Celery's own methods, which tell its chord, its chain and
its errbacks. Duplicates of a task end here as well, with the first one's result.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from celery import states
from celery.app.task import Context, Task
from celery.app.trace import build_tracer
from celery.exceptions import WorkerLostError
from celery.signals import task_revoked
from celery.utils.log import get_logger
from kombu.serialization import loads, prepare_accept_content

from kombu_sqlite import (
    DELIVERY_HEADER,
    LogMark,
    QueueBusyError,
    QueueDatabaseError,
    Store,
    decode,
)

from .backend import SQLiteBackend

__all__ = ("Payer", "pay")

logger = get_logger(__name__)

_INTERVAL_S = 0.8
_BATCH = 100

#: A result that could not be stored is tried again after this long, one of a task that this
#: application does not know later: its own workers store it.
_AGAIN_AFTER_S = 2.0
_OTHERS_AGAIN_AFTER_S = 60.0

#: A chord complete for so long has lost its finisher.
_CHORD_LATE_S = 5.0
_CHORDS_INTERVAL_S = 2.0


class Payer(threading.Thread):
    """A thread of a worker that pays what is owed; several workers share the work.

    Arguments:
        app: the application.
        store: the broker's file.
        tell: sends an event to monitors.
    """

    def __init__(self, app: Any, store: Store, tell: Callable[..., None] | None = None) -> None:
        super().__init__(name="kombu-sqlite-owed", daemon=True)
        self._app = app
        self._store = store
        self._tell = tell
        self._stopped = threading.Event()
        self._chords_at = 0.0
        self._again = True  # something is left to do from the last turn
        self._passed_over: dict[int, float] = {}  # row -> not to be tried again before

    def run(self) -> None:
        """Pay until stopped."""
        mark = LogMark(self._store.database.path)
        while not self._stopped.wait(_INTERVAL_S):
            if mark.moved() or self._again:  # idle checks cost one stat
                self._again = False
                self._guarded(self.end_followers)
                self._guarded(self.pay_all)
            if time.monotonic() >= self._chords_at:
                self._chords_at = time.monotonic() + _CHORDS_INTERVAL_S
                self._guarded(self.finish_chords)

    def stop(self) -> None:
        """Stop, and wait for what is being written."""
        self._stopped.set()
        if self.is_alive():
            self.join(5.0)

    def _guarded(self, duty: Callable[[], None]) -> None:
        """Do one duty; one that fails is logged and comes again."""
        try:
            duty()
        except QueueBusyError:
            self._again = True  # the file is locked for long; next turn
        except QueueDatabaseError as exc:
            self._again = True
            logger.warning("Results that are owed wait for the file: %s", exc)
        except Exception:
            logger.exception("A result that is owed could not be stored; it is tried again")

    def pay_all(self) -> None:
        """Store the result of every marked row of this application's tasks.

        One that cannot be stored keeps none of the others from it.
        """
        after = 0
        owed: set[int] = set()
        while not self._stopped.is_set():
            found = self._store.owed.find(after, _BATCH)
            owed.update(found)
            for row_id in found:
                if self._passed_over.get(row_id, 0.0) <= time.monotonic():
                    self._guarded(functools.partial(self._pay, row_id))
            if len(found) < _BATCH:
                break
            after = found[-1]
        if not self._stopped.is_set():
            for row_id in set(self._passed_over) - owed:
                del self._passed_over[row_id]
        self._again = self._again or bool(self._passed_over)

    def _pay(self, row_id: int) -> None:
        self._passed_over[row_id] = time.monotonic() + _AGAIN_AFTER_S  # in case that it fails
        if not pay(self._app, self._store, row_id, self._tell):
            self._passed_over[row_id] = time.monotonic() + _OTHERS_AGAIN_AFTER_S

    def finish_chords(self) -> None:
        """Publish the bodies of chords whose last part's worker has died before it could."""
        backend = self._app.backend
        if isinstance(backend, SQLiteBackend):
            for group_id in backend.store.chords.list_due(_CHORD_LATE_S):
                self._guarded(functools.partial(backend.finish_chord, group_id))

    def end_followers(self) -> None:
        """End the duplicates whose first task has ended; their results are then owed."""
        while self._store.owed.end_followers(_BATCH) == _BATCH and not self._stopped.is_set():
            pass


def pay(
    app: Any,
    store: Store,
    row_id: int,
    tell: Callable[..., None] | None = None,
    asked: bool = False,
) -> bool:
    """Store the result that one row owes, and tell who listens; return whether this call did.

    One transaction with the row's mark where results are in the same file; with another backend
    the result comes first, so that a crash in between stores it once more.

    Arguments:
        tell: sends an event to monitors.
        asked: whether it is this application's though it knows no task of that name: its user has
            named the task, as a producer does that knows its tasks by name alone.
    """
    owed = store.owed.get(row_id)
    if owed is None:
        return False
    request = _request_of(app, owed.delivery) if owed.delivery.task_id is not None else None
    if request is None:
        with store.owed.paying(row_id) as mine:
            return mine  # nobody knows its id, so nobody waits
    if request.task not in app.tasks and not (asked or _consumes(app, owed.delivery.queue)):
        return False  # another application's
    backend = app.backend
    same_file = isinstance(backend, SQLiteBackend) and backend.store.database is store.database
    with store.owed.paying(row_id) if same_file else nullcontext(True) as mine:
        if mine:
            _store_end(app, request, owed)
    if not same_file:
        with store.owed.paying(row_id) as mine:
            pass
    if mine and owed.status == "failed" and owed.follows is None and request.errbacks:
        backend._call_task_errbacks(request, WorkerLostError(owed.reason), None)
    if mine and owed.status == "cancelled":
        how = {"terminated": False, "signum": None, "expired": owed.reason == "expired"}
        if tell is not None:
            tell("task-revoked", uuid=request.id, **how)
        if request.task in app.tasks:
            task_revoked.send(sender=app.tasks[request.task], request=request, **how)
    return mine


def _consumes(app: Any, queue: str) -> bool:
    """Return whether a worker of the app would take messages of ``queue``, tasks unknown or not."""
    return queue in app.amqp.queues.consume_from


def _store_end(app: Any, request: Any, owed: Any) -> None:
    task, backend = app.tasks.get(request.task), app.backend
    of = app.Task if task is None else task
    ignored = request.ignore_result if request.ignore_result is not None else of.ignore_result
    stored = not ignored or of.store_errors_even_if_ignored
    if owed.status == "cancelled":
        backend.mark_as_revoked(request.id, owed.reason, request=request, store_result=stored)
    elif owed.follows is not None and task is not None:
        meta = {} if owed.first_task_id is None else backend.get_task_meta(owed.first_task_id)
        _trace_as(app, request, _outcome(meta, owed))
    else:
        backend.mark_as_failure(
            request.id,
            WorkerLostError(owed.reason),
            request=request,
            store_result=stored,
            call_errbacks=False,
        )


def _request_of(app: Any, delivery: Any) -> Any:
    """Return a row's message as the request Celery would have made of it; None if it is none."""
    try:
        content = decode(delivery, False)
        args, kwargs, embed = loads(  # type: ignore[no-untyped-call]
            content.body,
            content.content_type,
            content.content_encoding,
            accept=prepare_accept_content(app.conf.accept_content),  # type: ignore[no-untyped-call]
        )
    except Exception as exc:  # noqa: BLE001 - any row another program wrote may come here
        logger.warning("Row %s owes a result but is no task: %s", delivery.tag.row_id, exc)
        return None
    info = content.properties.get("delivery_info") or {}
    content.headers.pop(DELIVERY_HEADER, None)  # nobody executes it
    return Context(
        {
            **content.headers,
            **(embed or {}),
            "args": args,
            "kwargs": kwargs,
            "delivery_info": {**info, "priority": content.properties.get("priority")},
            "properties": content.properties,
            "reply_to": content.properties.get("reply_to"),
            "correlation_id": content.properties.get("correlation_id"),
        }
    )


def _outcome(meta: dict[str, Any], owed: Any) -> Callable[..., Any]:
    """Return a function that ends as the first task of an idempotency key has."""

    def run(*args: Any, **kwargs: Any) -> Any:
        if meta.get("status") in states.EXCEPTION_STATES:
            raise meta["result"]
        if owed.status != "completed":
            raise WorkerLostError(owed.reason)
        return meta.get("result")

    return run


def _trace_as(app: Any, request: Any, run: Callable[..., Any]) -> None:
    """Let Celery end a task that is not executed: its tracer runs ``run`` in the task's stead."""
    original = app.tasks[request.task]
    attributes = {"name": request.task, "run": staticmethod(run)}
    for name in ("ignore_result", "store_errors_even_if_ignored", "serializer"):
        attributes[name] = getattr(original, name)
    stand_in = type("StandIn", (Task,), attributes)()
    stand_in.bind(app)
    tracer = build_tracer(request.task, stand_in, app=app)
    tracer(request.id, request.args, request.kwargs, dict(request.__dict__))
