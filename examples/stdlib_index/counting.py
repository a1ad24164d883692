"""Counts one source file: its lines, its words and the names it defines."""

import ast
import io
import tokenize
import warnings
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class FileCount:
    """What one file holds; ``problem`` says why part of it could not be read, else None."""

    lines: int
    words: int
    names: int
    problem: str | None = None


def count(path: Path) -> FileCount:
    """Count ``path``, and go as far as its contents allow.

    The standard library's tests hold files that are wrong on purpose: undecodable text is read with
    replacement characters, and a file that does not parse defines no names.

    Raises:
        OSError: the file itself cannot be read.
    """
    source = path.read_bytes()
    problems = []
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(source).readline)
        text = source.decode(encoding)
    except (SyntaxError, UnicodeDecodeError) as error:
        problems.append(f"undecodable: {error}")
        text = source.decode("utf-8", errors="replace")
    try:
        names = len(defined_names(source))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        problems.append(f"unparsable: {error}")
        names = 0
    return FileCount(
        lines=len(source.splitlines()),
        words=len(text.split()),
        names=names,
        problem="; ".join(problems) or None,
    )


def defined_names(source: bytes) -> set[str]:
    """Return the functions, classes and variables that ``source`` defines at any depth.

    Raises:
        SyntaxError, ValueError, RecursionError, MemoryError: Python cannot parse it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the code read, not about this program
        tree = ast.parse(source)
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names
