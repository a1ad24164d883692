"""What ``setup`` adds to publishing: idempotency keys, batches, and times that know their zone."""

from __future__ import annotations

import functools
import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import datetime
from typing import Any

from celery.canvas import group
from celery.exceptions import ImproperlyConfigured
from celery.utils.time import make_aware

from kombu_sqlite import DuplicateTask

__all__ = ("batch", "batch_groups", "extend_send_task")


class _Batches(threading.local):
    """The producers that collect what this thread sends, by the app that it is sent for."""

    def __init__(self) -> None:
        self.producers: dict[int, Any] = {}  # by id: apps live longer than blocks


_batches = _Batches()

_BATCH = 64

#: A generator that has taken so long since the last write is slow: its tasks need not wait for it.
_SLOW_S = 0.25

#: A task that carries one of these is more than itself: a duplicate must end by its own id.
_CANVAS = ("link", "link_error", "chain", "chord", "group_id", "task_id")


def extend_send_task(app: Any) -> None:
    """Wrap an app's ``send_task``, once; every publish of a task goes through it."""
    if not hasattr(app.send_task, "knows_idempotency"):
        app.send_task = _extended(app, vars(app).get("send_task"))


def _extended(app: Any, own: Callable[..., Any] | None) -> Callable[..., Any]:
    """Return what replaces an app's ``send_task``.

    Arguments:
        own: what somebody has put into the app before; None calls its class, which somebody may
            extend later, as tracing libraries do.
    """

    def plain(*args: Any, **options: Any) -> Any:
        return type(app).send_task(app, *args, **options) if own is None else own(*args, **options)

    @functools.wraps(app.send_task)
    def extended(name: str, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        _make_aware(app, options)
        batched = _batches.producers.get(id(app))
        if batched is not None and options.get("producer") is None:
            options["producer"] = batched
        key, scope = _key_for(app, name, args, kwargs, options)
        if key is None:
            return plain(name, args, kwargs, **options)
        _ensure_answerable(app)
        headers = dict(options.pop("headers", None) or {})
        headers["idempotency_key"] = key
        if scope is not None:
            headers["idempotency_scope"] = scope
        if batched is None and not any(options.get(option) for option in _CANVAS):
            headers["idempotency_bare"] = True
        try:
            return plain(name, args, kwargs, headers=headers, **options)
        except DuplicateTask as duplicate:
            result_class = options.get("result_cls") or app.AsyncResult
            return result_class(duplicate.task_id)

    extended.knows_idempotency = True  # type: ignore[attr-defined]
    return extended


@contextmanager
def batch(app: Any, max_size: int = _BATCH) -> Iterator[Any]:
    """Publish the app's tasks that this thread sends in the block in few transactions.

    Each transaction is whole or not at all: at every ``max_size`` tasks, and at the block's end. An
    exception in the block drops what has not been written by then. A task is not in the file before
    its transaction: do not wait for a result inside the block. Yields the producer.

    Arguments:
        app: one that ``setup`` has been called for.
        max_size: tasks in one transaction at the most.

    Raises:
        QueueBusyError, QueueDiskError: at the end; the last transaction was not written.
    """
    outer = _batches.producers.get(id(app))
    with app.producer_or_acquire(outer) as producer:
        # Kombu 5.6 has no batches: there each task is published at once
        collecting = producer.batch(max_size) if hasattr(producer, "batch") else nullcontext()
        with collecting:
            _batches.producers[id(app)] = producer
            try:
                yield producer
            finally:
                if outer is None:
                    del _batches.producers[id(app)]


def batch_groups() -> None:
    """Let groups of apps that are set up publish their tasks in batches; repeatable.

    Celery gives no other place for it: a group of any other app takes the way it took before.
    """
    if not hasattr(group.apply_async, "batches"):
        group.apply_async = _batched(group.apply_async)


def _batched(apply_async: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(apply_async)
    def batched(self: Any, *args: Any, **options: Any) -> Any:
        app = self.app
        chosen = options.get("producer") is not None or options.get("connection") is not None
        eager = app.conf.task_always_eager
        if chosen or eager or len(args) > 3 or not hasattr(app.send_task, "knows_idempotency"):
            return apply_async(self, *args, **options)
        # by the very type: what Celery wraps a generator in is a subclass of list
        made = type(self.tasks) in (list, tuple) or id(app) in _batches.producers
        with batch(app) if made else _batch_as_made(app) as producer:
            return apply_async(self, *args, **{**options, "producer": producer})

    batched.batches = True  # type: ignore[attr-defined]
    return batched


@contextmanager
def _batch_as_made(app: Any) -> Iterator[Any]:
    """Yield a producer for tasks that a generator makes one by one.

    The generator's own code runs in the block and may wait for tasks that it sends itself: those
    are none of the batch. When it is slow, what it has made is not held back until its end.
    """
    with app.producer_or_acquire() as producer:
        if not hasattr(producer, "batch"):
            yield producer
            return
        with producer.batch(_BATCH) as collecting:
            yield _Paced(producer, collecting.flush)


class _Paced:
    """A batch's producer that writes what it has collected once its caller takes long."""

    def __init__(self, producer: Any, flush: Callable[[], None]) -> None:
        self._producer = producer
        self._flush = flush
        self._waited_s = _SLOW_S  # how long the first task was in the making, nobody knows
        self._since = time.monotonic()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._producer, name)

    def publish(self, *args: Any, **options: Any) -> Any:
        """Collect a message, and write all of them if making them took long."""
        self._waited_s += time.monotonic() - self._since
        published = self._producer.publish(*args, **options)
        if self._waited_s >= _SLOW_S:
            self._flush()
            self._waited_s = 0.0
        self._since = time.monotonic()
        return published


def _key_for(
    app: Any, name: str, args: Any, kwargs: Any, options: dict[str, Any]
) -> tuple[str | None, Any]:
    """Take key and scope from the options, the headers, or the task's ``idempotent``."""
    headers = options.get("headers") or {}
    task = options.get("task_type") or app.tasks.get(name)
    scope = options.pop("idempotency_scope", headers.get("idempotency_scope"))
    if scope is None:
        scope = getattr(task, "idempotency_scope", None)
    key = options.pop("idempotency_key", headers.get("idempotency_key"))
    if key is None and getattr(task, "idempotent", False):
        key = _derived_key(name, args, kwargs)
    return key, scope


def _derived_key(name: str, args: Any, kwargs: Any) -> str:
    """Return a key of a task's name and arguments."""
    text = json.dumps([list(args or ()), dict(kwargs or {})], sort_keys=True, default=repr)
    return f"{name}:{hashlib.sha256(text.encode()).hexdigest()}"


def _ensure_answerable(app: Any) -> None:
    """Refuse keys where the second caller could not get the first one's result."""
    if app.backend.as_uri().startswith("rpc://"):
        raise ImproperlyConfigured(
            "An idempotency key needs results that anybody can read; rpc:// results go to the "
            "first caller alone. Use result_backend='sqlite:///…' or another stored backend."
        )


def _make_aware(app: Any, options: dict[str, Any]) -> None:
    """A naive ETA or expiry is in the app's time zone; the file keeps UTC."""
    for name in ("eta", "expires"):
        moment = options.get(name)
        if isinstance(moment, datetime) and moment.tzinfo is None:
            options[name] = make_aware(moment, app.timezone)
