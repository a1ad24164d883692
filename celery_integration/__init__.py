"""Makes a Celery worker on ``kombu_sqlite`` lease-aware; ``celery`` commands load it by themselves.

Importing it connects one ``worker_init`` receiver, which acts only on a worker whose broker is a
queue file. Apps on another broker are untouched.
"""

from __future__ import annotations

from typing import Any

from celery.signals import worker_init

from kombu_sqlite import Transport

from .bootsteps import Leases
from .requests import combine

__all__ = ("Leases",)


@worker_init.connect(dispatch_uid="kombu-sqlite", weak=False)
def _prepare_worker(sender: Any = None, **_: Any) -> None:
    """Give a worker on our broker requests that report their start to the file."""
    app = sender.app
    if not issubclass(app.connection_for_read().get_transport_cls(), Transport):
        return
    app.steps["consumer"].add(Leases)
    app.Task.Request = combine(app.Task.Request)  # tasks registered later inherit it
    for task in app.tasks.values():
        task.Request = combine(task.Request)
