"""The brokers, and on each a space of one's own that is gone afterwards."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import amqp
import apsw
import kombu
from kombu import Connection, Queue

import kombu_sqlite  # registers sqlite://

__all__ = ("BROKERS", "Broker", "Space", "leave")

REDIS_URL = "redis://localhost:6379/7"
RABBITMQ_URL = "amqp://guest:guest@localhost:5672//"
#: A key of our own marks the Redis database as ours; one that is somebody else's is left alone.
_REDIS_MARK = "kombu-sqlite-benchmarks"
_REDIS_MARK_S = 3600
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
    #: Lives in one process: no second one can publish or consume.
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


@dataclass(frozen=True)
class SQLite(Broker):
    """Ours."""

    query: str = ""

    def why_not(self) -> str | None:
        """Only the one in memory asks for anything."""
        if self.folder is not None and not Path(self.folder).is_dir():
            return f"there is no {self.folder}"
        return None

    def version(self) -> str:
        """Its own, and the library's."""
        return f"kombu-sqlite {kombu_sqlite.__version__}, SQLite {apsw.sqlite_lib_version()}"

    def fields(self, name: str, folder: str) -> dict[str, Any]:
        """Broker and results in one file."""
        url = f"sqlite:///{folder}/queue.db{self.query}"
        return {"url": url, "results": url, "priorities": (9, 0)}


def _refused(port: int) -> str | None:
    try:
        socket.create_connection(("localhost", port), 2).close()
    except OSError as exc:
        return f"localhost:{port} does not answer ({exc})"
    return None


@dataclass(frozen=True)
class Redis(Broker):
    """Redis, in a database that must be empty."""

    def _client(self) -> Any:
        import redis

        return redis.Redis.from_url(REDIS_URL)

    def _is_ours(self, client: Any) -> bool:
        return bool(client.get(_REDIS_MARK) == str(os.getpid()).encode())

    def why_not(self) -> str | None:
        """No library, no server, or somebody's data."""
        if find_spec("redis") is None:
            return "redis is not installed"
        reason = _refused(6379)
        if reason is None:
            with self._client() as client:
                if client.dbsize() and not self._is_ours(client):
                    reason = f"{REDIS_URL} is not empty; FLUSHDB it if nobody needs what it holds"
        return reason

    def version(self) -> str:
        """The server's, and whether it keeps anything."""
        with self._client() as client:
            version = client.info("server")["redis_version"]
            log = client.config_get("appendonly")["appendonly"]
            snapshots = client.config_get("save")["save"] or "off"
            return f"Redis {version}, appendonly {log}, snapshots {snapshots}"

    def fields(self, name: str, folder: str) -> dict[str, Any]:
        """Broker and results in one database; there the lower priority goes first."""
        return {"url": REDIS_URL, "results": REDIS_URL, "priorities": (0, 9)}

    def clean(self, space: Space) -> None:
        """Empty the database if it is ours."""
        with self._client() as client:
            if client.dbsize() and not self._is_ours(client):
                raise RuntimeError(f"{REDIS_URL} is in use by somebody else")
            client.flushdb()
            client.set(_REDIS_MARK, os.getpid(), ex=_REDIS_MARK_S)

    def leave(self) -> None:
        """Take the mark away, if it is ours."""
        with self._client() as client:
            if self._is_ours(client):
                client.delete(_REDIS_MARK)


@dataclass(frozen=True)
class RabbitMQ(Broker):
    """RabbitMQ, in the default virtual host, with queues of names of our own."""

    confirmed: bool = False

    def why_not(self) -> str | None:
        """No server, or it does not let us in."""
        reason = _refused(5672)
        if reason is None:
            try:
                with Connection(RABBITMQ_URL, connect_timeout=3) as connection:
                    connection.connect()
            except (OSError, amqp.AMQPError) as exc:
                reason = str(exc)
        return reason

    def version(self) -> str:
        """The server's."""
        with Connection(RABBITMQ_URL) as connection:
            connection.connect()
            return f"RabbitMQ {connection.connection.server_properties['version']}"

    def fields(self, name: str, folder: str) -> dict[str, Any]:
        """Results come back as messages."""
        return {
            "url": RABBITMQ_URL,
            "options": {"confirm_publish": True} if self.confirmed else {},
            "results": "rpc://",
            "priorities": (9, 0),
        }

    def clean(self, space: Space) -> None:
        """Delete queues and exchanges of our names; those that do not exist are no error."""
        with Connection(RABBITMQ_URL) as connection:
            channel = connection.default_channel
            for name in QUEUES:
                channel.queue_delete(f"{space.name}.{name}")
            for name in (f"{space.name}.pidbox", f"reply.{space.name}.pidbox", f"{space.name}.ev"):
                channel.exchange_delete(name)


@dataclass(frozen=True)
class FileSystem(Broker):
    """Kombu's file system transport, with Celery's file system results."""

    def fields(self, name: str, folder: str) -> dict[str, Any]:
        """Messages go in and out through one folder."""
        for part in ("messages", "control", "results"):
            Path(folder, part).mkdir()
        options = {
            "data_folder_in": f"{folder}/messages",
            "data_folder_out": f"{folder}/messages",
            "control_folder": f"{folder}/control",
        }
        return {"url": "filesystem://", "options": options, "results": f"file://{folder}/results"}


@dataclass(frozen=True)
class SQLAlchemy(Broker):
    """Kombu's SQLAlchemy transport on SQLite, with Celery's database results."""

    def why_not(self) -> str | None:
        """The library."""
        return None if find_spec("sqlalchemy") else "sqlalchemy is not installed"

    def fields(self, name: str, folder: str) -> dict[str, Any]:
        """Broker and results in one file."""
        path = f"sqlite:///{folder}/alchemy.db"
        return {"url": f"sqla+{path}", "results": f"db+{path}"}

    def prepare(self, space: Space) -> None:
        """Make the tables: processes that are first together fail at it."""
        with space.connection() as connection:
            for name in QUEUES:
                space.queue(name)(connection.default_channel).declare()


@dataclass(frozen=True)
class Memory(Broker):
    """Kombu's transport within one process: what Kombu itself costs."""

    def fields(self, name: str, folder: str) -> dict[str, Any]:
        """Nothing leaves the process."""
        return {"url": "memory://", "results": "cache+memory://"}


BROKERS: dict[str, Broker] = {
    broker.name: broker
    for broker in (
        SQLite("sqlite", "kombu-sqlite"),
        SQLite("sqlite-full", "kombu-sqlite, FULL", query="?synchronous=FULL", variant=True),
        SQLite("sqlite-tmpfs", "kombu-sqlite, tmpfs", folder="/dev/shm", variant=True),  # noqa: S108
        Redis("redis", "Redis"),
        RabbitMQ("rabbitmq", "RabbitMQ, confirmed", confirmed=True),
        RabbitMQ("rabbitmq-unconfirmed", "RabbitMQ, unconfirmed"),
        FileSystem("filesystem", "file system", slow=True),
        SQLAlchemy("sqla", "sqla+sqlite", slow=True),
        Memory("memory", "memory", local=True, ceiling=True),
    )
}


def leave(names: list[str]) -> None:
    """Take marks away from the servers used."""
    for name in names:
        broker = BROKERS[name]
        if isinstance(broker, Redis):
            with suppress(OSError):
                broker.leave()
