"""``celery queue …``: a look into the queue's file from the command line."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import click
from celery.bin.base import CeleryCommand, handle_preload_options
from celery.signals import import_modules

from kombu_sqlite import QueueDatabase, QueueDatabaseError, Transport

from .flower import extend_flower

__all__ = ("queue",)

# Here, because Celery's command line loads this module in every process that can become Flower.
import_modules.connect(extend_flower, dispatch_uid="kombu-sqlite-flower", weak=False)


def _database(context: Any) -> QueueDatabase:
    """Return the app's queue file; exit with one sentence when its broker is another one."""
    app = context.obj.app
    connection = app.connection_for_read()
    if not issubclass(connection.get_transport_cls(), Transport):
        raise click.ClickException(
            f"The app's broker is {connection.as_uri()}, not a queue file (sqlite:///…)."
        )
    options = dict(connection.transport_options or {})
    return QueueDatabase(connection.as_uri(), **options)


@click.group(name="queue")
@click.pass_context
@handle_preload_options
def queue(context: Any) -> None:
    """Look into the queue's file."""


@queue.command(cls=CeleryCommand)
@click.option("--queue", "-Q", "name", default=None, help="Only this queue.")
@click.option("--type", "-t", "type_", default=None, help="Only tasks of this name.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def stats(context: Any, name: str | None, type_: str | None, as_json: bool) -> None:
    """Count the tasks by state."""
    try:
        with _database(context) as database:
            found = asdict(database.stats(queue=name, type=type_))
    except QueueDatabaseError as exc:
        raise click.ClickException(str(exc)) from exc
    if as_json:
        click.echo(json.dumps(found))
        return
    for key, value in found.items():
        click.echo(f"{key:28} {'-' if value is None else value}")
