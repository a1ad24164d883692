"""Celery's result backend in the queue's file: ``result_backend = "sqlite:////path/queue.db"``.

Where the broker is the same file, a task's result, its part of a chord and the end of its row are
one transaction: whoever sees one sees the others. Results are pushed to who waits, never polled.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from celery import states
from celery.backends.base import Backend
from celery.utils.log import get_logger

from kombu_sqlite import (
    Options,
    QueueBusyError,
    QueueDiskError,
    Store,
    Transport,
    open_store,
    path_from_url,
)

from .chording import ChordMixin
from .endings import error_of
from .storing import StoringMixin, delivery_of
from .waiting import WaitingMixin

__all__ = ("SQLiteBackend", "delivery_of")

logger = get_logger(__name__)

_RETRY_AFTER_S = 0.1
_CLEAN_INTERVAL_S = 60.0

#: A chord complete for so long has lost its finisher, be its broker ever so slow.
_CHORD_LATE_S = 60.0
_WARN_AFTER = 50


def _is_over(store: Store) -> bool:
    return store.retired and not store.deliveries.in_transaction()


class SQLiteBackend(WaitingMixin, ChordMixin, StoringMixin, Backend):
    """Results in a queue file.

    Arguments:
        url: ``sqlite:///`` and the path, with options; where the app's broker is the same file its
            options hold.

    Raises:
        QueueLocationError, QueueOptionError: one sentence that says what to mend.
    """

    supports_native_join = True
    supports_autoexpire = True
    supports_result_compression = True
    supports_failure_expires = True

    def __init__(self, app: Any, url: str | None = None, **kwargs: Any) -> None:
        super().__init__(app, url=url, **kwargs)
        if not app.conf.value_set_for("result_backend_always_retry"):
            self.always_retry = True
        self._store: Store | None = None
        self._pid = os.getpid()
        self._pins = threading.local()
        self._clean_at = 0.0
        self.is_brokers = False

    @property
    def store(self) -> Store:
        """The file, opened at the first use; the broker's own object where that is the same.

        Kept, retired or not, inside a transaction: another would wait for this thread's lock.
        """
        pinned: Store | None = getattr(self._pins, "store", None)
        if pinned is not None:
            return pinned
        store = self._store
        if store is None or self._pid != os.getpid() or _is_over(store):
            self._pid = os.getpid()
            store = self._store = open_store(self._options())
        return store

    def _options(self) -> Options:
        path, parameters = path_from_url(self.url or "sqlite:///")
        given = self.app.conf.get("result_backend_transport_options") or {}
        options = Options.load(path, given, parameters, ignore_unknown=True)
        with self.app.connection_for_write() as connection:
            if issubclass(connection.get_transport_cls(), Transport):
                broker: Options = connection.transport.options()
                if os.path.realpath(broker.path) == os.path.realpath(options.path):
                    self.is_brokers = True
                    return broker
        self.is_brokers = False
        return options

    def exception_safe_to_retry(self, exc: BaseException) -> bool:
        """Return whether nothing was written and trying again can help.

        Inside a transaction it cannot: whoever began that one begins it anew.
        """
        transient = isinstance(exc, (QueueBusyError, QueueDiskError))
        return transient and not self.store.deliveries.in_transaction()

    # -- ends ----------------------------------------------------------------------------------

    def mark_as_done(
        self,
        task_id: str,
        result: Any,
        request: Any = None,
        store_result: bool = True,
        state: str = states.SUCCESS,
    ) -> None:
        """Store a task's return value and end its row, in one transaction.

        Where there is nothing to store the worker's main process ends the row, with others.
        """
        stored = store_result and not (request is not None and request.ignore_result)
        part = self.prepare_part(request, state, result)
        if not stored and part is None:
            return
        meta = self._prepare(task_id, result, state, None, request) if stored else None

        def write() -> None:
            with self._ending(request, "completed") as mine:
                if mine:
                    self._write(task_id, state, meta, request)
                    self.return_part(part)

        self._until_written(write)

    def mark_as_failure(
        self,
        task_id: str,
        exc: BaseException,
        traceback: Any = None,
        request: Any = None,
        store_result: bool = True,
        call_errbacks: bool = True,
        state: str = states.FAILURE,
    ) -> None:
        """Store a task's error and end its row, in one transaction; then call its errbacks."""
        meta = self._prepare(task_id, exc, state, traceback, request) if store_result else None
        part = self.prepare_part(request, state, exc)
        refused = False

        def write() -> None:
            nonlocal refused
            with self._ending(request, "failed", error_of(exc)) as mine:
                refused = not mine
                if mine:
                    self._write(task_id, state, meta, request)
                    self.return_part(part)
                    if request:
                        chain = getattr(request, "chain", None)
                        self._fail_chain(chain, exc, traceback, store_result, state)

        self._until_written(write)
        if call_errbacks and not refused and request and request.errbacks:
            self._call_task_errbacks(request, exc, traceback)

    def mark_as_revoked(
        self,
        task_id: str,
        reason: str = "",
        request: Any = None,
        store_result: bool = True,
        state: str = states.REVOKED,
    ) -> None:
        """Store that a task was revoked and end its row, in one transaction.

        What was chained after it is revoked as well: nobody would ever run it. Without a request it
        is a worker that has heard of a revoke and has not got the task: its row, where it has one,
        knows better, and so does a result that is there.
        """
        exc = self.revoked_error(reason)
        meta = self._prepare(task_id, exc, state, None, request) if store_result else None
        part = self.prepare_part(request, state, exc)

        def write() -> None:
            with self._ending(request, "cancelled", reason) as mine:
                if mine and not (request is None and self._is_accounted_for(task_id)):
                    self._write(task_id, state, meta, request)
                    self.return_part(part)
                    if request:
                        chain = getattr(request, "chain", None)
                        self._fail_chain(chain, exc, None, store_result, state)

        self._until_written(write)

    def mark_as_retry(
        self,
        task_id: str,
        exc: BaseException | None,
        traceback: Any = None,
        request: Any = None,
        store_result: bool = True,
        state: str = states.RETRY,
    ) -> Any:
        """Store that a task runs again, unless that run has begun already; tell its row why."""
        tag = delivery_of(request, self.store)
        if tag is None:
            return self.store_result(task_id, exc, state, traceback=traceback, request=request)
        meta = self._prepare(task_id, exc, state, traceback, request)

        def write() -> None:
            with self.store.deliveries.continuing(tag, f"retry: {exc!r}") as mine:
                if mine:
                    self._write(task_id, state, meta, request)

        self._until_written(write)
        return exc

    @contextmanager
    def _ending(self, request: Any, status: str, error: str | None = None) -> Iterator[bool]:
        """End the row of the delivery that ``request`` stands for; see ``Deliveries.ending``."""
        store = self.store
        tag = delivery_of(request, store)
        if tag is None:
            with store.database.transaction():
                yield True
            return
        with store.deliveries.ending(tag, status, error) as mine:
            if not mine:
                logger.warning(
                    "Result refused, the row has ended or belongs to a newer delivery: "
                    "task_id=%s delivery_tag=%s",
                    request.id,
                    tag,
                )
            yield mine

    def _until_written(self, write: Callable[[], None]) -> None:
        """Write, trying until the file is free and the disk has room: a result is never dropped."""
        tries = 0
        while True:
            try:
                with self._pinned():
                    write()
                return self._clean_sometimes()
            except (QueueBusyError, QueueDiskError) as exc:
                if self.store.deliveries.in_transaction():
                    raise  # the outer transaction begins anew
                if tries % _WARN_AFTER == 0:
                    logger.warning("A result waits for the file: %s", exc)
                tries += 1
                time.sleep(_RETRY_AFTER_S)

    @contextmanager
    def _pinned(self) -> Iterator[None]:
        """Let this thread keep to one store, and leave no transaction open.

        Another thread may find the store retired and open a new one meanwhile; and the exception
        of a signal handler may come at any line, in a context's exit as well.
        """
        before = getattr(self._pins, "store", None)
        store = self._pins.store = self.store
        handle = store.database.handle()
        depth = handle.entered()
        try:
            yield
        except BaseException:
            handle.leave(depth)
            raise
        finally:
            self._pins.store = before

    def _clean_sometimes(self) -> None:
        """Do what workers do for a broker's file, where the broker is elsewhere.

        Delete what has expired, and finish chords whose finisher has died.
        """
        now = time.monotonic()
        if self.is_brokers or now < self._clean_at or self.store.deliveries.in_transaction():
            return
        self._clean_at = now + _CLEAN_INTERVAL_S
        try:
            self.cleanup()
            for group_id in self.store.chords.list_due(_CHORD_LATE_S):
                self.finish_chord(group_id)
        except (QueueBusyError, QueueDiskError) as exc:
            logger.info("Expired results are kept a while longer: %s", exc)

    def get_many(
        self,
        task_ids: Iterable[str],
        timeout: float | None = None,
        interval: float = 0.5,
        no_ack: bool = True,
        on_message: Callable[[Any], Any] | None = None,
        on_interval: Callable[[], Any] | None = None,
        **kwargs: Any,
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield id and meta of each task as it ends."""
        return self.wait_for_many(task_ids, timeout, on_interval, on_message)

    def __reduce__(self, args: Any = (), kwargs: Any = None) -> Any:
        # expires may have been given to the constructor, as a caller of Celery's own backends can
        return super().__reduce__(
            args, {**(kwargs or {}), "expires": self.expires, "url": self.url}
        )
