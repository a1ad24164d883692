"""What ``setup`` adds to publishing: idempotency keys, and times that know their zone."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable
from datetime import datetime
from typing import Any

from celery.exceptions import ImproperlyConfigured
from celery.utils.time import make_aware

from kombu_sqlite import DuplicateTask

__all__ = ("extend_send_task",)

#: A task that carries one of these is more than itself: a duplicate must end by its own id.
_CANVAS = ("link", "link_error", "chain", "chord", "group_id", "task_id")


def extend_send_task(app: Any) -> None:
    """Wrap an app's ``send_task``, once; every publish of a task goes through it."""
    if not hasattr(app.send_task, "knows_idempotency"):
        app.send_task = _extended(app, app.send_task)


def _extended(app: Any, send_task: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(send_task)
    def extended(name: str, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        _make_aware(app, options)
        key, scope = _key_for(app, name, args, kwargs, options)
        if key is None:
            return send_task(name, args, kwargs, **options)
        _ensure_answerable(app)
        headers = dict(options.pop("headers", None) or {})
        headers["idempotency_key"] = key
        if scope is not None:
            headers["idempotency_scope"] = scope
        if not any(options.get(option) for option in _CANVAS):
            headers["idempotency_bare"] = True
        try:
            return send_task(name, args, kwargs, headers=headers, **options)
        except DuplicateTask as duplicate:
            result_class = options.get("result_cls") or app.AsyncResult
            return result_class(duplicate.task_id)

    extended.knows_idempotency = True  # type: ignore[attr-defined]
    return extended


def _key_for(
    app: Any, name: str, args: Any, kwargs: Any, options: dict[str, Any]
) -> tuple[str | None, Any]:
    """Take key and scope from the options, the headers, or the task's ``idempotent``."""
    headers = options.get("headers") or {}
    task = options.get("task_type") or app.tasks.get(name)
    scope = options.pop("idempotency_scope", headers.get("idempotency_scope"))
    if scope is None:
        scope = getattr(task, "idempotency_scope", None)
    key = options.pop("idempotency_key", headers.get("idempotency_key"))
    if key is None and getattr(task, "idempotent", False):
        key = _derived_key(name, args, kwargs)
    return key, scope


def _derived_key(name: str, args: Any, kwargs: Any) -> str:
    """Return a key of a task's name and arguments."""
    text = json.dumps([list(args or ()), dict(kwargs or {})], sort_keys=True, default=repr)
    return f"{name}:{hashlib.sha256(text.encode()).hexdigest()}"


def _ensure_answerable(app: Any) -> None:
    """Refuse keys where the second caller could not get the first one's result."""
    if app.backend.as_uri().startswith("rpc://"):
        raise ImproperlyConfigured(
            "An idempotency key needs results that anybody can read; rpc:// results go to the "
            "first caller alone. Use result_backend='sqlite:///…' or another stored backend."
        )


def _make_aware(app: Any, options: dict[str, Any]) -> None:
    """A naive ETA or expiry is in the app's time zone; the file keeps UTC."""
    for name in ("eta", "expires"):
        moment = options.get(name)
        if isinstance(moment, datetime) and moment.tzinfo is None:
            options[name] = make_aware(moment, app.timezone)
