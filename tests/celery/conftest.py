"""Real workers on a file of their own, always gone at the end of a test."""

from __future__ import annotations

import importlib
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import redis

import kombu_sqlite
from kombu_sqlite import QueueDatabase

HERE = Path(__file__).parent
#: Where the packages under test lie; what is installed every process finds by itself.
PACKAGES = Path(kombu_sqlite.__file__).parents[1]
SEARCH = [str(HERE)] if "site-packages" in PACKAGES.parts else [str(HERE), str(PACKAGES)]

#: What ended a duty of a worker's upkeep, which is logged and tried again: nothing else would tell.
FAILED_DUTY = re.compile(r"Upkeep of .*?^([A-Za-z_][\w.]*(?:Error|Exception|Lost))\b", re.S | re.M)


class Lab:
    """A broker file, a ledger, and the processes on them."""

    def __init__(self, folder: Path, query: str = "", module: str = "app") -> None:
        self.folder = folder
        self.module = module
        self.path = str(folder / "queue.db")
        self.ledger = folder / "ledger"
        self.url = f"sqlite:///{self.path}{query}"
        self.environment = {
            **os.environ,
            "TEST_BROKER": self.url,
            "TEST_LEDGER": str(self.ledger),
            "PYTHONPATH": os.pathsep.join(SEARCH),
            "PYTHONWARNINGS": "ignore",
        }
        self._before = {name: os.environ.get(name) for name in ("TEST_BROKER", "TEST_LEDGER")}
        self.processes: list[subprocess.Popen[str]] = []
        self.database = QueueDatabase(self.path)
        os.environ.update(TEST_BROKER=self.url, TEST_LEDGER=str(self.ledger))
        sys.path.insert(0, str(HERE))
        for name in ("app", module):
            sys.modules.pop(name, None)
        self.tasks = importlib.import_module(module)
        self.app = self.tasks.app

    def celery(self, *arguments: str, log: str = "celery.log") -> subprocess.Popen[str]:
        """Start a ``celery`` command."""
        output = open(self.folder / log, "a", encoding="utf-8")  # noqa: SIM115 - the process's
        process = subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", self.module, *arguments],
            env=self.environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=self.folder,
            start_new_session=True,
        )
        output.close()
        self.processes.append(process)
        return process

    def run(self, *arguments: str) -> str:
        """Run a ``celery`` command to its good end; return what it prints."""
        done = subprocess.run(
            [sys.executable, "-m", "celery", "-A", self.module, *arguments],
            env=self.environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def script(self, source: str, *arguments: str) -> subprocess.Popen[str]:
        """Start another program, which finds the app and the packages, but has loaded nothing."""
        process = subprocess.Popen(
            [sys.executable, "-c", source, *arguments],
            env=self.environment,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.processes.append(process)
        return process

    def worker(self, *arguments: str, name: str = "w1") -> subprocess.Popen[str]:
        """Start a worker and wait until it consumes, tasks as well as commands."""
        process = self.celery(
            "worker",
            "-n",
            f"{name}@test",
            "-l",
            "info",
            *(arguments or ("-c", "2")),
            log=f"{name}.log",
        )
        self.wait(lambda: self.consumes(process) or self.ended(process, name), 30)
        return process

    def consumes(self, process: subprocess.Popen[str]) -> bool:
        """Whether a worker has registered all its consumers; that of its mailbox comes last."""
        mailboxes = self.database.execute(
            "SELECT worker_id FROM consumers WHERE queue LIKE '%.celery.pidbox'"
        )
        return any(f":{process.pid}:" in worker_id for (worker_id,) in mailboxes)

    def ended(self, process: subprocess.Popen[str], name: str) -> bool:
        """Fail with a worker's log if it has ended."""
        if process.poll() is not None:
            pytest.fail((self.folder / f"{name}.log").read_text(encoding="utf-8")[-3000:])
        return False

    def consumers(self) -> list[Any]:
        """The registered consumers of the default queue."""
        return self.database.execute("SELECT bell, worker_id FROM consumers WHERE queue = 'celery'")

    def lines(self) -> list[str]:
        """What the tasks have written."""
        try:
            return self.ledger.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return []

    def forget_lines(self) -> None:
        """Begin a new ledger."""
        self.ledger.unlink(missing_ok=True)

    def log(self, name: str = "w1") -> str:
        """What a worker has logged."""
        return (self.folder / f"{name}.log").read_text(encoding="utf-8")

    def wait(self, condition: Callable[[], Any], timeout_s: float = 30.0) -> Any:
        """Wait until a condition holds, and return its value."""
        deadline = time.monotonic() + timeout_s
        while not (value := condition()):
            if time.monotonic() > deadline:
                logs = "\n".join(p.read_text()[-1500:] for p in self.folder.glob("*.log"))
                pytest.fail(f"not so within {timeout_s:g} s\n{self.database.stats()}\n{logs}")
            time.sleep(0.02)
        return value

    def stop(self, process: subprocess.Popen[str]) -> int:
        """Ask a process to stop, and wait for it."""
        process.send_signal(signal.SIGTERM)
        return process.wait(60)

    def end(self) -> None:
        """Let what still runs end in good order, if it does so soon."""
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(10)

    def close(self) -> None:
        """Kill everything."""
        for process in self.processes:
            try:
                os.killpg(process.pid, signal.SIGCONT)
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            process.wait(10)
            if process.stdout is not None:
                process.stdout.close()
        self.app.close()
        self.database.close()
        sys.path.remove(str(HERE))
        for name, value in self._before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        for log in self.folder.glob("*.log"):
            errors = FAILED_DUTY.findall(log.read_text(encoding="utf-8"))
            assert all(name.startswith("kombu_sqlite.errors.") for name in errors), (log, errors)


@pytest.fixture
def make_lab(tmp_path: Path) -> Iterator[Callable[..., Lab]]:
    """Make a lab whose URL has options."""
    made: list[Lab] = []

    def make(query: str = "", module: str = "app") -> Lab:
        made.append(Lab(tmp_path, query, module))
        return made[-1]

    yield make
    for lab in reversed(made):
        lab.close()


@pytest.fixture(scope="module")
def make_station(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Lab]]:
    """Make a lab with a worker that the tests of one module share."""
    made: list[Lab] = []

    def make(module: str, *arguments: str) -> Lab:
        made.append(Lab(tmp_path_factory.mktemp("station"), module=module))
        made[-1].worker(*arguments)
        return made[-1]

    yield make
    for lab in reversed(made):
        lab.end()  # a worker shared by many tests leaves what coverage has seen
        lab.close()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A lab whose app keeps results in the file, with a prefork worker of two processes."""
    lab = Lab(tmp_path_factory.mktemp("home"), "?max_attempts=3", "living")
    try:
        lab.worker("-c", "2")
        yield lab
        lab.end()
    finally:
        lab.close()


@pytest.fixture
def house(make_lab: Callable[..., Lab]) -> Lab:
    """A lab whose app keeps results in the file, without a worker."""
    return make_lab(module="living")


@pytest.fixture(scope="module")
def station(make_station: Callable[..., Lab]) -> Lab:
    """A lab that the tests of one module share, with a prefork worker of two processes."""
    return make_station("app", "-c", "2")


@pytest.fixture
def lab(make_lab: Callable[..., Lab]) -> Lab:
    """A lab with the default options."""
    return make_lab()


@pytest.fixture
def redis_url() -> str:
    """A database of the local Redis, for keys that begin with ``redis_prefix``."""
    return "redis://127.0.0.1:6379/11"


@pytest.fixture
def redis_prefix(redis_url: str) -> Iterator[str]:
    """What the keys of one test begin with; they are gone at its end."""
    server = redis.Redis.from_url(redis_url, socket_connect_timeout=1)
    try:
        server.ping()
    except redis.ConnectionError:
        server.close()
        pytest.skip(f"no Redis at {redis_url}")
    prefix = f"kombu-sqlite-test-{uuid.uuid4().hex}:"
    yield prefix
    if keys := server.keys(f"*{prefix}*"):
        server.delete(*keys)
    server.close()
