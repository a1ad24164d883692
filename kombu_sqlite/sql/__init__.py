"""Every SQL statement of the package, by name, read from the ``.sql`` files beside this one.

A statement stands under a line ``-- name: verb_noun`` and a line that states its purpose.
Migrations stand in ``migrations/``, numbered, append-only.
"""

from __future__ import annotations

import functools
from importlib import resources

__all__ = ("load_statements", "migrations", "statement")

_MARK = "-- name: "


def load_statements(text: str, known: dict[str, str], source: str) -> None:
    """Add the statements of one file to ``known``.

    Raises:
        ValueError: a name occurs twice, or a statement has no purpose line.
    """
    for block in text.split(_MARK)[1:]:
        name, _, body = block.partition("\n")
        name = name.strip()
        if name in known:
            raise ValueError(f"{source}: statement {name!r} is defined twice.")
        purpose, _, sql = body.partition("\n")
        if not purpose.startswith("-- "):
            raise ValueError(f"{source}: statement {name!r} has no purpose line.")
        known[name] = sql.strip().rstrip(";")


def _load_all() -> dict[str, str]:
    known: dict[str, str] = {}
    for entry in sorted(resources.files(__name__).iterdir(), key=lambda item: item.name):
        if entry.name.endswith(".sql"):
            load_statements(entry.read_text(encoding="utf-8"), known, entry.name)
    return known


_STATEMENTS = _load_all()


def statement(name: str) -> str:
    """Return the statement called ``name``; KeyError when there is none."""
    return _STATEMENTS[name]


@functools.cache  # a process may give up the right to read them before it opens its next file
def migrations() -> list[tuple[int, str, str]]:
    """Return ``(version, name, script)`` of every migration, in order."""
    found = []
    for entry in (resources.files(__name__) / "migrations").iterdir():
        if entry.name.endswith(".sql"):
            number, _, name = entry.name.removesuffix(".sql").partition("_")
            found.append((int(number), name, entry.read_text(encoding="utf-8")))
    return sorted(found)
