"""Kombu's declarations over the store: exchanges, queues and bindings, known to every process."""

from __future__ import annotations

from typing import Any

from amqp.protocol import queue_declare_ok_t
from kombu.exceptions import ChannelError
from kombu.transport import virtual
from kombu.transport.base import to_rabbitmq_queue_arguments
from kombu.transport.virtual.base import NotEquivalentError
from kombu.utils.uuid import uuid

from .routing import Exchange, Queue
from .store import Store

__all__ = ("DeclaringChannel",)


class DeclaringChannel(virtual.Channel):
    """The part of a channel that declares, binds, purges and deletes.

    Arguments:
        connection: the transport it belongs to.
    """

    def __init__(self, connection: Any, **kwargs: Any) -> None:
        super().__init__(connection, **kwargs)  # type: ignore[no-untyped-call]
        self.store: Store = connection.store

    # -- exchanges -----------------------------------------------------------------------------

    def exchange_declare(
        self,
        exchange: str | None = None,
        type: str = "direct",
        durable: bool = False,
        auto_delete: bool = False,
        arguments: dict[str, Any] | None = None,
        nowait: bool = False,
        passive: bool = False,
    ) -> None:
        """Declare an exchange, known to every process from now on.

        Raises:
            ChannelError: ``passive`` and it does not exist; or the type is not supported.
            NotEquivalentError: it exists with another type.
        """
        type = type or "direct"
        exchange = exchange or f"amq.{type}"
        known = self.store.topology.read().exchanges.get(exchange)
        if passive:
            if known is None:
                raise self._not_found("exchange", exchange, "exchange_declare")
            return
        if type not in self.connection.implements.exchange_type:
            raise ChannelError(
                f"Exchange type {type!r} is not supported; use direct, topic or fanout.",
                (40, 10),
                "Channel.exchange_declare",
                "503",
            )
        if known is not None and known.type != type:
            raise NotEquivalentError(
                f"Exchange {exchange!r} exists with type {known.type!r}; it cannot be declared "
                f"again as {type!r}. Delete it first, or use another name."
            )
        self.store.topology.declare_exchange(
            Exchange(exchange, type, bool(durable), bool(auto_delete), arguments or {})
        )

    def exchange_delete(self, exchange: str, if_unused: bool = False, nowait: bool = False) -> None:
        """Delete an exchange and its bindings."""
        if if_unused and any(e == exchange for e, _, _ in self.store.topology.read().bindings):
            return
        self.store.topology.delete_exchange(exchange)

    def prepare_queue_arguments(self, arguments: dict[str, Any], **kwargs: Any) -> Any:
        """Return Kombu's queue options as AMQP's ``x-`` arguments, seconds as milliseconds."""
        return to_rabbitmq_queue_arguments(arguments, **kwargs)

    # -- queues --------------------------------------------------------------------------------

    def queue_declare(
        self,
        queue: str | None = None,
        passive: bool = False,
        durable: bool = True,
        exclusive: bool = False,
        auto_delete: bool = False,
        arguments: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Declare a queue; of two declarations the newer one's arguments hold.

        An exclusive one goes, with what is in it, when the connection that made it is closed.

        Returns:
            Its name, how many messages wait in it, how many consumers it has.

        Raises:
            ChannelError: ``passive`` and it does not exist; or it exists with messages kept in the
                other way (durable, or transient).
        """
        queue = queue or f"amq.gen-{uuid()}"
        known = self.store.topology.read().queues.get(queue)
        if passive:
            if known is None:
                raise self._not_found("queue", queue, "queue_declare")
        else:
            wanted = Queue(
                queue, bool(durable), bool(auto_delete), bool(exclusive), arguments or {}
            )
            if known is not None and known.transient != wanted.transient:
                raise ChannelError(
                    f"Queue {queue!r} exists as {'transient' if known.transient else 'durable'}; "
                    "delete it before declaring it otherwise.",
                    (50, 10),
                    "Channel.queue_declare",
                    "406",
                )
            self.store.topology.declare_queue(wanted)
            if exclusive and known is None:
                self.connection.exclusive_queues.add(queue)
        return queue_declare_ok_t(queue, self._size(queue), self.store.live_consumers(queue))

    def _not_found(self, kind: str, name: str, method: str) -> Exception:
        host = self.connection.client.virtual_host or "/"
        error: Exception = ChannelError(
            f"NOT_FOUND - no {kind} {name!r} in vhost {host!r}",
            (50, 10),
            f"Channel.{method}",
            "404",
        )
        return error

    def queue_delete(
        self, queue: str, if_unused: bool = False, if_empty: bool = False, **kwargs: Any
    ) -> int:
        """Delete a queue; what waits in it ends cancelled. Return how many messages waited."""
        size = self._size(queue)
        if (if_empty and size) or (if_unused and self.store.live_consumers(queue)):
            return 0
        self.store.delete_queue(queue)
        self.connection.exclusive_queues.discard(queue)
        return size

    def queue_bind(
        self,
        queue: str,
        exchange: str | None = None,
        routing_key: str = "",
        arguments: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Route an exchange's messages with ``routing_key`` to a queue.

        Raises:
            ChannelError: the exchange does not exist.
        """
        exchange = exchange or "amq.direct"
        if exchange not in self.store.topology.read().exchanges:
            raise self._not_found("exchange", exchange, "queue_bind")
        self.store.topology.bind(queue, exchange, routing_key or "", arguments)

    def queue_unbind(
        self,
        queue: str,
        exchange: str | None = None,
        routing_key: str = "",
        arguments: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Take a binding back."""
        self.store.topology.unbind(queue, exchange or "amq.direct", routing_key or "")

    def list_bindings(self) -> Any:
        """Return ``(queue, exchange, routing key)`` of every binding."""
        return [(q, e, key) for e, key, q in self.store.topology.read().bindings]

    get_bindings = list_bindings

    def get_exchanges(self) -> list[str]:
        """Return the names of all exchanges."""
        return list(self.store.topology.read().exchanges)

    def get_table(self, exchange: str) -> Any:
        """Return ``(routing key, pattern, queue)`` of an exchange's bindings."""
        return [(k, None, q) for e, k, q in self.store.topology.read().bindings if e == exchange]

    def queue_purge(self, queue: str, **kwargs: Any) -> int:
        """End all waiting messages of a queue; return how many there were."""
        return self._purge(queue)

    def _purge(self, queue: str) -> int:
        return self.store.purge(queue)

    def _size(self, queue: str) -> int:
        return self.store.size(queue)

    def _has_queue(self, queue: str, **kwargs: Any) -> bool:
        return queue in self.store.topology.read().queues
