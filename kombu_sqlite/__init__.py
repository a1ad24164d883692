"""A Kombu transport in one SQLite file: ``broker_url = "sqlite:////path/queue.db"``.

Rooms, from the ground up; each imports only from those above it:

- ``errors``, ``options``, ``clock``, ``native``, ``log``: what everything needs.
- ``location``, ``sql``, ``checkpoints``, ``older``, ``schema``, ``forking``, ``handles``,
  ``database``: one file, its connections, its transactions.
- ``models``, ``routing``, ``topology``: rows, and which queue a message goes to.
- ``bells``, ``publishing``, ``foreign``, ``deliveries``, ``claims``, ``settler``: messages in, out
  and ended.
- ``sessions``, ``leases``, ``watcher``, ``housekeeping``, ``upkeep``: who is alive, and order in
  the file.
- ``store``, ``rows``, ``queue``: the queue itself, for use without Kombu.
- ``envelope``, ``message``, ``qos``, ``batch``, ``declarations``, ``consuming``, ``channel``,
  ``transport``: Kombu's side.

Importing this package registers the scheme ``sqlite`` and opens nothing.
"""

from __future__ import annotations

from kombu.transport import TRANSPORT_ALIASES

from .errors import (
    LeaseLost,
    QueueBusyError,
    QueueDatabaseError,
    QueueDiskError,
    QueueLocationError,
    QueueOptionError,
    QueueReplacedError,
    QueueSchemaError,
    SessionLost,
)
from .models import Task, TaskLog, Worker
from .queue import QueueDatabase
from .transport import Transport

__all__ = (
    "LeaseLost",
    "QueueBusyError",
    "QueueDatabase",
    "QueueDatabaseError",
    "QueueDiskError",
    "QueueLocationError",
    "QueueOptionError",
    "QueueReplacedError",
    "QueueSchemaError",
    "SessionLost",
    "Task",
    "TaskLog",
    "Transport",
    "Worker",
)
__version__ = "0.1.0"

TRANSPORT_ALIASES["sqlite"] = "kombu_sqlite.transport:Transport"
