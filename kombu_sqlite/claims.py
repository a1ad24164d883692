"""Hands messages out: a claim is one transaction that mints a delivery tag for each message.

After a crash at any line: a claim that was not committed never happened; one that was belongs to
its worker until that worker is found gone.
"""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from .clock import to_text
from .database import Database
from .errors import SessionLost
from .foreign import check_columns, check_counters, normal_time
from .handles import Handle
from .log import describe, logger
from .models import Delivery, DeliveryTag
from .revocations import Revocations
from .routing import Topology, meets
from .sql import statement
from .topology import TopologyStore

__all__ = ("Claimant", "Claims")

_LEASE = statement("lease_row")
_TERMS = statement("get_claim_terms")
_PLAIN_LANE = "{}"
_FIND = {
    "priority": statement("find_ready"),
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
        capabilities: what the consumer offers to messages with a ``compatibility``.
        scheduling: ``priority``, ``fifo``, ``lifo`` or ``weighted``.
    """

    worker: str
    lease_s: float = 60.0
    started: bool = True
    capabilities: dict[str, Any] = field(default_factory=dict)
    scheduling: str = "priority"


class Claims:
    """Leases the messages of one file."""

    def __init__(
        self, database: Database, topology: TopologyStore, revocations: Revocations
    ) -> None:
        self._database = database
        self._topology = topology
        self._revocations = revocations
        self._has_lanes = False

    # -- looking -------------------------------------------------------------------------------

    def has_ready(self, queues: Iterable[str], capabilities: dict[str, Any]) -> bool:
        """Return whether any of ``queues`` has a message for such a consumer; a read only."""
        now = to_text(time.time())
        try:
            with self._database.reading() as handle:
                _, topology, _ = self._terms(handle, None)
                return any(self._peek(handle, topology, name, capabilities, now) for name in queues)
        except UnicodeDecodeError:
            return True  # the claim quarantines it

    def _peek(
        self, handle: Handle, topology: Topology, name: str, capabilities: dict[str, Any], now: str
    ) -> bool:
        queue = topology.queues.get(name)
        if queue is not None and queue.transient:
            return handle.one(statement("peek_transient"), {"queue": name, "now": now}) is not None
        return any(
            handle.one(statement("peek_ready"), {"queue": name, "lane": lane})
            for lane in self._lanes(handle, name, capabilities)
        )

    def _terms(self, handle: Handle, worker: str | None) -> tuple[bool, Topology, bool]:
        """Return whether ``worker`` lives, the routing, and whether ids or stamps are revoked."""
        live, version, any_lane, any_revoked = handle.one(_TERMS, {"worker": worker})
        self._has_lanes = self._has_lanes or bool(any_lane)
        return bool(live), self._topology.at(handle, version), bool(any_revoked)

    def _lanes(self, handle: Handle, queue: str, capabilities: dict[str, Any]) -> Sequence[str]:
        """Return the lanes of ``queue`` this consumer may claim from."""
        if not self._has_lanes:
            return (_PLAIN_LANE,)
        rows = handle.all(statement("list_lanes"), {"queue": queue})
        lanes = [bytes(lane).decode("utf-8") for lane, kind in rows if kind == "text"]
        return [lane for lane in lanes if meets(capabilities, lane)]

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
            SessionLost: ``claimant`` is no live worker any more.
            UnicodeDecodeError: a row's text is not UTF-8; roll back, then call
                ``quarantine_undecodable``.
        """
        now = to_text(time.time())
        terms: dict[str, Any] = {
            "worker": claimant.worker,
            "now": now,
            "lease_until": to_text(time.time() + claimant.lease_s),
            "started": now if claimant.started else None,
        }
        live, topology, any_revoked = self._terms(handle, claimant.worker)
        if not live:
            raise SessionLost(
                f"{claimant.worker} was silent longer than its visibility timeout; connect again."
            )
        terms["any_revoked"] = any_revoked
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
                    found = self._claim_transient(handle, terms, name, share)
                else:
                    found = self._claim_durable(handle, claimant, terms, name, share)
                claimed.extend(found)
                if len(found) < share:
                    drained.add(name)
            if len(queues) == 1:
                break
        return claimed

    def _claim_transient(
        self, handle: Handle, terms: dict[str, Any], queue: str, limit: int
    ) -> list[Delivery]:
        rows = handle.all(statement("claim_transient"), {**terms, "queue": queue, "limit": limit})
        rows.sort(key=lambda row: (_rank(row[3]), row[0]))
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
            rows = self._find(handle, claimant, queue, limit - len(deliveries))
            revoked: frozenset[int] = frozenset()
            if rows and terms["any_revoked"]:
                revoked = self._revocations.among(handle, rows, terms["now"])
            admitted = [self._admit(handle, row, terms["now"], revoked) for row in rows]
            good = [delivery for delivery in admitted if delivery is not None]
            handle.run_many(_LEASE, [{**terms, "id": entry.tag.row_id} for entry in good])
            deliveries.extend(good)
            if len(good) == len(rows):
                break  # nothing was turned away, so there is no more
        return deliveries

    def _find(self, handle: Handle, claimant: Claimant, queue: str, limit: int) -> list[Any]:
        """Return the ready rows of one queue to lease next, in order of delivery."""
        lanes = self._lanes(handle, queue, claimant.capabilities)
        scheduling = claimant.scheduling
        found: list[Any] = []
        for lane in lanes:
            values = {"queue": queue, "lane": lane, "limit": limit}
            if scheduling == "weighted":
                found.extend(self._find_weighted(handle, values))
            else:
                found.extend(handle.all(_FIND[scheduling], values))
        if len(lanes) > 1:
            found.sort(key=_ORDER[scheduling])
        return found[:limit]

    def _find_weighted(self, handle: Handle, values: dict[str, Any]) -> list[Any]:
        """Choose a priority at random for each message, the more urgent the likelier."""
        levels = [row[0] for row in handle.all(statement("list_priorities"), values)]
        waiting = {
            level: handle.all(statement("find_ready_at_priority"), {**values, "priority": level})
            for level in levels
        }
        found: list[Any] = []
        while levels and len(found) < values["limit"]:
            weights = [_WEIGHT_FALLS_BY**-place for place in range(len(levels))]
            level = random.choices(levels, weights)[0]  # noqa: S311 - a lottery, not a secret
            found.append(waiting[level].pop(0))
            if not waiting[level]:
                levels.remove(level)
        return found

    def _admit(
        self, handle: Handle, row: Any, now: str, revoked: frozenset[int]
    ) -> Delivery | None:
        """Return the delivery a row found ready becomes; end the row if it must not be one."""
        (row_id, number, queue, type_, priority, payload, headers, properties, task_id) = row[:9]
        attempts, max_attempts, deaths, expires_at, run_after, cancel_requested = row[9:]
        reason = check_counters(number, attempts, max_attempts, deaths)
        if reason is not None:
            self._quarantine(handle, row_id, queue, reason, now)
            return None
        if headers is None:
            reason = check_columns(type_, priority, run_after, expires_at)
            if reason is not None:
                self._quarantine(handle, row_id, queue, reason, now)
                return None
            due = normal_time(run_after)
            if due != run_after and due > now:  # its text sorted before its time
                values = {"id": row_id, "run_after": due, "now": now}
                handle.run(statement("normalise_run_after"), values)
                return None
            expires_at = expires_at and normal_time(expires_at)
        reason = "expired" if isinstance(expires_at, str) and expires_at <= now else None
        if cancel_requested == 1 or (row_id in revoked and cancel_requested == 0):
            reason = "revoked"
        if reason is not None:
            handle.run(statement("cancel_found"), {"id": row_id, "now": now, "error": reason})
            return None
        if headers is None and task_id is None:
            task_id = str(uuid.uuid4())
            handle.run(statement("set_task_id"), {"id": row_id, "task_id": task_id})
        return Delivery(
            DeliveryTag(row_id, number + 1),
            queue,
            type_,
            priority,
            payload,
            headers,
            properties,
            task_id,
            attempts + 1,
            deaths,
        )

    # -- quarantine ----------------------------------------------------------------------------

    def _quarantine(self, handle: Handle, row_id: int, queue: str, reason: str, now: str) -> None:
        """Fail a queued row that makes no sense."""
        logger.error("Quarantined as failed (%s): %s", reason, describe(queue, None, row_id))
        error = f"malformed row: {reason}"
        handle.run(statement("fail_queued"), {"id": row_id, "now": now, "error": error})

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
                        self._quarantine(handle, row_id, queue, f"text is not UTF-8: {exc}", now)
                        failed += 1
        return failed


def _rank(priority: Any) -> tuple[int, Any]:
    """Order priorities as SQLite does: numbers before text."""
    return (0, priority) if isinstance(priority, (int, float)) else (1, str(priority))


_ORDER: dict[str, Callable[[Any], Any]] = {
    "priority": lambda row: (_rank(row[4]), row[0]),
    "weighted": lambda row: (_rank(row[4]), row[0]),
    "fifo": lambda row: row[0],
    "lifo": lambda row: -row[0],
}
