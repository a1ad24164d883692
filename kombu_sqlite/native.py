"""Threads that run whatever gevent or eventlet have patched, and what was patched.

A lease is renewed by a thread that no pool, task or event loop can starve; under a monkey-patched
``threading`` that takes the original primitives.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import ModuleType
from typing import Any

__all__ = ("Thread", "Waker", "is_green", "local", "lock", "read", "write")

#: The system's calls on descriptors that do not block. eventlet patches those of ``os``: where
#: there is nothing to read its own wait, and whoever holds a lock meanwhile holds up everybody.
_system: Any = sys.modules[os.name]
read: Callable[[int, int], bytes] = _system.read
write: Callable[[int, bytes], int] = _system.write


def _original(name: str) -> Any:
    """Return module ``name`` as it was before gevent or eventlet patched it."""
    gevent_monkey = sys.modules.get("gevent.monkey")
    if gevent_monkey is not None and gevent_monkey.is_module_patched(name):
        return _Unpatched(gevent_monkey, name)
    eventlet_patcher = sys.modules.get("eventlet.patcher")
    if eventlet_patcher is not None and eventlet_patcher.is_monkey_patched(_EVENTLET.get(name)):
        return eventlet_patcher.original(name)
    return sys.modules[name]


_EVENTLET = {"threading": "thread", "_thread": "thread", "time": "time", "select": "select"}


class _Unpatched:
    """Looks names up among gevent's saved originals."""

    def __init__(self, monkey: ModuleType, name: str) -> None:
        self._monkey = monkey
        self._name = name

    def __getattr__(self, item: str) -> Any:
        return self._monkey.get_original(self._name, item)


_own_idents: set[int] = set()


def is_green() -> bool:
    """Return whether ``time.sleep`` yields to greenlets here; in our own threads nothing does."""
    if get_ident() in _own_idents:
        return False
    gevent_monkey = sys.modules.get("gevent.monkey")
    if gevent_monkey is not None and gevent_monkey.is_module_patched("time"):
        return True
    eventlet_patcher = sys.modules.get("eventlet.patcher")
    return bool(eventlet_patcher is not None and eventlet_patcher.is_monkey_patched("time"))


def local() -> Any:
    """Return storage per operating-system thread, shared by the greenlets of that thread."""
    return _original("_thread")._local()


def lock() -> Any:
    """Return a lock between operating-system threads."""
    return _original("_thread").allocate_lock()


def rlock() -> Any:
    """Return a lock between operating-system threads that its holder may take again."""
    return _original("_thread").RLock()


def get_ident() -> int:
    """Return the operating-system thread's identifier, the same for all its greenlets."""
    ident: int = _original("_thread").get_ident()
    return ident


class Waker:
    """Lets any thread end another thread's wait; a set that comes before the wait counts."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)

    def fileno(self) -> int:
        """Return the descriptor that is readable once ``set`` was called."""
        return self._reader

    def set(self) -> None:
        """End the wait, now or when it begins."""
        with suppress(BlockingIOError):  # full of wake-ups already
            write(self._writer, b"\0")

    def clear(self) -> None:
        """Forget the wake-ups so far."""
        with suppress(BlockingIOError):
            while len(read(self._reader, 4096)) == 4096:
                pass

    def close(self) -> None:
        """Free the descriptors."""
        os.close(self._reader)
        os.close(self._writer)


class Thread:
    """A daemon thread of the operating system.

    Arguments:
        target: what it runs; an exception that leaves it goes to ``threading.excepthook``.
        name: shown by debuggers.
    """

    def __init__(self, target: Callable[[], None], name: str) -> None:
        self._target = target
        self.name = name
        self._done = lock()

    def start(self) -> None:
        """Start running."""
        self._done.acquire()
        _original("_thread").start_new_thread(self._run, ())

    def _run(self) -> None:
        _own_idents.add(get_ident())
        sys.settrace(threading.gettrace())  # as threading does: debuggers follow
        try:
            self._target()
        except BaseException as exc:  # noqa: BLE001 - handed to threading.excepthook, whole
            args = (type(exc), exc, exc.__traceback__, None)
            threading.excepthook(threading.ExceptHookArgs(args))
        finally:
            _own_idents.discard(get_ident())
            self._done.release()

    def join(self, timeout_s: float) -> bool:
        """Wait for the end, at most ``timeout_s`` seconds; return whether it came.

        Under gevent or eventlet the wait yields to other greenlets.
        """
        if not is_green():
            finished: bool = self._done.acquire(timeout=timeout_s)
        else:
            deadline = time.monotonic() + timeout_s
            while not (finished := self._done.acquire(False)):
                if time.monotonic() >= deadline:
                    break
                time.sleep(0.005)
        if finished:
            self._done.release()
        return finished


def select_readable(fds: list[int], timeout_s: float) -> list[int]:
    """Wait in this operating-system thread until one of ``fds`` is readable; return which are."""
    poller = _original("select").poll()
    for fd in fds:
        poller.register(fd, 1)  # POLLIN
    return [fd for fd, _ in poller.poll(max(0, int(timeout_s * 1000)))]


def sleep(seconds: float) -> None:
    """Block this operating-system thread."""
    _original("time").sleep(seconds)
