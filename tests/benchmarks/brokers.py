"""The brokers that are compared."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import apsw

import kombu_sqlite  # registers sqlite://
import tests.benchmarks.bare  # noqa: F401 - registers bare://
from tests.benchmarks.servers import RabbitMQ, Redis
from tests.benchmarks.spaces import QUEUES, Broker, Space

__all__ = ("BROKERS", "WITHOUT_CELERY", "leave")


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


@dataclass(frozen=True)
class Bare(Broker):
    """No broker at all: what Celery costs with its pool."""

    def fields(self, name: str, folder: str) -> dict[str, Any]:
        """A file of messages and one of results; one queue, one worker, one client."""
        options = {"folder": folder, "queue": f"{name}.work"}
        return {"url": "bare://", "options": options, "results": "tests.benchmarks.bare:Backend"}


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
        Bare("bare", "bare files", local=True, ceiling=True),
    )
}

#: Those that messages go through without Celery as well.
WITHOUT_CELERY = tuple(name for name in BROKERS if name != "bare")


def leave(names: list[str]) -> None:
    """Take marks away from the servers used."""
    for name in names:
        broker = BROKERS[name]
        if isinstance(broker, Redis):
            with suppress(OSError):
                broker.leave()
