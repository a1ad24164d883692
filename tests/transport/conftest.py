"""Connections to the queue of a test, closed at its end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from kombu import Connection


@pytest.fixture
def connect(broker_url: str) -> Iterator[Callable[..., Connection]]:
    """Open connections to the same file; all are closed."""
    opened: list[Connection] = []

    def make(query: str = "", **options: Any) -> Connection:
        connection = Connection(broker_url + query, transport_options=options)
        opened.append(connection)
        return connection

    yield make
    for connection in reversed(opened):
        connection.release()


@pytest.fixture
def connection(connect: Callable[..., Connection]) -> Connection:
    """One connection."""
    return connect()
