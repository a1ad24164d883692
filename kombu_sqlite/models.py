"""Typed, frozen records of the file's rows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, NamedTuple, TypeVar

from .clock import datetime_to_text, parse_time

__all__ = (
    "DELIVERED_BEFORE",
    "NORMAL_PRIORITY",
    "STATUSES",
    "Delivery",
    "DeliveryTag",
    "Envelope",
    "IdempotencyKey",
    "QueueStats",
    "Record",
    "Settlement",
    "Task",
    "TaskLog",
    "Worker",
    "WorkerState",
)

R = TypeVar("R", bound="Record")

#: Row priority of a message without one; 1-99 are more urgent, above are background.
NORMAL_PRIORITY = 100

#: Among a row's properties, where a task's next run was published into it: its deliveries so far.
DELIVERED_BEFORE = "sqlite_delivered_before"

#: The states of a row, in the order of its life.
STATUSES = ("queued", "processing", "completed", "failed", "cancelled")


class DeliveryTag(NamedTuple):
    """Names one delivery of one message: whoever ends or extends it must match both numbers."""

    row_id: int
    delivery_no: int
    transient: bool = False

    def __str__(self) -> str:
        return f"{'t' if self.transient else ''}{self.row_id}.{self.delivery_no}"

    @classmethod
    def parse(cls, text: str) -> DeliveryTag:
        """Return the tag whose ``str`` is ``text``.

        Raises:
            ValueError: ``text`` is not a delivery tag of this transport.
        """
        try:
            row_id, _, number = text.removeprefix("t").partition(".")
            return cls(int(row_id), int(number), text.startswith("t"))
        except (AttributeError, ValueError) as exc:
            raise ValueError(f"{text!r} is no delivery tag of a queue file.") from exc


class Envelope(NamedTuple):
    """A message on its way into the file."""

    type: str
    priority: int
    payload: str | bytes
    headers: str
    properties: str
    task_id: str | None = None
    run_after: str | None = None
    expires_at: str | None = None
    ttl_ms: int | None = None
    compatibility: str = "{}"
    persistent: bool = True
    key: IdempotencyKey | None = None
    continues: DeliveryTag | None = None

    def properties_after(self, deliveries: int) -> str:
        """Return the properties for a row that was delivered so often before this publish."""
        return f'{{"{DELIVERED_BEFORE}": {deliveries}, {self.properties[1:]}'  # never empty


class IdempotencyKey(NamedTuple):
    """Names a task that is to be published once.

    Arguments:
        text: the key; global, not per queue.
        scope: how long it holds: ``row`` (while the row exists), ``end`` (until the task ends), or
            a number of seconds from the first publish.
        bare: whether a second publish may be answered with the first one's task id. One that
            carries callbacks or its own id becomes a row that ends with the first one's result.
    """

    text: str
    scope: str = "row"
    bare: bool = False


class Settlement(NamedTuple):
    """How a delivery is to end.

    ``action`` is ``completed``, ``failed``, ``cancelled``, ``requeue`` (to the front of its queue),
    ``release`` (the same, for one that was never started: its attempt is taken back) or ``died``
    (the same, for an execution that took its process with it: failed once there were too many).
    A ``quiet`` one repeats what the executing process has probably written: it may match nothing.
    """

    tag: DeliveryTag
    action: str
    error: str | None = None
    quiet: bool = False


class Delivery(NamedTuple):
    """One delivery of one message, as a claim hands it out."""

    tag: DeliveryTag
    queue: str
    type: str
    priority: int
    payload: str | bytes
    headers: str | None
    properties: str | None
    task_id: str | None
    attempts: int = 1
    deaths: int = 0

    @property
    def redelivered(self) -> bool:
        """Whether the row was delivered before."""
        return self.tag.delivery_no > 1


@dataclass(frozen=True)
class Record:
    """Common part of the records: conversion to and from plain dictionaries."""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-compatible values; times in the file's form."""
        return {
            item.name: datetime_to_text(value) if isinstance(value, datetime) else value
            for item in fields(self)
            for value in [getattr(self, item.name)]
        }

    @classmethod
    def from_dict(cls: type[R], data: Mapping[str, Any]) -> R:
        """Return the record of a row or of ``to_dict()``; unknown keys are passed over.

        Times may be ISO text, SQLite text or datetimes.

        Raises:
            TypeError: a required field is missing.
        """
        values = {item.name: data[item.name] for item in fields(cls) if item.name in data}
        for name, value in values.items():
            if name.endswith("_utc") and value is not None:
                values[name] = parse_time(value) or value
        return cls(**values)


