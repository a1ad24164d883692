"""Rows written by other programs: what makes sense, and why the rest does not."""

from __future__ import annotations

import json
from typing import Any

from .clock import datetime_to_text, parse_time

__all__ = (
    "MAX_INTEGER",
    "BadMessageError",
    "check_columns",
    "check_counters",
    "foreign_body",
    "normal_time",
    "readable",
)

#: SQLite's largest integer; one more becomes a fraction.
MAX_INTEGER = 2**63 - 1

_NO_CANVAS = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}


class BadMessageError(Exception):
    """A row that cannot become a message; its text is the reason to quarantine it with."""


def readable(raw: bytes | None) -> str:
    """Return text that was read as bytes, so that one row's broken text stops no other row.

    What is not UTF-8 in it becomes U+FFFD; None becomes empty.
    """
    return bytes(raw or b"").decode("utf-8", "replace")


def check_columns(
    type_: object, priority: object, run_after: object, expires_at: object
) -> str | None:
    """Return what is wrong with a foreign row's columns; None when nothing is.

    SQLite stores any kind of value in any column (sqlite.org/datatype3.html), and a number in a
    DATETIME column sorts before every text, so an epoch number would be due at once.
    """
    if not isinstance(type_, str):
        return "type is not text"
    if not isinstance(priority, int):
        return f"priority is not a whole number: {priority!r}"
    if not isinstance(run_after, str):
        return f"run_after_utc is not text of the form YYYY-MM-DD HH:MM:SS: {run_after!r}"
    if parse_time(run_after) is None:
        return f"run_after_utc is not a time: {run_after!r}"
    if expires_at is not None and parse_time(expires_at) is None:
        return f"expires_at_utc is not a time: {expires_at!r}"
    return None


def check_counters(
    delivery_no: object, attempts: object, max_attempts: object, deaths: object
) -> str | None:
    """Return what is wrong with a row's counters; None when each can count one further.

    Any row is looked at, whoever wrote it: a delivery tag made of a fraction names no delivery, so
    nobody could ever end it.
    """
    if (  # each claimed row comes by here
        isinstance(delivery_no, int)
        and isinstance(attempts, int)
        and isinstance(max_attempts, int)
        and isinstance(deaths, int)
        and delivery_no < MAX_INTEGER
        and attempts < MAX_INTEGER
        and deaths < MAX_INTEGER
    ):
        return None
    counted = (("delivery_no", delivery_no), ("attempts", attempts), ("deaths", deaths))
    for name, value in (*counted, ("max_attempts", max_attempts)):
        if not isinstance(value, int):
            return f"{name} is not a whole number of at most 64 bits: {value!r}"
    name, value = max(counted, key=lambda pair: pair[1])  # type: ignore[arg-type,return-value]
    return f"{name} cannot grow any further: {value!r}"


def normal_time(text: str) -> str:
    """Return a time that ``check_columns`` let pass in the file's form, if it has another.

    Only that form sorts by time: ``T`` comes after a space, an offset does not count at all.
    """
    if len(text) in (19, 23) and text[10] == " ":
        return text
    moment = parse_time(text)
    return text if moment is None else datetime_to_text(moment)


def foreign_body(payload: str | bytes) -> list[Any]:
    """Return ``[args, kwargs, embed]`` (Celery protocol 2) for a foreign row's payload.

    Raises:
        BadMessageError: it is neither a JSON object nor such an array.
    """
    try:
        found = json.loads(payload)
    except (ValueError, RecursionError) as exc:
        raise BadMessageError(f"payload is not JSON: {exc}") from exc
    if isinstance(found, dict):
        return [[], found, dict(_NO_CANVAS)]
    if not isinstance(found, list):
        raise BadMessageError("payload is neither a JSON object nor a JSON array")
    if (
        len(found) != 3
        or not isinstance(found[0], list)
        or not isinstance(found[1], dict)
        or not isinstance(found[2], (dict, type(None)))
    ):
        raise BadMessageError("a JSON array as payload must be [args, kwargs, embed]")
    return [found[0], found[1], found[2] or dict(_NO_CANVAS)]
