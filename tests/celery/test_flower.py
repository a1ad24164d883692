"""How Flower's choice of a broker client is extended, and when it is not."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery

import celery_integration.cli  # noqa: F401 - what Celery's command line loads
from celery_integration.flower import QueueFile, extend_flower


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Flower's factory of broker clients, put back at the end."""
    module = pytest.importorskip("flower.utils.broker", reason="Flower is not installed")
    monkeypatch.setattr(module.Broker, "__new__", module.Broker.__new__)
    return module.Broker


@pytest.fixture
def make_app() -> Iterator[Callable[..., Celery]]:
    """Make apps, closed at the end."""
    made: list[Celery] = []

    def make(url: str, **conf: Any) -> Celery:
        made.append(Celery("watched", broker=url, set_as_current=False))
        made[-1].conf.update(conf)
        return made[-1]

    yield make
    for app in made:
        app.close()


def test_flower_is_told_when_it_starts(
    broker: Any, make_app: Callable[..., Celery], broker_url: str
) -> None:
    """By the signal it sends itself, whoever was loaded first."""
    make_app(broker_url).loader.import_default_modules()
    assert isinstance(broker(broker_url, http_api=None, broker_options={}), QueueFile)


def test_other_schemes_are_chosen_as_before(
    broker: Any, make_app: Callable[..., Celery], broker_url: str
) -> None:
    """With their arguments; an unknown one is refused."""
    extend_flower(make_app(broker_url))
    rabbitmq = broker("amqp://somewhere//", http_api="http://somewhere/api/")
    assert type(rabbitmq).__name__ == "RabbitMQ"
    assert rabbitmq.http_api == "http://somewhere/api/"
    with pytest.raises(NotImplementedError):
        broker("sqs://")


def test_it_is_extended_once_for_an_app(
    broker: Any, make_app: Callable[..., Celery], broker_url: str
) -> None:
    """However often the signal comes."""
    app = make_app(broker_url)
    extend_flower(app)
    first = broker.__new__
    extend_flower(app)
    assert broker.__new__ is first


@pytest.mark.parametrize(
    ("url", "conf"),
    [
        ("memory://", {}),
        ("amqp://", {}),
        ("nonsense://", {}),
        ("redis://", {"broker_transport": "no.such:Transport"}),
    ],
    ids=["memory", "amqp", "unknown", "missing"],
)
def test_nothing_changes_for_another_broker(
    broker: Any, make_app: Callable[..., Celery], url: str, conf: dict[str, Any]
) -> None:
    """Nor for one that does not exist: whoever connects says so."""
    before = broker.__new__
    extend_flower(make_app(url, **conf))
    assert broker.__new__ is before


def test_flower_is_never_imported_here() -> None:
    """A process that has not loaded it stays without it."""
    script = (
        "import sys, celery, celery_integration.cli\n"
        "celery.Celery(broker='sqlite:///never.db').loader.import_default_modules()\n"
        "assert 'flower' not in sys.modules\n"
    )
    subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {sys.path!r}\n{script}"], check=True
    )
