"""How much each queue holds, and who consumes from it: what monitors show."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .clock import now_text
from .foreign import readable
from .sql import statement
from .store import Store

__all__ = ("QueueDepth", "read_depths")


@dataclass(frozen=True)
class QueueDepth:
    """The messages and consumers of one queue.

    ``ready`` counts what waits, delayed messages included; ``unacked`` what a consumer holds.
    """

    queue: str
    ready: int = 0
    unacked: int = 0
    consumers: int = 0


def read_depths(store: Store, names: Iterable[str]) -> list[QueueDepth]:
    """Return the depths of the queues ``names``, then of every other queue that holds tasks.

    The others are those that no worker consumes: where work piles up. A queue nobody has declared
    is empty. ``ready`` and ``unacked`` of all durable queues are of one moment.
    """
    counts: dict[str, tuple[int, int]] = {}
    with store.database.reading() as handle:
        for queue, ready, unacked in handle.all(statement("count_by_queue")):
            counts[readable(queue)] = (ready, unacked)
        known = store.topology.current(handle).queues
        wanted = list(dict.fromkeys([*names, *counts]))
        for name in wanted:
            if name in known and known[name].transient:
                values = {"queue": name, "now": now_text()}
                counts[name] = handle.one(statement("count_transient_by_holder"), values)
    return [
        QueueDepth(name, *counts.get(name, (0, 0)), store.live_consumers(name)) for name in wanted
    ]
