"""A file system that fails when it is told to: it raises, for chosen operations on chosen files.

A fault is written ``operation file code``, as in ``write -wal IOERR_WRITE``: the operation is one
of open, read, write, truncate, sync and lock, the file the end of its name after the database's
(``db`` for that one itself), the code one of SQLite's. A read may also be ``SHORT``: it finds
nothing, as behind the end of a file that was cut off.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import apsw


class Fault(NamedTuple):
    """What is to fail, and with which of SQLite's codes."""

    operation: str
    file: str
    code: str


class Faults(apsw.VFS):
    """Fails what is asked for, and counts it; everything else reaches the disk.

    While it is entered SQLite opens files through it.

    Arguments:
        switch: a file that says what fails as long as it exists; None leaves it to ``begin``.
    """

    def __init__(self, switch: str | None = None) -> None:
        self._switch = switch
        self._faults: tuple[Fault, ...] = ()
        self._left: int | None = None
        self.met = 0
        super().__init__("faulty", "unix")

    def __enter__(self) -> Faults:
        apsw.set_default_vfs("faulty")
        return self

    def __exit__(self, *_: Any) -> None:
        self.end()
        apsw.set_default_vfs("unix")
        self.unregister()

    def begin(self, *faults: str, times: int | None = None) -> None:
        """Let operations fail from now on, so many times or until ``end``."""
        self.met = 0
        self._left = times
        self._faults = _parse(faults)

    def end(self) -> None:
        """Let everything succeed again."""
        self._faults = ()

    def code_for(self, operation: str, file: str) -> str | None:
        """Return with which code an operation fails; None when it does not."""
        faults = self._faults
        if self._switch is not None:
            with suppress(FileNotFoundError):
                faults = _parse(Path(self._switch).read_text(encoding="ascii").split(","))
        for fault in faults:
            if fault[:2] == (operation, file) and self._left != 0:
                self.met += 1
                self._left = None if self._left is None else self._left - 1
                return fault.code
        return None

    def check(self, operation: str, file: str) -> None:
        """Raise when an operation is to fail."""
        code = self.code_for(operation, file)
        if code is not None:
            raise _error(code)

    def xOpen(self, name: Any, flags: list[int]) -> apsw.VFSFile:  # noqa: N802 - SQLite's name
        """Open a file that fails with this file system."""
        text = name.filename() if isinstance(name, apsw.URIFilename) else name
        base, dash, suffix = os.path.basename(text or "-temporary").rpartition("-")
        file = "-" + suffix if dash and base else "db"
        self.check("open", file)
        return _FaultyFile(self, file, name, flags)


def _parse(faults: Any) -> tuple[Fault, ...]:
    return tuple(Fault(*fault.split()) for fault in faults)


def _error(code: str) -> Exception:
    error: Exception = apsw.exception_for(getattr(apsw, f"SQLITE_{code}"))
    error.args = (f"{code}, injected",)
    return error


class _FaultyFile(apsw.VFSFile):
    def __init__(self, faults: Faults, file: str, name: Any, flags: list[int]) -> None:
        self._faults = faults
        self._file = file
        super().__init__("unix", name, flags)

    def xRead(self, amount: int, offset: int) -> bytes:  # noqa: N802 - SQLite's name
        code = self._faults.code_for("read", self._file)
        if code == "SHORT":
            return b""
        if code is not None:
            raise _error(code)
        return super().xRead(amount, offset)

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802 - SQLite's name
        self._faults.check("write", self._file)
        super().xWrite(data, offset)

    def xTruncate(self, newsize: int) -> None:  # noqa: N802 - SQLite's name
        self._faults.check("truncate", self._file)
        super().xTruncate(newsize)

    def xSync(self, flags: int) -> None:  # noqa: N802 - SQLite's name
        self._faults.check("sync", self._file)
        super().xSync(flags)

    def xLock(self, level: int) -> None:  # noqa: N802 - SQLite's name
        self._faults.check("lock", self._file)
        super().xLock(level)
