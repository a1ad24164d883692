"""A space of one's own on a broker, gone afterwards, and what every broker is asked for."""

from __future__ import annotations

import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import kombu
from kombu import Connection, Queue

__all__ = ("QUEUES", "Broker", "Space")

#: Every queue a benchmark uses; RabbitMQ lists queues only through a plugin.
QUEUES = ("work", "trickle")


@dataclass(frozen=True)
class Space:
    """Where one benchmark of one round works; can be sent to other processes."""

    broker: str
    name: str
    folder: str
    url: str
    options: dict[str, Any] = field(default_factory=dict)
    results: str | None = None
    #: Priorities of a message that goes first and of one that waits; None where there are none.
    priorities: tuple[int, int] | None = None
    queue_arguments: dict[str, Any] = field(default_factory=dict)

    def connection(self) -> Connection:
        """A new connection to the broker."""
        return Connection(self.url, transport_options=dict(self.options))

    def queue(self, name: str = "work") -> Queue:
        """A durable queue; messages reach it through the default exchange, as Celery's do."""
        full = f"{self.name}.{name}"
        return Queue(full, routing_key=full, queue_arguments=dict(self.queue_arguments) or None)

    @property
    def path(self) -> str:
        """The queue's file, where the broker is ours."""
        return f"{self.folder}/queue.db"


@dataclass(frozen=True)
class Broker:
    """A kind of broker; the base is a file in a folder of its own."""

    name: str
    label: str
    #: Where its files go; None is the folder chosen for the run.
    folder: str | None = None
    #: Not for several processes that publish and consume; measured where it is named.
    local: bool = False
    #: Takes so long for Celery's benchmarks that one round must do.
    slow: bool = False
    #: The same broker on other terms, measured where these matter.
    variant: bool = False
    #: Not a peer: what the machine and Kombu allow at best.
    ceiling: bool = False

    def why_not(self) -> str | None:
        """Why this broker cannot be measured here, or None."""
        return None

    def version(self) -> str:
        """What is measured."""
        return f"kombu {kombu.__version__}"

    def fields(self, name: str, folder: str) -> dict[str, Any]:
        """What a space of this broker has beside its name and folder."""
        raise NotImplementedError

    def prepare(self, space: Space) -> None:
        """Make what the first user of a space cannot make alone."""

    def clean(self, space: Space) -> None:
        """Take away what is left on a server."""

    @contextmanager
    def space(self, base: str | None = None) -> Iterator[Space]:
        """A space of one's own, gone at the end."""
        name = f"kombu-sqlite-benchmark-{uuid.uuid4().hex[:8]}"
        folder = tempfile.mkdtemp(prefix="benchmark-", dir=self.folder or base)
        space = Space(self.name, name, folder, **self.fields(name, folder))
        try:
            self.clean(space)
            self.prepare(space)
            yield space
        finally:
            self.clean(space)
            shutil.rmtree(folder, ignore_errors=True)
