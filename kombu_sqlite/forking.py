"""Keeps every SQLite connection of this process closed while one of its threads forks.

SQLite keeps its locks per process and remembers them in memory, so a child that inherits that
memory believes to hold locks it has not: its new connections take none, and a lock that was held
at the moment of the fork seems held for ever (both measured). So nothing is open at a fork.
"""

from __future__ import annotations

import os
import weakref
from typing import Any, Protocol

from . import native

__all__ = ("ForkGate", "Participant", "gate")

_RETRY_S = 0.0005


class Participant(Protocol):
    """What has connections to close before a fork."""

    def close_before_fork(self) -> list[Any]:
        """Close every connection; return the locks held until the fork is over."""

    def reset_in_parent(self) -> None:
        """Go on after a fork."""

    def reset_in_child(self) -> None:
        """Start afresh in a forked child, without touching what was inherited."""


class ForkGate:
    """Closed while a thread forks."""

    def __init__(self) -> None:
        self.closed = False
        self.opening = native.lock()  # held while a connection is opened: one at a time
        self._forking = native.lock()
        self._held: list[Any] = []
        self._participants: weakref.WeakSet[Any] = weakref.WeakSet()

    def join(self, participant: Participant) -> None:
        """Let ``participant`` take part in every fork to come."""
        self._participants.add(participant)

    def pass_with(self, lock: Any) -> None:
        """Take ``lock`` at a moment at which no thread of this process is forking."""
        while True:
            if not lock._is_owned():  # else a signal handler raised here the last time
                lock.acquire()
            if not self.closed:
                return
            lock.release()
            native.sleep(_RETRY_S)

    def close(self) -> None:
        """Before a fork: close what is open, let nobody open anything."""
        self._forking.acquire()
        self.closed = True
        for participant in list(self._participants):
            self._held.extend(participant.close_before_fork())

    def open_in_parent(self) -> None:
        """After a fork: go on."""
        for participant in list(self._participants):
            participant.reset_in_parent()
        for lock in self._held:
            lock.release()
        self._held.clear()
        self.closed = False
        self._forking.release()

    def open_in_child(self) -> None:
        """After a fork: start afresh; the parent's locks are nobody's here."""
        for participant in list(self._participants):
            participant.reset_in_child()
        self.closed = False
        self.opening = native.lock()
        self._forking = native.lock()
        self._held = []


gate = ForkGate()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=gate.close,
        after_in_parent=gate.open_in_parent,
        after_in_child=gate.open_in_child,
    )
