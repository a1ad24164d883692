"""Turns an app's extras on: in producers by ``setup(app)``, in workers by themselves."""

from __future__ import annotations

from typing import Any

from celery.local import Proxy

from kombu_sqlite import Transport
from kombu_sqlite.channel import Channel

from .bootsteps import Leases, Outcomes
from .continuing import live_delivery
from .control import combine_control
from .publishing import batch_groups, extend_send_task
from .requests import combine

__all__ = ("prepare_worker", "setup")


def setup(app: Any) -> None:
    """Turn on in this process what needs more than the broker's URL; may be called twice.

    Publishing with an idempotency key returns the first task's result, a group is published in few
    transactions, ``revoke`` reaches the rows, and a naive ETA is taken in the app's time zone. A
    worker started by ``celery`` calls it itself.

    Arguments:
        app: a ``celery.Celery`` whose broker is a queue file.
    """
    if isinstance(app, Proxy):  # celery.current_app
        app = app._get_current_object()
    extend_send_task(app)
    batch_groups()
    combined = combine_control(app.control_cls)
    if app.control_cls is not combined:
        app.control_cls = combined
        app.__dict__.pop("control", None)  # made of the old class


def prepare_worker(app: Any) -> None:
    """Make a worker lease-aware; one on another broker is left alone."""
    with app.connection_for_read() as connection:
        if not issubclass(connection.get_transport_cls(), Transport):
            return
    setup(app)
    Channel.live_delivery = staticmethod(live_delivery)
    app.steps["consumer"].update((Leases, Outcomes))
    app.Task.Request = combine(app.Task.Request)  # tasks registered later inherit it
    for task in app.tasks.values():
        task.Request = combine(task.Request)
