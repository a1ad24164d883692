"""The only wall clock, and conversions between its text form and instants.

Times in the file are UTC text ``YYYY-MM-DD HH:MM:SS.mmm``: one fixed form that sorts as text and
that SQLite's date functions read. Durations are never taken from this clock: a wait uses
``time.monotonic``, a judgement of another process's silence ``boottime_s``.
"""

from __future__ import annotations

import time
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from functools import lru_cache

__all__ = (
    "after_text",
    "boottime_s",
    "datetime_to_text",
    "due_text",
    "from_text",
    "now_text",
    "parse_time",
    "to_text",
)

_BOOT_CLOCK = getattr(time, "CLOCK_BOOTTIME", None)


def boottime_s() -> float:
    """Return seconds that never step and that count a suspended machine's sleep where known."""
    if _BOOT_CLOCK is not None:
        return time.clock_gettime(_BOOT_CLOCK)
    return time.monotonic()


def to_text(instant_s: float) -> str:
    """Return an instant (seconds since 1970) in the file's form, rounded down to milliseconds."""
    second, millis = divmod(int(instant_s * 1000), 1000)
    return f"{_second_to_text(second)}.{millis:03d}"


@lru_cache(8)  # a claim asks for now and for the end of its leases, many times a second
def _second_to_text(second: int) -> str:
    return datetime.fromtimestamp(second, timezone.utc).isoformat(sep=" ", timespec="seconds")[:19]


def now_text() -> str:
    """Return the wall clock in the file's form."""
    return to_text(time.time())


def from_text(text: str) -> datetime:
    """Return the aware UTC datetime of a time in the file, with or without milliseconds.

    Raises:
        ValueError: ``text`` is not a time.
    """
    instant = parse_time(text)
    if instant is None:
        raise ValueError(f"{text!r} is not a time of the form YYYY-MM-DD HH:MM:SS[.mmm].")
    return instant


def parse_time(value: object) -> datetime | None:
    """Return an aware UTC datetime for ISO text, SQLite text or a datetime; None if it is none.

    A value without an offset is taken as UTC.
    """
    if isinstance(value, datetime):
        moment = value
    elif isinstance(value, str):
        text = value.strip()
        if text.endswith(("Z", "z")):  # Python 3.10 does not read it
            text = text[:-1] + "+00:00"
        try:
            moment = datetime.fromisoformat(_six_digits(text))
        except ValueError:
            return None
    else:
        return None
    if moment.tzinfo is None:
        return moment.replace(tzinfo=timezone.utc)
    try:
        return moment.astimezone(timezone.utc)
    except OverflowError:
        return None


def _six_digits(text: str) -> str:
    """Return ISO text with a fraction of six digits; Python 3.10 reads only three or six."""
    head, dot, rest = text.partition(".")
    if not dot:
        return text
    digits = len(rest) - len(rest.lstrip("0123456789"))
    return f"{head}.{rest[:digits][:6]:0<6}{rest[digits:]}"


def datetime_to_text(moment: datetime) -> str:
    """Return a datetime in the file's form; one without an offset is taken as UTC."""
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=timezone.utc)
    utc = moment.astimezone(timezone.utc)
    return f"{utc.year:04d}{utc:-%m-%d %H:%M:%S}.{utc.microsecond // 1000:03d}"


def due_text(moment: datetime) -> str:
    """Return when something is due in the file's form, so that it never comes early.

    A time to come is rounded up to milliseconds. One that has passed, or is this very moment, is
    rounded down: it is due.
    """
    aware = moment if moment.tzinfo is not None else moment.replace(tzinfo=timezone.utc)
    utc = aware.astimezone(timezone.utc)  # first: clocks that are set back show some times twice
    if utc.timestamp() > time.time():
        with suppress(OverflowError):  # the last moment there is
            utc += timedelta(microseconds=-utc.microsecond % 1000)
    return datetime_to_text(utc)


def after_text(seconds: float) -> str:
    """Return the wall clock ``seconds`` from now in the file's form; at most the year 9999."""
    try:
        return to_text(time.time() + seconds)
    except (OverflowError, ValueError, OSError):
        limit = datetime.max.replace(tzinfo=timezone.utc) - timedelta(days=1)
        return datetime_to_text(limit)
