"""The shop's answers, as JSON."""

from django import forms
from django.http import HttpRequest, JsonResponse
from django.shortcuts import get_object_or_404
from django.views.decorators.http import require_GET, require_POST

from .models import Order
from .orders import OutOfStockError, place_order


class OrderForm(forms.Form):
    """What a customer sends."""

    product = forms.CharField(max_length=50)
    quantity = forms.IntegerField(min_value=1, max_value=1000)


@require_POST
def create(request: HttpRequest) -> JsonResponse:
    """Take an order; it is confirmed later."""
    form = OrderForm(request.POST)
    if not form.is_valid():
        return JsonResponse({"errors": form.errors}, status=400)
    try:
        order = place_order(**form.cleaned_data)
    except OutOfStockError:
        return JsonResponse({"errors": {"quantity": ["Out of stock."]}}, status=409)
    return JsonResponse(order.as_json(), status=201)


@require_GET
def show(request: HttpRequest, order_id: int) -> JsonResponse:
    """Show an order."""
    return JsonResponse(get_object_or_404(Order, pk=order_id).as_json())
