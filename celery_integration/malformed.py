"""Messages that are no task, whoever wrote them: they fail with the reason and the worker goes on.

Celery expects what Celery has sent. A row that another program inserted may hold anything, and an
exception that leaves the handling of a message ends the worker, then the next one that gets it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from celery.utils.log import get_logger

from kombu_sqlite import QueueDatabaseError
from kombu_sqlite.channel import Channel

__all__ = ("check_task", "refuse_malformed", "watch_refusals")

logger = get_logger(__name__)

#: What values of the wrong shape raise. Anything else tells of this process, not of the message.
_SHAPE_ERRORS = (
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)

#: A consumer's methods that end a message which is no task: which argument that message is, and
#: what its row says.
_REFUSALS = {
    "on_decode_error": (0, "malformed message"),
    "on_invalid_task": (1, "malformed message"),
    "on_unknown_message": (1, "malformed message"),
    "on_unknown_task": (1, "unregistered task"),
}


def refuse_malformed(channel: Channel, message: Any, exc: Exception) -> bool:
    """End a message whose handling raised as failed; return False if that is not its fault.

    What has ended already stays as it is.
    """
    if not isinstance(exc, _SHAPE_ERRORS) or isinstance(exc, QueueDatabaseError):
        return False
    logger.error(
        "Failed as malformed: queue=%s delivery_tag=%s",
        message.delivery.queue,
        message.delivery_tag,
        exc_info=exc,
    )
    channel.end(message.delivery_tag, "failed", f"malformed message: {exc!r}", quiet=True)
    return True


def watch_refusals(consumer: Any) -> None:
    """Have a worker's consumer fail, with the reason, what it would acknowledge or reject.

    Celery acknowledges a message that it cannot decode, as if it had run.
    """
    for name, (position, what) in _REFUSALS.items():
        refuse = getattr(type(consumer), name).__get__(consumer)  # the class's: not watched twice
        setattr(consumer, name, functools.partial(_refuse, refuse, position, what))
    consumer.task_consumer.on_decode_error = consumer.on_decode_error


def _refuse(refuse: Callable[..., None], position: int, what: str, *args: Any) -> None:
    reason = next((arg for arg in args if isinstance(arg, Exception)), "no task")
    args[position].malformed = f"{what}: {reason}"
    refuse(*args)


def check_task(request: Any, payload: Any) -> None:
    """Look at what a pool would stumble over, where nobody could end the message any more.

    Arguments:
        request: a worker's request.
        payload: its decoded body, of Celery's protocol 2.

    Raises:
        ValueError: the message is no task; the text says why.
    """
    if request.id is None:
        raise ValueError("it has no id")
    if not isinstance(request.name, str):
        raise ValueError(f"shadow is no name: {request.name!r}")
    limits = request.time_limits
    if not (_is_list(limits) and len(limits) == 2 and all(map(_is_limit, limits))):
        raise ValueError(f"timelimit is not a pair of seconds: {limits!r}")
    args, kwargs, embed = payload
    embed = embed or {}
    if not (_is_list(args) and isinstance(kwargs, Mapping) and isinstance(embed, Mapping)):
        raise ValueError("its body is not [args, kwargs, embed]")
    for name in ("callbacks", "errbacks", "chain"):
        signatures = embed.get(name)
        if signatures and not (_is_list(signatures) and all(map(_is_signature, signatures))):
            raise ValueError(f"{name} is not a list of signatures")
    if embed.get("chord") and not _is_signature(embed["chord"]):
        raise ValueError("chord is not a signature")


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple))


def _is_limit(value: Any) -> bool:
    return value is None or isinstance(value, (int, float))


def _is_signature(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and isinstance(value.get("task"), str)
        and isinstance(value.get("options") or {}, Mapping)
    )
