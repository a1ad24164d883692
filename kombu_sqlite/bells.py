"""Wakes at most one sleeping consumer per message, without a server and without polling.

A consumer that goes to sleep raises its flag, one byte of a side file that all processes map,
looks once more for work, and waits on a FIFO. A writer, after its COMMIT, lowers the flag of one
consumer that could take the message and writes a byte into that consumer's FIFO. Whoever is awake
costs a writer nothing.

A bell that is lost (its owner died, somebody deleted the FIFO) delays nothing for long: consumers
look by themselves at ``data_version`` now and then.
"""

from __future__ import annotations

import errno
import mmap
import os
import select
import socket
import struct
import zlib
from collections.abc import Iterable
from contextlib import suppress

from .errors import QueueDiskError
from .location import open_side_file
from .log import logger
from .native import lock, read, write

__all__ = (
    "FIRST_CONSUMER_BELL",
    "FIRST_WAITER_BELL",
    "TURN_AT",
    "UPKEEP_BELL",
    "Bell",
    "BellBoard",
    "wait_readable",
)

#: The bell of whichever process is elected for upkeep; consumers' bells follow.
UPKEEP_BELL = 0
FIRST_CONSUMER_BELL = 1

#: Bells from here on belong to processes that wait for results; their bytes are locked by them.
FIRST_WAITER_BELL = 8192

_SLOTS = 16384
_BEAT = struct.Struct("<I")
_WAITERS_AT = _SLOTS + _BEAT.size
_WAITERS = 65536
_WAITER = struct.Struct("<H")
_NOBODY = 0
_SEVERAL = 0xFFFF
#: Where it is noted whose turn to write is next; see ``turns``.
TURN_AT = _WAITERS_AT + _WAITERS * _WAITER.size + _BEAT.size
_SIZE = TURN_AT + 16
_ASLEEP = 1
_ASLEEP_BYTE = b"\x01"
_AWAKE = 0
_HAS_FIFOS = hasattr(os, "mkfifo")


def _allocate(descriptor: int) -> None:
    """Give the side file all its blocks now.

    A write through the map into a hole for which the disk has no room kills the process (SIGBUS).

    Raises:
        QueueDiskError: there is no room.
    """
    try:
        os.posix_fallocate(descriptor, 0, _SIZE)
    except (AttributeError, OSError) as exc:
        if isinstance(exc, OSError) and exc.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            raise QueueDiskError(f"No room for the queue's side file ({exc}); make room.") from exc
        if os.fstat(descriptor).st_size < _SIZE:
            os.ftruncate(descriptor, _SIZE)


class BellBoard:
    """The flags of all bells of one queue file, shared by all processes."""

    def __init__(self, path: str, mode: int) -> None:
        self._path = path
        #: Permissions of what stands beside the file.
        self.mode = mode
        self._lock = lock()
        #: The shared flags, once something here has asked for them.
        self.mapped: mmap.mmap | None = None

    def flags(self) -> mmap.mmap:
        """Return the shared flags, mapping the side file at the first call."""
        flags = self.mapped
        if flags is None:
            with self._lock:
                flags = self.mapped
                if flags is None:
                    flags = self.mapped = self._map()
        return flags

    def _map(self) -> mmap.mmap:
        descriptor = open_side_file(self._path + "-bells", self.mode)
        try:
            _allocate(descriptor)
            return mmap.mmap(descriptor, _SIZE)
        finally:
            os.close(descriptor)

    def bell_path(self, number: int) -> str:
        """Return where the FIFO of a bell stands."""
        return f"{self._path}-bell-{number}"

    def ring_one(self, numbers: Iterable[int]) -> bool:
        """Wake one of the sleeping consumers among ``numbers``; return whether one was asleep."""
        flags = self.flags()
        for number in numbers:
            if flags[number] == _ASLEEP:
                flags[number] = _AWAKE
                if self.ring(number):
                    return True
        return False

    def beat_upkeep(self) -> None:
        """Show that the elected process is at work."""
        flags = self.flags()
        _BEAT.pack_into(flags, _SLOTS, (self.upkeep_beat() + 1) % 2**32)

    def upkeep_beat(self) -> int:
        """Return a number that moves while the elected process is at work."""
        beat: int = _BEAT.unpack_from(self.flags(), _SLOTS)[0]
        return beat

    # -- who waits for a result ----------------------------------------------------------------

    def wait_for(self, task_id: str, number: int) -> int:
        """Let bell ``number`` be rung for a task's result; return the place it was noted at.

        Places are fewer than ids: at one that several processes use all waiters are rung. What two
        processes note at the same instant may get lost; each looks by itself now and then.
        """
        place = zlib.crc32(task_id.encode("utf-8", "surrogatepass")) % _WAITERS
        flags = self.flags()
        at = _WAITERS_AT + place * _WAITER.size
        noted = _WAITER.unpack_from(flags, at)[0]
        if noted == _NOBODY:
            _WAITER.pack_into(flags, at, number)
        elif noted != number:
            _WAITER.pack_into(flags, at, _SEVERAL)
        return place

    def wait_no_more(self, place: int, number: int) -> None:
        """Take a note back, if it is ``number``'s alone."""
        flags = self.flags()
        at = _WAITERS_AT + place * _WAITER.size
        if _WAITER.unpack_from(flags, at)[0] == number:
            _WAITER.pack_into(flags, at, _NOBODY)

    def ring_waiter(self, task_id: str) -> None:
        """Wake whoever waits for a task's result.

        The result is committed: what fails here is logged, and waiters look by themselves.
        """
        try:
            flags = self.flags()
            place = zlib.crc32(task_id.encode("utf-8", "surrogatepass")) % _WAITERS
            number = _WAITER.unpack_from(flags, _WAITERS_AT + place * _WAITER.size)[0]
            if number == _NOBODY:
                return
            if number != _SEVERAL:
                self.ring_one([number])
                return
            position = flags.find(_ASLEEP_BYTE, FIRST_WAITER_BELL, _SLOTS)
            while position >= 0:
                self.ring_one([position])
                position = flags.find(_ASLEEP_BYTE, position + 1, _SLOTS)
        except (OSError, ValueError, QueueDiskError) as exc:
            logger.warning("Who waits for %s could not be woken at once: %s", task_id, exc)

    def any_asleep(self, numbers: Iterable[int]) -> bool:
        """Return whether one of the consumers is asleep."""
        flags = self.flags()
        return any(flags[number] == _ASLEEP for number in numbers)

    def ring(self, number: int) -> bool:
        """Write into a bell's FIFO; return whether somebody holds its other end."""
        if not _HAS_FIFOS:
            return self._ring_socket(number)
        try:
            descriptor = os.open(self.bell_path(number), os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as exc:
            if exc.errno in (errno.ENXIO, errno.ENOENT):
                return False  # its owner is gone
            raise
        try:
            write(descriptor, b"\0")
        except (BlockingIOError, BrokenPipeError) as exc:
            return isinstance(exc, BlockingIOError)  # full: it is ringing already
        finally:
            os.close(descriptor)
        return True

    def _ring_socket(self, number: int) -> bool:
        try:
            with open(self.bell_path(number), encoding="ascii") as file:
                port = int(file.read())
        except (OSError, ValueError):
            return False
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"\0", ("127.0.0.1", port))
        return True

    def reset_in_child(self) -> None:
        """In a forked child: another thread may have held the lock."""
        self._lock = lock()

    def close(self) -> None:
        """Unmap the flags."""
        with self._lock:
            flags, self.mapped = self.mapped, None
        if flags is not None:
            flags.close()


