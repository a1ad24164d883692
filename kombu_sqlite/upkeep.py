"""What one elected process does for all: it promotes, reclaims, wakes, and keeps house.

Each step is its own short transaction; a crash between two leaves nothing half done, and the next
elected process goes on. The election is a byte lock: the kernel frees it at the holder's death.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from . import native
from .bells import UPKEEP_BELL, Bell, BellBoard
from .clock import boottime_s, now_text, parse_time
from .database import Database
from .errors import QueueBusyError, QueueDatabaseError, QueueReplacedError
from .foreign import readable
from .housekeeping import BATCH, Housekeeping
from .leases import LeaseKeeper
from .log import logger
from .options import Options
from .publishing import Ringer
from .results import Results
from .sessions import UPKEEP_BYTE, LockFile
from .sql import statement
from .topology import TopologyStore
from .watcher import LOOK_AFTER_S, PAUSE_S, ForeignWatcher, LogMark

__all__ = ("Upkeep",)

T = TypeVar("T")

_ELECTION_INTERVAL_S = 0.5
_OWNERS_INTERVAL_S = 0.4

#: How often to look for what nobody announced. Where the log is watched this only covers lost
#: events, and fewer wake-ups halve an idle worker's share of the processor.
_NET_S = 0.1
_WATCHED_NET_S = 0.4
_CHECKPOINT_INTERVAL_S = 1.0
_FAST_CHECKPOINT_INTERVAL_S = 0.1
_HOUSEKEEPING_INTERVAL_S = 1.0
_IDLE_INTERVAL_S = 5.0

#: How long a promotion that failed is left alone: a full disk must not keep this thread spinning.
_RETRY_AFTER_S = 0.5

#: So many of what falls due in one moment become ready first: consumers begin with them meanwhile.
_FIRST_BATCH = 20

#: A file that fails is complained of at most this often, in seconds.
_COMPLAINT_INTERVAL_S = 5.0


class Upkeep:
    """The thread that stands for election and, once elected, keeps the file in order."""

    def __init__(
        self,
        database: Database,
        topology: TopologyStore,
        board: BellBoard,
        locks: LockFile,
        options: Options,
    ) -> None:
        self._database = database
        self._topology = topology
        self._board = board
        self._locks = locks
        self._options = options
        self._ringer = Ringer(board)
        self._house = Housekeeping(database, topology, options, Results(database, board))
        self._waker = native.Waker()
        self._closed = False
        self._checked_at = boottime_s()
        self._elected_beat = -1
        self._silent_s = 0.0
        self._done: dict[str, tuple[float, int]] = {}  # duty -> when, and at which change
        self._changes = 0
        self._data_version = (0, -1)  # of which of this thread's connections
        self._next_due_s: float | None = None
        self._log_grows = False
        self._log_mark = LogMark(database.path)
        self._looks: list[float] = []  # waits before the next looks for a foreign commit
        self._listen_from = 0.0
        self._complain_from = 0.0
        self._thread = native.Thread(self._run, "kombu-sqlite-upkeep")
        self._thread.start()

    def close(self) -> None:
        """Stop; another process is elected within half a second."""
        if self._closed:
            return
        self._closed = True
        self._waker.set()
        self._thread.join(5.0)
        self._waker.close()

    # -- the thread ----------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._closed and not self._database.replaced:
            self._duty(self._stand_for_election)
            native.select_readable([self._waker.fileno()], _ELECTION_INTERVAL_S)

    def _stand_for_election(self) -> None:
        """Serve once elected, or while the elected process is silent."""
        if self._locks.try_hold(UPKEEP_BYTE):
            try:
                self._serve(Bell(self._board, UPKEEP_BELL, self._options.file_mode))
            finally:
                self._locks.release(UPKEEP_BYTE)
        elif self._elected_is_silent():
            logger.warning("The process elected for upkeep is silent; this one stands in.")
            self._serve(None)

    def _elected_is_silent(self) -> bool:
        """Return whether the elected process, alive or stopped, has done nothing for too long."""
        now = boottime_s()
        gap_s = min(now - self._checked_at, 2 * _ELECTION_INTERVAL_S)
        self._checked_at = now
        beat = self._board.upkeep_beat()
        if beat != self._elected_beat:
            self._elected_beat = beat
            self._silent_s = 0.0
        else:
            self._silent_s += gap_s
        return self._silent_s > self._options.visibility_timeout

    def _serve(self, bell: Bell | None) -> None:
        """Do the duties until closed; without a bell of its own, only while nobody else does.

        Two processes at it do no harm: what they write is conditional on what they find.
        """
        leases = LeaseKeeper(self._database, self._locks)
        watcher = ForeignWatcher(self._database.path)
        try:
            self._done.clear()
            self._data_version = (0, -1)
            while not self._closed:
                if bell is not None:
                    self._board.beat_upkeep()
                    bell.sleep()  # before looking: a ring from now on ends the wait
                elif self._board.upkeep_beat() != self._elected_beat:
                    return
                self._tick(leases)
                self._wait(bell, watcher)
        except QueueReplacedError as exc:
            logger.error("%s", exc)  # whoever connects again stands for election in the new file
        finally:
            watcher.close()
            if bell is not None:
                bell.close()

    def _wait(self, bell: Bell | None, watcher: ForeignWatcher) -> None:
        """Sleep until the bell rings, somebody writes to the log, or something falls due."""
        fds = [self._waker.fileno()]
        if bell is not None:
            fds.append(bell.fileno())
        timeout_s = self._sleep_s(_NET_S if watcher.fileno() < 0 else _WATCHED_NET_S)
        if self._looks:
            timeout_s = min(timeout_s, self._looks.pop(0))
        listening_in_s = self._listen_from - time.monotonic()
        if watcher.fileno() >= 0 and listening_in_s <= 0:
            fds.append(watcher.fileno())
        readable = native.select_readable(fds, timeout_s)
        if bell is not None and bell.fileno() in readable:
            bell.clear()
        if watcher.fileno() in readable and watcher.take():
            self._looks = list(LOOK_AFTER_S)
            self._listen_from = time.monotonic() + PAUSE_S

    def _is_time(self, name: str, interval_s: float, idle_interval_s: float) -> bool:
        """Return whether a duty is to be done: seldom while nobody has written to the file."""
        now = time.monotonic()
        done_at, changes = self._done.get(name, (0.0, -1))
        if now < done_at + (idle_interval_s if changes == self._changes else interval_s):
            return False
        self._done[name] = (now, self._changes)
        return True

    def _sleep_s(self, net_s: float) -> float:
        """Return how long nothing falls due, at most the net."""
        if self._next_due_s is None:
            return net_s
        return min(net_s, max(0.0, self._next_due_s - time.time()))

    # -- one turn ------------------------------------------------------------------------------

    def _tick(self, leases: LeaseKeeper) -> None:
        """Do what is to be done now; a duty that fails keeps none of the others from being done."""
        changed = self._duty(self._file_changed)
        if changed:
            self._changes += 1
            self._looks.clear()
            self._duty(self._read_next_due)
        if self._next_due_s is not None and self._next_due_s <= time.time():
            self._next_due_s = time.time() + _RETRY_AFTER_S  # unless it succeeds and knows better
            self._duty(self.promote)
        if self._is_time("owners", _OWNERS_INTERVAL_S, _OWNERS_INTERVAL_S):
            self._duty(lambda: self._ring_all(leases.check(self._changes)))
        if changed:
            self._duty(self.ring_for_ready)
        if self._is_time("housekeeping", _HOUSEKEEPING_INTERVAL_S, _IDLE_INTERVAL_S):
            self._keep_house()
        if self._is_time("unowned", _IDLE_INTERVAL_S, _IDLE_INTERVAL_S):
            self._duty(lambda: self._ring_all(leases.reclaim_unowned()))
        interval_s = _FAST_CHECKPOINT_INTERVAL_S if self._log_grows else _CHECKPOINT_INTERVAL_S
        if self._is_time("checkpoint", interval_s, _IDLE_INTERVAL_S):
            self._log_grows = bool(self._duty(self._house.checkpoint))

    def _keep_house(self) -> None:
        self._duty(self._house.expire)
        if self._duty(self._house.mend_irregular):
            self._duty(self._read_next_due)
            self._duty(self.ring_for_ready)
        self._duty(self._house.fail_unclaimable)
        self._duty(self._house.delete_unused_queues)
        self._duty(self._house.prune)

    def _duty(self, duty: Callable[[], T]) -> T | None:
        """Do one duty; one that fails is logged and comes again.

        Raises:
            QueueReplacedError: there is nothing to look after any more.
        """
        try:
            return duty()
        except QueueBusyError:
            return None  # somebody holds the lock for long; next turn
        except QueueReplacedError:
            raise
        except QueueDatabaseError as exc:
            now = time.monotonic()
            self._listen_from = now + _RETRY_AFTER_S  # opening the file may ring as well
            if now >= self._complain_from:
                self._complain_from = now + _COMPLAINT_INTERVAL_S
                logger.warning("Upkeep waits for the file: %s", exc)
            return None
        except Exception:  # noqa: BLE001 - logged whole; the other duties must go on
            logger.exception("Upkeep of %r failed; it is tried again.", self._database.path)
            return None

    def _file_changed(self) -> bool:
        """Return whether another connection has committed since the last call.

        While the log stands still nothing was written, and one ``stat`` tells.
        """
        if not self._log_mark.moved():
            return False
        with self._database.reading() as handle:
            version = (handle.opened, handle.one(statement("data_version"))[0])
        changed = bool(version != self._data_version)
        self._data_version = version
        return changed

    def _read_next_due(self) -> None:
        """Learn when the next row falls due; one whose time is none must not hide the others."""
        with self._database.reading() as handle:
            raw = handle.one(statement("next_due"))[0]
        if raw is None:
            self._next_due_s = None
            return
        text = readable(raw)
        moment = parse_time(text)
        if moment is not None and (moment.timestamp() > time.time() or text <= now_text()):
            self._next_due_s = moment.timestamp()
        elif text <= now_text():
            self._next_due_s = 0.0  # promoted at once, and quarantined by the claim
        else:
            self._next_due_s = time.time() + _HOUSEKEEPING_INTERVAL_S  # mended by then

    def promote(self) -> None:
        """Make ready what is due, in batches that grow, and wake consumers after each."""
        size = _FIRST_BATCH
        while not self._closed:
            with self._database.transaction() as handle:
                rows = handle.all(statement("promote_due"), {"now": now_text(), "limit": size})
            self._ring_all({readable(queue) for (queue,) in rows})
            if len(rows) < size:
                break
            size = min(5 * size, BATCH)
        self._read_next_due()

    def ring_for_ready(self) -> None:
        """Wake consumers for what others wrote without ringing: the net under all bells."""
        with self._database.reading() as handle:
            topology = self._topology.current(handle)
            waiting: list[tuple[str, str]] = []
            for name, bells in topology.bells.items():
                if not self._board.any_asleep(bell for bell, _ in bells):
                    continue
                queue = topology.queues.get(name)
                if queue is not None and queue.transient:
                    peek, values = "peek_transient", {"queue": name, "now": now_text()}
                    lanes = [b"{}"] if handle.one(statement(peek), values) else []
                else:
                    found = handle.all(statement("list_lanes"), {"queue": name})
                    lanes = [lane for lane, _ in found]
                waiting.extend((name, readable(lane)) for lane in lanes)
        for name, lane in waiting:
            self._ringer.ring(topology, name, lane)

    def _ring_all(self, queues: set[str]) -> None:
        if queues:
            self._ringer.ring_each(self._topology.read(), queues)
