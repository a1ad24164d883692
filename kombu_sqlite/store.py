"""The queue itself, without Kombu: one object per process and file, shared by its connections."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterable, Sequence

from .bells import FIRST_CONSUMER_BELL, Bell
from .cancelling import Canceller
from .chords import Chords
from .claims import Claimant, Claims
from .clock import now_text, to_text
from .database import Database
from .deliveries import Deliveries, Start
from .errors import QueueBusyError, QueueDatabaseError, QueueReplacedError, SessionLost
from .log import logger
from .models import Delivery, DeliveryTag, Envelope, Settlement, Task
from .options import Options
from .owed import OwedEnds
from .publishing import Publisher, Ringer
from .results import Results
from .revocations import Revocations
from .rows import read_records
from .sessions import Session
from .settler import Settler
from .sharing import Shared, share, shared_locks
from .sql import statement
from .topology import TopologyStore
from .upkeep import Upkeep
from .waiting import ResultWatcher

__all__ = ("Store", "open_store")

_PURGED = "purged"

#: How long a claim waits for the write lock before it skips its turn, in seconds: the loop it
#: runs in has other things to do.
CLAIM_WAIT_S = 0.1


class Store(Shared):
    """Publishes, claims and ends messages of one file.

    Opening one opens nothing; a producer never registers itself. A consumer becomes a row of
    ``workers`` at its first claim, with a thread that renews its leases and one for upkeep.
    """

    def __init__(self, options: Options) -> None:
        super().__init__()
        self.options = options
        self.database = Database(options)
        self.topology = TopologyStore(self.database)
        self.board = self.database.board
        self.revocations = Revocations(self.database)
        self.canceller = Canceller(self.database, self.revocations)
        self.claims = Claims(self.database, self.topology, self.revocations)
        self.deliveries = Deliveries(self.database)
        self.ringer = Ringer(self.board)
        self.publisher = Publisher(self.database, self.topology, self.ringer, options.max_attempts)
        self.settler = Settler(self.deliveries, self.ring)
        self.results = Results(self.database, self.board)
        self.chords = Chords(self.database)
        self.owed = OwedEnds(self.database)
        self._locks = shared_locks(self.database.path, options.file_mode)
        self._lock = threading.Lock()  # yields under gevent; never taken by our own threads
        self._session: Session | None = None
        self._upkeep: Upkeep | None = None
        self._watchers: weakref.WeakSet[ResultWatcher] = weakref.WeakSet()
        self._used_until: dict[str, float] = {}  # by queue, on the monotonic clock

    # -- this process as a consumer ------------------------------------------------------------

    def session(self) -> Session:
        """Return this process's session, registering it at the first call."""
        session = self._session
        if session is not None:
            return session
        with self._lock:
            if self._session is None:
                options = self.options
                if options.scheduling in ("fifo", "lifo"):
                    with self.database.transaction() as handle:
                        handle.run(statement("create_age_index"))
                self._session = Session(
                    self.database, self._locks, options.visibility_timeout, options.capabilities
                )
                self._upkeep = Upkeep(
                    self.database, self.topology, self.board, self._locks, options
                )
            return self._session

    def claimant(self, started: bool = True) -> Claimant:
        """Return the terms on which this process claims."""
        options = self.options
        return Claimant(
            self.session().worker_id,
            options.visibility_timeout,
            started,
            options.capabilities,
            options.scheduling,
        )

    # -- messages ------------------------------------------------------------------------------

    def publish(self, messages: Iterable[tuple[str, str, Envelope]]) -> None:
        """Publish messages in one transaction; see :meth:`Publisher.publish`."""
        self.publisher.publish(messages)

    def claim(self, claimant: Claimant, queues: Sequence[str], limit: int) -> list[Delivery]:
        """Lease up to ``limit`` messages; see :meth:`Claims.claim_within`."""
        try:
            return self.claims.claim(claimant, queues, limit)
        except SessionLost:
            self.session().give_up()
            raise

    def settle(self, settlements: Sequence[Settlement]) -> list[Settlement]:
        """End deliveries in one transaction and wake a consumer for what was put back.

        Returns:
            The settlements whose lease was lost.
        """
        lost, requeued = self.deliveries.settle(settlements)
        self.ring(requeued)
        return lost

    def settle_and_start(self, starts: Sequence[Start]) -> set[DeliveryTag]:
        """Commit the ends so far and the begin of executions in one transaction.

        Returns:
            The tags that may run; the others were lost or cancelled.
        """
        pending = self.settler.take()
        try:
            with self.database.transaction(CLAIM_WAIT_S) as handle:
                lost, requeued = self.deliveries.settle_within(handle, pending)
                started = self.deliveries.start_within(handle, starts)
        except BaseException:
            self.settler.put_back(pending)
            raise
        self.settler.report(lost)
        self.ring(requeued)
        return started

    def settle_and_claim(
        self, claimant: Claimant, queues: Sequence[str], limit: int
    ) -> list[Delivery]:
        """Commit the acknowledgements so far and lease new messages, in one transaction."""
        pending = self.settler.take()
        try:
            with self.database.transaction(CLAIM_WAIT_S) as handle:
                lost, requeued = self.deliveries.settle_within(handle, pending)
                deliveries = self.claims.claim_within(handle, claimant, queues, limit)
        except UnicodeDecodeError:
            self.settler.put_back(pending)
            self.claims.quarantine_undecodable(queues)
            return []
        except BaseException as exc:
            self.settler.put_back(pending)
            if isinstance(exc, SessionLost):
                self.session().give_up()
            raise
        self.settler.report(lost)
        self.ring(requeued)
        if len(deliveries) >= limit:
            self._pass_on(queues)
        return deliveries

    def _pass_on(self, queues: Sequence[str]) -> None:
        """Ring the next consumer: whoever takes work and sees more does not keep it waiting."""
        topology = self.topology.known
        if topology is None:
            return
        for name in queues:
            bells = topology.bells.get(name, [])
            if self.board.any_asleep(bell for bell, _ in bells) and self.claims.has_ready(
                [name], self.options.capabilities
            ):
                self.ringer.ring(topology, name)

    def ring(self, queues: Iterable[str]) -> None:
        """Wake one sleeping consumer for each of ``queues``.

        What put messages there has committed: a failure here is logged, and consumers find the
        messages by themselves.
        """
        names = list(queues)
        if not names:
            return
        try:
            self.ringer.ring_each(self.topology.read(), names)
        except QueueDatabaseError as exc:
            logger.warning("Consumers of %s could not be woken at once: %s", names, exc)

    def new_watcher(self, is_ready: Callable[[str], bool]) -> ResultWatcher:
        """Return what waits for results in this process; ``is_ready`` tells final states."""
        watcher = ResultWatcher(self.results, self.board, self._locks, is_ready)
        self._watchers.add(watcher)
        return watcher

    # -- queues --------------------------------------------------------------------------------

    def size(self, queue: str) -> int:
        """Return how many messages wait in a queue, delayed ones included."""
        values = {"queue": queue, "now": now_text()}
        with self.database.reading() as handle:
            known = self.topology.current(handle).queues.get(queue)
            name = "count_transient" if known is not None and known.transient else "count_queued"
            count: int = handle.one(statement(name), values)[0]
        return count

    def purge(self, queue: str) -> int:
        """End all messages of a queue that nobody holds; return how many there were.

        Messages of a durable queue end cancelled ("purged"); their rows stay.
        """
        values = {"queue": queue, "now": now_text(), "error": _PURGED}
        with self.database.transaction() as handle:
            known = self.topology.current(handle).queues.get(queue)
            transient = known is not None and known.transient
            handle.run(statement("purge_transient" if transient else "purge_queue"), values)
            return handle.changes()

    def find(self, id: int | str) -> Task | None:
        """Return a row by its id, or the newest of a Celery task id; None when there is none."""
        by_row = isinstance(id, int)
        name, column = ("get_task", "id") if by_row else ("get_by_task_id", "task_id")
        with self.database.reading() as handle:
            assert handle.connection is not None
            found = read_records(handle.connection, Task, name, {column: id})
        return found[0] if found else None

    def put_back(self, row_id: int) -> bool:
        """Queue a failed or cancelled row again; see :meth:`Canceller.put_back`."""
        queue = self.canceller.put_back(row_id)
        if queue is not None:
            self.ring([queue])
        return queue is not None

    def delete_queue(self, queue: str) -> None:
        """Delete a queue; what waits in it ends cancelled."""
        with self.database.transaction() as handle:
            self.topology.delete_queue(handle, queue)

    def live_consumers(self, queue: str) -> int:
        """Return how many consumers of living processes a queue has."""
        with self.database.reading() as handle:
            rows = handle.all(statement("count_consumers"), {"queue": queue})
        return sum(byte is not None and self._locks.is_alive(byte) is not False for _, byte in rows)

    def renew_expiry(self, queue: str) -> None:
        """Let a queue's ``x-expires`` count from now; a file locked meanwhile skips it.

        Looking into an empty queue should cost no write each time, so a renewal reaches a little
        into the future and holds until then: a queue goes late by that, never early.
        """
        topology = self.topology.known
        known = topology.queues.get(queue) if topology is not None else None
        expires_ms = known.number("x-expires") if known is not None else None
        if expires_ms is None or time.monotonic() < self._used_until.get(queue, 0.0):
            return
        ahead_s = min(expires_ms / 10_000, 1.0)
        values = {"name": queue, "now": to_text(time.time() + ahead_s)}
        try:
            with self.database.transaction(CLAIM_WAIT_S) as handle:
                handle.run(statement("touch_queue"), values)
        except QueueBusyError:
            return
        self._used_until[queue] = time.monotonic() + ahead_s

    # -- consumers -----------------------------------------------------------------------------

    def new_bell(self) -> Bell:
        """Return a bell of this process's own, unused by others."""
        session = self.session()
        with self.database.transaction() as handle:
            number = self.topology.free_bell(handle, FIRST_CONSUMER_BELL)
            bell = Bell(self.board, number, self.options.file_mode)
            # a queue nobody can declare holds the number until the first consumer is registered
            self.topology.add_consumer(handle, session.worker_id, number, f"\0{number}", {})
        return bell

    def add_consumer(self, bell: Bell, queue: str) -> None:
        """Let ``bell`` be rung for messages of ``queue``."""
        worker = self.session().worker_id
        with self.database.transaction() as handle:
            self.topology.add_consumer(
                handle, worker, bell.number, queue, self.options.capabilities
            )

    def remove_consumer(self, bell: Bell, queue: str) -> None:
        """Stop ringing ``bell`` for ``queue``; an auto-delete queue goes with its last consumer."""
        with self.database.transaction() as handle:
            self.topology.remove_consumer(handle, bell.number, queue)

    def close_bell(self, bell: Bell) -> None:
        """Free a bell."""
        try:
            with self.database.transaction() as handle:
                self.topology.remove_consumer(handle, bell.number, f"\0{bell.number}")
        finally:
            bell.close()

    # -- end -----------------------------------------------------------------------------------

    def close(self) -> None:
        """Leave the file: stop the threads, free the byte, close every connection."""
        with self._lock:
            session, self._session = self._session, None
            upkeep, self._upkeep = self._upkeep, None
        try:
            self.settler.close()
            if session is not None:
                session.close()
        except QueueReplacedError as exc:
            logger.warning("Left without a trace: %s", exc)
        finally:
            if upkeep is not None:
                upkeep.close()
            for watcher in list(self._watchers):
                watcher.close()
            self.database.close()
            self.board.close()

    @property
    def retired(self) -> bool:
        """Whether this store serves no more: its file was replaced, or its session lost."""
        session = self._session
        return self.database.replaced or (session is not None and session.lost)

    def reset_in_child(self) -> None:
        """In a forked child: the session and its threads are the parent's."""
        self._lock = threading.Lock()
        self._session = None
        self._upkeep = None
        self._watchers.clear()
        self.board.reset_in_child()
        self.settler = Settler(self.deliveries, self.ring)


def open_store(options: Options) -> Store:
    """Return the process's store for these options; call its ``release`` when done."""
    return share(repr(options), lambda: Store(options))
