"""The queue file of an app."""

from __future__ import annotations

from typing import Any

from kombu_sqlite import QueueDatabase, QueueLocationError, Transport

__all__ = ("open_queue",)


def open_queue(app: Any) -> QueueDatabase:
    """Return the file that is an app's broker, with the app's options; the caller closes it.

    Raises:
        QueueLocationError: the app's broker is another one.
    """
    connection = app.connection_for_read()
    if not issubclass(connection.get_transport_cls(), Transport):
        raise QueueLocationError(
            f"The app's broker is {connection.as_uri()}, not a queue file (sqlite:///…)."
        )
    return QueueDatabase(connection.as_uri(), **dict(connection.transport_options or {}))
