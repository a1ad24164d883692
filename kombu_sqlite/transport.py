"""Kombu's transport: opens the file, wakes channels in either of Celery's event loops."""

from __future__ import annotations

import atexit
import os
import time
import weakref
from array import array
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import apsw
from kombu.transport import base, virtual

from . import native
from .bells import Bell, wait_readable
from .channel import Channel as _Channel
from .consuming import DAMP_S
from .errors import (
    LeaseLost,
    QueueBusyError,
    QueueDatabaseError,
    QueueDiskError,
    QueueLocationError,
    QueueNotReadyError,
    QueueReplacedError,
    QueueUnavailableError,
    SessionLost,
)
from .log import logger
from .options import Options, path_from_url
from .store import Store, open_store

__all__ = ("Transport",)

#: A sleeping consumer looks by itself this often: the net under every bell.
_NET_S = 1.0
_BUSY_RETRY_S = 0.05

#: Messages handed over in one turn of the event loop before others get theirs.
_TURN = 64

#: Deliveries after which the blocking loop looks at channels that did not come to sleep.
_LOOK_EVERY = 16


class Transport(virtual.Transport):
    """A broker in one SQLite file.

    Arguments:
        client: the ``kombu.Connection`` it belongs to.
    """

    Channel = _Channel
    client: Any

    can_parse_url = True
    default_port = None
    driver_type = "sqlite"
    driver_name = "apsw"
    polling_interval: float | None = None  # type: ignore[assignment]  # nothing polls

    connection_errors: tuple[type[Exception], ...] = (  # type: ignore[assignment]
        *virtual.Transport.connection_errors,
        QueueReplacedError,
        QueueDiskError,
        QueueNotReadyError,
        QueueUnavailableError,
        SessionLost,
    )
    channel_errors: tuple[type[Exception], ...] = (  # type: ignore[assignment]
        *virtual.Transport.channel_errors,
        QueueBusyError,
        LeaseLost,
    )
    recoverable_connection_errors = (
        QueueReplacedError,
        QueueDiskError,
        QueueNotReadyError,
        QueueUnavailableError,
        SessionLost,
    )
    recoverable_channel_errors = (QueueBusyError,)

    implements = base.Transport.implements.extend(
        asynchronous=True,
        batch_publish=True,
        exchange_type=frozenset(["direct", "topic", "fanout"]),
        heartbeats=False,
    )

    def __init__(self, client: Any, **kwargs: Any) -> None:
        super().__init__(client, **kwargs)  # type: ignore[no-untyped-call]
        self._used_channel_ids = array("H")
        self._store: Store | None = None
        #: Queues that this connection has made for itself and takes with it.
        self.exclusive_queues: set[str] = set()
        self._loop: Any = None
        self._net: Any = None
        self._turn = 0
        self._pid = os.getpid()

    # -- connecting ----------------------------------------------------------------------------

    def options(self) -> Options:
        """Return the validated options of URL and ``transport_options``.

        Raises:
            QueueLocationError, QueueOptionError: one sentence that says what to mend.
        """
        client = self.client
        given = client.transport_options or {}
        hostname = client.hostname or ""
        if "://" in hostname:
            path, parameters = path_from_url(hostname)
        elif client.virtual_host and client.virtual_host != "/":
            path, parameters = client.virtual_host, {}  # switched to by failover: parsed by Kombu
        else:
            raise QueueLocationError(
                "The broker URL names no file; write sqlite:///queue.db or sqlite:////path/queue.db."
            )
        return Options.load(path, given, parameters, ignore_unknown=bool(client.alt))

    @property
    def store(self) -> Store:
        """The queue behind this connection, opened at the first use."""
        store = self._store
        if store is None:
            store = self._store = open_store(self.options())
            _open_transports.add(self)
            _served.add(store)
        return store

    def adopt(self, store: Store) -> None:
        """Use another object for the same file from now on."""
        old, self._store = self._store, store
        _served.add(store)
        for channel in self.channels:
            channel.store = store
        if old is not None:  # its close may wait for the write lock, which this thread may have
            native.Thread(old.release, "kombu-sqlite-release").start()

    def establish_connection(self) -> Transport:
        """Open the file, creating or migrating it, and return this object.

        Raises:
            QueueLocationError, QueueOptionError, QueueSchemaError: retrying does not help.
            QueueUnavailableError: nor does it here, but the connection has alternates.
            QueueBusyError, QueueDiskError: it may.
        """
        try:
            self.store.topology.read()
        except QueueBusyError as exc:
            self._drop_store()
            raise QueueNotReadyError(str(exc)) from exc
        except QueueLocationError as exc:
            self._drop_store()
            if self.client.alt:
                raise QueueUnavailableError(str(exc)) from exc
            raise
        except BaseException:
            self._drop_store()
            raise
        self._avail_channels.append(self.create_channel(self))  # type: ignore[no-untyped-call]
        return self

    def close_connection(self, connection: Any) -> None:
        """Close every channel and leave the event loop; each step is taken, whatever fails."""
        with ExitStack() as stack:
            stack.callback(self._drop_store)
            stack.callback(self._avail_channels.clear)
            stack.callback(self._delete_exclusive)
            for channel in list(self.channels):
                stack.callback(channel.close)
            self._leave_loop()

    def _delete_exclusive(self) -> None:
        names, self.exclusive_queues = self.exclusive_queues, set()
        store = self._store
        if not names or store is None or store.retired or self._pid != os.getpid():
            return  # a forked child's copy: the queues are the parent's
        queues = store.topology.read().queues
        for name in names:
            if name in queues and queues[name].exclusive:
                store.delete_queue(name)

    def _drop_store(self) -> None:
        store, self._store = self._store, None
        _open_transports.discard(self)
        if store is not None:
            store.release()

    def verify_connection(self, connection: Any) -> bool:
        """Return whether the connection is open, to a file that is still there."""
        return self._store is not None and not self._store.retired

    def driver_version(self) -> str:
        """Return SQLite's version."""
        return str(apsw.sqlite_lib_version())

    def as_uri(self, uri: str, include_password: bool = False, mask: str = "**") -> str:
        """Return the URL; it holds no secret."""
        return uri or f"sqlite:///{self.client.virtual_host}"

    #: What ``Connection.info()`` shows when nothing was given.
    default_connection_params = {"hostname": "sqlite:///", "port": None}  # noqa: RUF012 - Kombu's

    # -- the blocking loop ---------------------------------------------------------------------

    def drain_events(self, connection: Any, timeout: float | None = None, **kwargs: Any) -> None:
        """Deliver one message, waiting for it at most ``timeout`` seconds (None: for ever).

        Raises:
            TimeoutError: none came (``socket.timeout`` is its other name).
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            if self._deliver_one():
                return
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                if any(channel.look() for channel in self.channels) and self._deliver_one():
                    return
                raise TimeoutError  # socket.timeout
            self._sleep(_NET_S if left is None else min(left, _NET_S))

    def _deliver_one(self) -> bool:
        """Deliver one message of any channel, each in turn; return whether there was one."""
        channels = self.channels
        self._turn += 1
        if self._turn % _LOOK_EVERY == 0 and len(channels) > 1:
            for channel in channels:  # a busy channel keeps the others from sleeping, so from bells
                channel.look()
        for step in range(len(channels)):
            if not channels:
                break  # closed by a callback
            if channels[(self._turn + step) % len(channels)].deliver_one():
                return True
        return False

    def _sleep(self, timeout_s: float) -> None:
        """Wait until a bell rings, yielding to greenlets where ``select`` does."""
        bells = {c.bell.fileno(): c for c in self.channels if c.bell is not None}
        ready = [channel.prepare_sleep() for channel in self.channels]
        if not all(ready):
            timeout_s = _BUSY_RETRY_S if any(c.skipped_turn for c in self.channels) else 0
        elif any(channel.damped for channel in self.channels):
            timeout_s = min(timeout_s, DAMP_S)
        if not bells:
            time.sleep(timeout_s)
            return
        for fd in wait_readable(list(bells), timeout_s):
            bells[fd].expect()
        for channel in bells.values():
            if channel.bell is not None:
                channel.bell.clear()

    # -- Celery's event loop -------------------------------------------------------------------

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        """Let ``loop`` call back when a bell rings."""
        if loop is self._loop:
            return
        self._loop = loop
        for channel in self.channels:
            if channel.bell is not None:
                self.on_bell_created(channel, channel.bell)
        self._net = loop.call_repeatedly(_NET_S, self._on_net)

    def unregister_from_event_loop(self, connection: Any, loop: Any) -> None:
        """Leave the event loop."""
        self._leave_loop()

    def _leave_loop(self) -> None:
        loop, self._loop = self._loop, None
        if loop is None or self._pid != os.getpid():
            return  # a forked child shares the parent's poller: taking out here would deafen it
        if self._net is not None:
            self._net.cancel()
            self._net = None
        for channel in self.channels:
            if channel.bell is not None:
                loop.remove(channel.bell.fileno())

    def on_bell_created(self, channel: _Channel, bell: Bell) -> None:
        """Wait for a channel's bell in the event loop, if there is one."""
        if self._loop is not None:
            self._loop.add_reader(bell.fileno(), self.on_readable, channel)

    def on_bell_closed(self, bell: Bell) -> None:
        """Stop waiting for a bell."""
        if self._loop is not None:
            self._loop.remove(bell.fileno())

    def on_readable(self, channel: _Channel, loop: Any = None) -> None:
        """Deliver what a channel can get, a bounded number of messages per turn."""
        bell = channel.bell
        if bell is None or channel.closed:
            return
        bell.clear()
        channel.expect()
        delivered = channel.deliver_turn(_TURN)
        if channel.closed or channel.bell is None:
            return
        if delivered == _TURN:
            bell.ring_self()  # there may be more; others come first
            return
        if channel.prepare_sleep():
            if channel.damped and not channel.undamps and self._loop is not None:
                channel.undamps = True
                self._loop.call_later(DAMP_S, channel.undamp)
            return
        if channel.skipped_turn and self._loop is not None:
            self._loop.call_later(_BUSY_RETRY_S, bell.ring_self)
        else:
            bell.ring_self()

    def _on_net(self) -> None:
        for channel in list(self.channels):
            if channel.bell is not None and channel.look():
                channel.bell.ring_self()


_open_transports: weakref.WeakSet[Transport] = weakref.WeakSet()
#: Files that connections have used; a result backend keeps one open beyond the last of them.
_served: weakref.WeakSet[Store] = weakref.WeakSet()


def _close_at_exit(pid: int = os.getpid()) -> None:
    """Give back what is still held, and leave, when the interpreter exits in good order."""
    if os.getpid() != pid:
        return  # a forked child: nothing here is its own
    closing: list[Callable[[], None]] = []
    closing += [partial(each.close_connection, each) for each in list(_open_transports)]
    closing += [each.close for each in list(_served) if each.users > 0]
    for close in closing:
        try:
            close()
        except QueueDatabaseError as exc:
            logger.warning("A connection was not closed in good order: %s", exc)


atexit.register(_close_at_exit)
