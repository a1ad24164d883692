"""Queues, exchanges, bindings and consumers as rows: declared by one process, known to all.

Every change is one transaction that also moves the version; a process that sees another version
reads the tables anew, inside the transaction it is about to route in.
"""

from __future__ import annotations

import json
from typing import Any

from .clock import from_text, now_text
from .database import Database
from .handles import Handle
from .routing import Exchange, Queue, Topology
from .sql import statement

__all__ = ("TopologyStore",)

_VERSION = statement("get_topology_version")
_PURGED = "the queue was deleted"


class TopologyStore:
    """Reads and writes the routing tables of one file."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._known: Topology | None = None

    @property
    def known(self) -> Topology | None:
        """The routing as last read; None before the first read."""
        return self._known

    def current(self, handle: Handle) -> Topology:
        """Return the routing as of ``handle``'s transaction; reads it only when it changed."""
        return self.at(handle, handle.one(_VERSION)[0])

    def at(self, handle: Handle, version: int) -> Topology:
        """Return the routing of the version that ``handle``'s transaction has found."""
        known = self._known
        if known is not None and known.version == version:
            return known
        known = self._known = Topology(
            version,
            [
                Exchange(name, kind, bool(durable), bool(auto), json.loads(arguments))
                for name, kind, durable, auto, arguments in handle.all(statement("list_exchanges"))
            ],
            [
                Queue(name, bool(durable), bool(auto), bool(exclusive), json.loads(arguments))
                for name, durable, auto, exclusive, arguments in handle.all(
                    statement("list_queues")
                )
            ],
            handle.all(statement("list_bindings")),
            handle.all(statement("list_consumers")),
        )
        return known

    def read(self) -> Topology:
        """Return the routing as it is now."""
        with self._database.reading() as handle:
            return self.current(handle)

    # -- exchanges -----------------------------------------------------------------------------

    def declare_exchange(self, exchange: Exchange) -> None:
        """Make an exchange known; nothing is written when it is."""
        if exchange.name in self.read().exchanges:
            return
        with self._database.transaction() as handle:
            handle.run(
                statement("upsert_exchange"),
                {
                    "name": exchange.name,
                    "type": exchange.type,
                    "durable": exchange.durable,
                    "auto_delete": exchange.auto_delete,
                    "arguments": json.dumps(exchange.arguments),
                },
            )
            handle.run(statement("bump_topology"))

    def delete_exchange(self, name: str) -> None:
        """Delete an exchange and its bindings; its queues stay."""
        with self._database.transaction() as handle:
            handle.run(statement("delete_exchange"), {"name": name})
            handle.run(statement("delete_exchange_bindings"), {"name": name})
            handle.run(statement("bump_topology"))

    # -- queues --------------------------------------------------------------------------------

    def declare_queue(self, queue: Queue) -> None:
        """Make a queue known; of two declarations the newer one's arguments hold."""
        known = self.read().queues.get(queue.name)
        lasting = not queue.auto_delete and queue.number("x-expires") is None
        if known is not None and known.arguments == queue.arguments and lasting:
            return  # one that deletes itself or expires is written again: it is waited for anew
        with self._database.transaction() as handle:
            self.insert_queue(handle, queue)

    def insert_queue(self, handle: Handle, queue: Queue) -> None:
        """Write a queue's row inside a transaction."""
        handle.run(
            statement("upsert_queue"),
            {
                "name": queue.name,
                "durable": queue.durable,
                "auto_delete": queue.auto_delete,
                "exclusive": queue.exclusive,
                "arguments": json.dumps(queue.arguments),
                "now": now_text(),
            },
        )
        handle.run(statement("bump_topology"))

    def delete_queue(self, handle: Handle, name: str, reason: str = _PURGED) -> None:
        """Delete a queue and its bindings; what still waits in it ends cancelled."""
        handle.run(statement("delete_queue"), {"name": name})
        handle.run(statement("delete_queue_bindings"), {"name": name})
        handle.run(statement("delete_transient"), {"queue": name})
        handle.run(statement("purge_queue"), {"queue": name, "now": now_text(), "error": reason})
        handle.run(statement("bump_topology"))

    # -- bindings ------------------------------------------------------------------------------

    def bind(self, queue: str, exchange: str, routing_key: str, arguments: Any) -> None:
        """Route messages of ``exchange`` with ``routing_key`` to ``queue``."""
        if (exchange, routing_key, queue) in self.read().bindings:
            return
        with self._database.transaction() as handle:
            handle.run(
                statement("upsert_binding"),
                {
                    "exchange": exchange,
                    "routing_key": routing_key,
                    "queue": queue,
                    "arguments": json.dumps(arguments or {}),
                },
            )
            handle.run(statement("bump_topology"))

    def unbind(self, queue: str, exchange: str, routing_key: str) -> None:
        """Take a binding back."""
        with self._database.transaction() as handle:
            handle.run(
                statement("delete_binding"),
                {"exchange": exchange, "routing_key": routing_key, "queue": queue},
            )
            handle.run(statement("bump_topology"))

    # -- consumers -----------------------------------------------------------------------------

    def free_bell(self, handle: Handle, first: int) -> int:
        """Return the smallest bell number from ``first`` that no consumer uses."""
        used = {row[0] for row in handle.all(statement("list_bells"))}
        number = first
        while number in used:
            number += 1
        return number

    def add_consumer(
        self, handle: Handle, worker: str, bell: int, queue: str, capabilities: dict[str, Any]
    ) -> None:
        """Register that ``bell`` wakes a consumer of ``queue``, made durable if unknown."""
        if queue not in self.current(handle).queues and not queue.startswith("\0"):
            self.insert_queue(handle, Queue(queue))
        handle.run(
            statement("insert_consumer"),
            {
                "worker": worker,
                "bell": bell,
                "queue": queue,
                "capabilities": json.dumps(capabilities),
            },
        )
        handle.run(statement("mark_queue_consumed"), {"name": queue, "now": now_text()})
        handle.run(statement("bump_topology"))

    def remove_consumer(self, handle: Handle, bell: int, queue: str) -> None:
        """Forget a consumer; an auto-delete queue goes with its last one."""
        handle.run(statement("delete_consumer"), {"bell": bell, "queue": queue})
        handle.run(statement("touch_queue"), {"name": queue, "now": now_text()})
        handle.run(statement("bump_topology"))
        self.delete_unused(handle, only=queue)

    def delete_unused(self, handle: Handle, only: str | None = None, now: str = "") -> None:
        """Delete queues without consumers that delete themselves or whose time is over.

        Arguments:
            only: look at this queue alone.
            now: also honour ``x-expires`` against this time.
        """
        for name, auto_delete, had_consumer, arguments, last_used in handle.all(
            statement("list_unused_queues")
        ):
            if only is not None and name != only:
                continue
            expires_ms = Queue(name, arguments=json.loads(arguments)).number("x-expires")
            over = (
                now
                and expires_ms is not None
                and (from_text(now) - from_text(last_used)).total_seconds() * 1000 >= expires_ms
            )
            if over or (auto_delete and had_consumer):
                self.delete_queue(handle, name, "the queue expired" if over else _PURGED)
