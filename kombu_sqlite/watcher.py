"""Tells the elected process at once that a program without bells wrote to the file (Linux).

It watches the folder for writes to ``-wal``. Such an event comes before the commit it belongs to
is visible, and comes for our own writers too, so it only means "look soon": the look is repeated
after 1, 2, 4 and 8 ms, and bursts are let pass. Where there is no inotify, ``data_version``
read ten times a second serves alone.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from contextlib import suppress

from .native import read

__all__ = ("LOOK_AFTER_S", "PAUSE_S", "ForeignWatcher", "LogMark")

_IN_MODIFY = 0x2
_IN_NONBLOCK = 0o4000
_IN_CLOEXEC = 0o2000000

#: When to look after an event, in seconds; the last serves commits that wait for a sync.
LOOK_AFTER_S = (0.001, 0.002, 0.004, 0.008)

#: Events within this many seconds of the last are left for later: bounds the watcher's own cost.
PAUSE_S = 0.02


#: A modification younger than this is looked for again: file systems tell times by clock ticks.
_MTIME_DOUBT_S = 0.2


class LogMark:
    """Tells by one ``stat`` that nobody has written to the log of ``path`` since the last look."""

    def __init__(self, path: str) -> None:
        self._path = path + "-wal"
        self._mark: tuple[int, int] | None = None

    def moved(self) -> bool:
        """Return False only where nothing was written since the last call."""
        try:
            log = os.stat(self._path)
        except FileNotFoundError:
            self._mark = None
            return True
        mark = (log.st_mtime_ns, log.st_size)
        if mark == self._mark:
            return False
        self._mark = mark if abs(time.time() - log.st_mtime) > _MTIME_DOUBT_S else None
        return True


class ForeignWatcher:
    """A descriptor that becomes readable when somebody writes to the log of ``path``."""

    def __init__(self, path: str) -> None:
        self._name = os.fsencode(os.path.basename(path) + "-wal")
        self._fd = -1
        if not sys.platform.startswith("linux"):
            return
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd = libc.inotify_init1(_IN_NONBLOCK | _IN_CLOEXEC)
        if self._fd >= 0 and (
            libc.inotify_add_watch(self._fd, os.fsencode(os.path.dirname(path)), _IN_MODIFY) < 0
        ):
            self.close()  # watches are used up on this machine: the net serves alone

    def fileno(self) -> int:
        """Return the descriptor; -1 where nothing can be watched."""
        return self._fd

    def take(self) -> bool:
        """Take the events so far; return whether a write to the log was among them."""
        found = False
        with suppress(BlockingIOError):
            while data := read(self._fd, 65536):
                found = found or self._name in data
        return found

    def close(self) -> None:
        """Stop watching."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
