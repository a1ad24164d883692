"""One object per process and file, however many connections use it; a forked child has its own."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

from . import native
from .sessions import LockFile

__all__ = ("Shared", "share", "shared_locks")

S = TypeVar("S", bound="Shared")


class Shared:
    """Something that its users share; the last one to release it closes it."""

    def __init__(self) -> None:
        self.users = 0

    @property
    def retired(self) -> bool:
        """Whether it serves no more: the next one to ask gets a new one."""
        raise NotImplementedError

    def close(self) -> None:
        """Give back what it holds."""
        raise NotImplementedError

    def reset_in_child(self) -> None:
        """In a forked child: what it held is the parent's."""
        raise NotImplementedError

    def retain(self) -> None:
        """Count one more user."""
        with _lock:
            self.users += 1

    def release(self) -> None:
        """Give back what :func:`share` returned; the last user closes it."""
        with _lock:
            self.users -= 1
            last = self.users <= 0
            if last:
                for key in [key for key, value in _shared.items() if value is self]:
                    del _shared[key]
        if last:
            self.close()


_shared: dict[str, Any] = {}
_all: weakref.WeakSet[Shared] = weakref.WeakSet()
_lock = native.lock()
_lock_files: dict[str, LockFile] = {}


def share(key: str, make: Callable[[], S]) -> S:
    """Return the process's object for ``key``, made at the first call; ``release`` it when done."""
    with _lock:
        found: S | None = _shared.get(key)
        if found is None or found.retired:
            found = _shared[key] = make()
            _all.add(found)
        found.users += 1
        return found


def shared_locks(path: str, mode: int) -> LockFile:
    """Return the process's only LockFile for ``path``; a second one would drop its locks."""
    locks = _lock_files.get(path)
    if locks is None:
        locks = _lock_files[path] = LockFile(path, mode)
    return locks


def _after_fork_in_child() -> None:
    global _lock
    _lock = native.lock()
    for locks in _lock_files.values():
        locks.forget()
    for each in list(_all):
        each.reset_in_child()
    _shared.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
