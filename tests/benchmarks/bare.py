"""The least that Celery can run on: two files that are only appended to, and a byte that wakes.

One worker at a time reads the messages, one client the results; nothing is acknowledged, leased,
ordered or kept. So it tells what Celery, its pool and the waking of processes cost at the least.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any

from celery.backends.base import BaseBackend
from kombu.transport import TRANSPORT_ALIASES, virtual
from kombu.utils.json import dumps, loads

__all__ = ("Backend", "Transport")

TRANSPORT_ALIASES["bare"] = f"{__name__}:Transport"


class Writer:
    """Appends lines to a file, and wakes whoever reads it."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._bell = -1

    def append(self, line: str) -> None:
        """In one write, so that none is torn."""
        os.write(self._descriptor, line.encode() + b"\n")
        if self._bell < 0:
            with suppress(OSError):  # nobody reads yet, and looks for itself when it does
                self._bell = os.open(f"{self._path}-bell", os.O_WRONLY | os.O_NONBLOCK)
        if self._bell >= 0:
            with suppress(BlockingIOError):
                os.write(self._bell, b"\0")


class Reader:
    """Reads the lines that are appended to a file."""

    def __init__(self, path: str) -> None:
        with suppress(FileExistsError):
            os.mkfifo(f"{path}-bell", 0o600)
        self._bell = os.open(f"{path}-bell", os.O_RDWR | os.O_NONBLOCK)
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CREAT, 0o600)
        self._rest = b""

    def fileno(self) -> int:
        """What becomes readable with a line."""
        return self._bell

    def wait(self) -> None:
        """Sleep until there may be a line."""
        os.set_blocking(self._bell, True)
        os.read(self._bell, 4096)

    def read(self) -> Iterator[Any]:
        """Yield what has been appended since."""
        with suppress(BlockingIOError):
            if not os.get_blocking(self._bell):
                os.read(self._bell, 4096)
        while data := os.read(self._descriptor, 1 << 20):
            *lines, self._rest = (self._rest + data).split(b"\n")
            yield from map(loads, lines)


class Channel(virtual.Channel):
    """Puts messages at the end of the file."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._path = f"{self.connection.client.transport_options['folder']}/messages"
        self._writer: Writer | None = None

    def _put(self, queue: str, message: dict[str, Any], **_: Any) -> None:
        if self._writer is None:
            self._writer = Writer(self._path)
        self._writer.append(dumps(message))

    def _size(self, queue: str) -> int:
        return 0

    def _purge(self, queue: str) -> int:
        return 0

    def _new_queue(self, queue: str, **_: Any) -> None:
        pass

    def _has_queue(self, queue: str, **_: Any) -> bool:
        return True

    def basic_consume(self, queue: str, *args: Any, **kwargs: Any) -> None:
        """Begin with the first message there is."""
        super().basic_consume(queue, *args, **kwargs)
        if queue == self.connection.client.transport_options["queue"]:
            self.connection.read(self, queue, Reader(self._path))

    def basic_ack(self, delivery_tag: str, multiple: bool = False) -> None:
        """Make room for the next message."""
        super().basic_ack(delivery_tag, multiple)
        self.connection.go_on()


class Transport(virtual.Transport):
    """Wakes Celery's event loop; there is no other way to consume."""

    Channel = Channel
    driver_type = driver_name = "bare"
    polling_interval = None
    implements = virtual.Transport.implements.extend(asynchronous=True)

    def __init__(self, client: Any, **kwargs: Any) -> None:
        super().__init__(client, **kwargs)
        self._loop: Any = None
        self._lines: deque[Any] = deque()
        self._going_on = False

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        """Come before the consumer does."""
        self._loop = loop

    def read(self, channel: Channel, queue: str, reader: Reader) -> None:
        """Deliver from now on, as far as the prefetch count goes."""
        self._consumer, self._queue, self._reader = channel, queue, reader
        self._loop.add_reader(reader.fileno(), self.on_readable)
        self._loop.call_soon(self.on_readable)

    def on_readable(self) -> None:
        """Take the new messages and deliver what there is room for."""
        self._lines.extend(self._reader.read())
        self._deliver_some()

    def go_on(self) -> None:
        """Deliver more before the loop sleeps; acknowledgements come from within its turn."""
        if self._lines and not self._going_on:
            self._going_on = True
            self._loop.call_later(0, self._deliver_some)

    def _deliver_some(self) -> None:
        self._going_on = False
        while self._lines and self._consumer.qos.can_consume():
            self._deliver(self._lines.popleft(), self._queue)


class Backend(BaseBackend):
    """Puts results at the end of another file; its reader takes those it waits for."""

    supports_native_join = True
    is_async = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._path = f"{self.app.conf.broker_transport_options['folder']}/results"
        self._writer: Writer | None = None
        self._reader: Reader | None = None

    def _store_result(
        self, task_id: str, result: Any, state: str, traceback: Any = None, **kwargs: Any
    ) -> Any:
        if self._writer is None:
            self._writer = Writer(self._path)
        meta = self._get_result_meta(
            result=result, state=state, traceback=traceback, request=kwargs.get("request")
        )
        self._writer.append(self.encode({**meta, "task_id": task_id}))
        return result

    def _metas(self, task_ids: Iterable[str]) -> Iterator[dict[str, Any]]:
        left = set(task_ids)
        reader = self._reader = self._reader or Reader(self._path)
        while left:
            reader.wait()
            for line in reader.read():
                meta = self.decode_result(dumps(line))
                if meta["task_id"] in left:
                    left.remove(meta["task_id"])
                    yield meta

    def add_pending_result(self, result: Any, weak: bool = False) -> Any:
        """Listen before it can come."""
        self._reader = self._reader or Reader(self._path)
        return result

    def remove_pending_result(self, result: Any) -> Any:
        """Do nothing."""
        return result

    def on_result_fulfilled(self, result: Any) -> None:
        """Do nothing."""

    def wait_for_pending(
        self, result: Any, callback: Any = None, propagate: bool = True, **_: Any
    ) -> Any:
        """Wait for one result; those of others are thrown away."""
        for meta in self._metas([result.id]):
            result._maybe_set_cache(meta)
        return result.maybe_throw(callback=callback, propagate=propagate)

    def iter_native(self, result: Any, **_: Any) -> Iterator[tuple[str, dict[str, Any]]]:
        """Wait for several."""
        for meta in self._metas([node.id for node in result.results]):
            yield meta["task_id"], meta
