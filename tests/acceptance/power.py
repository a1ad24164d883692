"""A file system of which only the synced part survives: it records what SQLite writes and syncs.

Images as a power cut may leave them are built from the record: what a sync has covered is there;
of the rest any part may be, down to single sectors.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, NamedTuple

import apsw

_SECTOR = 512


class Write(NamedTuple):
    """Bytes on their way to a file; ``data`` None cuts the file off at ``offset``."""

    file: str
    offset: int
    data: bytes | None


class Sync(NamedTuple):
    """A sync that has returned; it covers what was recorded before it began."""

    file: str
    covers: int


class Delete(NamedTuple):
    """A file deleted; the directory was not synced after it."""

    file: str


class Mark(NamedTuple):
    """Something that the application was told."""

    what: str
    id: int


Event = Write | Sync | Delete | Mark


class Record(apsw.VFS):
    """All that happens to the files of one folder, in order.

    While it is entered SQLite opens files through it.
    """

    def __init__(self) -> None:
        self.events: list[Event] = []
        super().__init__("recorded", "unix")

    def __enter__(self) -> Record:
        apsw.set_default_vfs("recorded")
        return self

    def __exit__(self, *_: Any) -> None:
        apsw.set_default_vfs("unix")
        self.unregister()

    def mark(self, what: str, id: int) -> None:
        """Note what the application was told, between the writes and syncs."""
        self.events.append(Mark(what, id))

    def xOpen(self, name: Any, flags: list[int]) -> apsw.VFSFile:  # noqa: N802 - SQLite's name
        """Open a file that records."""
        return _RecordedFile(self.events, name, flags)

    def xDelete(self, filename: str, syncdir: bool) -> None:  # noqa: N802 - SQLite's name
        """Delete a file."""
        super().xDelete(filename, syncdir)
        self.events.append(Delete(Path(filename).name))


class _RecordedFile(apsw.VFSFile):
    def __init__(self, events: list[Event], name: Any, flags: list[int]) -> None:
        text = name.filename() if isinstance(name, apsw.URIFilename) else name
        self._name = Path(text or "temporary").name
        self._events = events
        super().__init__("unix", name, flags)

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802 - SQLite's name
        super().xWrite(data, offset)
        self._events.append(Write(self._name, offset, bytes(data)))

    def xTruncate(self, newsize: int) -> None:  # noqa: N802 - SQLite's name
        super().xTruncate(newsize)
        self._events.append(Write(self._name, newsize, None))

    def xSync(self, flags: int) -> None:  # noqa: N802 - SQLite's name
        covers = len(self._events)
        super().xSync(flags)
        self._events.append(Sync(self._name, covers))


def survivors(events: list[Event], file: str) -> int:
    """Return up to which event everything written to ``file`` has been synced."""
    syncs = [event.covers for event in events if isinstance(event, Sync) and event.file == file]
    return max(syncs, default=0)


def _directory_survivors(events: list[Event]) -> int:
    """Return up to which event every deletion is final.

    The first sync of a new journal or log syncs the directory as well (``UNIXFILE_DIRSYNC`` in
    SQLite's os_unix.c).
    """
    covers = 0
    known: set[str] = set()
    for event in events:
        if isinstance(event, Delete):
            known.discard(event.file)
        elif isinstance(event, Sync) and "-" in event.file and event.file not in known:
            known.add(event.file)
            covers = event.covers
    return covers


def build_image(events: list[Event], folder: Path, chance: random.Random) -> None:
    """Write the files as a power cut after the last of ``events`` may leave them.

    Of what no sync has covered, nothing, everything or any part is there, as ``chance`` has it.
    """
    covered = {
        event.file: survivors(events, event.file) for event in events if isinstance(event, Sync)
    }
    final = _directory_survivors(events)
    kept = chance.choice([0.0, 0.5, 0.9, 1.0])
    files: dict[str, bytearray] = {}
    for number, event in enumerate(events):
        if isinstance(event, Write):
            safe = number < covered.get(event.file, 0)
            _apply(files.setdefault(event.file, bytearray()), event, 1.0 if safe else kept, chance)
        elif isinstance(event, Delete) and (number < final or chance.random() < kept):
            files.pop(event.file, None)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def _apply(content: bytearray, write: Write, kept: float, chance: random.Random) -> None:
    if write.data is None:
        if chance.random() < kept:
            del content[write.offset :]
        return
    end = write.offset + len(write.data)
    whole = chance.random() < 0.5  # or sector by sector
    everything = chance.random() < kept
    for begin in range(write.offset, end, _SECTOR):
        if everything if whole else chance.random() < kept:
            stop = min(begin + _SECTOR, end)
            if len(content) < stop:
                content.extend(bytes(stop - len(content)))
            content[begin:stop] = write.data[begin - write.offset : stop - write.offset]
