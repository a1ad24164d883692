"""Keeps the write-ahead log short: who moves its frames into the file, and when.

The elected process checkpoints each second, ten times a second while the log grows fast. Every
writer has a part as well, in case that process gets no processor, or there is none.
"""

from __future__ import annotations

import apsw

from .log import logger

__all__ = ("FRAME_BYTES", "LogKeeper", "restart")

FRAME_BYTES = 4096 + 24

#: Frames at which a writer starts the log anew by itself: 48 MiB, well below the bound of 64.
_RESTART_AT = 48 * 2**20 // FRAME_BYTES
_RESTART_WAIT_MS = 200


def restart(connection: apsw.Connection, wait_ms: int, usual_ms: int) -> bool:
    """Move all frames and let the next commit begin at the log's start.

    It keeps writers out while it moves frames and waits for readers of the old log: let a passive
    checkpoint move most of them first, and let it not wait for long.

    Arguments:
        wait_ms: the longest wait.
        usual_ms: the connection's busy timeout, set again afterwards.

    Returns:
        Whether it succeeded; a reader, or another checkpoint, may have been in the way.
    """
    connection.set_busy_timeout(wait_ms)
    try:
        connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_RESTART)
    except (apsw.BusyError, apsw.LockedError):
        return False
    finally:
        connection.set_busy_timeout(usual_ms)
    return True


class LogKeeper:
    """A connection's hook after each commit, in place of SQLite's automatic checkpoint.

    That one only ever runs passively: while there is always some reader it never starts the log
    anew, however short each of them is, and the log grows without end.

    Arguments:
        pages: frames in the log from which on a commit also checkpoints.
        busy_timeout_ms: the connection's.
    """

    def __init__(self, pages: int, busy_timeout_ms: int) -> None:
        self._pages = pages
        self._busy_timeout_ms = busy_timeout_ms
        self._due = pages

    def __call__(self, connection: apsw.Connection, name: str, frames: int) -> int:
        """Look at the log's length after a commit; the commit stands, whatever happens here."""
        if frames < self._due:
            if frames < self._pages:
                self._due = self._pages
            return apsw.SQLITE_OK
        self._due = frames + self._pages // 4  # not at each commit while a reader is in the way
        try:
            connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
            if frames >= _RESTART_AT:  # with little left to move: it keeps writers out
                restart(connection, _RESTART_WAIT_MS, self._busy_timeout_ms)
        except (apsw.BusyError, apsw.LockedError):
            pass  # somebody else is at it
        except apsw.Error as exc:
            logger.warning("The write-ahead log could not be moved into the file: %s", exc)
        return apsw.SQLITE_OK
