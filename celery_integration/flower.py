"""Lets Flower show the queues of an app whose broker is a queue file.

Flower chooses its broker client from a closed list of URL schemes, with no way to add one. So its
choice is extended here, once Flower says that it starts. Flower itself is never imported.
"""

from __future__ import annotations

import asyncio
import functools
import sys
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import urlsplit

from kombu_sqlite import Transport

__all__ = ("QueueFile", "extend_flower")

#: What Flower's broker page shows of a queue.
QueueInfo = dict[str, Any]


class QueueFile:
    """What Flower asks about queues, answered from the file.

    Arguments:
        app: the app Flower watches; its broker is a queue file.
    """

    def __init__(self, app: Any) -> None:
        self._app = app

    async def queues(self, names: Iterable[str]) -> list[QueueInfo]:
        """Return what the queues ``names`` hold, then every other one in which tasks wait.

        In RabbitMQ's words, as Flower's page has them: ``messages`` are those ready, delayed ones
        included, and those unacknowledged.

        Raises:
            QueueDatabaseError: the file cannot be read.
        """
        # In a thread: a read takes well under a millisecond, but opening the file may wait for a
        # lock. Flower inspects workers from these threads, so they have connections to it anyway.
        return await asyncio.to_thread(self._read, list(names))

    def _read(self, names: list[str]) -> list[QueueInfo]:
        with self._app.connection_for_write() as connection, connection.channel() as channel:
            return [
                {
                    "name": depth.queue,
                    "messages": depth.ready + depth.unacked,
                    "messages_ready": depth.ready,
                    "messages_unacknowledged": depth.unacked,
                    "consumers": depth.consumers,
                }
                for depth in channel.depths(names)
            ]


def extend_flower(sender: Any = None, **_: Any) -> None:
    """Have Flower, if this process has loaded it, show the queues of an app.

    A receiver of ``import_modules``, which Flower sends before it opens its port: by then all of it
    is loaded, in whatever order Celery loads the commands of installed packages. A process without
    Flower pays for one lookup. Flower is left as it is for apps on another broker, and for URLs of
    another scheme.
    """
    flower = sys.modules.get("flower.utils.broker")
    if flower is None or not _is_on_a_queue_file(sender):
        return
    choose = flower.Broker.__new__
    if getattr(choose, "app", None) is not sender:
        flower.Broker.__new__ = staticmethod(_choosing(choose, sender))


def _is_on_a_queue_file(app: Any) -> bool:
    try:
        return issubclass(app.connection_for_write().get_transport_cls(), Transport)
    except (ImportError, LookupError, AttributeError, ValueError):
        return False  # no such transport: whoever connects will say so


def _choosing(choose: Callable[..., Any], app: Any) -> Callable[..., Any]:
    @functools.wraps(choose)
    def choose_broker(cls: type, broker_url: str, *args: Any, **kwargs: Any) -> Any:
        if urlsplit(broker_url).scheme == "sqlite":
            return QueueFile(app)
        return choose(cls, broker_url, *args, **kwargs)

    choose_broker.app = app  # type: ignore[attr-defined]
    return choose_broker
