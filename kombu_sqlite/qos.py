"""Prefetch: how many messages a channel may hold, and which ones it holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from . import native
from .models import DeliveryTag, Settlement

if TYPE_CHECKING:
    from .channel import Channel

__all__ = ("QoS",)


class QoS:
    """The unacknowledged messages of one channel; acks may come from any thread.

    Arguments:
        channel: whose.
        prefetch_count: how many may be unacknowledged at a time; 0 is unlimited.
    """

    def __init__(self, channel: Channel, prefetch_count: int = 0) -> None:
        self.channel = channel
        self.prefetch_count = prefetch_count or 0
        #: Tells how many messages may be held at a time, accepted ones that run included.
        self.hold_at_most: Callable[[], int] | None = None
        self._unacked: dict[str, Any] = {}  # delivery tag -> message, in order of delivery
        self._running: set[str] = set()
        self._accepted: set[str] = set()
        self._lock = native.lock()  # a message is given back, or begins to run: never both

    def __len__(self) -> int:
        return len(self._unacked)

    @property
    def holds_any(self) -> bool:
        """Whether some message of this channel has not ended."""
        return bool(self._unacked or self._accepted)

    def can_consume(self) -> bool:
        """Return whether there is room for one more message."""
        return self.can_consume_max_estimate() != 0

    def can_consume_max_estimate(self) -> int | None:
        """Return for how many more messages there is room; None is unlimited."""
        rooms = []
        if self.prefetch_count:
            rooms.append(self.prefetch_count - len(self._unacked))
        if self.hold_at_most is not None:
            rooms.append(self.hold_at_most() - len(self._unacked) - len(self._accepted))
        return max(min(rooms), 0) if rooms else None

    def has_plenty(self) -> bool:
        """Return whether more than half of what may be held is held and waits to be executed.

        Only where the application marks what it executes: then there is no hurry to lease more,
        and the next claim is worth its transaction.
        """
        waiting = len(self._unacked) - len(self._running)
        return 2 * waiting > self.prefetch_count > 0

    def append(self, message: Any, delivery_tag: str) -> None:
        """Hold a message until it is acknowledged or rejected."""
        self._unacked[delivery_tag] = message

    def get(self, delivery_tag: str) -> Any:
        """Return an unacknowledged message; KeyError when there is none."""
        return self._unacked[delivery_tag]

    def mark_running(self, delivery_tag: str) -> bool:
        """Keep a message when the channel closes; return False if it was let go already.

        Before its start is recorded: recorded first, it could be given back in between.
        """
        with self._lock:
            held = delivery_tag in self._unacked
            if held:
                self._running.add(delivery_tag)
            return held

    def accept(self, delivery_tag: str) -> None:
        """Give a message's place to another while it runs; its lease is kept until it ends."""
        if self._unacked.pop(delivery_tag, None) is not None:
            self._accepted.add(delivery_tag)
        self._running.discard(delivery_tag)

    def forget(self, delivery_tag: str) -> None:
        """Let go of a message that is somebody else's by now."""
        self._unacked.pop(delivery_tag, None)
        self._accepted.discard(delivery_tag)
        self._running.discard(delivery_tag)

    def forget_running(self) -> None:
        """Keep nothing: whoever executed messages of this channel has stopped."""
        self._running.clear()
        self._accepted.clear()

    def up_to(self, delivery_tag: str) -> list[str]:
        """Return the unacknowledged tags delivered before ``delivery_tag``, and itself."""
        tags = []
        for tag in list(self._unacked):
            tags.append(tag)
            if tag == delivery_tag:
                return tags
        return [delivery_tag]

    def ack(self, delivery_tag: str) -> None:
        """End a message as completed."""
        self._settle(delivery_tag, "completed")

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """End a message as failed, or put it back at the front of its queue."""
        if requeue:
            self._settle(delivery_tag, "requeue")
        else:
            self._settle(delivery_tag, "failed", "rejected")

    def end(
        self, delivery_tag: str, action: str, error: str | None = None, quiet: bool = False
    ) -> None:
        """End a message in another way than by an ack or a reject; see ``Settlement``."""
        self._settle(delivery_tag, action, error, quiet)

    def _settle(
        self, delivery_tag: str, action: str, error: str | None = None, quiet: bool = False
    ) -> None:
        self.forget(delivery_tag)
        tag = DeliveryTag.parse(delivery_tag)
        self.channel.settle(Settlement(tag, action, error, quiet))

    def give_back(self) -> list[Settlement]:
        """Let go of every message that is not being executed; return how each is to end.

        What is being executed keeps its lease: its acknowledgement works after the channel is
        closed.
        """
        with self._lock:
            return [
                Settlement(DeliveryTag.parse(tag), "release")
                for tag in list(self._unacked)
                if tag not in self._running and self._unacked.pop(tag, None) is not None
            ]

    def restore_unacked(self) -> None:
        """Put every unacknowledged message back at the front of its queue."""
        for tag in list(self._unacked):
            self._settle(tag, "requeue")

    def restore_unacked_once(self, stderr: Any = None) -> None:
        """Put back what is not being executed; part of closing a channel."""
        self.channel.give_back()

    def restore_visible(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the elected process reclaims what dead consumers held."""
