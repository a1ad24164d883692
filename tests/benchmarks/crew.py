"""Processes that get ready, begin together, and report."""

from __future__ import annotations

import multiprocessing
import os
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection as Pipe
from typing import Any

__all__ = ("Crew", "CrewError", "Port")

_TIMEOUT_S = 180.0
_METHOD = "forkserver" if hasattr(os, "fork") else "spawn"


class CrewError(Exception):
    """A process failed; its traceback is the text."""


class Port:
    """A process's side."""

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe
        self._stopped = False

    def ready(self) -> None:
        """Say so, and wait until all are."""
        self._pipe.send(("ready", None))
        self._pipe.recv()

    def stopped(self) -> bool:
        """Whether the crew is to come to its end; a system call, so not for each message."""
        if not self._stopped and self._pipe.poll():
            self._pipe.recv()
            self._stopped = True
        return self._stopped


def _run(pipe: Pipe, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    try:
        pipe.send(("result", function(Port(pipe), *arguments)))
    except BaseException:  # noqa: BLE001 - it is reported
        pipe.send(("error", traceback.format_exc(limit=-3)))


class Member:
    """A process, seen from the crew."""

    def __init__(self, context: Any, function: Callable[..., Any], arguments: Any) -> None:
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=_run, args=(other, function, arguments), daemon=True)
        self.process.start()
        other.close()

    def receive(self, wanted: str, timeout_s: float = _TIMEOUT_S) -> Any:
        """What it says next.

        Raises:
            CrewError: it failed, died or is silent.
        """
        if not self.pipe.poll(timeout_s):
            raise CrewError(f"a process said nothing for {timeout_s:g} s")
        try:
            kind, value = self.pipe.recv()
        except EOFError:
            raise CrewError(f"a process died, exit code {self.process.exitcode}") from None
        if kind == "error":
            raise CrewError(value)
        if kind != wanted:
            raise CrewError(f"a process said {kind!r} instead of {wanted!r}")
        return value


class Crew:
    """Processes of one benchmark; all are gone at its end, whatever happened."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context(_METHOD)
        if _METHOD == "forkserver":  # importing once saves half a second a process
            self._context.set_forkserver_preload(["tests.benchmarks.brokers"])
        self.members: list[Member] = []

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *exc: object) -> None:
        for member in self.members:
            member.process.join(0.0 if exc[0] else 20.0)
            if member.process.is_alive():
                member.process.kill()
                member.process.join()
            member.pipe.close()

    def share(self, kind: str, count: int) -> Any:
        """An array all processes see, each writing its own place, without a lock."""
        return self._context.Array(kind, count, lock=False)

    def semaphore(self) -> Any:
        """A semaphore all processes see, at 0."""
        return self._context.Semaphore(0)

    def add(self, function: Callable[..., Any], *arguments: Any) -> Member:
        """Start a process; ``function`` gets a ``Port`` and the arguments."""
        self.members.append(Member(self._context, function, arguments))
        return self.members[-1]

    def begin(self) -> float:
        """Wait until all are ready, let them go, and return when that was."""
        for member in self.members:
            member.receive("ready")
        begun = time.monotonic()
        for member in self.members:
            member.pipe.send("go")
        return begun

    def stop(self, *members: Member) -> None:
        """Ask some, or all, to come to their end."""
        for member in members or self.members:
            member.pipe.send("stop")

    def results(self) -> list[Any]:
        """What each has returned."""
        return [member.receive("result") for member in self.members]

    def run(self) -> list[Any]:
        """Begin, and return what each has returned."""
        self.begin()
        return self.results()


def alone(function: Callable[..., Any], *arguments: Any) -> Any:
    """Run a function in a process of its own."""
    with Crew() as crew:
        crew.add(function, *arguments)
        return crew.run()[0]
