"""Real workers, started by Celery's command line, and what their tasks leave behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from tests.benchmarks.app import STAMP, environment
from tests.benchmarks.spaces import Space

__all__ = (
    "Workers",
    "count_stamps",
    "cpu_of_s",
    "cpu_of_tree_s",
    "first_stamps",
    "read_stamps",
    "wait",
)

ROOT = Path(__file__).parents[2]
_TIMEOUT_S = 120.0
#: Nothing that is not needed speaks to the broker while a figure is taken.
QUIET = ("--without-gossip", "--without-mingle", "--without-heartbeat")


def wait(condition: Callable[[], Any], what: str, timeout_s: float = _TIMEOUT_S) -> Any:
    """Wait until a condition holds.

    Raises:
        TimeoutError: it did not.
    """
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {timeout_s:g} s")
        time.sleep(0.01)
    return value


def _stamps(space: Space) -> Iterator[tuple[float, int, float]]:
    """The kind, process and time of each task that ran."""
    try:
        data = Path(space.folder, "stamps").read_bytes()
    except FileNotFoundError:
        data = b""
    yield from STAMP.iter_unpack(data)


def read_stamps(space: Space, kind: float | None = None) -> list[float]:
    """When tasks ran, in order."""
    return sorted(at for found, _, at in _stamps(space) if kind in (None, found))


def first_stamps(space: Space) -> dict[int, float]:
    """When each process ran its first task."""
    first: dict[int, float] = {}
    for _, pid, at in _stamps(space):
        first[pid] = min(at, first.get(pid, at))
    return first


def count_stamps(space: Space) -> int:
    """How many tasks have run."""
    try:
        return os.path.getsize(f"{space.folder}/stamps") // STAMP.size
    except FileNotFoundError:
        return 0


def _on_cpu_ns(pid: int) -> int:
    """Nanoseconds all threads of a process have run; finer than the clock ticks of others."""
    total = 0
    for thread in Path(f"/proc/{pid}/task").iterdir():
        total += int((thread / "schedstat").read_text().split()[0])
    return total


def cpu_of_s(process: psutil.Process) -> float:
    """Seconds of CPU that a process has used."""
    try:
        return _on_cpu_ns(process.pid) / 1e9
    except (OSError, ValueError):  # no such file outside of Linux
        times = process.cpu_times()
        return float(times.user + times.system)


def cpu_of_tree_s(pid: int) -> float:
    """Seconds of CPU that a process and those it has started have used."""
    process = psutil.Process(pid)
    return sum(cpu_of_s(part) for part in (process, *process.children(recursive=True)))


class Workers:
    """The workers of one space; all are gone at the end, whatever happened."""

    def __init__(self, space: Space) -> None:
        self._space = space
        self._log = Path(space.folder, "workers.log")
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, *arguments: str, quiet: bool = True) -> subprocess.Popen[bytes]:
        """Start one; it may take a second or two until it consumes."""
        number = len(self.processes)
        command = [sys.executable, "-m", "celery", "-A", "tests.benchmarks.app", "worker"]
        command += ["-n", f"{self._space.name}-{number}@benchmark", "-l", "warning"]
        command += [*arguments, *(QUIET if quiet else ())]
        with open(self._log, "ab") as log:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment(self._space, PYTHONPATH=str(ROOT)),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.processes.append(process)
        return process

    def wait_for_stamps(self, count: int, at_most_s: float | None = None) -> None:
        """Wait until so many tasks have run, or, if ``at_most_s`` is given, until that is over.

        Raises:
            TimeoutError, ChildProcessError: with the end of the workers' log.
        """
        try:
            wait(
                lambda: count_stamps(self._space) >= count or self._ended(),
                f"{count} tasks",
                at_most_s or _TIMEOUT_S,
            )
        except TimeoutError as exc:
            if at_most_s is not None:
                return
            text = f"{exc}, {count_stamps(self._space)} have run; {self._tail()}"
            raise TimeoutError(text) from None

    def _ended(self) -> bool:
        for process in self.processes:
            if process.poll() is not None:
                raise ChildProcessError(f"a worker ended: {self._tail()}")
        return False

    def _tail(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")[-2000:]

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        # no farewell: with some brokers it takes ten seconds, and all they had is thrown away
        for process in self.processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # its own session: its children as well
            process.wait()
