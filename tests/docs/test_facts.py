"""What the documents state in passing: names, defaults, tables, files, versions, words."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from kombu import Connection, Consumer, Queue

import kombu_sqlite
from kombu_sqlite import QueueDatabase
from kombu_sqlite.database import ensure_library_safe
from kombu_sqlite.options import Options, path_from_url
from tests.docs.options_table import README

ROOT = README.parent
SCHEMA = ROOT / "docs" / "schema.md"
DOCUMENTS = [README, *sorted((ROOT / "docs").glob("*.md")), ROOT / "CHANGELOG.md"]
each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)


def text_of(document: Path) -> str:
    """A document."""
    return document.read_text(encoding="utf-8")


def table_rows(section: str) -> Iterator[list[str]]:
    """The cells of a section's table, without its head."""
    for line in section.splitlines():
        if line.startswith("| `"):
            yield [cell.strip() for cell in line.strip("|").split("|")]


def section_of(document: Path, heading: str) -> str:
    """From a heading to the next."""
    found = re.search(rf"^{re.escape(heading)}\n(.*?)(?=^## |\Z)", text_of(document), re.M | re.S)
    assert found, heading
    return found[1]


def stated_in_project(key: str) -> str:
    """A value of pyproject.toml; Python 3.10 has no reader for it."""
    found = re.search(rf'^{key} = "(.+)"$', text_of(ROOT / "pyproject.toml"), re.M)
    assert found, key
    return found[1]


@each_document
def test_every_class_named_exists(document: Path) -> None:
    """Whoever copies it from the page can import it."""
    named = re.findall(r"`((?:Queue|Lease|Session)[A-Z]\w+)(?:\.(\w+))?", text_of(document))
    for name, attribute in named:
        assert name in kombu_sqlite.__all__
        assert not attribute or hasattr(getattr(kombu_sqlite, name), attribute)


@each_document
def test_every_url_is_one(document: Path) -> None:
    """Its path and its options are accepted."""
    for url in re.findall(r"sqlite://[^\s`\")]+", text_of(document)):
        path, parameters = path_from_url(url)
        assert Options.load(path, parameters).path == path


@each_document
def test_every_python_example_is_python(document: Path) -> None:
    """As it is printed."""
    for block in re.findall(r"```python\n(.*?)```", text_of(document), re.S):
        ast.parse(block)


@each_document
def test_the_safe_versions_of_sqlite_are_the_codes(document: Path) -> None:
    """Those named are accepted, the ones just before are not; a run names what it ran with."""
    text = re.sub(r"(?s)<!-- benchmarks -->.*<!-- /benchmarks -->", "", text_of(document))
    for version in re.findall(r"\b3\.\d\d\.\d+\b", text):
        ensure_library_safe(version)
        major, minor, patch = map(int, version.split("."))
        with pytest.raises(kombu_sqlite.QueueSchemaError):
            ensure_library_safe(f"{major}.{minor}.{patch - 1}")


@each_document
def test_the_words_are_the_projects(document: Path) -> None:
    """One thing has one name: a message or a task, never a job or an item."""
    assert not re.search(r"(?i)\b(jobs?|items?)\b", text_of(document))


def test_the_version_is_the_same_everywhere() -> None:
    """In the distribution and in the package; the changes name it or say that it is to come."""
    assert stated_in_project("version") == kombu_sqlite.__version__
    headings = re.findall(r"^## \[(.+?)\]", text_of(ROOT / "CHANGELOG.md"), re.M)
    assert headings[0] in ("Unreleased", kombu_sqlite.__version__)


def test_the_readmes_python_is_the_distributions() -> None:
    """The oldest that is supported."""
    oldest = stated_in_project("requires-python").removeprefix(">=")
    assert f"Python {oldest} or newer" in text_of(README)


def test_the_documented_defaults_are_the_files(database: QueueDatabase) -> None:
    """What a plain INSERT gets; those that are expressions are described in a word."""
    described = {"AUTOINCREMENT", "now", "generated", "`sqlite_version()`"}
    rows = database.execute("SELECT name, dflt_value FROM pragma_table_xinfo('task_queue')")
    defaults = {row["name"]: row["dflt_value"] for row in rows}
    checked = 0
    for names, default, _ in table_rows(section_of(SCHEMA, "## `task_queue`")):
        for name in re.findall(r"`(\w+)`", names):
            if default in described:
                continue
            given = defaults[name]
            assert default.strip("`") == ("" if given is None else given.strip("'")) or (
                default == "NULL" and given is None
            ), name
            checked += 1
    assert checked > 15


def test_every_table_and_view_is_documented(database: QueueDatabase) -> None:
    """And no other."""
    rows = database.execute(
        "SELECT name FROM sqlite_schema WHERE type IN ('table', 'view') AND name NOT LIKE 'sqlite%'"
    )
    text = section_of(SCHEMA, "## Other tables")
    listed = {
        name
        for line in text.splitlines()
        if line.startswith("- ")
        for name in re.findall(r"`(\w+)`", line.partition(":")[0])
    }
    views = set(re.findall(r"`(v_\w+)`", text.partition("\nViews:")[2]))
    assert listed | views | {"task_queue"} == {row[0] for row in rows}


def test_the_documented_states_are_the_statistics(database: QueueDatabase) -> None:
    """Each of them has a count."""
    row = next(
        cells
        for cells in table_rows(section_of(SCHEMA, "## `task_queue`"))
        if cells[0] == "`status`"
    )
    for status in re.findall(r"`(\w+)`", row[2]):
        assert hasattr(database.stats(), f"{status}_tasks")


def test_every_file_beside_the_queue_is_documented(broker_url: str, queue_path: str) -> None:
    """While a consumer is at work."""
    with Connection(broker_url) as connection:
        consumer = Consumer(connection, [Queue("q", routing_key="q")], callbacks=[print])
        consumer.consume()
        found = {re.sub(r"\d+$", "N", name) for name in os.listdir(Path(queue_path).parent)}
    documented = {
        name
        for cells in table_rows(section_of(SCHEMA, "## Files beside it"))
        for name in re.findall(r"`([^`]+)`", cells[0])
    }
    assert {"queue.db", "queue.db-wal", "queue.db-sessions", "queue.db-bell-N"} <= found
    assert found - {"queue.db"} <= documented


def test_the_file_is_made_with_the_documented_mode(queue_path: str) -> None:
    """For its owner alone."""
    stated = re.search(r"owner alone \(mode (0\d+)\)", text_of(SCHEMA))
    assert stated
    with QueueDatabase(queue_path) as database:
        database.initialize_schema()
    assert os.stat(queue_path).st_mode & 0o777 == int(stated[1], 8)
