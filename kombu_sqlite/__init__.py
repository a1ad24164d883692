"""A Kombu transport in one SQLite file: ``broker_url = "sqlite:////path/queue.db"``.

Rooms, from the ground up; each imports only from those above it:

- ``errors``, ``options``, ``clock``, ``native``, ``log``: what everything needs.
- ``location``, ``sql``, ``checkpoints``, ``older``, ``schema``, ``forking``, ``translating``,
  ``bells``, ``turns``, ``handles``, ``scopes``, ``database``: one file, the signals beside it, its
  connections, its transactions.
- ``models``, ``routing``, ``topology``: rows, and which queue a message goes to.
- ``foreign``, ``keys``, ``stories``, ``deliveries``, ``publishing``, ``revocations``,
  ``cancelling``, ``claims``, ``settler``: messages in, out and ended.
- ``results``, ``chords``, ``owed``: what a result backend keeps, and ends that owe it something.
- ``sessions``, ``waiting``, ``leases``, ``watcher``, ``housekeeping``, ``upkeep``: who is alive,
  who waits, and order in the file.
- ``sharing``, ``rows``, ``store``, ``depths``, ``queue_file``, ``listing``, ``statistics``,
  ``queue``: the queue itself, for use without Kombu.
- ``envelope``, ``message``, ``qos``, ``batch``, ``declarations``, ``consuming``, ``channel``,
  ``transport``: Kombu's side.

Importing this package registers the scheme ``sqlite`` and opens nothing.
"""

from __future__ import annotations

from kombu.transport import TRANSPORT_ALIASES

from .cancelling import CancelledRow
from .envelope import DELIVERY_HEADER, decode
from .errors import (
    DuplicateTask,
    IdempotencyConflict,
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
from .models import DeliveryTag, Task, TaskLog, Worker, WorkerState
from .options import Options, path_from_url
from .queue import QueueDatabase
from .statistics import Percentiles, Statistics, WindowStatistics
from .store import Store, open_store
from .transport import Transport
from .waiting import ResultWatcher, Waiter
from .watcher import LogMark

__all__ = (
    "DELIVERY_HEADER",
    "CancelledRow",
    "DeliveryTag",
    "DuplicateTask",
    "IdempotencyConflict",
    "LeaseLost",
    "LogMark",
    "Options",
    "Percentiles",
    "QueueBusyError",
    "QueueDatabase",
    "QueueDatabaseError",
    "QueueDiskError",
    "QueueLocationError",
    "QueueOptionError",
    "QueueReplacedError",
    "QueueSchemaError",
    "ResultWatcher",
    "SessionLost",
    "Statistics",
    "Store",
    "Task",
    "TaskLog",
    "Transport",
    "Waiter",
    "WindowStatistics",
    "Worker",
    "WorkerState",
    "decode",
    "open_store",
    "path_from_url",
)
__version__ = "0.1.0"

TRANSPORT_ALIASES["sqlite"] = "kombu_sqlite.transport:Transport"
