"""Kombu's channel over the store: publishes, acknowledges, and closes without losing anything.

A publish is in the file when it returns. An ack is committed soon after it was given (see
``settler``); a process killed before that leaves the message to be delivered again.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from .batch import PublishBatch
from .bells import Bell
from .consuming import ConsumingChannel
from .depths import QueueDepth, read_depths
from .envelope import encode
from .errors import LeaseLost
from .models import DeliveryTag, Envelope, Settlement
from .store import open_store

if TYPE_CHECKING:
    from .transport import Transport

__all__ = ("Channel",)


class Channel(ConsumingChannel):
    """A channel; safe to publish and acknowledge on from any thread.

    Arguments:
        connection: the transport it belongs to.
    """

    supports_fanout = True
    supports_batch_publish = True

    #: Tells, for a task id, under which live delivery of this process it is published again, as
    #: ``(path of the file, delivery tag)``; the application sets it for all channels.
    live_delivery: Callable[[str], tuple[str, str] | None] = staticmethod(lambda task_id: None)

    def __init__(self, connection: Transport, **kwargs: Any) -> None:
        super().__init__(connection, **kwargs)
        #: Called when a message that waited to be started turned out to be somebody else's.
        self.on_refused: Callable[[], Any] = lambda: None
        self._retained = False
        self._retain_lock = threading.Lock()

    # -- publishing ----------------------------------------------------------------------------

    def basic_publish(
        self, message: dict[str, Any], exchange: str, routing_key: str, **kwargs: Any
    ) -> None:
        """Publish a message; it is in the file when this returns.

        Raises:
            ChannelError: the exchange does not exist.
            ValueError: the ``compatibility`` header is not a JSON object.
            QueueBusyError, QueueDiskError: nothing was written.
        """
        envelope = self.encode(message, exchange, routing_key)
        self.publish_encoded([(exchange, routing_key, envelope)])

    def encode(self, message: dict[str, Any], exchange: str, routing_key: str) -> Envelope:
        """Return a message's row; under a live delivery of the same task it continues that row."""
        envelope = encode(message, exchange, routing_key, self.redis_order)
        if envelope.task_id is not None:
            delivery = self.live_delivery(envelope.task_id)
            if delivery is not None and delivery[0] == self.store.database.path:
                return envelope._replace(continues=DeliveryTag.parse(delivery[1]))
        return envelope

    def publish_encoded(self, messages: list[tuple[str, str, Envelope]]) -> None:
        """Publish rows in one transaction."""
        self._renew_store()
        try:
            self.store.publish(messages)
        except KeyError as exc:
            raise self._not_found("exchange", exc.args[0], "basic_publish") from exc

    def _renew_store(self) -> None:
        """Publish through the process's present object for the file once the session was lost.

        Two objects have two SQLite connections: in a transaction of the present one a publish
        through the other would wait for itself.
        """
        store, transport = self.store, self.connection
        if not store.retired or store.database.replaced or transport is None:
            return
        if not any(each.bell is not None or each.qos.holds_any for each in transport.channels):
            transport.adopt(open_store(store.options))

    def create_publish_batch(self, max_size: int) -> PublishBatch:
        """Return what ``Producer.batch()`` collects messages in."""
        return PublishBatch(self, max_size)

    def _put(self, queue: str, message: dict[str, Any], **kwargs: Any) -> None:
        self.basic_publish(message, "", queue)

    # -- acknowledging -------------------------------------------------------------------------

    def basic_ack(self, delivery_tag: str, multiple: bool = False) -> None:
        """End a message as completed; committed soon (see ``settler``), or now if so configured.

        Raises:
            LeaseLost: with ``immediate_ack``, the message belongs to somebody else by now.
        """
        for tag in self.qos.up_to(delivery_tag) if multiple else (delivery_tag,):
            self.qos.ack(tag)

    def basic_reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """End a message as failed, or put it back at the front of its queue."""
        self.qos.reject(delivery_tag, requeue=requeue)

    def basic_recover(self, requeue: bool = False) -> None:
        """Put every unacknowledged message back at the front of its queue."""
        if not requeue:
            raise NotImplementedError("Does not support recover(requeue=False)")
        self.qos.restore_unacked()

    def settle(self, settlement: Settlement) -> None:
        """End a delivery; the only way an end leaves this channel."""
        settler = self.store.settler
        settler.add(settlement)
        try:
            if self.store.options.immediate_ack:
                self._commit_now(settlement)
            elif settlement.action == "requeue":
                settler.try_flush()  # the message may be for this channel again
                self._expecting = True
                if self._bell is not None:
                    self._bell.ring_self()
        finally:
            self._room_made()
            self._let_go_if_done()

    def _commit_now(self, settlement: Settlement) -> None:
        if self.explicit_start:  # a worker's ack has nobody to raise to
            self.store.settler.try_flush()
        elif settlement in self.store.settler.flush():
            raise LeaseLost(
                f"Delivery {settlement.tag} belongs to somebody else by now; its "
                f"{settlement.action!r} was refused."
            )

    def _let_go_if_done(self) -> None:
        """Leave the store once the last message that outlived this channel has ended."""
        if not self._retained or self.qos.holds_any:
            return
        with self._retain_lock:
            done, self._retained = self._retained, False
        if done:
            self.store.settler.try_flush()
            self.store.release()

    def start(self, delivery_tag: str, early: bool = False) -> bool:
        """Record that a message begins to execute; False when it was lost and must not.

        Arguments:
            early: whether that acknowledges it: whatever happens, it is not executed again.

        Raises:
            QueueBusyError: nothing was recorded yet; try again soon.
        """
        return bool(self.start_many([(delivery_tag, early)]))

    def start_many(self, starts: list[tuple[str, bool]]) -> set[str]:
        """Record several starts and the ends so far in one transaction; return what may run."""
        pairs = [(DeliveryTag.parse(text), early) for text, early in starts]
        found = self.store.settle_and_start(pairs)
        for text, _ in starts:
            if DeliveryTag.parse(text) not in found:
                self.qos.forget(text)
        if len(found) < len(starts):
            self._room_made()
        return {str(tag) for tag in found}

    def accept(self, delivery_tag: str) -> None:
        """Acknowledge early: free the message's place in the prefetch count, keep its lease.

        Not the final ack: the message stays leased to this process until ``end``. What makes it
        an acknowledgement in the file is ``start`` with ``early``.
        """
        self.qos.accept(delivery_tag)
        self._room_made()

    def end(
        self, delivery_tag: str, action: str, error: str | None = None, quiet: bool = False
    ) -> None:
        """End a message, an accepted one too; ``action`` as in ``Settlement``."""
        self.qos.end(delivery_tag, action, error, quiet)

    def basic_qos(
        self, prefetch_size: int = 0, prefetch_count: int = 0, apply_global: bool = False
    ) -> None:
        """Set how many messages may be unacknowledged at a time; 0 is unlimited."""
        self.qos.prefetch_count = prefetch_count
        self._expecting = True
        if self._bell is not None:
            self._bell.ring_self()

    # -- looking -------------------------------------------------------------------------------

    def depths(self, names: Iterable[str]) -> list[QueueDepth]:
        """Return what queues hold; see :func:`~kombu_sqlite.depths.read_depths`."""
        return read_depths(self.store, names)

    # -- end -----------------------------------------------------------------------------------

    def give_back(self) -> None:
        """Put back at once, uncounted, what was leased here and is not being executed."""
        for settlement in self.qos.give_back():
            self.store.settler.add(settlement)
        self._release_buffer()

    def close(self) -> None:
        """Cancel the consumers and give back what is not being executed.

        What is being executed keeps its lease and can still be acknowledged. In a forked child the
        messages are the parent's: only the object is closed.
        """
        if self.closed:
            return
        self.closed = True
        transport, bell = self.connection, self._bell
        with ExitStack() as stack:  # the last one first, each whatever the others raised
            if transport is not None:
                stack.callback(transport.close_channel, self)
            if self._pid != os.getpid():
                return
            stack.callback(self._retain_running)
            if bell is not None:
                stack.callback(self.store.close_bell, bell)
                stack.callback(self._detach_bell, transport, bell)
            stack.callback(self.give_back)
            for tag in list(self._by_tag):
                stack.callback(self.basic_cancel, tag)

    def _detach_bell(self, transport: Any, bell: Bell) -> None:
        self._bell = None
        if transport is not None:
            transport.on_bell_closed(bell)

    def _retain_running(self) -> None:
        """Stay in the store, whose session renews what is being executed, until that ends."""
        if self.qos.holds_any and not self.store.retired:
            self.store.retain()
            self._retained = True
            self._let_go_if_done()

    def __del__(self) -> None:
        """Give back what a dropped, never closed channel held; the flusher's thread writes it."""
        try:
            forgotten = not self.closed and self._pid == os.getpid()
        except AttributeError:
            return  # never finished opening
        if forgotten:
            held = self.qos.give_back()
            held += [Settlement(delivery.tag, "release") for delivery in self._buffer]
            if held:
                self.store.settler.add_later(held)
