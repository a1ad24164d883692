"""The README's table of options, made from the options themselves.

``python -m tests.docs.options_table`` writes it into the README.
"""

from __future__ import annotations

import sys
from dataclasses import fields
from pathlib import Path

from kombu_sqlite.options import Options

README = Path(__file__).parents[2] / "README.md"
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


def table() -> str:
    """The table, a row for each option."""
    rows = [
        f"| `{item.name}` | {shown(item.name, item.default)} | {item.metadata['text']} |"
        for item in fields(Options)
        if item.metadata
    ]
    return "\n".join(["| option | default | meaning |", "|---|---|---|", *rows]) + "\n"


def with_table(text: str) -> str:
    """The README with its table as it should be."""
    head, _, rest = text.partition(BEGIN)
    return head + BEGIN + table() + END + rest.partition(END)[2]


if __name__ == "__main__":
    README.write_text(with_table(README.read_text(encoding="utf-8")), encoding="utf-8")
    sys.stdout.write(table())
