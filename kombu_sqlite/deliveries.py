"""Hands messages out and ends them: every end matches on the delivery tag the claim minted.

After a crash at any line: a claim that was not committed never happened; one that was belongs to
its worker until that worker is found gone. An end that was not committed never happened, and the
message is delivered again.
"""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from .clock import to_text
from .database import Database, Handle
from .foreign import check_columns
from .log import describe, logger
from .models import Delivery, DeliveryTag, Settlement
from .routing import meets
from .sql import statement
from .topology import TopologyStore

__all__ = ("Claimant", "Deliveries")

_CLAIM = statement("claim_ready")
_CLAIM_AT_PRIORITY = statement("claim_ready_at_priority")
_CLAIM_ROW = statement("claim_row")
_END = statement("end_delivery")
_PLAIN_LANE = "{}"
_FIND = {
    "priority": statement("find_ready"),
    "weighted": statement("find_ready"),
    "fifo": statement("find_ready_oldest"),
    "lifo": statement("find_ready_newest"),
}

#: With weighted scheduling each further priority is this much less likely to be served next.
_WEIGHT_FALLS_BY = 4


@dataclass(frozen=True)
class Claimant:
    """Who claims, and on which terms.

    Arguments:
        worker: the owner of the leases; a row of ``workers``.
        lease_s: seconds until the lease ends unless renewed; what ``lease_until_utc`` shows.
        started: whether a claim is the begin of execution. Where the application reports the
            begin by itself (``start``), a prefetched message that dies with its worker counts no
            death.
        no_ack: queues whose messages end with their delivery.
        capabilities: what the consumer offers to messages with a ``compatibility``.
        scheduling: ``priority``, ``fifo``, ``lifo`` or ``weighted``.
    """

    worker: str
    lease_s: float = 60.0
    started: bool = True
    no_ack: frozenset[str] = frozenset()
    capabilities: dict[str, Any] = field(default_factory=dict)
    scheduling: str = "priority"


