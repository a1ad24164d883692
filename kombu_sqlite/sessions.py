"""A consuming process's presence in the file: its row, its sign of life, its renewals.

While a process lives, one byte of the side file ``…-sessions`` is write-locked by it; the kernel
frees the byte at the process's death, whatever the cause. A thread renews the row meanwhile. So
a dead process is told from a slow one without guessing, on one host; elsewhere by silence.
"""

from __future__ import annotations

import itertools
import json
import os
import secrets
import socket
from typing import Any

from . import native
from .clock import now_text
from .database import Database
from .errors import QueueDatabaseError, QueueReplacedError
from .location import identity, open_side_file
from .log import logger
from .sql import statement

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ("FIRST_SESSION_BYTE", "UPKEEP_BYTE", "LockFile", "Session")

#: Held by the process that is elected for upkeep; sessions' bytes follow.
UPKEEP_BYTE = 0
FIRST_SESSION_BYTE = 1

_MAX_BEAT_INTERVAL_S = 15.0
_RETRY_AFTER_S = 0.2


class LockFile:
    """Byte locks of this process on the side file.

    Nothing else may open that file: closing any descriptor of it drops this process's locks. When
    it was deleted or replaced together with the queue, new bytes are held in the new one; the old
    one stays open until what is held there has been released.
    """

    def __init__(self, path: str, mode: int) -> None:
        self._path = path + "-sessions"
        self._mode = mode
        self._lock = native.lock()
        self._fd = -1
        self._held: dict[int, int] = {}  # byte -> the descriptor it is locked through

    def try_hold(self, byte: int) -> bool:
        """Lock one byte; return False when another process holds it."""
        with self._lock:
            if byte in self._held:
                return False
            if fcntl is None:  # pragma: no cover - Windows
                return byte == UPKEEP_BYTE
            self._open_current()
            try:
                fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
            except OSError:
                return False
            self._held[byte] = self._fd
            return True

    def _open_current(self) -> None:
        """Make the descriptor one of the file that others find at this path."""
        if self._fd >= 0:
            mine = os.fstat(self._fd)
            if identity(self._path) == (mine.st_dev, mine.st_ino):
                return
            self._close_unless_held(self._fd)
        self._fd = open_side_file(self._path, self._mode)

    def _close_unless_held(self, fd: int) -> None:
        if fd in self._held.values():
            return
        if fd == self._fd:
            self._fd = -1  # first: a child forked in between must not take it for its own
        os.close(fd)

    def release(self, byte: int) -> None:
        """Free one byte, and the file with the last one."""
        with self._lock:
            fd = self._held.pop(byte, -1)
            if fd >= 0:
                fcntl.lockf(fd, fcntl.LOCK_UN, 1, byte)
                self._close_unless_held(fd)

    def is_alive(self, byte: int) -> bool | None:
        """Return whether some process holds ``byte``; None where that cannot be told."""
        with self._lock:
            if fcntl is None or self._fd < 0:
                return None
            if self._held.get(byte) == self._fd:
                return True
            try:
                fcntl.lockf(self._fd, fcntl.LOCK_SH | fcntl.LOCK_NB, 1, byte)
            except OSError:
                return True
            fcntl.lockf(self._fd, fcntl.LOCK_UN, 1, byte)
            return False

    def held_bytes(self) -> frozenset[int]:
        """Return the bytes this process holds."""
        with self._lock:
            return frozenset(byte for byte, fd in self._held.items() if fd == self._fd)

    def forget(self) -> None:
        """In a forked child: nothing is held; the inherited descriptor serves it as well."""
        self._lock = native.lock()
        self._held = {}


