"""Hands tasks to a prefork pool, once the start of each is in the file.

All that one turn of the worker's loop has ready starts in one transaction, together with the ends
that wait to be written. A start that changes no row is refused: the task was cancelled, or its
lease lost. After a crash at any line a task that had started counts a death, any other none.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Any

from celery.concurrency.prefork import TaskPool as PreforkPool
from celery.exceptions import TaskRevokedError
from kombu.asynchronous import get_event_loop

from kombu_sqlite import QueueBusyError, QueueDiskError, QueueReplacedError
from kombu_sqlite.channel import Channel

__all__ = ("RETRY_AFTER_S", "starting_first")

#: A file locked or full is tried again after this long.
RETRY_AFTER_S = 0.1

_starters: weakref.WeakKeyDictionary[Channel, Starter] = weakref.WeakKeyDictionary()


class Starter:
    """The tasks of one channel whose start is still to be written.

    Arguments:
        channel: where they came from.
        hub: the worker's loop.
    """

    def __init__(self, channel: Channel, hub: Any) -> None:
        self._channel = weakref.proxy(channel)
        self._hub = hub
        self._waiting: list[tuple[Any, Callable[[], Any]]] = []

    def add(self, request: Any, execute: Callable[[], Any]) -> None:
        """Start a task at the end of this turn, with the others; ``execute`` hands it over."""
        self._waiting.append((request, execute))
        if len(self._waiting) > 1:
            return
        if self._channel.at_turn_end is not None:
            self._channel.at_turn_end.append(self.start_all)
        else:  # a process became free, or a rate limit's timer, where call_soon awaits an event
            self._hub.call_later(0, self.start_all)

    def start_all(self) -> None:
        """Write the starts; hand over what may run, refuse the rest."""
        waiting, self._waiting = self._waiting, []
        try:
            started = self._channel.start_many(
                [(request.lease_tag, not request.task.acks_late) for request, _ in waiting]
            )
        except QueueReplacedError:
            started = set()  # the messages are gone with their file
        except (QueueBusyError, QueueDiskError) as exc:
            for request, _ in waiting:
                request.say_waiting(exc)
            self._waiting = waiting + self._waiting
            self._hub.call_later(RETRY_AFTER_S, self.start_all)
            return
        for request, execute in waiting:
            try:
                request.say_started(request.lease_tag in started)
                execute()
            except TaskRevokedError:
                self._channel.on_refused()  # gives back the place in the pool


def starting_first(execute: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap ``execute_using_pool`` so that in prefork the start is recorded before it."""

    @functools.wraps(execute)
    def execute_using_pool(self: Any, pool: Any, **kwargs: Any) -> Any:
        channel = self.lease_channel
        if channel is None or not isinstance(pool, PreforkPool) or self._lease_started:
            return execute(self, pool, **kwargs)
        if self.revoked():
            raise TaskRevokedError(self.id)
        hub = get_event_loop()
        if hub is None:
            self.begin_until_written(channel)
            return execute(self, pool, **kwargs)
        starter = _starters.get(channel)
        if starter is None:
            starter = _starters[channel] = Starter(channel, hub)
        starter.add(self, functools.partial(execute, self, pool, **kwargs))
        return None

    return execute_using_pool
