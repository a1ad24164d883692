"""A Kombu message as the columns of a row, and back; knows Celery's wire format, not Celery."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from kombu.utils.json import dumps as kombu_dumps
from kombu.utils.json import loads as kombu_loads

from .clock import due_text, parse_time
from .errors import QueueOptionError
from .foreign import MAX_INTEGER, BadMessageError, foreign_body
from .keys import SCOPES
from .log import logger
from .models import DELIVERED_BEFORE, NORMAL_PRIORITY, Delivery, Envelope, IdempotencyKey
from .routing import requirements

__all__ = ("DELIVERY_HEADER", "Envelope", "decode", "encode")

#: Under this name an application may keep, among a task's headers, the delivery that a process has
#: of it. The next run's message, which Celery makes of the same headers, is another delivery.
DELIVERY_HEADER = "sqlite_delivery"

_TEXT_ENCODINGS = frozenset({"utf-8", "utf8", "us-ascii", "ascii"})


def encode(message: dict[str, Any], exchange: str, routing_key: str, redis_order: bool) -> Envelope:
    """Return the columns for a message as ``prepare_message`` made it.

    Body, headers and properties come back from :func:`decode` equal. Headers and properties are
    written once, as JSON. A text body stays text, readable in ``sqlite3``.

    Raises:
        TypeError: headers or properties hold what JSON cannot express.
        ValueError: the ``compatibility`` header is not a JSON object.
    """
    headers, key = _take_key(message["headers"])
    if DELIVERY_HEADER in headers:
        headers = {name: value for name, value in headers.items() if name != DELIVERY_HEADER}
    properties = dict(message["properties"])
    properties.pop(DELIVERED_BEFORE, None)
    properties["delivery_info"] = {"exchange": exchange, "routing_key": routing_key}
    properties["content_type"] = message["content-type"]
    properties["content_encoding"] = encoding = message["content-encoding"]
    body = message["body"]
    if isinstance(body, (bytes, bytearray, memoryview)):
        body = _readable(bytes(body), encoding, headers)
    task_id = headers.get("id")
    name = headers.get("task")
    is_task = isinstance(name, str) and isinstance(task_id, str)
    return Envelope(
        type=str(name) if is_task else "message",
        priority=_row_priority(properties.get("priority"), redis_order),
        payload="" if body is None else body,
        headers=_to_json(headers),
        properties=_to_json(properties),
        task_id=task_id if is_task else None,
        run_after=_time_of(headers.get("eta"), "eta", task_id) if is_task else None,
        expires_at=_time_of(headers.get("expires"), "expires", task_id) if is_task else None,
        ttl_ms=_milliseconds(properties.get("expiration")),
        compatibility=_compatibility(headers.get("compatibility")),
        persistent=properties.get("delivery_mode") != 1,
        key=key if is_task else None,
    )


def _take_key(headers: dict[str, Any]) -> tuple[dict[str, Any], IdempotencyKey | None]:
    """Return the headers to store and the idempotency key among them.

    Raises:
        QueueOptionError: the key is no text, or its scope is none.
    """
    text = headers.get("idempotency_key")
    if text is None:
        return headers, None
    scope = headers.get("idempotency_scope", "row")
    if not isinstance(text, str) or not text:
        raise QueueOptionError(f"idempotency_key must be text, not {text!r}.")
    number = isinstance(scope, (int, float)) and not isinstance(scope, bool) and scope > 0
    if not number and scope not in SCOPES:
        raise QueueOptionError(
            f"idempotency_scope must be one of {', '.join(SCOPES)} or a number of seconds, "
            f"not {scope!r}."
        )
    stored = {name: value for name, value in headers.items() if name != "idempotency_bare"}
    return stored, IdempotencyKey(text, str(scope), bool(headers.get("idempotency_bare")))


def _readable(body: bytes, encoding: Any, headers: dict[str, Any]) -> str | bytes:
    """Return a body as text where that loses nothing."""
    if "compression" in headers or str(encoding).lower() not in _TEXT_ENCODINGS:
        return body
    try:
        return body.decode("utf-8")
    except UnicodeDecodeError:
        return body


def _row_priority(priority: Any, redis_order: bool) -> int:
    """Return the row's priority, where the lower number goes first; 0 or none is normal.

    One beyond what a column holds becomes the last that it does: the message is still before, or
    behind, all others, and its property comes back as it was sent. A rank is no reason to refuse.
    """
    try:
        number = int(priority or 0)
    except (TypeError, ValueError):
        number = 0
    except OverflowError:  # infinite
        number = MAX_INTEGER if priority > 0 else -MAX_INTEGER
    row = NORMAL_PRIORITY + number if redis_order else NORMAL_PRIORITY - number
    return max(-MAX_INTEGER, min(row, MAX_INTEGER))


def _time_of(value: Any, header: str, task_id: Any) -> str | None:
    """Return a Celery time header in the file's form; None when the worker has to judge it."""
    if value is None:
        return None
    moment = parse_time(value)
    if moment is None:
        return None
    if (
        "+" not in str(value)[10:]
        and not str(value).upper().endswith("Z")
        and ("-" not in str(value)[10:])
    ):
        logger.warning(
            "%s=%s of task %s has no time zone and is taken as UTC; pass an aware datetime.",
            header,
            value,
            task_id,
        )
    return due_text(moment)


