"""Finds owners that are dead or silent and queues again what they held."""

from __future__ import annotations

from dataclasses import dataclass

from .clock import boottime_s, now_text
from .database import Database
from .foreign import readable
from .log import describe, logger
from .sessions import LockFile
from .sql import statement
from .stories import tell_leased

__all__ = ("LeaseKeeper",)

#: A checker that was itself stopped or suspended learns nothing from the gap: of a longer one it
#: counts this many seconds, so that a machine waking up gives everybody time to renew.
_MAX_GAP_S = 1.5

#: A silent worker's last chance to renew, once the file was seen to be writable.
_LAST_CALL_S = 1.0


@dataclass
class _Silence:
    """How long a worker's beat has not moved, by the checker's own clock."""

    beat: int
    silent_s: float = 0.0
    called_at_s: float | None = None


class LeaseKeeper:
    """Judges the workers of one file; one elected process does.

    A worker on this host whose byte is free is dead. Any other is silent once its beat has not
    moved for its visibility timeout, by a clock that never steps. Neither the wall clock nor a
    process id is compared.
    """

    def __init__(self, database: Database, locks: LockFile) -> None:
        self._database = database
        self._locks = locks
        self._silences: dict[str, _Silence] = {}
        self._checked_at = boottime_s()
        self._version = -1
        self._workers: list[tuple[str, int, int, float | None]] = []

    def check(self, version: int) -> set[str]:
        """Reclaim from every owner found gone; return the queues that have messages again.

        Arguments:
            version: differs from the last call's when the file has changed; only then are the
                workers read anew.
        """
        now = boottime_s()
        gap = min(now - self._checked_at, _MAX_GAP_S)
        self._checked_at = now
        if version != self._version:
            self._version = version
            with self._database.reading() as handle:
                self._workers = handle.all(statement("list_live_workers"))
        workers = self._workers
        gone = [
            (worker, reason, beat)
            for worker, byte, beat, timeout_s in workers
            if (reason := self._judge(worker, byte, beat, timeout_s or 60.0, gap))
        ]
        self._silences = {row[0]: self._silences[row[0]] for row in workers}
        queues: set[str] = set()
        for worker, reason, beat in gone:
            queues |= self.reclaim(worker, reason, beat)
        return queues

    def _judge(
        self, worker: str, byte: int, beat: int, timeout_s: float, gap_s: float
    ) -> str | None:
        """Return why ``worker`` is gone; None when it is not, or may not be."""
        silence = self._silences.get(worker)
        if silence is None or silence.beat != beat:
            silence = self._silences[worker] = _Silence(beat)
        else:
            silence.silent_s += gap_s
        if self._locks.is_alive(byte) is False:
            return "is dead"
        if byte in self._locks.held_bytes():
            return None  # this process itself
        if silence.silent_s <= timeout_s:
            return None
        if silence.called_at_s is None:
            self._prove_writable()
            silence.called_at_s = silence.silent_s
            self._checked_at = boottime_s()  # the wait for the lock is nobody's silence
        if silence.silent_s <= silence.called_at_s + _LAST_CALL_S:
            return None
        return f"was silent for {timeout_s:g} s"

    def _prove_writable(self) -> None:
        """Take the write lock once: while somebody else has it nobody can renew a lease."""
        with self._database.transaction():
            pass

    def reclaim(self, worker: str, reason: str, beat: int) -> set[str]:
        """Queue again, or fail as exhausted, all that ``worker`` held, in one transaction.

        Arguments:
            beat: the one it was judged by; if it has beaten since, nothing is reclaimed.

        Returns:
            The queues that have messages again.
        """
        parameters = {"worker": worker, "now": now_text()}
        self._version = -1
        with self._database.transaction() as handle:
            if handle.one(statement("get_live_worker"), parameters) != (beat,):
                return set()
            tell_leased(handle, self._database.options.task_log, worker, reason)
            lost = handle.all(statement("lose_leased_of"), parameters)
            exhausted = handle.all(statement("exhaust_leased_of"), parameters)
            requeued = handle.all(statement("requeue_leased_of"), parameters)
            transient = handle.all(statement("release_transient_of"), parameters)
            handle.run(statement("retire_worker"), parameters)
            consumed = handle.all(statement("delete_consumers_of"), parameters)
            for queue, _ in consumed:  # it was in use until now; its expiry counts from here
                handle.run(statement("touch_queue"), {"name": queue, "now": parameters["now"]})
            if consumed:
                handle.run(statement("bump_topology"))
        logger.warning("Worker %s %s: %d messages queued again.", worker, reason, len(requeued))
        self._log_ends("Worker lost", lost)
        self._log_ends("Delivery attempts exhausted", exhausted)
        return {readable(row[0]) for row in requeued} | {row[0] for row in transient}

    def reclaim_unowned(self) -> set[str]:
        """Queue again what no known worker holds and whose lease is over.

        Such rows come from older files and from programs that claim by their own SQL.
        """
        parameters = {"now": now_text()}
        with self._database.reading() as handle:
            owners = {readable(row[0]) for row in handle.all(statement("list_owners"))}
            known = {row[0] for row in handle.all(statement("list_live_workers"))}
            nameless = handle.one(statement("any_nameless_lease"))
        if owners <= known and nameless is None:
            return set()
        with self._database.transaction() as handle:
            lost = handle.all(statement("lose_unowned"), parameters)
            exhausted = handle.all(statement("exhaust_unowned"), parameters)
            requeued = handle.all(statement("requeue_unowned"), parameters)
        self._log_ends("Worker lost", lost)
        self._log_ends("Delivery attempts exhausted", exhausted)
        return {readable(row[0]) for row in requeued}

    def _log_ends(self, why: str, rows: list[tuple[int, bytes, bytes, int]]) -> None:
        for row_id, queue, task_id, number in rows:
            logger.error(
                "%s: %s",
                why,
                describe(readable(queue), readable(task_id), f"{row_id}.{number}"),
            )
