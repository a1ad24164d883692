"""The ETA of a request, as the worker sees it."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

from celery_integration.requests import combine


def request(eta: datetime | None) -> Any:
    """A request of ours, of which nothing but the ETA is known."""
    made = object.__new__(combine("celery.worker.request:Request"))
    made._eta = eta
    return made


def test_a_past_eta_is_hidden_and_a_future_one_is_not() -> None:
    """Nor one whose zone nobody knows."""
    now = datetime.now(timezone.utc)
    future = now + timedelta(hours=1)
    assert request(now).eta is None
    assert request(None).eta is None
    assert request(future).eta == future
    assert request(now.replace(tzinfo=None)).eta == now.replace(tzinfo=None)


def test_an_eta_that_passes_between_two_looks_is_told_the_same(wait_until: Any) -> None:
    """Celery asks whether there is one, then formats it: the answer must not vanish meanwhile."""
    eta = datetime.now(timezone.utc) + timedelta(milliseconds=50)
    one = request(eta)
    assert one.eta == eta
    wait_until(lambda: datetime.now(timezone.utc) > eta)
    assert one.eta == eta
