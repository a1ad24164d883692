"""Brokers that are servers: ours is what we mark or name as ours, the rest is left alone."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import amqp
from kombu import Connection

from tests.benchmarks.spaces import QUEUES, Broker, Space

__all__ = ("REDIS_URL", "RabbitMQ", "Redis")

REDIS_URL = "redis://localhost:6379/7"
RABBITMQ_URL = "amqp://guest:guest@localhost:5672//"
#: A key of our own marks the Redis database as ours; one that is somebody else's is left alone.
_REDIS_MARK = "kombu-sqlite-benchmarks"
_REDIS_MARK_S = 3600


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
