"""What a process notes while it lives, readable after it was killed at any moment."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


class Ledger:
    """The notes of one process: a file of its own, one ``write`` a line.

    A process killed inside ``write`` leaves at most its last line incomplete, without a line end;
    ``read_lines`` leaves that out.

    Arguments:
        folder: where all ledgers lie.
        name: of the process, unique among all that are ever started.
    """

    def __init__(self, folder: str, name: str) -> None:
        self._path = f"{folder}/{name}.{os.getpid()}"
        self._fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._pid = os.getpid()

    @property
    def is_mine(self) -> bool:
        """Whether it is of this process and not of the one that forked it."""
        return self._pid == os.getpid()

    def note(self, *words: object) -> None:
        """Note one line."""
        os.write(self._fd, (" ".join(map(str, words)) + "\n").encode())


def read_lines(folder: str) -> Iterator[tuple[str, list[str]]]:
    """Yield every complete line of all ledgers with the name of the process that noted it."""
    for path in sorted(Path(folder).iterdir()):
        text = path.read_text(encoding="utf-8")
        for line in text[: text.rfind("\n") + 1].splitlines():
            yield path.name.rpartition(".")[0], line.split()
