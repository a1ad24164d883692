"""Rows as a terminal shows them: aligned, and with nothing in them that steers the terminal."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import click

__all__ = ("plain", "print_json", "print_lines", "print_pairs", "print_table", "readable_payload")


def plain(value: object) -> str:
    """Return a value on one line; ``-`` for None.

    Whatever does not print is escaped: rows come from anybody who can write the file, and a
    terminal obeys what it is sent.
    """
    if value is None:
        return "-"
    text = _text_of(value) if isinstance(value, bytes) else str(value)
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text
    )


def print_lines(lines: Iterable[str]) -> None:
    """Print lines; what the terminal's encoding lacks is escaped instead of failing."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    for line in lines:
        click.echo(line.rstrip().encode(encoding, "backslashreplace").decode(encoding))


def print_pairs(pairs: Mapping[str, object]) -> None:
    """Print names and values, a line each."""
    print_lines(f"{plain(name):28} {plain(value)}" for name, value in pairs.items())


def print_table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print rows in columns that are as wide as they must be; numbers stand to the right."""
    table = [list(heads), *([plain(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    numeric = [
        len(table) > 1 and all(cell == "-" or _is_number(cell) for cell in column[1:])
        for column in zip(*table, strict=True)
    ]
    print_lines(
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, numeric, strict=True)
        )
        for line in table
    )


def print_json(found: object) -> None:
    """Print a JSON document, in ASCII; bytes in it are text where they can be."""
    click.echo(json.dumps(found, default=_json_of))


def readable_payload(payload: object) -> list[str]:
    """Return a payload's lines: JSON indented, other text as it is, the rest in base64."""
    text = _text_of(payload) if isinstance(payload, bytes) else str(payload)
    with suppress(ValueError, RecursionError):  # not every serializer writes JSON
        text = json.dumps(json.loads(text), indent=2, ensure_ascii=False)
    return [plain(line) for line in text.split("\n")]


def _is_number(cell: str) -> bool:
    return cell.lstrip("-").replace(".", "", 1).isdecimal()


def _text_of(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "base64:" + base64.b64encode(raw).decode()


def _json_of(value: object) -> Any:
    return _text_of(value) if isinstance(value, bytes) else str(value)
