"""Makes Celery complete on a queue file; ``celery`` commands load it by themselves.

Rooms: ``continuing``, ``storing``, ``waiting``, ``chording``, ``backend`` (results), ``draining``,
``starting``, ``endings``, ``malformed``, ``requests`` (the life of a task in its row), ``owed``
(results of what the broker ended), ``control`` (cancel, revoke, retry), ``publishing`` (keys,
batches), ``bootsteps``, ``setting_up`` (``setup``), ``queue_file``, ``stats``, ``printing``,
``flower``, ``cli``.

Importing it connects one ``worker_init`` receiver, which acts only on a worker whose broker is a
queue file. Apps on another broker are untouched.
"""

from __future__ import annotations

from typing import Any

from celery.signals import worker_init

from .bootsteps import Leases
from .control import CancelOutcome, cancel, cancel_many, retry
from .publishing import batch
from .setting_up import prepare_worker, setup

__all__ = ("CancelOutcome", "Leases", "batch", "cancel", "cancel_many", "retry", "setup")


@worker_init.connect(dispatch_uid="kombu-sqlite", weak=False)
def _prepare_worker(sender: Any = None, **_: Any) -> None:
    prepare_worker(sender.app)
