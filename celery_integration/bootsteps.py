"""Starts and stops in a worker what the file needs, nothing else."""

from __future__ import annotations

from typing import Any

from celery import bootsteps

from kombu_sqlite.channel import Channel

from .draining import drain_before_flush

__all__ = ("Leases",)


class Leases(bootsteps.StartStopStep):
    """Tells the worker's channel that starts are reported by the requests themselves.

    So a message that was only prefetched when its worker died counts no death, and one that runs
    keeps its lease when the connection is closed and opened again.
    """

    requires = ("celery.worker.consumer.tasks:Tasks",)
    _channel: Channel | None = None

    def start(self, c: Any) -> None:
        """Mark the channel the task consumer uses, and have the pool drained before it forgets."""
        drain_before_flush(c.pool)
        channel = c.task_consumer.channel
        if isinstance(channel, Channel):
            channel.explicit_start = True
            channel.on_refused = getattr(c.controller, "_quick_release", channel.on_refused)
            self._channel = channel

    def shutdown(self, c: Any) -> None:
        """Let the channel give everything back: the pool has stopped, nothing runs any more."""
        if self._channel is not None:
            self._channel.qos.forget_running()
