"""Writes messages into the file; a publish is in the file when it returns, or it raised."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable
from typing import Any

from .bells import UPKEEP_BELL, BellBoard
from .clock import after_text, to_text
from .database import Database
from .deliveries import end_values
from .errors import DuplicateTask, LeaseLost, QueueDiskError
from .handles import Handle
from .keys import Holder, find_holder, move_key, take_key
from .log import logger
from .models import Envelope
from .routing import Queue, Topology, meets
from .sql import statement
from .stories import tell
from .topology import TopologyStore

__all__ = ("Publisher", "Ringer")

_INSERT = statement("insert_message")
_INSERT_TRANSIENT = statement("insert_transient")

#: The elected process looks at least this often; only what is due sooner rings it.
_UPKEEP_NET_S = 0.5
#: Payloads from this length on reach beyond the row's first page; see ``lease_row``.
_PAD_FROM = 2000
_PAD = " " * 250
#: Up to so many delayed messages are counted one by one.
_FEW_WAITING = 500
_OVERFLOW = "dropped: the queue was longer than its maximum"


class Ringer:
    """Rings, after a commit, one sleeping consumer for each queue that has new work."""

    def __init__(self, board: BellBoard) -> None:
        self._board = board

    def ring(self, topology: Topology, queue: str, compatibility: str = "{}") -> None:
        """Wake one sleeping consumer of ``queue`` that may take such a message.

        The work is committed: what fails here is logged, and found by the consumers themselves.
        """
        bells = topology.bells.get(queue)
        if bells:
            self._try(
                lambda: self._board.ring_one(
                    [bell for bell, offered in bells if meets(offered, compatibility)]
                )
            )

    def ring_each(self, topology: Topology, queues: Iterable[str]) -> None:
        """Wake one sleeping consumer for each of ``queues``."""
        for queue in queues:
            self.ring(topology, queue)

    def ring_upkeep(self) -> None:
        """Wake the elected process: something falls due very soon."""
        self._try(lambda: self._board.ring_one([UPKEEP_BELL]))

    def _try(self, ring: Callable[[], object]) -> None:
        try:
            ring()
        except (OSError, ValueError, QueueDiskError) as exc:
            logger.warning("A sleeping consumer could not be woken at once: %s", exc)


class Publisher:
    """Publishes to the queues of one file."""

    def __init__(
        self, database: Database, topology: TopologyStore, ringer: Ringer, max_attempts: int
    ) -> None:
        self._database = database
        self._topology = topology
        self._ringer = ringer
        self._max_attempts = max_attempts

    def publish(self, messages: Iterable[tuple[str, str, Envelope]]) -> None:
        """Publish messages, each ``(exchange, routing key, envelope)``, in one transaction.

        All of them are in the file when this returns; none is when it raises. A message that no
        binding matches is dropped, as AMQP does; one for a queue nobody has declared makes that
        queue, unless its delivery mode is transient.

        Raises:
            KeyError: an exchange is not declared.
            DuplicateTask: a task with the same idempotency key is there already.
            IdempotencyConflict: the key belongs to a task of another name.
            LeaseLost: it continues a delivery that belongs to somebody else by now.
            QueueBusyError, QueueDiskError: nothing was written; try again.
        """
        handle = self._database.handle()
        depth = handle.entered()
        try:
            self._publish(messages)
        except DuplicateTask as duplicate:
            if duplicate.task_id is None:
                self._mint_task_id(duplicate)
            raise
        except BaseException:  # a soft time limit strikes anywhere, even in a context's exit
            handle.leave(depth)
            raise

    def _publish(self, messages: Iterable[tuple[str, str, Envelope]]) -> None:
        now_s = time.time()
        with self._database.transaction() as handle:
            topology = self._topology.current(handle)
            wake: set[tuple[str, str]] = set()
            soon = False
            for exchange, routing_key, envelope in messages:
                holder = None if envelope.key is None else self._holder(handle, envelope, now_s)
                names = list(topology.route(exchange, routing_key))
                for name in names:
                    queue = topology.queues.get(name)
                    if queue is None:  # nobody has declared it yet; the message must not get lost
                        if not envelope.persistent:
                            continue  # a reply to somebody who is gone, as AMQP drops it
                        queue = Queue(name)
                        self._topology.insert_queue(handle, queue)
                        topology = self._topology.current(handle)
                    if not self._continue(handle, queue, envelope, names, now_s):
                        self._insert(handle, queue, envelope, now_s)
                        if envelope.key is not None and not queue.transient:
                            holder = self._keep_key(handle, envelope, holder)
                    if _is_ready(queue, envelope, now_s):
                        wake.add((name, envelope.compatibility))
                    else:
                        soon = soon or _is_ready(queue, envelope, now_s + _UPKEEP_NET_S)
            handle.after_commit.append(lambda: self._ring(topology, wake, soon))

    # -- one task published twice --------------------------------------------------------------

    def _holder(self, handle: Handle, envelope: Envelope, now_s: float) -> Holder | None:
        """Return the row that has the envelope's key already; None for the first one.

        Raises:
            DuplicateTask: there is one, and its id is answer enough.
            IdempotencyConflict: the key belongs to a task of another name.
        """
        key = envelope.key
        assert key is not None
        if envelope.continues is not None:
            return None  # a retry never meets its own key
        holder = find_holder(handle, key.text, envelope.type, envelope.payload, to_text(now_s))
        if holder is not None and key.bare:
            raise DuplicateTask(key.text, holder.task_id, holder.row_id)
        return holder

    def _mint_task_id(self, duplicate: DuplicateTask) -> None:
        """Give a task id to a row that another program inserted and nobody has claimed yet."""
        values = {"id": duplicate.row_id, "task_id": str(uuid.uuid4())}
        with self._database.transaction() as handle:
            handle.run(statement("mint_task_id"), values)
            row = handle.one(statement("get_task_id"), values)
        duplicate.task_id = None if row is None else row[0]

    def _keep_key(self, handle: Handle, envelope: Envelope, holder: Holder | None) -> Holder | None:
        """Give the key to the row just inserted, or make that a follower of the key's holder.

        A copy of a task's next run takes no key: the run itself has it.
        """
        assert envelope.key is not None
        if envelope.continues is not None:
            return None
        row_id = handle.last_row_id()
        if holder is None:
            take_key(handle, envelope.key, envelope.type, envelope.task_id, row_id)
            return Holder(row_id, envelope.task_id)
        if holder.task_id != envelope.task_id:  # else a further copy of the same message
            handle.run(statement("mark_follower"), {"id": row_id, "follows": holder.row_id})
        return holder

    def _continue(
        self, handle: Handle, queue: Queue, envelope: Envelope, names: list[str], now_s: float
    ) -> bool:
        """Publish a task's next run; return False where it is no next run but a new task.

        In its own queue the next run is the same row. In another queue it is a new one, which takes
        the key over and, where a cancel was asked for, ends cancelled as the row itself would.

        Arguments:
            names: every queue the message goes to.

        Raises:
            LeaseLost: the delivery it is published under belongs to somebody else by now, or was
                ended by somebody else.
        """
        tag = envelope.continues
        row = None if tag is None else handle.one(statement("get_continued"), {"id": tag.row_id})
        if tag is None or row is None:
            return False
        delivery_no, status, name, cancel_requested, taken, key = row
        if delivery_no != tag.delivery_no or taken:
            raise LeaseLost(
                f"Delivery {tag} belongs to somebody else by now, or is {status}; its next run was "
                "not published."
            )
        if status != "processing" or (name != queue.name and name in names):
            return False
        told = self._database.options.task_log
        tell(handle, told, tag.row_id, "info", "published again by its run", envelope.run_after)
        row_id = tag.row_id
        if name == queue.name:
            values = self._values(queue, envelope, now_s)
            values["properties"] = envelope.properties_after(delivery_no)
            handle.run(statement("continue_row"), {**values, "id": row_id})
        else:
            # with it the row ends: killed before it says so, its worker must not run it again
            moved = end_values(tag, "completed", f"published again in {queue.name}", to_text(now_s))
            handle.run(statement("end_delivery"), moved)
            self._insert(handle, queue, envelope, now_s)
            if queue.transient:
                return True
            row_id = handle.last_row_id()
            if key is not None:
                move_key(handle, key, tag.row_id, row_id)
        if cancel_requested == 1:
            values = {"id": row_id, "now": to_text(now_s), "error": "revoked"}
            handle.run(statement("cancel_found"), values)
        return True

    def _ring(self, topology: Topology, wake: set[tuple[str, str]], soon: bool) -> None:
        for queue, compatibility in wake:
            self._ringer.ring(topology, queue, compatibility)
        if soon:
            self._ringer.ring_upkeep()

    def _values(self, queue: Queue, envelope: Envelope, now_s: float) -> dict[str, Any]:
        """Return the columns of a message in one queue."""
        now = to_text(now_s)
        return {
            "type": envelope.type,
            "priority": envelope.priority,
            "payload": envelope.payload,
            "compatibility": envelope.compatibility,
            "max_attempts": self._max_attempts,
            "run_after": envelope.run_after or now,
            "now": now,
            "queue": queue.name,
            "task_id": envelope.task_id,
            "headers": envelope.headers,
            "properties": envelope.properties,
            "expires_at": _expiry(queue, envelope),
            "pad": _PAD if len(envelope.payload) >= _PAD_FROM else None,
        }

    def _insert(self, handle: Handle, queue: Queue, envelope: Envelope, now_s: float) -> None:
        """Insert one row."""
        if queue.transient:
            handle.run(
                _INSERT_TRANSIENT,
                {
                    "queue": queue.name,
                    "priority": envelope.priority,
                    "payload": envelope.payload,
                    "headers": envelope.headers,
                    "properties": envelope.properties,
                    "expires_at": _expiry(queue, envelope),
                },
            )
        else:
            handle.run(_INSERT, self._values(queue, envelope, now_s))
        if queue.arguments:
            self._drop_overflow(handle, queue, to_text(now_s))

    def _drop_overflow(self, handle: Handle, queue: Queue, now: str) -> None:
        """Keep a queue within ``x-max-length`` and ``x-max-length-bytes``, dropping from its head.

        That is AMQP's default (``drop-head``); a dropped durable message ends cancelled. Only ready
        messages count: AMQP knows no delay, and a delayed one has not come to the queue yet.
        """
        longest = queue.number("x-max-length")
        if longest is not None:
            self._drop_several(
                handle, queue, self._count_ready(handle, queue, longest, now) - longest, now
            )
        most_bytes = queue.number("x-max-length-bytes")
        if most_bytes is not None:
            name = "sum_transient_bytes" if queue.transient else "sum_ready_bytes"
            size = handle.one(statement(name), {"queue": queue.name, "now": now})[0]
            while size > most_bytes and (dropped := self._drop(handle, queue, now)) is not None:
                size -= dropped

    def _count_ready(self, handle: Handle, queue: Queue, enough: int, now: str) -> int:
        """Return how many messages are ready, or any number up to ``enough`` when not more are.

        Counting a long queue takes milliseconds, so that comes last: the table of counts knows how
        many are queued, and most files hold few delayed ones to take off.
        """
        values = {"queue": queue.name, "now": now, "limit": _FEW_WAITING}
        if queue.transient:
            return int(handle.one(statement("count_transient"), values)[0])
        queued = int(handle.one(statement("count_queued"), values)[0])
        if queued <= enough:
            return enough
        waiting, here = handle.one(statement("count_waiting"), values)
        if waiting < _FEW_WAITING:
            return queued - int(here)
        return int(handle.one(statement("count_ready"), values)[0])

    def _drop_several(self, handle: Handle, queue: Queue, excess: int, now: str) -> None:
        if excess <= 1 or queue.transient:
            while excess > 0 and self._drop(handle, queue, now) is not None:
                excess -= 1
            return
        rows = handle.all(statement("list_overflow"), {"queue": queue.name, "excess": excess})
        values = {"now": now, "error": _OVERFLOW}
        handle.run_many(statement("cancel_found"), [{**values, "id": row[0]} for row in rows])

    def _drop(self, handle: Handle, queue: Queue, now: str) -> int | None:
        """Drop one ready message; return how many bytes its body had, None when there is none."""
        values = {"queue": queue.name, "now": now}
        if queue.transient:
            row = handle.one(statement("drop_transient_overflow"), values)
            return None if row is None else int(row[0])
        row = handle.one(statement("find_overflow"), values)
        if row is None:
            return None
        values = {"id": row[0], "now": now, "error": _OVERFLOW}
        handle.run(statement("cancel_found"), values)
        return int(row[1])


def _is_ready(queue: Queue, envelope: Envelope, moment_s: float) -> bool:
    """Return whether a message can be claimed at ``moment_s``."""
    run_after = envelope.run_after
    return queue.transient or run_after is None or run_after <= to_text(moment_s)


def _expiry(queue: Queue, envelope: Envelope) -> str | None:
    """Return when a message expires in ``queue``: the soonest of its own time and both TTLs."""
    expires_at = envelope.expires_at
    for ttl_ms in (envelope.ttl_ms, queue.number("x-message-ttl")):
        if ttl_ms is not None:
            end = after_text(ttl_ms / 1000)
            expires_at = end if expires_at is None else min(expires_at, end)
    return expires_at
