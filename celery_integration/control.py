"""Cancels tasks and puts them back, by task id or row id; needs no worker, survives restarts."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

from celery.utils.functional import maybe_list
from celery.utils.imports import symbol_by_name
from celery.utils.log import get_logger
from celery.worker import state

from kombu_sqlite import CancelledRow, Store, Task, Transport, open_store

from .owed import pay

__all__ = ("CancelOutcome", "DurableControl", "cancel", "cancel_many", "combine_control", "retry")

logger = get_logger(__name__)

#: The remote control commands that revoke.
REVOKING = ("revoke", "terminate", "revoke_by_stamped_headers")

_CANCELLED = "cancelled"

#: Sends an event to monitors.
Tell = Callable[..., None]


@dataclass(frozen=True)
class CancelOutcome:
    """What a cancel found.

    ``status`` is ``cancelled`` (it will not start, or has been cancelled before), ``running`` (it
    has begun: it ends, or is terminated where that was asked for, and will not run again), the
    state an ended row has, or ``unknown`` (no row; a task id stays revoked for some hours).
    """

    row_id: int | None
    task_id: str | None
    status: str
    message: str


_stores: weakref.WeakKeyDictionary[Any, tuple[int, Store]] = weakref.WeakKeyDictionary()


def store_of(app: Any) -> Store:
    """Return the file that an app's broker is, kept open for this process.

    Raises:
        ValueError: it is another broker.
    """
    with app.connection_for_write() as connection:
        if not issubclass(connection.get_transport_cls(), Transport):
            raise ValueError(
                f"The app's broker is {connection.as_uri()}, not a queue file (sqlite:///…)."
            )
        options = connection.transport.options()
    pid, store = _stores.get(app, (-1, None))
    if store is None or store.retired or pid != os.getpid() or store.options != options:
        store = open_store(options)
        _stores[app] = (os.getpid(), store)
    return store


def cancel(
    app: Any,
    id: int | str,
    *,
    terminate: bool = False,
    signal: str = "SIGTERM",
    reason: str = _CANCELLED,
) -> CancelOutcome:
    """Cancel a task: what has not started never starts, and its result says REVOKED at once.

    Arguments:
        id: a row id, or Celery's task id, whose live rows are all cancelled.
        terminate: also end the process that executes it (prefork; a greenlet under gevent).
        signal: by which signal.
        reason: what the caller of ``get()`` is told.

    Raises:
        ValueError: the app's broker is no queue file.
        QueueBusyError: the file stayed locked; nothing was changed.
    """
    store = store_of(app)
    if isinstance(id, int):
        rows = store.canceller.cancel([id], reason)
    else:
        rows = store.canceller.cancel_tasks([id], reason, state.REVOKE_EXPIRES)
    _follow_up(app, store, rows, terminate, signal)
    if not rows:
        return CancelOutcome(None, str(id), "unknown", f"There is no row of task {id}.")
    return _outcome(rows[0], terminate)


def cancel_many(
    app: Any,
    *,
    queue: str | None = None,
    type: str | None = None,
    older_than_s: float | None = None,
    terminate: bool = False,
    signal: str = "SIGTERM",
    reason: str = _CANCELLED,
) -> list[CancelOutcome]:
    """Cancel all live tasks that match every filter given; see :func:`cancel`.

    Arguments:
        older_than_s: only those published at least so many seconds ago.
    """
    store = store_of(app)
    before = None
    if older_than_s is not None:
        moment = datetime.now(timezone.utc) - timedelta(seconds=older_than_s)
        before = f"{moment:%Y-%m-%d %H:%M:%S}.{moment.microsecond // 1000:03d}"
    rows = store.canceller.cancel(store.canceller.matching(queue, type, before), reason)
    _follow_up(app, store, rows, terminate, signal)
    return [_outcome(row, terminate) for row in rows]


def retry(app: Any, id: int | str) -> Task | None:
    """Put a failed or cancelled task back into its queue; its result is pending again.

    Arguments:
        id: a row id, or Celery's task id, whose newest row is meant.

    Returns:
        The row; None when there is none.

    Raises:
        ValueError: it is neither failed nor cancelled, or the app's broker is no queue file.
        IdempotencyConflict: its idempotency key belongs to another task by now.
    """
    store = store_of(app)
    found = store.find(id)
    if found is None or found.id is None:
        return None
    if not store.put_back(found.id):
        raise ValueError(
            f"Row {found.id} is {found.status}; only failed and cancelled tasks can be put back."
        )
    return store.find(found.id)


def _outcome(row: CancelledRow, terminate: bool) -> CancelOutcome:
    if row.status == "running":
        message = f"Row {row.row_id} is running; " + (
            "its worker was told to terminate it." if terminate else "it will not run again."
        )
    elif row.status == _CANCELLED:
        message = f"Row {row.row_id} is cancelled."
    else:
        message = f"Row {row.row_id} is already {row.status}, cannot cancel."
    return CancelOutcome(row.row_id, row.task_id, row.status, message)


def _follow_up(
    app: Any,
    store: Store,
    rows: Iterable[CancelledRow],
    terminate: bool = False,
    signal: str = "SIGTERM",
    tell: Tell | None = None,
) -> None:
    """Store what the cancelled ones owe; have the running ones terminated."""
    running = []
    for row in rows:
        if row.status == _CANCELLED:
            _pay_or_leave(app, store, row.row_id, tell or _teller(app))
        elif row.status == "running" and row.task_id is not None:
            running.append(row.task_id)
    if terminate and running:
        arguments = {"task_id": running, "terminate": True, "signal": signal}
        app.control.broadcast("revoke", arguments=arguments)


def _pay_or_leave(app: Any, store: Store, row_id: int, tell: Tell | None) -> None:
    """Store a cancelled row's result; what fails is left to the workers, and the cancel stands."""
    try:
        pay(app, store, row_id, tell, asked=True)
    except Exception as exc:  # noqa: BLE001 - a backend may raise anything
        logger.warning("The result of cancelled row %s is left to a worker: %r", row_id, exc)


