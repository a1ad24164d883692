"""The tables of options, made from the options themselves.

``python -m tests.docs.options_table`` writes them: all into ``docs/options.md``, those that most
people want into the README.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import fields
from pathlib import Path

from kombu_sqlite.options import Options

README = Path(__file__).parents[2] / "README.md"
ALL = README.parent / "docs" / "options.md"
COMMON = (
    "visibility_timeout",
    "busy_timeout",
    "max_attempts",
    "priority_order",
    "synchronous",
)
BEGIN, END = "<!-- options -->\n", "<!-- /options -->"


def shown(name: str, value: object) -> str:
    """A default as one would write it."""
    if name == "file_mode":
        return f"{value:04o}"
    if name == "capabilities":
        return "{}"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def table(names: Collection[str] | None = None) -> str:
    """The table, a row for each option, or for those of ``names``."""
    rows = [
        f"| `{item.name}` | {shown(item.name, item.default)} | {item.metadata['text']} |"
        for item in fields(Options)
        if item.metadata and (names is None or item.name in names)
    ]
    return "\n".join(["| option | default | meaning |", "|---|---|---|", *rows]) + "\n"


def with_table(text: str, names: Collection[str] | None = None) -> str:
    """A document with its table as it should be."""
    head, _, rest = text.partition(BEGIN)
    return head + BEGIN + table(names) + END + rest.partition(END)[2]


if __name__ == "__main__":
    for path, names in ((README, COMMON), (ALL, None)):
        path.write_text(with_table(path.read_text(encoding="utf-8"), names), encoding="utf-8")
