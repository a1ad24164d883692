"""Waits for results: one bell a process, one thread that listens to it, and one event a waiter.

Nothing polls. Whoever stores the result of a task that somebody waits for rings that process,
once, after the commit; a note that got lost is made up for by a look now and then.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable

from .bells import FIRST_WAITER_BELL, Bell, BellBoard, wait_readable
from .errors import QueueDatabaseError
from .log import logger
from .results import Payload, Results
from .sessions import LockFile

__all__ = ("ResultWatcher", "Waiter")

#: How often a watcher looks by itself: the net under the bell.
_NET_S = 0.25

#: Up to so many awaited results each is looked up; beyond, what was stored since is gone through.
_LOOK_UP_AT_MOST = 64
#: How long who closes the watcher waits for the thread that watches.
_CLOSE_WITHIN_S = 1.0

#: Bytes of the sessions file that stand for waiters' bells.
_FIRST_BYTE = 1 << 20
_WAITER_BELLS = 16384 - FIRST_WAITER_BELL


class Waiter:
    """One awaited result.

    Arguments:
        found: called once, by the thread that watches or the one that adds it, with state and
            payload.
        changed: called so with states that are not final; of several in a row perhaps only with
            the last.
    """

    __slots__ = ("changed", "found", "place", "seen", "task_id")

    def __init__(
        self,
        task_id: str,
        found: Callable[[str, Payload], None],
        changed: Callable[[str, Payload], None] | None = None,
    ) -> None:
        self.task_id = task_id
        self.found = found
        self.changed = changed
        self.place = -1
        self.seen = 0  # which state it was told last


class ResultWatcher:
    """Watches one file for the results this process waits for; a forked child makes its own.

    It has no thread: of those that wait one watches for all, and leaves the watch to another when
    it has what it came for. So a lone caller is woken by the kernel alone.

    Arguments:
        results: where they are stored.
        is_ready: whether a state is final.
    """

    def __init__(
        self,
        results: Results,
        board: BellBoard,
        locks: LockFile,
        is_ready: Callable[[str], bool],
    ) -> None:
        self._results = results
        self._board = board
        self._locks = locks
        self._is_ready = is_ready
        self._lock = threading.Lock()
        self._waiting: dict[str, list[Waiter]] = {}
        self._curious: set[str] = set()  # tasks whose every state somebody wants
        self._unlooked: set[str] = set()  # tasks that nobody has looked up since they are awaited
        self._places: dict[int, int] = {}  # place -> waiters of this process noted there
        self._bell: Bell | None = None
        self._watch = threading.Lock()  # held by the thread that watches
        self._asleep: list[threading.Event] = []  # what wakes each thread that waits
        self._closed = False
        self._seen: int | None = None  # the last result gone through, while many are awaited

    # -- asking --------------------------------------------------------------------------------

    def add(self, waiters: Iterable[Waiter]) -> None:
        """Begin to wait; results that are there already are found in ``wait`` at the latest."""
        added = list(waiters)
        with self._lock:
            if self._bell is None:
                self._bell = self._own_bell()
            for waiter in added:
                waiter.place = self._board.wait_for(waiter.task_id, self._bell.number)
                self._places[waiter.place] = self._places.get(waiter.place, 0) + 1
                self._waiting.setdefault(waiter.task_id, []).append(waiter)
                if waiter.changed is not None:
                    self._curious.add(waiter.task_id)
            new = {waiter.task_id for waiter in added}
            self._unlooked |= new
        if self._closed or self._watch.locked():  # else whoever begins to watch looks first
            self._look_up(new)

    def discard(self, waiter: Waiter) -> None:
        """Wait no more."""
        with self._lock:
            self._forget(waiter)

    def _forget(self, waiter: Waiter) -> bool:
        listed = self._waiting.get(waiter.task_id)
        if listed is None or waiter not in listed:
            return False
        listed.remove(waiter)
        if not listed:
            del self._waiting[waiter.task_id]
            self._curious.discard(waiter.task_id)
            self._unlooked.discard(waiter.task_id)
        left = self._places[waiter.place] - 1
        if left:
            self._places[waiter.place] = left
        else:
            del self._places[waiter.place]
            if self._bell is not None:
                self._board.wait_no_more(waiter.place, self._bell.number)
        return True

    def close(self) -> None:
        """Take the bell away; whoever still waits is left to its timeout."""
        with self._lock:
            bell, self._closed = self._bell, True
        if bell is None:
            return
        bell.ring_self()
        watched = self._watch.acquire(timeout=_CLOSE_WITHIN_S)
        bell.close()
        self._locks.release(_FIRST_BYTE + bell.number - FIRST_WAITER_BELL)
        if watched:
            self._watch.release()

    # -- waiting -------------------------------------------------------------------------------

    def wait(self, wake: threading.Event, is_over: Callable[[], bool], timeout_s: float) -> bool:
        """Wait until ``is_over()``, at most ``timeout_s`` seconds; watch if nobody else does.

        Whoever watches looks at least once, even without any time.

        Arguments:
            wake: set by the waiters' callbacks whenever ``is_over`` may have changed. Of one
                thread alone, and cleared here.

        Returns:
            Whether it is over.
        """
        deadline = time.monotonic() + timeout_s
        with self._lock:
            self._asleep.append(wake)  # first: whoever leaves the watch from now on sees it
        try:
            while not is_over():
                if not self._closed and self._watch.acquire(blocking=False):
                    try:
                        self._watch_until(is_over, deadline)
                    finally:
                        self._watch.release()
                else:
                    wake.wait(max(0.0, deadline - time.monotonic()))
                wake.clear()  # before the next look at what set it
                if time.monotonic() >= deadline:
                    break
            return is_over()
        finally:
            with self._lock:
                self._asleep.remove(wake)
                if self._asleep and not self._watch.locked() and not self._closed:
                    self._asleep[0].set()  # the watch is free, and its to take

    def _watch_until(self, is_over: Callable[[], bool], deadline: float) -> None:
        bell = self._bell
        assert bell is not None
        rung = True
        while self._listen(bell, rung):
            try:
                self._look()
            except QueueDatabaseError as exc:
                logger.warning("Results could not be read yet: %s", exc)
            left_s = deadline - time.monotonic()
            if is_over() or left_s <= 0:
                break
            rung = bool(wait_readable([bell.fileno()], min(left_s, _NET_S)))

    def _listen(self, bell: Bell, rung: bool) -> bool:
        """Let the bell be rung from now on; return False once the watcher is closed."""
        try:
            if rung:
                bell.clear()
            bell.sleep()
        except ValueError:  # the board was closed, with its store
            self._closed = True
        return not self._closed

    def _own_bell(self) -> Bell:
        """Return a bell that no other process uses; the kernel frees its byte at our death.

        The first that is free: what a killed process has left behind serves the next one.
        """
        for place in range(_WAITER_BELLS):
            if self._locks.try_hold(_FIRST_BYTE + place):
                return Bell(self._board, FIRST_WAITER_BELL + place, self._board.mode)
        raise QueueDatabaseError("Too many processes wait for results of one file; let some end.")

    def _look(self) -> None:
        with self._lock:
            wanted, new = set(self._waiting), set(self._unlooked)
        if len(wanted) <= _LOOK_UP_AT_MOST:
            seen = None
        elif self._seen is None:
            seen = self._results.last_seq()  # before the look, which is for all this once
        else:
            stored = self._results.since(self._seen)
            seen = stored[-1][0] if stored else self._seen
            wanted &= {
                task_id
                for _, task_id, status in stored
                if self._is_ready(status) or task_id in self._curious
            } | new
        self._look_up(wanted)
        self._seen = seen  # last: what could not be read is looked for again
        with self._lock:
            self._unlooked -= new

    def _look_up(self, task_ids: set[str]) -> None:
        for task_id, seq, status, payload in self._results.get_many(task_ids):
            if self._is_ready(status):
                with self._lock:
                    mine = [w for w in list(self._waiting.get(task_id, ())) if self._forget(w)]
                self._tell(task_id, [w.found for w in mine], status, payload)
            elif task_id in self._curious:
                self._tell(task_id, self._unaware(task_id, seq), status, payload)

    def _unaware(self, task_id: str, seq: int) -> list[Callable[[str, Payload], None]]:
        """Return whom to tell of a state, each once."""
        told = []
        with self._lock:
            for waiter in self._waiting.get(task_id, ()):
                if waiter.changed is not None and waiter.seen < seq:
                    waiter.seen = seq
                    told.append(waiter.changed)
        return told

    def _tell(
        self,
        task_id: str,
        callbacks: list[Callable[[str, Payload], None]],
        status: str,
        payload: Payload,
    ) -> None:
        for callback in callbacks:
            try:
                callback(status, payload)
            except Exception:  # noqa: BLE001 - a caller's callback; the others must be told too
                logger.exception("What waited for the result of %s failed.", task_id)
