"""Waiting for results: a thread sleeps until it, or another one that waits, has found them."""

from __future__ import annotations

import atexit
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


def _close_at_exit() -> None:
    """Leave no bell beside the file when the interpreter exits in good order."""
    for pid, watcher in list(_watchers.values()):
        if pid == os.getpid():
            watcher.close()


atexit.register(_close_at_exit)


class _Wait:
    """One caller's wait for some tasks; tells of states that are not final if ``talkative``."""

    def __init__(self, task_ids: Iterable[str], talkative: bool) -> None:
        self.found: deque[tuple[str, Any, bool]] = deque()
        self._wake = threading.Event()
        self._talkative = talkative
        self._waiters = {task_id: self._waiter(task_id) for task_id in task_ids}
        self._watcher: ResultWatcher | None = None

    @property
    def left(self) -> int:
        """How many have not been taken yet."""
        return len(self._waiters)

    def _waiter(self, task_id: str) -> Waiter:
        def take(payload: Any, is_final: bool) -> None:
            self.found.append((task_id, payload, is_final))
            self._wake.set()

        return Waiter(
            task_id,
            lambda _, payload: take(payload, True),
            (lambda _, payload: take(payload, False)) if self._talkative else None,
        )

    def watch(self, store: Store) -> None:
        """Begin to wait; begin anew if the file was replaced by another one."""
        watcher = watcher_of(store)
        if watcher is not self._watcher:
            self.end()
            self._watcher = watcher
            watcher.add(self._waiters.values())

    def sleep(self, timeout_s: float) -> bool:
        """Wait for something to take, at most so long; return whether there is."""
        assert self._watcher is not None
        return self._watcher.wait(self._wake, lambda: bool(self.found), timeout_s)

    def take(self) -> Iterator[tuple[str, Any, bool]]:
        """Yield id, payload and whether it is final, of what was found."""
        while self.found:
            task_id, payload, is_final = self.found.popleft()
            if not is_final or self._waiters.pop(task_id, None) is not None:
                yield task_id, payload, is_final

    def end(self) -> None:
        """Wait no more."""
        if self._watcher is not None:
            for waiter in self._waiters.values():
                self._watcher.discard(waiter)


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
        wait = _Wait(dict.fromkeys(task_ids), talkative=on_message is not None)
        try:
            while wait.left:
                wait.watch(self.store)
                for task_id, payload, is_final in wait.take():
                    meta = self.decode_result(payload)
                    if on_message is not None:
                        on_message(meta)
                    if is_final:
                        yield task_id, meta
                if wait.left and not wait.found:
                    self._sleep_until(wait, deadline)
                    if on_interval is not None:
                        on_interval()
        finally:
            wait.end()

    def _sleep_until(self, wait: _Wait, deadline: float | None) -> None:
        if deadline is None:
            wait.sleep(_INTERVAL_S)
            return
        remaining = deadline - time.monotonic()
        if not wait.sleep(max(0.0, min(remaining, _INTERVAL_S))) and remaining <= _INTERVAL_S:
            raise ResultTimeout("The operation timed out.")
