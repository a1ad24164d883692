"""Lets whoever has waited longest for the write lock go first.

SQLite gives its lock to whoever asks at the right moment, so a process that writes all the time
keeps the others out. Here one that has waited for some milliseconds says so in the side file that
all processes map, and the others leave the next turn to it. It is courtesy, not a lock: a request
holds for milliseconds, so one left behind by a process that died delays nobody for long, and who
does not look breaks nothing.
"""

from __future__ import annotations

import struct
import time
from contextlib import suppress

from .bells import TURN_AT, BellBoard
from .errors import QueueDiskError

__all__ = ("Turns",)

#: Since when the one that asks has waited, and until when it asks; nanoseconds of the system's
#: monotonic clock, which all processes of a machine share.
_REQUEST = struct.Struct("<QQ")
_NOBODY = bytes(_REQUEST.size)

#: Most waits are shorter; to ask for each would cost the others more than it is worth.
_ASKS_AFTER_NS = 4_000_000
#: How long others wait for one that asks: it asks again whenever it tries.
_HOLDS_NS = 5_000_000


class Turns:
    """Who of all processes on one file is to have the write lock next."""

    def __init__(self, board: BellBoard) -> None:
        self._board = board

    def join(self) -> None:
        """Take part from now on: whoever has met another writer once."""
        if self._board.mapped is None:
            with suppress(QueueDiskError):  # then out of turn: the write needs it not
                self._board.flags()

    def is_free(self) -> bool:
        """Return whether nobody asks; cheap, for every transaction looks first."""
        flags = self._board.mapped
        if flags is None:
            return True
        try:
            return flags[TURN_AT : TURN_AT + _REQUEST.size] == _NOBODY
        except ValueError:  # another thread has just unmapped it
            return True

    def is_mine(self, came_ns: int) -> bool:
        """Return whether nobody has waited longer; ask for the next turn after some time.

        Arguments:
            came_ns: since when the caller has waited (``time.monotonic_ns()``).
        """
        flags = self._board.mapped
        if flags is None:
            return True
        try:
            since, until = _REQUEST.unpack_from(flags, TURN_AT)
            now = time.monotonic_ns()
            if since < came_ns and now < until <= now + _HOLDS_NS:
                return False
            if now - came_ns >= _ASKS_AFTER_NS:
                _REQUEST.pack_into(flags, TURN_AT, came_ns, now + _HOLDS_NS)
        except ValueError:  # another thread has just unmapped it
            pass
        return True

    def give_back(self, came_ns: int) -> None:
        """Ask no more: the caller has the lock, or has given up."""
        flags = self._board.mapped
        if flags is None:
            return
        try:
            if _REQUEST.unpack_from(flags, TURN_AT)[0] == came_ns:
                flags[TURN_AT : TURN_AT + _REQUEST.size] = _NOBODY
        except ValueError:  # another thread has just unmapped it
            pass
