"""Takes orders: the one place where the database and the queue meet."""

from django.db import transaction
from django.db.models import F

from .models import Order, Product
from .tasks import confirm_order


class OutOfStockError(Exception):
    """There is not enough of the product; nothing was ordered."""


def place_order(product: str, quantity: int) -> Order:
    """Store an order, take its goods out of stock and have it confirmed: all of it, or nothing.

    The task is enqueued when the transaction has committed. So a worker never looks for an order
    that is not there yet, and one that was rolled back is never confirmed.

    Raises:
        OutOfStockError: nothing was stored, nothing enqueued.
    """
    with transaction.atomic():
        order = Order.objects.create(product=product, quantity=quantity)
        confirm_order.delay_on_commit(order.pk)
        enough = Product.objects.filter(name=product, stock__gte=quantity)
        if not enough.update(stock=F("stock") - quantity):
            raise OutOfStockError(product)
    return order
