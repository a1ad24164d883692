"""Which queues a message goes to: AMQP's exchange types over a snapshot of the file's tables."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

__all__ = ("Exchange", "Queue", "Topology", "meets", "requirements", "topic_pattern")


@dataclass(frozen=True)
class Exchange:
    """A declared exchange."""

    name: str
    type: str
    durable: bool
    auto_delete: bool
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Queue:
    """A declared queue and what its ``x-`` arguments (milliseconds) ask for."""

    name: str
    durable: bool = True
    auto_delete: bool = False
    exclusive: bool = False
    arguments: dict[str, Any] = field(default_factory=dict)

    @property
    def transient(self) -> bool:
        """Whether its messages are kept apart from ``task_queue``."""
        return not self.durable or self.auto_delete

    def number(self, argument: str) -> int | None:
        """Return a numeric argument; None when it is absent or not a number."""
        value = self.arguments.get(argument)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return None
        return int(value)


def topic_pattern(binding_key: str) -> re.Pattern[str]:
    """Return what matches a topic binding's keys, each with a dot appended.

    ``*`` stands for one word, ``#`` for zero or more (AMQP 0-9-1, 3.1.3.3). The dot ends every
    word, also the last, so that zero words need no special case.
    """
    wildcards = {"*": r"[^.]*\.", "#": r"(?:[^.]*\.)*"}
    words = (wildcards.get(word, re.escape(word) + r"\.") for word in binding_key.split("."))
    return re.compile("".join(words) + r"\Z", re.DOTALL)


class Topology:
    """What the file said at one version: exchanges, queues, bindings, sleeping consumers' bells."""

    def __init__(
        self,
        version: int,
        exchanges: list[Exchange],
        queues: list[Queue],
        bindings: list[tuple[str, str, str]],
        consumers: list[tuple[str, int, str, str]],
    ) -> None:
        self.version = version
        self.exchanges = {exchange.name: exchange for exchange in exchanges}
        self.queues = {queue.name: queue for queue in queues}
        self.bindings = frozenset(bindings)
        self._by_exchange: dict[str, list[tuple[str, str]]] = {}
        for exchange, key, queue in bindings:
            self._by_exchange.setdefault(exchange, []).append((key, queue))
        self._patterns: dict[str, re.Pattern[str]] = {}
        self._routes: dict[tuple[str, str], tuple[str, ...]] = {}
        self.bells: dict[str, list[tuple[int, dict[str, Any]]]] = {}
        for queue, bell, capabilities, _ in consumers:
            if queue.startswith("\0"):
                continue  # only reserves the bell
            self.bells.setdefault(queue, []).append((bell, json.loads(capabilities)))

    def route(self, exchange: str, routing_key: str) -> tuple[str, ...]:
        """Return the names of the queues a message goes to, each once.

        Raises:
            KeyError: the exchange is not declared.
        """
        if not exchange:
            return (routing_key,)
        try:
            return self._routes[exchange, routing_key]
        except KeyError:
            found = self._match(self.exchanges[exchange], routing_key)
            if len(self._routes) > 10_000:
                self._routes.clear()
            self._routes[exchange, routing_key] = found
            return found

    def _match(self, exchange: Exchange, routing_key: str) -> tuple[str, ...]:
        bound = self._by_exchange.get(exchange.name, [])
        if exchange.type == "fanout":
            names = [queue for _, queue in bound]
        elif exchange.type == "topic":
            names = [queue for key, queue in bound if self._pattern(key).match(routing_key + ".")]
        else:
            names = [queue for key, queue in bound if key == routing_key]
        return tuple(dict.fromkeys(names))

    def _pattern(self, binding_key: str) -> re.Pattern[str]:
        pattern = self._patterns.get(binding_key)
        if pattern is None:
            pattern = self._patterns[binding_key] = topic_pattern(binding_key)
        return pattern


def requirements(compatibility: str) -> dict[str, Any] | None:
    """Return what a message's ``compatibility`` asks for; None when it is no JSON object."""
    try:
        wanted = json.loads(compatibility)
    except (ValueError, RecursionError):
        return None
    return wanted if isinstance(wanted, dict) else None


def meets(capabilities: dict[str, Any], compatibility: str) -> bool:
    """Return whether a consumer's capabilities satisfy a message's ``compatibility``.

    Every key the message names must be among the capabilities, with an equal value or, where the
    capability is a list, with a value in it. ``{}`` fits everybody; what is no JSON object fits
    nobody.
    """
    if compatibility == "{}":
        return True
    wanted = requirements(compatibility)
    if wanted is None:
        return False
    for key, value in wanted.items():
        offered = capabilities.get(key)
        if offered != value and not (isinstance(offered, list) and value in offered):
            return False
    return True