class Session:
    """This process as the owner of leases; one row of ``workers``.

    All leases of the process are renewed by one write to that row. A session that was judged
    silent (stopped, suspended) finds its row retired: it is lost, and what it held is somebody
    else's. Whoever connects again gets a new one.
    """

    def __init__(
        self,
        database: Database,
        locks: LockFile,
        visibility_timeout_s: float,
        capabilities: dict[str, Any],
    ) -> None:
        self._database = database
        self._locks = locks
        self.visibility_timeout_s = visibility_timeout_s
        self._capabilities = capabilities
        self._waker = native.Waker()
        self._closed = False
        #: Whether the file no longer knows this session; every claim then raises SessionLost.
        self.lost = False
        self.worker_id = ""
        self.lock_byte = -1
        self._register()
        self._thread = native.Thread(self._renew_until_closed, "kombu-sqlite-lease")
        self._thread.start()

    @property
    def beat_interval_s(self) -> float:
        """How often the lease is renewed: four times as often as it runs out."""
        return min(self.visibility_timeout_s / 4, _MAX_BEAT_INTERVAL_S)

    def _register(self) -> None:
        """Insert the row and lock its byte, both before anybody can see the row."""
        worker_id = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(3)}"
        byte = -1
        try:
            with self._database.transaction() as handle:
                used = {row[0] for row in handle.all(statement("list_lock_bytes"))}
                byte = self._hold_free_byte(used)
                handle.run(
                    statement("insert_worker"),
                    {
                        "worker": worker_id,
                        "capabilities": json.dumps(self._capabilities),
                        "now": now_text(),
                        "host": socket.gethostname(),
                        "pid": os.getpid(),
                        "lock_byte": byte,
                        "visibility_timeout": self.visibility_timeout_s,
                    },
                )
        except BaseException:
            self._locks.release(byte)
            raise
        self.worker_id = worker_id
        self.lock_byte = byte

    def _hold_free_byte(self, used: set[int]) -> int:
        """Lock the first byte that no row names and that can be had.

        A worker that was judged silent may still hold the byte its row no longer names.
        """
        for byte in itertools.count(FIRST_SESSION_BYTE):
            if byte not in used and (self._locks.try_hold(byte) or fcntl is None):
                return byte
        raise AssertionError("unreachable")

    def _renew_until_closed(self) -> None:
        interval_s = self.beat_interval_s
        while not self._closed:
            if native.select_readable([self._waker.fileno()], interval_s):
                self._waker.clear()
                continue
            interval_s = self._renew()

    def _renew(self) -> float:
        """Renew the lease; return in how many seconds to do it again."""
        try:
            with self._database.transaction() as handle:
                handle.run(statement("beat_worker"), {"worker": self.worker_id, "now": now_text()})
                known = handle.changes() == 1
        except QueueReplacedError as exc:
            logger.error("%s", exc)
            self.give_up()
        except QueueDatabaseError as exc:
            logger.warning("The lease of %s could not be renewed yet: %s", self.worker_id, exc)
            return min(self.beat_interval_s, _RETRY_AFTER_S)
        else:
            if not known and not self._closed:
                logger.warning(
                    "%s was silent longer than its visibility timeout (%g s): its messages went "
                    "to others.",
                    self.worker_id,
                    self.visibility_timeout_s,
                )
                self.give_up()
        return self.beat_interval_s

    def describe(self, hostname: str, concurrency: int | None) -> None:
        """Record for people what kind of worker this is.

        Arguments:
            hostname: its node name, as remote control addresses it.
            concurrency: how many tasks it executes at a time.
        """
        with self._database.transaction() as handle:
            handle.run(
                statement("describe_worker"),
                {"worker": self.worker_id, "hostname": hostname, "concurrency": concurrency},
            )

    def give_up(self) -> None:
        """Serve no more: whoever connects again registers anew."""
        self.lost = True
        self._closed = True
        self._locks.release(self.lock_byte)

    def close(self) -> None:
        """Stop renewing, give back what is still held, uncounted, and leave the file."""
        self._closed = True
        self._waker.set()
        self._thread.join(2.0)
        try:
            with self._database.transaction() as handle:
                values = {"worker": self.worker_id, "now": now_text()}
                handle.run(statement("lose_leased_of"), values)
                handle.run(statement("release_leased_of"), values)
                handle.all(statement("release_transient_of"), values)
                handle.all(statement("delete_consumers_of"), values)
                handle.run(statement("bump_topology"))
                handle.run(statement("delete_worker"), {"worker": self.worker_id})
        finally:
            self._locks.release(self.lock_byte)
            self._waker.close()
