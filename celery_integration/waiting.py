"""Waiting for results: a thread sleeps until this process's watcher has found what it wants."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from celery import states
from celery.exceptions import TimeoutError as ResultTimeout
from celery.result import ResultSet

from kombu_sqlite import ResultWatcher, Store, Waiter

__all__ = ("WaitingMixin",)

#: A waiting caller's ``on_interval`` is called this often.
_INTERVAL_S = 0.5

_watchers: weakref.WeakKeyDictionary[Store, tuple[int, ResultWatcher]] = weakref.WeakKeyDictionary()
_watchers_lock = threading.Lock()


def _renew_lock() -> None:
    global _watchers_lock
    _watchers_lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


def watcher_of(store: Store) -> ResultWatcher:
    """Return this process's only watcher of a file."""
    with _watchers_lock:
        pid, watcher = _watchers.get(store, (-1, None))
        if watcher is None or pid != os.getpid():
            watcher = store.new_watcher(states.READY_STATES.__contains__)
            _watchers[store] = (os.getpid(), watcher)
        return watcher


class WaitingMixin:
    """The part of the backend that waits."""

    is_async = True

    @property
    def store(self) -> Store:
        """The file; the backend knows it."""
        raise NotImplementedError

    decode_result: Callable[[Any], dict[str, Any]]
    _ensure_not_eager: Callable[[], None]

    def add_pending_result(self, result: Any, weak: bool = False) -> Any:
        """Do nothing: whoever waits is noted when it begins to wait."""
        return result

    def add_pending_results(self, results: Iterable[Any], weak: bool = False) -> list[Any]:
        """Do nothing, for each."""
        return list(results)

    def remove_pending_result(self, result: Any) -> Any:
        """Do nothing: whoever waited is forgotten when it no longer waits."""
        return result

    def on_result_fulfilled(self, result: Any) -> None:
        """Do nothing."""

    def wait_for_pending(
        self,
        result: Any,
        callback: Any = None,
        propagate: bool = True,
        timeout: float | None = None,
        on_interval: Callable[[], Any] | None = None,
        on_message: Callable[[Any], Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Wait until a task has ended; return or raise its result.

        Raises:
            celery.exceptions.TimeoutError: it has not within ``timeout`` seconds.
        """
        self._ensure_not_eager()
        for _, meta in self.wait_for_many([result.id], timeout, on_interval, on_message):
            result._maybe_set_cache(meta)
        return result.maybe_throw(callback=callback, propagate=propagate)

    def iter_native(
        self,
        result: Any,
        timeout: float | None = None,
        interval: float = 0.5,
        no_ack: bool = True,
        on_message: Callable[[Any], Any] | None = None,
        on_interval: Callable[[], Any] | None = None,
    ) -> Iterator[tuple[str, Any]]:
        """Yield id and meta of each task of a result set as it ends."""
        self._ensure_not_eager()
        nodes: dict[str, Any] = {}
        for node in result.results or ():
            if isinstance(node, ResultSet):
                yield node.id, node.results
            elif node._cache:
                yield node.id, node._cache
            else:
                nodes[node.id] = node
        for task_id, meta in self.wait_for_many(nodes, timeout, on_interval, on_message):
            nodes[task_id]._maybe_set_cache(meta)
            yield task_id, nodes[task_id]._cache

    def wait_for_many(
        self,
        task_ids: Iterable[str],
        timeout: float | None = None,
        on_interval: Callable[[], Any] | None = None,
        on_message: Callable[[Any], Any] | None = None,
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield id and meta of each task as it ends, in that order."""
        deadline = None if timeout is None else time.monotonic() + timeout
        found: deque[tuple[str, Any]] = deque()
        wake = threading.Event()
        watcher = watcher_of(self.store)

        def waiter(task_id: str) -> Waiter:
            def take(_: str, payload: Any) -> None:
                found.append((task_id, payload))
                wake.set()

            return Waiter(task_id, take)

        waiters = [waiter(task_id) for task_id in dict.fromkeys(task_ids)]
        left = len(waiters)
        watcher.add(waiters)
        try:
            while left:
                wake.clear()
                while found:
                    task_id, payload = found.popleft()
                    left -= 1
                    meta = self.decode_result(payload)
                    if on_message is not None:
                        on_message(meta)
                    yield task_id, meta
                if left and not found:
                    self._sleep_until(wake, deadline)
                    if on_interval is not None:
                        on_interval()
        finally:
            for one in waiters:
                watcher.discard(one)

    def _sleep_until(self, wake: threading.Event, deadline: float | None) -> None:
        if deadline is None:
            wake.wait(_INTERVAL_S)
            return
        remaining = deadline - time.monotonic()
        if not wake.wait(max(0.0, min(remaining, _INTERVAL_S))) and remaining <= _INTERVAL_S:
            raise ResultTimeout("The operation timed out.")
