"""States and groups as Celery writes and reads them; what ends a task is in ``backend``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from celery import states
from celery.result import result_from_tuple
from kombu.exceptions import DecodeError

from kombu_sqlite import DELIVERY_HEADER, DeliveryTag, Store

__all__ = ("StoringMixin", "delivery_of")


def delivery_of(request: Any, store: Store) -> DeliveryTag | None:
    """Return the delivery of ``store``'s file that a task's request stands for, if any."""
    found = getattr(request, DELIVERY_HEADER, None)
    if found is None or found[0] != store.database.path:
        return None
    tag = DeliveryTag.parse(found[1])
    return None if tag.transient else tag  # a transient message has no row


@contextmanager
def _reading(what: str) -> Iterator[None]:
    """Tell of damage by the error that Celery knows for it; others may have written the file."""
    try:
        yield
    except (AttributeError, LookupError, RecursionError, TypeError, ValueError) as exc:
        raise DecodeError(f"The stored {what} is damaged: {exc!r}") from exc


class StoringMixin:
    """The part of the backend that stores and finds."""

    app: Any
    expires: Any
    is_brokers: bool
    EXCEPTION_STATES: frozenset[str]
    encode: Callable[[Any], Any]
    decode: Callable[[Any], Any]
    encode_result: Callable[[Any, str], Any]
    _get_result_meta: Callable[..., dict[str, Any]]

    @property
    def store(self) -> Store:
        """The file; the backend knows it."""
        raise NotImplementedError

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

    def _write(
        self, task_id: str, state: str, meta: str | bytes | None, request: Any = None
    ) -> None:
        if meta is not None and task_id is not None:  # a message without an id has no result
            expires_s = None if self._is_kept(request) else self._expires_s(state)
            self.store.results.store(task_id, state, meta, expires_s)

    def _is_kept(self, request: Any) -> bool:
        """Return whether a result goes with its row: as long as a key holds it is asked for."""
        key = getattr(request, "idempotency_key", None)
        return key is not None and self.store is not None and self.is_brokers

    def _is_accounted_for(self, task_id: str) -> bool:
        """Return whether a task has ended, or has a row, whose end will be stored."""
        stored = self.store.results.get(task_id)
        if stored is not None and stored[0] in states.READY_STATES:
            return True
        return self.is_brokers and self.store.find(task_id) is not None

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
                self._write(task_id, state, payload, request)
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

    def decode_result(self, payload: Any) -> dict[str, Any]:
        """Return a task's state and result as they were stored.

        Raises:
            DecodeError: somebody has damaged them; whoever reads others notices nothing.
        """
        with _reading("result"):
            meta: dict[str, Any] = super().decode_result(payload)  # type: ignore[misc]
            meta["result"]  # what Celery reads next
        return meta

    def _forget(self, task_id: str) -> None:
        self.store.results.forget(task_id)

    def _save_group(self, group_id: str, result: Any) -> Any:
        meta = self.encode({"result": result.as_tuple()})
        self.store.results.store_group(group_id, meta, self._seconds(self.expires))
        return result

    def _restore_group(self, group_id: str) -> dict[str, Any] | None:
        with _reading("group"):
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