class Deliveries:
    """Claims and settlements on one file."""

    def __init__(self, database: Database, topology: TopologyStore) -> None:
        self._database = database
        self._topology = topology
        self._has_lanes = False

    # -- looking -------------------------------------------------------------------------------

    def has_ready(self, queues: Iterable[str], capabilities: dict[str, Any]) -> bool:
        """Return whether any of ``queues`` has a message for such a consumer; a read only."""
        now = to_text(time.time())
        with self._database.reading() as handle:
            topology = self._topology.current(handle)
            for name in queues:
                queue = topology.queues.get(name)
                if queue is not None and queue.transient:
                    if handle.one(statement("peek_transient"), {"queue": name, "now": now}):
                        return True
                    continue
                for lane in self._lanes(handle, name, capabilities):
                    if handle.one(statement("peek_ready"), {"queue": name, "lane": lane}):
                        return True
        return False

    def _lanes(self, handle: Handle, queue: str, capabilities: dict[str, Any]) -> Sequence[str]:
        """Return the lanes of ``queue`` this consumer may claim from."""
        if not self._has_lanes:
            if handle.one(statement("any_lane")) is None:
                return (_PLAIN_LANE,)
            self._has_lanes = True
        rows = handle.all(statement("list_lanes"), {"queue": queue})
        return [lane for (lane,) in rows if meets(capabilities, lane)]

    # -- claiming ------------------------------------------------------------------------------

    def claim(self, claimant: Claimant, queues: Sequence[str], limit: int) -> list[Delivery]:
        """Lease up to ``limit`` messages of ``queues`` in one transaction; see ``claim_within``."""
        try:
            with self._database.transaction() as handle:
                return self.claim_within(handle, claimant, queues, limit)
        except UnicodeDecodeError:
            self.quarantine_undecodable(queues)
            return []

    def claim_within(
        self, handle: Handle, claimant: Claimant, queues: Sequence[str], limit: int
    ) -> list[Delivery]:
        """Lease up to ``limit`` messages, each queue in turn getting an equal share.

        Atomic with ``handle``'s transaction. Expired messages are cancelled, rows that make no
        sense fail with the reason; neither is returned.

        Returns:
            The deliveries, queue by queue in the order given, within a queue in its own order.

        Raises:
            UnicodeDecodeError: a row's text is not UTF-8; roll back, then call
                ``quarantine_undecodable``.
        """
        now = to_text(time.time())
        terms = {
            "worker": claimant.worker,
            "now": now,
            "lease_until": to_text(time.time() + claimant.lease_s),
            "started": now if claimant.started else None,
        }
        topology = self._topology.current(handle)
        claimed: list[Delivery] = []
        drained: set[str] = set()
        for round_no in range(2):  # the second round gives away the shares others left over
            for position, name in enumerate(queues):
                left = limit - len(claimed)
                if left <= 0:
                    return claimed
                if name in drained:
                    continue
                share = left if round_no else -(-left // (len(queues) - position))
                queue = topology.queues.get(name)
                if queue is not None and queue.transient:
                    found = self._claim_transient(handle, claimant, terms, name, share)
                else:
                    found = self._claim_durable(handle, claimant, terms, name, share)
                claimed.extend(found)
                if len(found) < share:
                    drained.add(name)
            if len(queues) == 1:
                break
        return claimed

    def _claim_transient(
        self, handle: Handle, claimant: Claimant, terms: dict[str, Any], queue: str, limit: int
    ) -> list[Delivery]:
        name = "take_transient" if queue in claimant.no_ack else "claim_transient"
        rows = handle.all(statement(name), {**terms, "queue": queue, "limit": limit})
        rows.sort(key=lambda row: (row[3], row[0]))
        return [
            Delivery(
                DeliveryTag(row_id, number, True),
                queue,
                "message",
                priority,
                payload,
                headers,
                properties,
                None,
            )
            for row_id, number, _, priority, payload, headers, properties in rows
        ]

    def _claim_durable(
        self, handle: Handle, claimant: Claimant, terms: dict[str, Any], queue: str, limit: int
    ) -> list[Delivery]:
        deliveries: list[Delivery] = []
        while len(deliveries) < limit:
            rows = self._lease(handle, claimant, terms, queue, limit - len(deliveries))
            good = [self._admit(handle, row, terms["now"]) for row in rows]
            deliveries.extend(delivery for delivery in good if delivery is not None)
            if not rows or len(deliveries) >= len(rows):
                break  # nothing was turned away, so there is no more
        if queue in claimant.no_ack:
            for delivery in deliveries:
                handle.run(_END, _end_values(delivery.tag, "completed", None, terms["now"]))
        return deliveries

    def _lease(
        self, handle: Handle, claimant: Claimant, terms: dict[str, Any], queue: str, limit: int
    ) -> list[Any]:
        """Return leased rows of one queue, in order of delivery."""
        lanes = self._lanes(handle, queue, claimant.capabilities)
        values = {**terms, "queue": queue, "limit": limit}
        if len(lanes) == 1 and claimant.scheduling == "priority":
            rows = handle.all(_CLAIM, {**values, "lane": lanes[0]})
            rows.sort(key=_by_priority)
            return rows
        if len(lanes) == 1 and claimant.scheduling == "weighted":
            return self._lease_weighted(handle, {**values, "lane": lanes[0]})
        return self._lease_merged(handle, claimant.scheduling, lanes, values)

    def _lease_weighted(self, handle: Handle, values: dict[str, Any]) -> list[Any]:
        """Choose a priority at random, the more urgent the likelier, for each message."""
        rows: list[Any] = []
        levels = [row[0] for row in handle.all(statement("list_priorities"), values)]
        while levels and len(rows) < values["limit"]:
            weights = [_WEIGHT_FALLS_BY**-place for place in range(len(levels))]
            level = random.choices(levels, weights)[0]  # noqa: S311 - a lottery, not a secret
            found = handle.all(_CLAIM_AT_PRIORITY, {**values, "priority": level, "limit": 1})
            rows.extend(found)
            if not found:
                levels.remove(level)
        return rows

    def _lease_merged(
        self, handle: Handle, scheduling: str, lanes: Sequence[str], values: dict[str, Any]
    ) -> list[Any]:
        """Lease the first of several lanes' ready rows."""
        found: list[tuple[Any, int]] = []
        for lane in lanes:
            rows = handle.all(_FIND[scheduling], {**values, "lane": lane})
            found.extend((rank, row_id) for row_id, rank in rows)
        found.sort(key=lambda entry: (_rank(entry[0]), entry[1]))
        leased: list[Any] = []
        for _, row_id in found[: values["limit"]]:
            leased.extend(handle.all(_CLAIM_ROW, {**values, "id": row_id}))
        return leased

    def _admit(self, handle: Handle, row: Any, now: str) -> Delivery | None:
        """Return the delivery of a leased row; end the row instead if it must not be delivered."""
        (row_id, number, queue, type_, priority, payload, headers, properties, task_id) = row[:9]
        attempts, deaths, expires_at, run_after = row[9:]
        tag = DeliveryTag(row_id, number)
        if expires_at is not None and expires_at <= now:
            handle.run(statement("cancel_claimed"), _end_values(tag, "cancelled", "expired", now))
            return None
        if headers is None:
            reason = check_columns(type_, priority, run_after)
            if reason is not None:
                self._quarantine(handle, tag, queue, reason, now)
                return None
            if task_id is None:
                task_id = str(uuid.uuid4())
                handle.run(statement("set_task_id"), {"id": row_id, "task_id": task_id})
        return Delivery(
            tag, queue, type_, priority, payload, headers, properties, task_id, attempts, deaths
        )

    # -- quarantine ----------------------------------------------------------------------------

    def _quarantine(
        self, handle: Handle, tag: DeliveryTag, queue: str, reason: str, now: str
    ) -> None:
        logger.error("Quarantined as failed (%s): %s", reason, describe(queue, None, tag))
        handle.run(_END, _end_values(tag, "failed", f"malformed row: {reason}", now))

    def quarantine_undecodable(self, queues: Iterable[str]) -> int:
        """Fail the ready rows whose text is not valid UTF-8; return how many there were."""
        now = to_text(time.time())
        failed = 0
        with self._database.transaction() as handle:
            for queue in queues:
                for row_id, *values in handle.all(statement("list_ready_raw"), {"queue": queue}):
                    try:
                        for value in values:
                            if value is not None:
                                bytes(value).decode("utf-8")
                    except UnicodeDecodeError as exc:
                        reason = f"malformed row: text is not UTF-8: {exc}"
                        handle.run(
                            statement("fail_queued"), {"id": row_id, "now": now, "error": reason}
                        )
                        logger.error(
                            "Quarantined as failed (%s): %s", reason, describe(queue, None, row_id)
                        )
                        failed += 1
        return failed

    # -- execution and ends --------------------------------------------------------------------

    def start(self, tags: Iterable[DeliveryTag]) -> set[DeliveryTag]:
        """Record that execution begins; return the tags that may run, the others were lost."""
        now = to_text(time.time())
        started = set()
        with self._database.transaction() as handle:
            for tag in tags:
                handle.run(
                    statement("start_delivery"),
                    {"id": tag.row_id, "delivery_no": tag.delivery_no, "now": now},
                )
                if handle.changes():
                    started.add(tag)
        return started

    def settle(self, settlements: Sequence[Settlement]) -> tuple[list[Settlement], set[str]]:
        """End deliveries in one transaction; see ``settle_within``."""
        with self._database.transaction() as handle:
            return self.settle_within(handle, settlements)

    def settle_within(
        self, handle: Handle, settlements: Sequence[Settlement]
    ) -> tuple[list[Settlement], set[str]]:
        """End deliveries, each matched by its tag, within ``handle``'s transaction.

        Returns:
            The settlements whose lease was lost (their messages belong to others), and the queues
            that have messages again.
        """
        now = to_text(time.time())
        lost: list[Settlement] = []
        requeued: set[str] = set()
        for settlement in settlements:
            tag, action, error = settlement
            if action in ("requeue", "release"):
                name = "requeue_transient" if tag.transient else "requeue_delivery"
                undo = 1 if action == "release" else 0
                rows = handle.all(
                    statement(name),
                    {"id": tag.row_id, "delivery_no": tag.delivery_no, "now": now, "undo": undo},
                )
                done = bool(rows)
                requeued.update(row[0] for row in rows)
            elif tag.transient:
                handle.run(
                    statement("end_transient"), {"id": tag.row_id, "delivery_no": tag.delivery_no}
                )
                done = True  # its queue may be gone, and what it held with it
            else:
                handle.run(_END, _end_values(tag, action, error, now))
                done = bool(handle.changes())
            if not done and self._is_lost(handle, tag):
                lost.append(settlement)
        return lost, requeued

    def _is_lost(self, handle: Handle, tag: DeliveryTag) -> bool:
        """Return whether another delivery took over; a row that has ended by itself is no loss."""
        if tag.transient:
            return False
        row = handle.one(statement("get_delivery_state"), {"id": tag.row_id})
        return row is not None and (row[0] != tag.delivery_no or row[1] in ("queued", "processing"))

    def renew(self, tag: DeliveryTag, lease_s: float) -> bool:
        """Extend the lease of one delivery; return False when it was lost."""
        now_s = time.time()
        with self._database.transaction() as handle:
            handle.run(
                statement("renew_delivery"),
                {
                    "id": tag.row_id,
                    "delivery_no": tag.delivery_no,
                    "now": to_text(now_s),
                    "lease_until": to_text(now_s + lease_s),
                },
            )
            return bool(handle.changes())


def _end_values(tag: DeliveryTag, status: str, error: str | None, now: str) -> dict[str, Any]:
    return {
        "id": tag.row_id,
        "delivery_no": tag.delivery_no,
        "status": status,
        "error": error,
        "now": now,
    }


def _rank(value: Any) -> tuple[int, Any]:
    """Order priorities as SQLite does: numbers before text."""
    return (0, value) if isinstance(value, (int, float)) else (1, str(value))


def _by_priority(row: Any) -> tuple[tuple[int, Any], int]:
    return _rank(row[4]), row[0]