def _teller(app: Any) -> Tell | None:
    """Return what sends events from a process that is no worker, where the app wants such."""
    if not app.conf.task_send_sent_event:
        return None

    def tell(kind: str, **fields: Any) -> None:
        with app.events.default_dispatcher() as dispatcher:
            dispatcher.send(kind, **fields)

    return tell


class DurableControl:
    """Mixed into an app's ``Control``: revokes reach the rows, whether a worker runs or not."""

    app: Any

    def broadcast(self, command: str, *args: Any, **kwargs: Any) -> Any:
        """Tell the workers; what a command revokes is revoked in the file before, for good.

        ``revoke``, ``terminate`` and ``revoke_by_stamped_headers`` come here, from the command line
        as well.
        """
        arguments = args[0] if args else kwargs.get("arguments")
        revoke_rows(self.app, command, dict(arguments or (), **kwargs))
        return super().broadcast(command, *args, **kwargs)  # type: ignore[misc]


def revoke_rows(
    app: Any, command: str, arguments: Mapping[str, Any], tell: Tell | None = None
) -> None:
    """Revoke in the file what a remote control command revokes; any other does nothing.

    Arguments:
        arguments: the command's.
        tell: sends an event to monitors.
    """
    if command == "revoke_by_stamped_headers":
        revoke_stamps(app, _stamps(arguments.get("headers")), tell)
    elif command in REVOKING:
        revoke_tasks(app, maybe_list(arguments.get("task_id")) or [], tell)


def _stamps(headers: Any) -> dict[str, list[str]]:
    """Return all values of each stamp; the command line gives ``header=value``, repeatedly."""
    stamps: dict[str, list[str]] = {}
    pairs = (
        headers.items()
        if isinstance(headers, Mapping)
        else (header.partition("=")[::2] for header in maybe_list(headers) or [])
    )
    for header, values in pairs:
        stamps.setdefault(header, []).extend(str(value) for value in maybe_list(values) or [])
    return stamps


def revoke_tasks(app: Any, task_ids: Iterable[str], tell: Tell | None = None) -> None:
    """Cancel all live rows of task ids, and ids without a row beforehand."""
    store = store_of(app)
    rows = store.canceller.cancel_tasks(map(str, task_ids), "revoked", state.REVOKE_EXPIRES)
    _follow_up(app, store, rows, tell=tell)


def revoke_stamps(app: Any, stamps: Mapping[str, list[str]], tell: Tell | None = None) -> None:
    """Cancel all live rows that carry one of the stamps, and those still to come."""
    store = store_of(app)
    rows = store.canceller.cancel_stamped(stamps, "revoked", state.REVOKE_EXPIRES)
    _follow_up(app, store, rows, tell=tell)


def combine_control(control: Any) -> type:
    """Return the app's control class (a class or its name) with ours mixed in, once."""
    base: type = symbol_by_name(control)
    if issubclass(base, DurableControl):
        return base
    return type(base.__name__, (DurableControl, base), {"__module__": base.__module__})
