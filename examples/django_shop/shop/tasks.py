"""What the worker does."""

from celery import shared_task
from django.utils import timezone

from .models import Order


@shared_task(acks_late=True)
def confirm_order(order_id: int) -> None:
    """Mark an order as confirmed.

    Repeatable, because ``acks_late`` runs it again when its worker is killed: an order that is
    confirmed keeps the time of its first confirmation.
    """
    waiting = Order.objects.filter(pk=order_id, confirmed_at=None)
    waiting.update(confirmed_at=timezone.now())
