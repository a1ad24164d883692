"""What the shop sells and what was ordered."""

from typing import Any

from django.db import models


class Product(models.Model):
    """Something there is a stock of."""

    name = models.CharField(max_length=50, unique=True)
    stock = models.PositiveIntegerField()

    def __str__(self) -> str:
        return self.name


class Order(models.Model):
    """An order; ``confirmed_at`` is empty until the worker has confirmed it."""

    product = models.CharField(max_length=50)
    quantity = models.PositiveIntegerField()
    confirmed_at = models.DateTimeField(null=True)

    def __str__(self) -> str:
        return f"{self.quantity} x {self.product}"

    def as_json(self) -> dict[str, Any]:
        """Return what the shop answers about this order."""
        return {
            "id": self.pk,
            "product": self.product,
            "quantity": self.quantity,
            "confirmed_at": self.confirmed_at,
        }
