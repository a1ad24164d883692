"""``Producer.batch()``: several messages in one transaction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .models import Envelope

if TYPE_CHECKING:
    from .channel import Channel

__all__ = ("PublishBatch",)


class PublishBatch:
    """Collects the messages of a ``with producer.batch():`` and publishes them together.

    Each flush is one transaction: all of its messages are in the file, or none is.
    """

    def __init__(self, channel: Channel, max_size: int) -> None:
        self.channel = channel
        self.max_size = max_size
        self._messages: list[tuple[str, str, Envelope]] = []

    def publish(
        self, message: dict[str, Any], exchange: str, routing_key: str, **kwargs: Any
    ) -> None:
        """Add a message; at ``max_size`` the batch is flushed.

        A second message with one idempotency key cannot be answered here with the first one's id:
        it becomes a row that ends with the first one's result.
        """
        envelope = self.channel.encode(message, exchange, routing_key)
        if envelope.key is not None:
            envelope = envelope._replace(key=envelope.key._replace(bare=False))
        self._messages.append((exchange, routing_key, envelope))
        if len(self._messages) >= self.max_size:
            self.flush()

    def flush(self) -> None:
        """Publish what was collected; when this raises nothing was, and it can be tried again."""
        if self._messages:
            self.channel.publish_encoded(self._messages)
            self._messages = []

    def discard(self) -> None:
        """Drop what was not flushed."""
        self._messages = []

    def close(self) -> None:
        """Drop what was not flushed."""
        self.discard()
