"""The URL and ``broker_transport_options``, read once into one frozen, validated record."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any
from urllib.parse import parse_qsl, unquote

from .errors import QueueLocationError, QueueOptionError

__all__ = ("KOMBU_OPTIONS", "Options", "path_from_url")

#: Keys that Kombu itself puts into, or reads from, ``transport_options``.
KOMBU_OPTIONS = frozenset(
    {
        "callback",
        "client_properties",
        "confirm_publish",
        "connect_retries_timeout",
        "errback",
        "interval_max",
        "interval_start",
        "interval_step",
        "max_retries",
        "on_revive",
        "retry_errors",
    }
)


#: Characters of a refused value that an error shows.
_SHOWN = 200


def _number(minimum: float, maximum: float) -> Callable[[Any], float]:
    def convert(value: Any) -> float:
        if isinstance(value, bool):
            raise ValueError
        number = float(value)
        if not minimum <= number <= maximum:
            raise ValueError
        return number

    convert.__doc__ = f"a number from {minimum:g} to {maximum:g}"
    return convert


def _integer(minimum: int, maximum: int) -> Callable[[Any], int]:
    def convert(value: Any) -> int:
        if isinstance(value, (bool, float)):
            raise ValueError
        number = int(value)
        if not minimum <= number <= maximum:
            raise ValueError
        return number

    convert.__doc__ = f"a whole number from {minimum} to {maximum}"
    return convert


def _choice(*names: str) -> Callable[[Any], str]:
    def convert(value: Any) -> str:
        for name in names:
            if isinstance(value, str) and value.lower() == name.lower():
                return name
        raise ValueError

    convert.__doc__ = "one of " + ", ".join(names)
    return convert


def _flag(value: Any) -> bool:
    """true or false"""  # noqa: D400, D403 - the text completes an error message
    if isinstance(value, bool):
        return value
    text = str(value).lower()
    if text in ("1", "true", "yes", "on"):
        return True
    if text in ("0", "false", "no", "off"):
        return False
    raise ValueError


def _mode(value: Any) -> int:
    """a file mode such as 0600 or 0660"""  # noqa: D400, D403 - the text completes an error message
    mode = int(value, 8) if isinstance(value, str) else value
    if (
        isinstance(mode, bool)
        or not isinstance(mode, int)
        or mode & ~0o777
        or mode & 0o600 != 0o600
    ):
        raise ValueError
    return mode


def _capabilities(value: Any) -> dict[str, Any]:
    """a JSON object such as {"region": "eu"}"""  # noqa: D400, D403 - the text completes an error message
    if isinstance(value, Mapping):
        value = json.dumps(dict(value))  # consumers tell each other in JSON
    found = json.loads(value) if isinstance(value, str) else value
    if not isinstance(found, dict):
        raise ValueError
    return found


def _option(default: Any, convert: Callable[[Any], Any], text: str, **more: Any) -> Any:
    return field(default=default, metadata={"convert": convert, "text": text}, **more)


@dataclass(frozen=True)
class Options:
    """Where the queue lives and how it behaves; every field but ``path`` is an option.

    Each option is a query parameter of the URL and a key of ``broker_transport_options``. Where
    both are given the URL wins.
    """

    path: str
    visibility_timeout: float = _option(
        60.0,
        _number(0.2, 86400.0 * 365),
        "seconds without a sign of life after which a consumer's messages go to another",
    )
    busy_timeout: float = _option(
        5.0, _number(0, 3600), "seconds to wait for the write lock before `QueueBusyError`"
    )
    max_attempts: int = _option(
        5, _integer(1, 1_000_000), "executions that may die before a message ends as failed"
    )
    priority_order: str = _option(
        "amqp",
        _choice("amqp", "redis"),
        "`amqp`: a higher message priority is delivered first; `redis`: a lower one",
    )
    scheduling: str = _option(
        "priority",
        _choice("priority", "fifo", "lifo", "weighted"),
        "order of delivery within a queue; `weighted` lets low priorities through now and then",
    )
    capabilities: dict[str, Any] = _option(
        None,
        _capabilities,
        "JSON object of what this consumer offers to messages with a `compatibility`",
        hash=False,
    )
    immediate_ack: bool = _option(
        False, _flag, "commit inside `ack()` instead of within 20 ms, 64 acks or before sleeping"
    )
    retention: float = _option(
        604800.0,
        _number(0, 86400.0 * 36500),
        "seconds to keep the rows of messages that have ended; 0 keeps them for ever",
    )
    task_log: str = _option(
        "info",
        _choice("off", "warning", "info"),
        "what `task_logs` tells: lost leases and deaths (`warning`), also retries and cancels "
        "(`info`), nothing (`off`)",
    )
    synchronous: str = _option(
        "NORMAL",
        _choice("NORMAL", "FULL", "EXTRA"),
        "`NORMAL` survives the death of any process; `FULL` also a power cut at each commit",
    )
    file_mode: int = _option(0o600, _mode, "permissions of a new file, in octal")
    cache_size: int = _option(
        -20000, _integer(-1_000_000_000, 1_000_000_000), "SQLite's page cache: KiB if negative"
    )
    mmap_size: int = _option(0, _integer(0, 2**40), "bytes of the file to map into memory")
    wal_autocheckpoint: int = _option(
        8000,
        _integer(100, 16000),
        "pages in the write-ahead log at which a writer moves them into the file",
    )

    def __post_init__(self) -> None:
        if self.capabilities is None:
            object.__setattr__(self, "capabilities", {})

    @classmethod
    def load(
        cls,
        path: str,
        *sources: Mapping[str, Any],
        ignore_unknown: bool = False,
    ) -> Options:
        """Validate ``sources`` (later ones win) and return the options for ``path``.

        Arguments:
            path: the file.
            sources: option names to values, as text or typed.
            ignore_unknown: pass over names that are not ours; a failover list shares one
                dictionary with other transports.

        Raises:
            QueueOptionError: an unknown name, or a value of the wrong kind.
        """
        known = {item.name: item.metadata["convert"] for item in fields(cls) if item.metadata}
        values: dict[str, Any] = {}
        for source in sources:
            for name, value in source.items():
                if name in known:
                    values[name] = _converted(name, value, known[name])
                elif name not in KOMBU_OPTIONS and not ignore_unknown:
                    raise QueueOptionError(_unknown(name, list(known)))
        return cls(path=path, **values)


def _converted(name: str, value: Any, convert: Callable[[Any], Any]) -> Any:
    try:
        return convert(value)
    except (TypeError, ValueError, OverflowError, RecursionError):
        raise QueueOptionError(
            f"Option {name!r} is {_shown(value)}; it must be {convert.__doc__}."
        ) from None


def _shown(value: Any) -> str:
    """Return a value as it is written, short enough for a sentence."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # too deep, or too many digits
        return f"no such {type(value).__name__}"
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


