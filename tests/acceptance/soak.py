"""Four producers and four consumers on one file, each a process: nothing lost, nothing twice.

``python -m tests.acceptance.soak --minutes 10`` prints a summary and ends with 1 if a message was
lost or came twice, if anybody saw a locked file, or if the log outgrew its bound.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kombu import Connection, Consumer, Queue

import kombu_sqlite

#: The bound the documents give for the write-ahead log.
LOG_LIMIT = 64 * 2**20
QUEUES = [Queue(name, routing_key=name) for name in ("one", "two")]
_IDLE_S = 3.0


def capture(folder: str, name: str) -> None:
    """Send all this process prints, log lines and tracebacks included, into a file."""
    output = os.open(f"{folder}/{name}.out", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    logging.basicConfig(level=logging.INFO)


def produce(url: str, folder: str, number: int, seconds: float) -> None:
    """Publish until the time is up; note each id once its publish has returned."""
    capture(folder, f"producer-{number}")
    end = time.monotonic() + seconds
    with Connection(url) as connection, open(f"{folder}/sent-{number}", "w") as ledger:
        producer = connection.Producer()
        count = 0
        while time.monotonic() < end:
            identity = f"{number}-{count}"
            producer.publish(
                {"id": identity, "pad": "x" * (count % 50) * 20},
                routing_key=QUEUES[count % 2].name,
                priority=count % 3,
            )
            ledger.write(identity + "\n")
            count += 1
            if count % 50 == 0:
                time.sleep(0.02)  # keeps the backlog small, so that consumers also sleep and wake


def consume(url: str, folder: str, number: int, done: Any) -> None:
    """Note each id, then acknowledge it, until nothing has come for a while after the end."""
    capture(folder, f"consumer-{number}")
    with Connection(url) as connection, open(f"{folder}/got-{number}", "w") as ledger:

        def note(body: Any, message: Any) -> None:
            ledger.write(body["id"] + "\n")
            message.ack()

        with Consumer(connection, QUEUES, callbacks=[note]) as consumer:
            consumer.qos(prefetch_count=10 * number)  # the first one has no bound
            quiet_since = time.monotonic()
            while not (done.is_set() and time.monotonic() - quiet_since > _IDLE_S):
                try:
                    connection.drain_events(timeout=0.5)
                    quiet_since = time.monotonic()
                except TimeoutError:
                    pass


@dataclass
class Summary:
    """What a run came to."""

    seconds: float
    sent: int
    got: int
    lost: int
    twice: int
    crashed: int
    largest_log: int
    sound: bool
    #: What the processes printed; nothing is expected, tracebacks and locked files least of all.
    output: str

    @property
    def good(self) -> bool:
        """Whether every promise held."""
        faults = (self.lost, self.twice, self.crashed, "locked" in self.output)
        return faults == (0, 0, 0, False) and self.sound and self.largest_log <= LOG_LIMIT

    def __str__(self) -> str:
        return (
            f"{self.seconds:.0f} s: {self.sent} sent, {self.got} received, {self.lost} lost, "
            f"{self.twice} twice, {self.crashed} processes failed, log at most "
            f"{self.largest_log / 2**20:.1f} MiB, integrity {'ok' if self.sound else 'BROKEN'}, "
            f"{self.output.count(chr(10))} lines printed\n{self.output[-2000:]}"
        )


def read(folder: str, pattern: str) -> list[str]:
    """All ids of the ledgers."""
    return [line for path in Path(folder).glob(pattern) for line in path.read_text().split()]


def run(seconds: float, folder: str) -> Summary:
    """Load one file for a while and compare the ledgers."""
    url = f"sqlite:///{folder}/queue.db?busy_timeout=30"
    spawn = multiprocessing.get_context("spawn")
    done = spawn.Event()
    consumers = [spawn.Process(target=consume, args=(url, folder, n, done)) for n in range(4)]
    producers = [spawn.Process(target=produce, args=(url, folder, n, seconds)) for n in range(4)]
    for process in (*consumers, *producers):
        process.start()
    largest = 0
    while any(process.is_alive() for process in producers):
        time.sleep(0.2)
        with suppress(FileNotFoundError):
            largest = max(largest, os.path.getsize(f"{folder}/queue.db-wal"))
    done.set()
    for process in (*producers, *consumers):
        process.join(120)
    crashed = sum(process.exitcode != 0 for process in (*producers, *consumers))
    sent, got = read(folder, "sent-*"), read(folder, "got-*")
    with kombu_sqlite.QueueDatabase(f"{folder}/queue.db") as database:
        sound = database.execute("PRAGMA integrity_check")[0][0] == "ok"
        stats = database.stats()
    sound = sound and stats.completed_tasks == stats.total_tasks == len(sent)
    return Summary(
        seconds,
        len(sent),
        len(got),
        len(set(sent) - set(got)),
        len(got) - len(set(got)),
        crashed,
        largest,
        sound,
        "".join(path.read_text() for path in sorted(Path(folder).glob("*.out"))),
    )


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        summary = run(arguments.minutes * 60, folder)
    sys.stdout.write(f"{summary}\n")
    return 0 if summary.good else 1


if __name__ == "__main__":
    sys.exit(main())
