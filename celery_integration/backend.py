"""Celery's result backend in the queue's file: ``result_backend = "sqlite:////path/queue.db"``.

Where the broker is the same file, a task's result, its part of a chord and the end of its row are
one transaction: whoever sees one sees the others. Results are pushed to who waits, never polled.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from celery import states
from celery.backends.base import Backend
from celery.result import result_from_tuple
from celery.utils.log import get_logger

from kombu_sqlite import (
    DeliveryTag,
    Options,
    QueueBusyError,
    QueueDiskError,
    Store,
    Transport,
    open_store,
    path_from_url,
)

from .chording import ChordMixin
from .waiting import WaitingMixin

__all__ = ("SQLiteBackend", "delivery_of")

logger = get_logger(__name__)

_RETRY_AFTER_S = 0.1
_WARN_AFTER = 50


def delivery_of(request: Any, store: Store) -> DeliveryTag | None:
    """Return the delivery of ``store``'s file that a task's request stands for, if any."""
    found = getattr(request, "sqlite_delivery", None)
    if found is None or found[0] != store.database.path:
        return None
    return DeliveryTag.parse(found[1])


class SQLiteBackend(WaitingMixin, ChordMixin, Backend):
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

    @property
    def store(self) -> Store:
        """The file, opened at the first use; the broker's own object where that is the same.

        A transaction keeps its object to the end: another one's writes would wait for it.
        """
        store = self._store
        if (
            store is None
            or self._pid != os.getpid()
            or (store.retired and not store.deliveries.in_transaction())
        ):
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
                    return broker
        return options

    def exception_safe_to_retry(self, exc: BaseException) -> bool:
        """Return whether nothing was written and trying again can help."""
        return isinstance(exc, (QueueBusyError, QueueDiskError))

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
                    self._write(task_id, state, meta)
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
            with self._ending(request, "failed", repr(exc)) as mine:
                refused = not mine
                if mine:
                    self._write(task_id, state, meta)
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

        What was chained after it is revoked as well: nobody would ever run it.
        """
        exc = self.revoked_error(reason)
        meta = self._prepare(task_id, exc, state, None, request) if store_result else None
        part = self.prepare_part(request, state, exc)

        def write() -> None:
            with self._ending(request, "cancelled", reason) as mine:
                if mine:
                    self._write(task_id, state, meta)
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
                    self._write(task_id, state, meta)

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
                return write()
            except (QueueBusyError, QueueDiskError) as exc:
                if self.store.deliveries.in_transaction():
                    raise  # the outer transaction begins anew
                if tries % _WARN_AFTER == 0:
                    logger.warning("A result waits for the file: %s", exc)
                tries += 1
                time.sleep(_RETRY_AFTER_S)

    # -- storing -------------------------------------------------------------------------------

    def _expires_s(self, state: str) -> float | None:
        if state in self.EXCEPTION_STATES:
            failure = self.app.conf.get("result_failure_expires")
            if failure is not None:
                return self._seconds(failure)
        return self._seconds(self.expires)

    def _seconds(self, value: Any) -> float | None:
        """Return a period as seconds; None and 0 keep results for ever, as elsewhere in Celery."""
        seconds = value.total_seconds() if hasattr(value, "total_seconds") else value
        return float(seconds) if seconds else None

    def _prepare(
        self, task_id: str, result: Any, state: str, traceback: Any, request: Any
    ) -> str | bytes:
        """Return what is to be stored, encoded; outside of any transaction."""
        encoded = self.encode_result(result, state)
        meta = self._get_result_meta(
            result=encoded, state=state, traceback=traceback, request=request
        )
        meta["task_id"] = task_id
        payload: str | bytes = self.encode(meta)
        return payload

    def _write(self, task_id: str, state: str, meta: str | bytes | None) -> None:
        if meta is not None:
            self.store.results.store(
                task_id,
                state,
                meta,
                ready=state in states.READY_STATES,
                expires_s=self._expires_s(state),
            )

    def _store_result(
        self,
        task_id: str,
        result: Any,
        state: str,
        traceback: Any = None,
        request: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Store a state; one reported by a run that was superseded or has ended is refused."""
        meta = self._get_result_meta(
            result=result, state=state, traceback=traceback, request=request
        )
        meta["task_id"] = task_id
        payload = self.encode(meta)
        tag = delivery_of(request, self.store)
        with self.store.database.transaction() if tag is not None else nullcontext():
            if tag is None or self.store.deliveries.is_running(tag):
                self._write(task_id, state, payload)
        return result

    def _get_task_meta_for(self, task_id: str) -> dict[str, Any]:
        row = self.store.results.get(task_id)
        if row is None:
            return {"status": states.PENDING, "result": None}
        meta: dict[str, Any] = self.decode_result(row[1])
        return meta

    def task_result_exists(self, task_id: str) -> bool:
        """Return whether anything is stored for a task."""
        return self.store.results.get(task_id) is not None

    def _forget(self, task_id: str) -> None:
        self.store.results.forget(task_id)

    def _save_group(self, group_id: str, result: Any) -> Any:
        meta = self.encode({"result": result.as_tuple()})
        self.store.results.store_group(group_id, meta, self._seconds(self.expires))
        return result

    def _restore_group(self, group_id: str) -> dict[str, Any] | None:
        payload = self.store.results.get_group(group_id)
        if payload is None:
            return None
        meta: dict[str, Any] = self.decode(payload)
        meta["result"] = result_from_tuple(meta["result"], self.app)
        return meta

    def _delete_group(self, group_id: str) -> None:
        self.store.results.forget_group(group_id)

    def cleanup(self) -> None:
        """Delete what has expired; the worker elected for upkeep does so by itself."""
        self.store.results.delete_expired()

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
        return super().__reduce__(args, {**(kwargs or {}), "url": self.url})
