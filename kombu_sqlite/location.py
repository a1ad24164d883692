"""Where a queue may live: decides before the file is opened, and says what to change."""

from __future__ import annotations

import os
import stat
import sys
from contextlib import suppress

from .errors import QueueDiskError, QueueLocationError

__all__ = (
    "Identity",
    "create_file",
    "default_path",
    "ensure_usable",
    "held_by_other_library",
    "open_side_file",
    "remember_used",
    "was_used",
)

#: File systems on which SQLite's write-ahead log corrupts: its index is shared memory, which
#: these do not share between machines (sqlite.org/wal.html), or does not lock reliably.
NETWORK_FILE_SYSTEMS = frozenset(
    {
        "9p",
        "afpfs",
        "afs",
        "ceph",
        "cifs",
        "fuse.glusterfs",
        "fuse.s3fs",
        "fuse.sshfs",
        "gfs2",
        "glusterfs",
        "lustre",
        "ncpfs",
        "nfs",
        "nfs4",
        "ocfs2",
        "smb2",
        "smb3",
        "smbfs",
        "virtiofs",
        "webdav",
    }
)

Identity = tuple[int, int]

#: Bytes: SQLite's 512 with ``-journal``, and a file system's 255 with ``-bell-16384``.
_LONGEST_PATH = 504
_LONGEST_NAME = 244


def default_path() -> str:
    """Return ``$KOMBU_SQLITE_PATH``, else ``kombu-sqlite/queue.db`` in the user's data folder."""
    chosen = os.environ.get("KOMBU_SQLITE_PATH")
    if chosen:
        return chosen
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or os.path.expanduser("~/AppData/Local")
    elif sys.platform == "darwin":
        base = os.path.expanduser("~/Library/Application Support")
    else:
        base = os.environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share")
    return os.path.join(base, "kombu-sqlite", "queue.db")


#: Where this process has had queues open: what keeps one from being used now can be mended.
_used: set[str] = set()


def remember_used(path: str) -> None:
    """Note that the queue at ``path``, an absolute one, could be opened."""
    _used.add(path)


def was_used(path: str) -> bool:
    """Return whether this process has had a queue open at ``path``."""
    try:
        return os.path.realpath(path) in _used
    except ValueError:
        return False  # no path at all


def ensure_usable(path: str) -> str:
    """Return the absolute path of a queue that can live at ``path``; make its folders.

    Raises:
        QueueLocationError: it cannot live there.
        QueueDiskError: it cannot any more, though this process has had it open.
    """
    try:
        return _ensure_usable(path)
    except QueueLocationError as exc:
        if was_used(path):
            reason = str(exc).rstrip(".")
            raise QueueDiskError(f"{reason}; it was in use before, so then try again.") from exc
        raise


def _ensure_usable(path: str) -> str:
    """Check that a queue can live at ``path``, make its folders, return the absolute path.

    Raises:
        QueueLocationError: a directory, a special file, no permission, a network file system.
    """
    if path == ":memory:" or path.startswith("file:"):
        raise QueueLocationError(
            "A queue needs a plain file path, not ':memory:' or a 'file:' URI; give a path."
        )
    path = _plain_text(path)
    folder = os.path.dirname(path)
    try:
        os.makedirs(folder, exist_ok=True)
        found = os.stat(path)
    except FileNotFoundError:
        found = None
    except OSError as exc:
        raise QueueLocationError(
            f"The folder {folder!r} cannot be used ({exc.strerror}); choose another path."
        ) from exc
    if found is not None:
        if stat.S_ISDIR(found.st_mode):
            raise QueueLocationError(f"{path!r} is a directory; name a file inside it.")
        if not stat.S_ISREG(found.st_mode):
            raise QueueLocationError(f"{path!r} is not a plain file; choose another path.")
        if not os.access(path, os.R_OK | os.W_OK):
            raise QueueLocationError(
                f"No permission to read and write {path!r}; change its owner or mode "
                "(its folder must be writable too)."
            )
    if not os.access(folder, os.W_OK | os.X_OK):
        raise QueueLocationError(
            f"No permission to write in {folder!r}, where SQLite keeps files beside the queue; "
            "change its mode or choose another folder."
        )
    kind = file_system_of(folder)
    if kind in NETWORK_FILE_SYSTEMS:
        raise QueueLocationError(
            f"{path!r} lies on a network file system ({kind}), where SQLite loses data; "
            "choose a local disk."
        )
    return path


def _plain_text(path: str) -> str:
    """Return the absolute path, if it is one that SQLite and the files beside it can have.

    SQLite takes it as UTF-8, which ends at a NUL.
    """
    try:
        path = os.path.realpath(path)
        size, name_size = len(path.encode("utf-8")), len(os.path.basename(path).encode("utf-8"))
    except ValueError as exc:
        raise QueueLocationError(
            f"The path {path!r} is not valid text ({exc}); choose another one."
        ) from exc
    if size > _LONGEST_PATH or name_size > _LONGEST_NAME:
        raise QueueLocationError(
            f"The path {path!r} is too long for SQLite and the files beside it; choose one of at "
            f"most {_LONGEST_PATH} bytes whose last part has at most {_LONGEST_NAME}."
        )
    return path


def file_system_of(folder: str) -> str | None:
    """Return the type of the file system ``folder`` lies on; None where it cannot be told."""
    try:
        device = os.stat(folder).st_dev
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as lines:
            mounts = [line.split() for line in lines]
    except OSError:
        return None
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for parts in reversed(mounts):
        if parts[2] == wanted:
            with suppress(ValueError, IndexError):
                return parts[parts.index("-") + 1]
    return None


def create_file(path: str, mode: int) -> None:
    """Create an empty file with ``mode`` unless it exists.

    The descriptor is closed again at once. That is safe only because O_EXCL proves the file to be
    new: closing a descriptor of a file this process has open through SQLite drops its locks.
    """
    if os.path.exists(path):
        return
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, mode)
    except FileExistsError:
        return
    except OSError as exc:
        raise QueueLocationError(
            f"{path!r} cannot be created ({exc.strerror}); choose another path."
        ) from exc
    try:
        os.fchmod(descriptor, mode)
    finally:
        os.close(descriptor)


def open_side_file(path: str, mode: int) -> int:
    """Return a descriptor of a file beside the queue, making it with exactly ``mode`` if new.

    Raises:
        QueueDiskError: it cannot be opened.
    """
    flags = os.O_RDWR | os.O_CLOEXEC
    try:
        with suppress(FileExistsError):
            descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL, mode)
            os.fchmod(descriptor, mode)  # the umask may have taken the group's bits
            return descriptor
        return os.open(path, flags)
    except OSError as exc:
        raise QueueDiskError(
            f"{path!r} cannot be opened ({exc.strerror}); mend that, then try again."
        ) from exc


def identity(path: str) -> Identity | None:
    """Return which file ``path`` is (device, inode); None when there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def held_by_other_library(path: str) -> bool:
    """Return whether this process has ``path`` open although we have not opened it.

    Two SQLite libraries in one process must not open one file: POSIX drops all of a process's
    locks on a file when any of its descriptors is closed (sqlite.org/howtocorrupt.html, 2.2).
    """
    wanted = identity(path)
    try:
        descriptors = os.listdir("/proc/self/fd")
    except OSError:
        return False
    return wanted is not None and any(
        identity(f"/proc/self/fd/{descriptor}") == wanted for descriptor in descriptors
    )
