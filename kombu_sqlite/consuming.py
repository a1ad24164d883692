"""Kombu's consuming over the store: leases in batches, hands over one by one, sleeps and wakes.

A claim is committed before a message reaches a callback. What was leased but not handed over goes
back, uncounted, when its consumer is cancelled or the channel closed.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from kombu.utils.uuid import uuid

from .bells import Bell
from .claims import Claimant
from .declarations import DeclaringChannel
from .errors import QueueBusyError
from .foreign import BadMessageError
from .log import describe, logger
from .message import Message as _Message
from .models import Delivery, Settlement
from .qos import QoS as _QoS

__all__ = ("ConsumingChannel",)

#: Where enough waits to be executed a claim comes at most this often, in seconds: each is then
#: worth its transaction.
DAMP_S = 0.05

#: Messages leased in one transaction at the most, where the prefetch count leaves room.
CLAIM_AT_MOST = 64


class _Consumer:
    """A callback for the messages of one queue."""

    __slots__ = ("callback", "no_ack", "queue", "tag")

    def __init__(
        self, tag: str, queue: str, no_ack: bool, callback: Callable[[_Message], Any]
    ) -> None:
        self.tag = tag
        self.queue = queue
        self.no_ack = no_ack
        self.callback = callback


class ConsumingChannel(DeclaringChannel):
    """The part of a channel that consumes.

    Arguments:
        connection: the transport it belongs to.
    """

    Message = _Message  # type: ignore[assignment]
    QoS = _QoS  # type: ignore[assignment]
    qos: _QoS

    def __init__(self, connection: Any, **kwargs: Any) -> None:
        super().__init__(connection, **kwargs)
        self._pid = os.getpid()
        self.redis_order = self.store.options.priority_order == "redis"
        #: Whether the last claim found the file locked and is to be tried again soon.
        self.skipped_turn = False
        #: Whether the application reports by ``start`` when a message begins to execute.
        self.explicit_start = False
        #: Called once at the end of the turn that hands messages over; None between turns.
        self.at_turn_end: list[Callable[[], Any]] | None = None
        #: What the application makes of an exception of a callback: whether the message was to
        #: blame, and has been ended. Otherwise, and by default, it leaves the loop.
        self.on_callback_error: Callable[[Any, _Message, Exception], bool] | None = None
        self.no_ack_consumers: set[str] = set()  # type: ignore[assignment]
        self._by_tag: dict[str, _Consumer] = {}
        self._buffer: deque[Delivery] = deque()
        self._turn = 0
        self._claimed_at = 0.0
        #: Whether the event loop looks again once the pause after the last claim is over.
        self.undamps = False
        self._starved = False  # the prefetch count, not a lack of messages, ended the last look
        self._expecting = False  # there may be more: a bell rang, or the last claim was full
        self._bell: Bell | None = None

    def queue_delete(
        self, queue: str, if_unused: bool = False, if_empty: bool = False, **kwargs: Any
    ) -> int:
        """Delete a queue; what waits in it ends cancelled. Return how many messages waited."""
        self._release_buffer(queue)
        return super().queue_delete(queue, if_unused, if_empty)

    def _purge(self, queue: str) -> int:
        self._release_buffer(queue)
        return super()._purge(queue)

    def _size(self, queue: str) -> int:
        """Count what waits, and what this channel has leased but not delivered."""
        return super()._size(queue) + sum(delivery.queue == queue for delivery in self._buffer)

    def basic_consume(
        self,
        queue: str,
        no_ack: bool,
        callback: Callable[[_Message], Any],
        consumer_tag: str | None = None,
        **kwargs: Any,
    ) -> str:
        """Deliver the messages of ``queue`` to ``callback`` from now on."""
        tag = consumer_tag or uuid()
        if self._bell is None:
            self._bell = self.store.new_bell()
            self.connection.on_bell_created(self, self._bell)
        self.store.add_consumer(self._bell, queue)
        self._by_tag[tag] = _Consumer(tag, queue, bool(no_ack), callback)
        self._consumers.add(tag)
        self._tag_to_queue[tag] = queue
        if queue not in self._active_queues:
            self._active_queues.append(queue)
        if no_ack:
            self.no_ack_consumers.add(tag)
        self._expecting = True
        self._bell.ring_self()
        return tag

    def basic_cancel(self, consumer_tag: str, **kwargs: Any) -> None:
        """Stop delivering to a consumer; what was leased for it but not delivered goes back."""
        consumer = self._by_tag.pop(consumer_tag, None)
        if consumer is None:
            return
        self._consumers.discard(consumer_tag)
        self.no_ack_consumers.discard(consumer_tag)
        self._tag_to_queue.pop(consumer_tag, None)
        if any(other.queue == consumer.queue for other in self._by_tag.values()):
            return
        self._active_queues.remove(consumer.queue)
        self._release_buffer(consumer.queue)
        if self._bell is not None:
            self.store.remove_consumer(self._bell, consumer.queue)

    def _release_buffer(self, queue: str | None = None) -> None:
        """Put leased but undelivered messages back, as if they had never been leased."""
        kept: list[Delivery] = []
        while self._buffer:
            delivery = self._buffer.popleft()
            if queue is None or delivery.queue == queue:
                self.store.settler.add(Settlement(delivery.tag, "release"))
            else:
                kept.append(delivery)
        self._buffer.extend(kept)
        self.store.settler.try_flush()

    def basic_get(self, queue: str, no_ack: bool = False, **kwargs: Any) -> _Message | None:
        """Return the next message of ``queue``, or None.

        What this channel has leased for its consumers but not delivered comes first. Asking counts
        as using the queue, as it does for RabbitMQ: its ``x-expires`` begins anew.
        """
        for delivery in list(self._buffer):
            if delivery.queue == queue:
                self._buffer.remove(delivery)
                message = self._to_message(delivery)
                if message is not None:
                    return self._hold(message, no_ack)
        if len(self.store.settler):
            self.store.settler.try_flush()  # what was given back may be the next
        ready = self.store.claims.has_ready([queue], self.store.options.capabilities)
        self.store.renew_expiry(queue)
        if not ready:
            return None
        while deliveries := self.store.settle_and_claim(self._claimant(), [queue], 1):
            message = self._to_message(deliveries[0])
            if message is not None:
                return self._hold(message, no_ack)
        return None

    @property
    def damped(self) -> bool:
        """Whether there is room for more, but no hurry: enough waits to be executed."""
        return self.explicit_start and self.qos.has_plenty() and self.qos.can_consume()

    def _may_hold_more(self) -> bool:
        """Return whether it is time to lease more; without hurry, not long after the last time."""
        if self.damped and time.monotonic() < self._claimed_at + DAMP_S:
            return False
        return self.qos.can_consume()

    def undamp(self) -> None:
        """Look again: the pause after the last claim is over."""
        self.undamps = False
        if self._bell is not None:
            self._bell.ring_self()

    def _claimant(self) -> Claimant:
        return self.store.claimant(not self.explicit_start)

    def _hold(self, message: _Message, no_ack: bool) -> _Message:
        """Keep a message until it is acknowledged, or acknowledge it at once."""
        self.qos.append(message, message.delivery_tag)
        if no_ack:
            self.qos.ack(message.delivery_tag)
        return message

    def _to_message(self, delivery: Delivery, consumer_tag: str | None = None) -> _Message | None:
        """Return a delivery as a message; None when it had to be quarantined."""
        try:
            return _Message(delivery, self, consumer_tag)
        except Exception as exc:  # noqa: BLE001 - whatever a row does, it must not stop a worker
            reason = str(exc) if isinstance(exc, BadMessageError) else repr(exc)
            logger.error(
                "Quarantined as failed (%s): %s",
                reason,
                describe(delivery.queue, delivery.task_id, delivery.tag),
            )
            self.store.settler.add(Settlement(delivery.tag, "failed", f"malformed row: {reason}"))
            return None

    def deliver_turn(self, at_most: int) -> int:
        """Hand over up to so many messages, then do what has come up meanwhile; return how many.

        What handed-over messages add to ``at_turn_end`` is done for all of them at once, and before
        anything else: a task starts before this consumer looks for more.
        """
        todo: list[Callable[[], Any]] = []
        self.at_turn_end = todo
        delivered = 0
        try:
            while delivered < at_most and not self.closed and self.deliver_one():
                delivered += 1
        finally:
            self.at_turn_end = None
            for call in todo:
                call()
        return delivered

    def deliver_one(self) -> bool:
        """Hand one message to its consumer; return False when there is none to hand over."""
        while self._buffer or self._fetch():
            delivery = self._buffer.popleft()
            consumer = self._consumer_of(delivery.queue)
            if consumer is None:
                self.store.settler.add(Settlement(delivery.tag, "release"))
                continue
            message = self._to_message(delivery, consumer.tag)
            if message is None:
                continue
            self.qos.append(message, message.delivery_tag)
            if consumer.no_ack:
                self.qos.ack(message.delivery_tag)
            self._call(consumer, message)
            return True
        return False

    def _call(self, consumer: _Consumer, message: _Message) -> None:
        try:
            consumer.callback(message)
        except Exception as exc:
            if self.on_callback_error is None or not self.on_callback_error(self, message, exc):
                raise

    def _consumer_of(self, queue: str) -> _Consumer | None:
        """Return the next consumer of ``queue``, in turn when there are several."""
        found = [consumer for consumer in self._by_tag.values() if consumer.queue == queue]
        if len(found) < 2:
            return found[0] if found else None
        self._turn += 1
        return found[self._turn % len(found)]

    def _fetch(self) -> bool:
        """Lease what the prefetch count leaves room for; return whether there was anything.

        Claims only where a message is to be expected; the look before sleeping is a read.
        """
        free = self.qos.can_consume_max_estimate()
        self._starved = free == 0 or not self._may_hold_more()
        if not self._active_queues or self._starved or not self._expecting:
            return False
        self._turn += 1
        start = self._turn % len(self._active_queues)
        queues = self._active_queues[start:] + self._active_queues[:start]
        limit = CLAIM_AT_MOST if free is None else min(free, CLAIM_AT_MOST)
        try:
            deliveries = self.store.settle_and_claim(self._claimant(), queues, limit)
        except QueueBusyError as exc:
            logger.debug("A claim skips a turn: %s", exc)
            self.skipped_turn = True
            return False
        self.skipped_turn = False
        self._claimed_at = time.monotonic()
        self._buffer.extend(deliveries)
        self._expecting = len(deliveries) >= limit
        return bool(deliveries)

    # -- sleeping and waking -------------------------------------------------------------------

    @property
    def bell(self) -> Bell | None:
        """What wakes this channel; None while it consumes nothing."""
        return self._bell

    def expect(self) -> None:
        """Claim at the next turn: the bell rang."""
        self._expecting = True

    def look(self) -> bool:
        """Return whether there is something to claim; a read.

        A lost session is claimed with as well: nobody rings its bells any more, and the claim tells
        the application to connect again.
        """
        if self._active_queues and not self._starved:
            self._expecting = (
                self._expecting
                or self.store.retired
                or self.store.claims.has_ready(self._active_queues, self.store.options.capabilities)
            )
        return self._expecting

    def prepare_sleep(self) -> bool:
        """Commit the acks so far and let writers ring; return False when there is work already."""
        bell = self._bell
        if bell is None:
            return True
        self.store.settler.try_flush()
        if self._buffer:
            return False
        if self._starved and not self._may_hold_more():
            bell.wake()  # an ack rings, writers need not
            return True
        self._starved = False
        bell.sleep()
        if self.look():
            bell.wake()
            return False
        return True

    def _room_made(self) -> None:
        """Look for more after an ack or a change of the prefetch count, from any thread."""
        bell = self._bell
        if bell is None or not self._starved or not self.qos.can_consume():
            return
        if self._may_hold_more() or not self.undamps:
            self._expecting = True
            bell.ring_self()