def _open_fifo(path: str, mode: int) -> int:
    """Make a FIFO and open it.

    Raises:
        QueueDiskError: no room, no permission, or it was deleted at once.
    """
    try:
        with suppress(FileExistsError):  # left behind by a process that died
            os.mkfifo(path, mode)
            os.chmod(path, mode)  # the umask may have taken the group's bits
        # read and write, so that it never reads as closed while nobody rings
        return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as exc:
        raise QueueDiskError(
            f"{path!r} cannot be made ({exc.strerror}); mend that, then try again."
        ) from exc


class Bell:
    """A consumer's own bell.

    ``fileno()`` is readable once the bell was rung; ``ring_self`` may be called from any thread.
    """

    def __init__(self, board: BellBoard, number: int, mode: int) -> None:
        self._board = board
        self._flags = board.flags()
        self._rung = False
        self._lock = lock()  # a descriptor closed meanwhile may be somebody else's already
        self.number = number
        self._pid = os.getpid()
        self._path = board.bell_path(number)
        if _HAS_FIFOS:
            self._socket = None
            self._fd = _open_fifo(self._path, mode)
        else:
            self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self._socket.bind(("127.0.0.1", 0))
            self._socket.setblocking(False)
            self._fd = self._socket.fileno()
            with open(self._path, "w", encoding="ascii") as file:
                file.write(str(self._socket.getsockname()[1]))
        self.clear()

    def fileno(self) -> int:
        """Return the descriptor to wait on."""
        return self._fd

    def sleep(self) -> None:
        """Raise the flag; look for work once more before waiting."""
        self._flags[self.number] = _ASLEEP

    def wake(self) -> None:
        """Lower the flag, so that writers ring somebody else."""
        self._flags[self.number] = _AWAKE

    def ring_self(self) -> None:
        """Make ``fileno()`` readable."""
        if self._rung:
            return
        with self._lock:
            if self._fd < 0:
                return
            self._rung = True
            if self._socket is None:
                with suppress(BlockingIOError):
                    write(self._fd, b"\0")
            else:
                self._socket.sendto(b"\0", self._socket.getsockname())

    def clear(self) -> None:
        """Take back the rings so far and lower the flag; the caller looks for work next.

        The mark comes last: a ring in between is lost, but the look that follows sees its cause.
        """
        self.wake()
        with suppress(BlockingIOError):
            if self._socket is None:
                while len(read(self._fd, 512)) == 512:
                    pass
            else:
                while True:
                    self._socket.recv(512)
        self._rung = False

    def close(self) -> None:
        """Free the bell; a forked child only closes its copy of the descriptor."""
        with self._lock:
            if self._fd < 0:
                return
            descriptor, self._fd = self._fd, -1
            if self._socket is not None:
                self._socket.close()
            else:
                os.close(descriptor)
        if self._pid == os.getpid():
            with suppress(ValueError):  # the board may be unmapped by now
                self.wake()
            with suppress(FileNotFoundError):
                os.unlink(self._path)


def wait_readable(fds: list[int], timeout_s: float) -> list[int]:
    """Wait in whatever way ``select`` is patched to; return which of ``fds`` are readable."""
    make_poll = getattr(select, "poll", None)
    if make_poll is None:
        return list(select.select(fds, [], [], timeout_s)[0])
    poller = make_poll()
    for fd in fds:
        poller.register(fd, select.POLLIN)
    return [fd for fd, _ in poller.poll(max(0, int(timeout_s * 1000)))]