def _milliseconds(expiration: Any) -> int | None:
    """Return AMQP's ``expiration`` property, milliseconds as text."""
    if expiration is None:
        return None
    try:
        return max(0, int(float(expiration)))
    except (TypeError, ValueError, OverflowError):
        return None


def _compatibility(value: Any) -> str:
    if value is None or value == {} or value == "{}":
        return "{}"
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    if requirements(text) is None:  # no consumer could ever meet it
        raise ValueError(f"the header 'compatibility' must be a JSON object, not {value!r}")
    return text


def _to_json(value: dict[str, Any]) -> str:
    try:
        return json.dumps(value)
    except TypeError:  # datetimes, UUIDs, lazy strings: Kombu knows them
        text: str = kombu_dumps(value)  # type: ignore[no-untyped-call]
        return text


def _from_json(text: str) -> Any:
    if '"__type__"' in text:
        try:
            return kombu_loads(text)  # type: ignore[no-untyped-call]
        except (TypeError, ValueError, KeyError, AttributeError, ArithmeticError):
            pass  # a header that only looks like Kombu's mark of a typed value
    return json.loads(text)


class Content(NamedTuple):
    """What :func:`decode` makes of a row.

    ``delivered_before`` is how often the row was delivered before this message was published.
    """

    body: bytes
    headers: dict[str, Any]
    properties: dict[str, Any]
    content_type: str | None
    content_encoding: str | None
    delivered_before: int = 0


def decode(delivery: Delivery, redis_order: bool) -> Content:
    """Return the message of a claimed row.

    Raises:
        BadMessageError: the row, written by another program, makes no sense.
    """
    if delivery.headers is None:
        return _decode_foreign(delivery, redis_order)
    try:
        headers = _from_json(delivery.headers)
        properties = _from_json(delivery.properties or "{}")
    except (TypeError, ValueError, KeyError, AttributeError, RecursionError) as exc:
        raise BadMessageError(f"headers or properties are not JSON: {exc}") from exc
    if not isinstance(headers, dict) or not isinstance(properties, dict):
        raise BadMessageError("headers and properties must be JSON objects")
    if not isinstance(properties.get("delivery_info", {}), dict):
        raise BadMessageError("properties.delivery_info must be a JSON object")
    payload = delivery.payload
    return Content(
        payload.encode("utf-8") if isinstance(payload, str) else payload,
        headers,
        properties,
        properties.pop("content_type", None),
        properties.pop("content_encoding", None),
        _count(properties.pop(DELIVERED_BEFORE, 0)),
    )


def _count(value: Any) -> int:
    """Return a number of deliveries; none where another program has written something else."""
    return value if type(value) is int and value > 0 else 0


def _decode_foreign(delivery: Delivery, redis_order: bool) -> Content:
    args, kwargs, _ = payload = foreign_body(delivery.payload)
    task_id = delivery.task_id  # minted by the claim where there was none
    if not isinstance(task_id, str):
        raise BadMessageError(f"task_id is not text: {task_id!r}")
    headers: dict[str, Any] = {
        "lang": "py",
        "task": delivery.type,
        "id": task_id,
        "shadow": None,
        "eta": None,
        "expires": None,
        "group": None,
        "group_index": None,
        "retries": 0,
        "timelimit": [None, None],
        "root_id": task_id,
        "parent_id": None,
        "argsrepr": repr(tuple(args)),
        "kwargsrepr": repr(kwargs),
        "origin": "sql",
        "ignore_result": False,
        "stamped_headers": None,
        "stamps": {},
    }
    offset = delivery.priority - NORMAL_PRIORITY
    properties = {
        "correlation_id": task_id,
        "delivery_mode": 2,
        "priority": offset if redis_order else -offset,
        "delivery_info": {"exchange": "", "routing_key": delivery.queue},
    }
    return Content(
        json.dumps(payload).encode("utf-8"), headers, properties, "application/json", "utf-8"
    )
