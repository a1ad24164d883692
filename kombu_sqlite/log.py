"""The package's logger, and the one place where log lines about deliveries are composed."""

from __future__ import annotations

import logging

__all__ = ("describe", "logger")

logger = logging.getLogger("kombu.sqlite")


def describe(queue: object, task_id: object, tag: object) -> str:
    """Name a delivery the way every log line names it."""
    return f"queue={queue} task_id={task_id} delivery_tag={tag}"
