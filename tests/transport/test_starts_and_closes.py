"""A message either begins to run here or goes back when its channel closes, never both."""

from __future__ import annotations

from typing import Any

import pytest
from kombu import Connection, Queue

from kombu_sqlite import QueueDatabase


@pytest.fixture
def held(connection: Connection) -> Any:
    """A message that a channel whose application reports starts has got."""
    channel = connection.channel()
    channel.explicit_start = True
    Queue("q", channel=channel).declare()
    connection.Producer(channel).publish("m", routing_key="q")
    return channel.basic_get("q")


def test_what_is_to_run_is_kept_before_its_start_is_written(
    held: Any, database: QueueDatabase
) -> None:
    """The channel may close in between: nobody else gets the message."""
    channel = held.channel
    assert channel.qos.mark_running(held.delivery_tag)
    channel.give_back()
    assert channel.start(held.delivery_tag)
    channel.close()
    row = database.list()[0]
    assert (row.status, row.attempts) == ("processing", 1)


def test_what_was_given_back_does_not_run_here(held: Any, database: QueueDatabase) -> None:
    """Though a thread of the pool gets its turn only now."""
    channel = held.channel
    channel.give_back()
    assert not channel.qos.mark_running(held.delivery_tag)
    assert not channel.start(held.delivery_tag)
    row = database.list()[0]
    assert (row.status, row.attempts) == ("queued", 0)