@dataclass(frozen=True)
class Task(Record):
    """One row of ``task_queue``: one message in one queue."""

    id: int | None = None
    type: str = ""
    priority: int = 100
    payload: str | bytes = "{}"
    compatibility: str = "{}"
    status: str = "queued"
    attempts: int = 0
    max_attempts: int = 5
    run_after_utc: datetime | None = None
    lease_until_utc: datetime | None = None
    reserved_at_utc: datetime | None = None
    processing_started_utc: datetime | None = None
    finished_at_utc: datetime | None = None
    locked_by: str | None = None
    error_message: str | None = None
    idempotency_key: str | None = None
    created_at_utc: datetime | None = None
    updated_at_utc: datetime | None = None
    region: str | None = None
    format: str | None = None
    queue: str = "celery"
    task_id: str | None = None
    headers: str | None = None
    properties: str | None = None
    expires_at_utc: datetime | None = None
    delivery_no: int = 0
    deaths: int = 0
    outcome_pending: int = 0
    writer: str | None = None
    acked_early: int = 0
    cancel_requested: int = 0
    follows: int | None = None

    def get_payload_dict(self) -> dict[str, Any]:
        """Return the payload when it is a JSON object, else an empty dictionary."""
        return _object(self.payload)

    def get_compatibility_dict(self) -> dict[str, Any]:
        """Return the compatibility when it is a JSON object, else an empty dictionary."""
        return _object(self.compatibility)


@dataclass(frozen=True)
class Worker(Record):
    """One row of ``workers``: a process that consumes, or did."""

    worker_id: str = ""
    capabilities: str = "{}"
    heartbeat_utc: datetime | None = None
    started_at_utc: datetime | None = None
    host: str | None = None
    pid: int | None = None
    lock_byte: int | None = None
    beat: int = 0
    visibility_timeout_s: float | None = None
    hostname: str | None = None
    concurrency: int | None = None

    def get_capabilities_dict(self) -> dict[str, Any]:
        """Return the capabilities when they are a JSON object, else an empty dictionary."""
        return _object(self.capabilities)


@dataclass(frozen=True)
class WorkerState(Record):
    """One row of ``v_worker_status``: a worker, whether it is alive, and how many rows it holds.

    Attributes:
        status: ``active``, ``stale`` (no sign of life for its visibility timeout) or ``gone``.
        processing: rows it has leased.
        lease_until_utc: the end of all its leases, as renewed.
    """

    worker_id: str = ""
    hostname: str | None = None
    host: str | None = None
    pid: int | None = None
    concurrency: int | None = None
    capabilities: str = "{}"
    started_at_utc: datetime | None = None
    heartbeat_utc: datetime | None = None
    status: str = "active"
    processing: int = 0
    lease_until_utc: datetime | None = None


@dataclass(frozen=True)
class TaskLog(Record):
    """One row of ``task_logs``: a line of a task's story."""

    log_id: int | None = None
    task_id: int | None = None
    at_utc: datetime | None = None
    level: str | None = None
    message: str | None = None
    details: str | None = None

    def get_details_dict(self) -> dict[str, Any]:
        """Return the details when they are a JSON object, else an empty dictionary."""
        return _object(self.details)


@dataclass(frozen=True)
class QueueStats(Record):
    """How many tasks are in which state; exact at the moment of the call."""

    total_tasks: int = 0
    queued_tasks: int = 0
    processing_tasks: int = 0
    completed_tasks: int = 0
    failed_tasks: int = 0
    cancelled_tasks: int = 0
    oldest_queued_age_seconds: float | None = None

    @classmethod
    def of(cls, counts: Mapping[str, int], age_s: float | None) -> QueueStats:
        """Return the statistics of counts by status."""
        by_status = {f"{status}_tasks": counts.get(status, 0) for status in STATUSES}
        return cls(sum(counts.values()), **by_status, oldest_queued_age_seconds=age_s)


def _object(text: str | bytes | None) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
