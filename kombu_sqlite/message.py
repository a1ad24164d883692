"""A delivered message as Kombu's consumers see it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kombu.message import Message as BaseMessage

from .envelope import decode
from .models import Delivery

if TYPE_CHECKING:
    from .consuming import ConsumingChannel

__all__ = ("Message",)


class Message(BaseMessage):
    """One delivery; ``delivery_tag`` is its row id and delivery number, as text.

    Arguments:
        delivery: what the claim returned.
        channel: where acks go.
        consumer_tag: of the consumer it is delivered to.

    Raises:
        BadMessageError: the row was written by another program and makes no sense.
    """

    #: Why the application cannot use it, if so: acknowledged or rejected, it then ends as failed.
    malformed: str | None = None

    def __init__(
        self, delivery: Delivery, channel: ConsumingChannel, consumer_tag: str | None = None
    ) -> None:
        content = decode(delivery, channel.redis_order)
        properties = content.properties
        tag = str(delivery.tag)
        delivery_info: dict[str, Any] = properties.get("delivery_info") or {}
        delivery_info["redelivered"] = delivery.tag.delivery_no > content.delivered_before + 1
        delivery_info["consumer_tag"] = consumer_tag
        properties["delivery_info"] = delivery_info
        properties["delivery_tag"] = tag
        super().__init__(  # type: ignore[no-untyped-call]
            body=content.body,
            delivery_tag=tag,
            content_type=content.content_type,
            content_encoding=content.content_encoding,
            delivery_info=delivery_info,
            properties=properties,
            headers=content.headers,
            channel=channel,
        )
        self.delivery = delivery

    def ack(self, multiple: bool = False) -> None:
        """End it as completed, unless it is malformed."""
        if not self._fail_malformed():
            super().ack(multiple)  # type: ignore[no-untyped-call]

    def reject(self, requeue: bool = False) -> None:
        """End it as failed, or put it back unless it is malformed."""
        if not self._fail_malformed():
            super().reject(requeue)  # type: ignore[no-untyped-call]

    def _fail_malformed(self) -> bool:
        if self.malformed is None:
            return False
        self._state = "REJECTED"
        self.channel.end(self.delivery_tag, "failed", self.malformed, quiet=True)
        return True
