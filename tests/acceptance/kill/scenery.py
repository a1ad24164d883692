"""Starts the processes of the harness, sends them signals, and starts again what has ended."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[3]
#: Short, so that a stop can last longer; the stop is longer by what a judge grants on top.
VISIBILITY_S = 2.0
STOP_S = (3.8, 5.0)
#: More than any stop: a process stopped inside a transaction keeps all writers out.
OPTIONS = f"?visibility_timeout={VISIBILITY_S:g}&busy_timeout=20&max_attempts=1000"
#: A warm shutdown takes as long as the longest task, and the wait for the write lock.
_END_WITHIN_S = 60.0
#: So soon after a stop the log is short again.
_RECOVERS_WITHIN_S = 5.0
#: A process asked to end sooner may not have come to the point where it handles that.
_HANDLES_AFTER_S = 20.0

ROLE = [sys.executable, "-m", "tests.acceptance.kill.roles"]
CELERY = [sys.executable, "-m", "celery", "-A", "tests.acceptance.kill.app"]
CONCURRENCY = 2
#: Mostly the default one.
POOLS = ("prefork", "prefork", "prefork", "threads", "solo")


@dataclass
class Life:
    """One process from its start to its end, and the signals it was sent."""

    name: str
    process: subprocess.Popen[bytes]
    signals: Counter[str] = field(default_factory=Counter)
    started_at: float = field(default_factory=time.monotonic)
    continue_at: float | None = None
    ending_since: float | None = None

    @property
    def is_stopped(self) -> bool:
        """Whether it was stopped and is to continue."""
        return self.continue_at is not None

    @property
    def is_ending(self) -> bool:
        """Whether it was asked to end."""
        return self.ending_since is not None

    def signal_group(self, number: int) -> None:
        """Send a signal to the process and its children; whoever is gone is gone."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)


@dataclass
class Place:
    """A part in the play, taken by one life after the other."""

    name: str
    role: str
    life: Life | None = None
    lives: list[Life] = field(default_factory=list)
    start_at: float = 0.0
    closed: bool = False


#: What is hit how, and how often in proportion: (role, way).
WAYS = {
    ("consume", "KILL"): 8,
    ("produce", "KILL"): 5,
    ("call", "KILL"): 2,
    ("work", "KILL"): 4,
    ("work", "KILL main"): 3,
    ("work", "KILL child"): 4,
    ("beat", "KILL"): 1,
    ("read", "KILL"): 1,
    ("cancel", "KILL"): 1,
    ("consume", "TERM"): 2,
    ("produce", "TERM"): 1,
    ("work", "TERM"): 2,
    ("consume", "STOP"): 4,
    ("produce", "STOP"): 1,
    ("work", "STOP"): 3,
    ("read", "STOP"): 1,
}