def _unknown(name: object, known: list[str]) -> str:
    close = difflib.get_close_matches(str(name), known, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}."
    return f"Unknown option {name!r} for the sqlite transport: {hint}"


def path_from_url(url: str) -> tuple[str, dict[str, str]]:
    """Split ``sqlite:///relative.db``, ``sqlite:////absolute.db`` or ``sqlite:///C:/dir/q.db``.

    Returns:
        The path and the query parameters.

    Raises:
        QueueLocationError: the URL names a host, no file, or ``:memory:``.
    """
    rest = url.partition("://")[2]
    location, _, query = rest.partition("?")
    host, slash, path = location.partition("/")
    path = unquote(path)
    if host == ":memory:" or path in (":memory:", "/:memory:") or "mode=memory" in query:
        raise QueueLocationError(
            "A queue in memory is seen by one process only; give a file: sqlite:////path/queue.db."
        )
    if host:
        raise QueueLocationError(
            f"The URL {url!r} names a host; a queue is a local file, with three slashes for a "
            "relative path (sqlite:///queue.db) and four for an absolute one."
        )
    if not slash or not path or path.endswith("/"):
        raise QueueLocationError(
            f"The URL {url!r} names no file; write sqlite:///queue.db or sqlite:////path/queue.db."
        )
    if "\0" in path:
        raise QueueLocationError("A path cannot hold a NUL character; mend the URL.")
    parameters = dict(parse_qsl(query, keep_blank_values=True))
    try:
        return os.path.expanduser(path) if path.startswith("~") else path, parameters
    except UnicodeEncodeError as exc:  # a user's name that no system knows
        raise QueueLocationError(f"The path {path!r} is no file's name; mend the URL.") from exc