class Scenery:
    """All processes on one file.

    Arguments:
        folder: for the file, ledgers and logs.
        seed: of every random choice.
        cast: how many places each role has.
    """

    def __init__(self, folder: str, seed: int, cast: dict[str, int]) -> None:
        self.folder = folder
        self.seed = seed
        self.path = f"{folder}/queue.db"
        self.ledgers = f"{folder}/ledgers"
        self.url = f"sqlite:///{self.path}{OPTIONS}"
        self.random = random.Random(seed)  # noqa: S311 - chance, no secret
        self.sent: Counter[str] = Counter()
        self.faults: list[str] = []
        self.largest_log = 0
        #: While nobody was stopped.
        self.largest_quiet_log = 0
        self._quiet_from = 0.0
        os.mkdir(self.ledgers)
        self.places = [
            Place(f"{role}{number}", role) for role in cast for number in range(cast[role])
        ]

    # -- starting ------------------------------------------------------------------------------

    def _arguments(self, place: Place, name: str) -> list[str]:
        if place.role == "work":
            pool = self.random.choice(POOLS)
            options = ["-n", f"{name}@kill", "-P", pool, "-c", str(CONCURRENCY), "-l", "warning"]
            return [*CELERY, "worker", *options]
        if place.role == "beat":
            schedule = f"{self.folder}/{name}.schedule"
            return [*CELERY, "beat", "-s", schedule, "--pidfile=", "--max-interval", "1"]
        return [*ROLE, place.role]

    def _start(self, place: Place) -> None:
        name = f"{place.name}-{len(place.lives)}"
        with open(f"{self.folder}/{name}.out", "ab") as output:
            process = subprocess.Popen(
                self._arguments(place, name),
                env={
                    **os.environ,
                    "KILL_URL": self.url,
                    "KILL_LEDGERS": self.ledgers,
                    "KILL_NAME": name,
                    "KILL_SEED": str(self.seed),
                    "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)]),
                    "PYTHONWARNINGS": "ignore",
                },
                cwd=self.folder,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        place.life = Life(name, process)
        place.lives.append(place.life)

    @property
    def lives(self) -> dict[str, Life]:
        """Every process there ever was, by its name."""
        return {life.name: life for place in self.places for life in place.lives}

    # -- time goes on --------------------------------------------------------------------------

    def turn(self) -> None:
        """Continue what was stopped for long enough, start what is missing, look at the log."""
        now = time.monotonic()
        for place in self.places:
            life = place.life
            if life is None:
                if not place.closed and now >= place.start_at:
                    self._start(place)
                continue
            if life.continue_at is not None and now >= life.continue_at:
                life.continue_at = None
                life.signal_group(signal.SIGCONT)
            if life.process.poll() is not None:
                self._judge_end(life)
                place.life = None
                place.start_at = now + self.random.random() * 0.5
            elif life.ending_since is not None and now > life.ending_since + _END_WITHIN_S:
                self.faults.append(f"{life.name} did not end within {_END_WITHIN_S:g} s")
                life.signal_group(signal.SIGKILL)
                life.ending_since = None
                life.signals["KILL"] += 1
        self._measure_log(now)

    def _measure_log(self, now: float) -> None:
        """Measure the log; who is stopped may be a reader, or in the middle of a checkpoint."""
        if any(place.life is not None and place.life.is_stopped for place in self.places):
            self._quiet_from = now + _RECOVERS_WITHIN_S
        with suppress(FileNotFoundError):
            size = os.path.getsize(self.path + "-wal")
            self.largest_log = max(self.largest_log, size)
            if now > self._quiet_from:
                self.largest_quiet_log = max(self.largest_quiet_log, size)

    def _judge_end(self, life: Life) -> None:
        expected = {0} if life.ending_since is not None else set()
        if life.ending_since is not None and life.ending_since < life.started_at + _HANDLES_AFTER_S:
            expected.add(-signal.SIGTERM)
        if life.signals["KILL"] or life.signals["KILL main"]:
            expected.add(-signal.SIGKILL)
        if life.signals["KILL child"] and time.monotonic() < life.started_at + _HANDLES_AFTER_S:
            expected.add(1)  # Celery's pool gives up when a process dies while it starts
        if life.process.returncode not in expected:
            self.faults.append(f"{life.name} ended by itself with {life.process.returncode}")

    def wait(self, condition: Callable[[], Any], within_s: float) -> bool:
        """Let time go on until a condition holds; return False where it does not in time."""
        deadline = time.monotonic() + within_s
        while not condition():
            if time.monotonic() > deadline:
                return False
            self.turn()
            time.sleep(0.01)
        return True

    # -- signals -------------------------------------------------------------------------------

    def strike(self) -> str | None:
        """Send one signal to one process, both at random; return how, or None if none was fit."""
        (role, way), *_ = self.random.choices(list(WAYS), list(WAYS.values()))
        lives = [
            place.life
            for place in self.places
            if place.role == role and place.life is not None and not place.life.is_stopped
            if not place.life.is_ending or way.startswith("KILL")
        ]
        if not lives:
            return None
        life = self.random.choice(lives)
        if way == "KILL child":
            if not self._kill_child(life):
                return None
        elif way == "KILL main":
            life.process.kill()
        elif way == "KILL":
            life.signal_group(signal.SIGKILL)
        elif way == "TERM":
            self.end(life)
        else:
            life.signal_group(signal.SIGSTOP)
            life.continue_at = time.monotonic() + self.random.uniform(*STOP_S)
        life.signals[way] += 1
        self.sent[way.split()[0]] += 1
        return way

    def _kill_child(self, life: Life) -> bool:
        try:
            children = psutil.Process(life.process.pid).children()
            self.random.choice(children).kill()
        except (psutil.NoSuchProcess, IndexError):
            return False
        return True

    def end(self, life: Life) -> None:
        """Ask a process to end in good order."""
        life.process.terminate()
        life.ending_since = time.monotonic()

    # -- the end -------------------------------------------------------------------------------

    def close(self, *roles: str) -> None:
        """Let some roles end in good order and not start again; what cannot is killed."""
        for place in self.places:
            if place.role in roles:
                place.closed = True
        self.wait(lambda: not self._ask(roles), 2 * _END_WITHIN_S)

    def _ask(self, roles: tuple[str, ...]) -> list[Life]:
        left = [place.life for place in self.places if place.role in roles and place.life]
        for life in left:
            if not life.is_ending and not life.is_stopped:
                self.end(life)
        return left

    def kill_all(self) -> int:
        """Leave nothing behind; return how many processes outlived their parents."""
        for place in self.places:
            if place.life is not None:
                place.life.signal_group(signal.SIGCONT)
                place.life.signal_group(signal.SIGKILL)
                place.life.process.wait(30)
        orphans = [process for process in psutil.process_iter() if self._is_ours(process)]
        for process in orphans:
            process.kill()
        return len(orphans)

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            return process.environ().get("KILL_LEDGERS") == self.ledgers
        except psutil.Error:
            return False
