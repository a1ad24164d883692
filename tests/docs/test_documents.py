"""What the documents say is true: commands, examples, tables."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kombu_sqlite import QueueDatabase
from tests.docs.options_table import ALL, COMMON, README, with_table

ROOT = README.parent
DOCUMENTS = [README, *sorted((ROOT / "docs").glob("*.md")), ROOT / "CHANGELOG.md"]


def block_after(marker: str) -> str:
    """The fenced block behind a marker of the README."""
    found = re.search(
        rf"<!-- {re.escape(marker)} -->\n```\w+\n(.*?)```", README.read_text(), re.DOTALL
    )
    assert found, marker
    return found.group(1)


def environment(folder: Path) -> dict[str, str]:
    """Processes find the packages and the folder's own modules."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}


def test_the_readme_is_short() -> None:
    """At most 120 lines."""
    assert len(README.read_text().splitlines()) <= 120


@pytest.mark.parametrize(("path", "names"), [(README, COMMON), (ALL, None)])
def test_the_options_table_is_the_options(path: Path, names: tuple[str, ...] | None) -> None:
    """``python -m tests.docs.options_table`` mends it."""
    text = path.read_text(encoding="utf-8")
    assert text == with_table(text, names)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    """Relative ones, into this repository."""
    for target in re.findall(r"\]\(([^)#]+)", document.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (document.parent / target).exists(), target


def test_the_columns_of_the_schema_are_documented(database: QueueDatabase) -> None:
    """Every one, and no other."""
    text = (ROOT / "docs" / "schema.md").read_text(encoding="utf-8")
    section = text.partition("## `task_queue`")[2].partition("\nA row is")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    documented = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    columns = database.execute("SELECT name FROM pragma_table_xinfo('task_queue')")
    assert documented == {row[0] for row in columns}


def test_the_readmes_app_runs_what_is_sent_and_inserted(tmp_path: Path) -> None:
    """One file and two terminals, and a row by another program."""
    (tmp_path / "tasks.py").write_text(block_after("file: tasks.py"))
    command = [sys.executable, "-m", "celery", "-A", "tasks", "worker", "-P", "solo", "-l", "info"]
    with open(tmp_path / "log", "w", encoding="utf-8") as log:
        worker = subprocess.Popen(
            command, cwd=tmp_path, env=environment(tmp_path), stdout=log, stderr=log
        )
    try:
        send = [sys.executable, "-c", "import tasks; tasks.add.delay(1, 2)"]
        subprocess.run(send, cwd=tmp_path, env=environment(tmp_path), check=True)
        statement = re.search(r'"(INSERT.*)"', block_after("command: insert"))
        assert statement
        insert = (
            "import sqlite3, sys; c = sqlite3.connect('queue.db', isolation_level=None);"
            "c.execute('PRAGMA wal_autocheckpoint=0'); c.execute(sys.argv[1])"
        )
        text = statement.group(1).replace('\\"', '"')
        subprocess.run([sys.executable, "-c", insert, text], cwd=tmp_path, check=True)
        deadline = time.monotonic() + 30
        with QueueDatabase(str(tmp_path / "queue.db")) as database:
            while database.stats().completed_tasks < 2:
                assert time.monotonic() < deadline, (tmp_path / "log").read_text()
                time.sleep(0.05)
    finally:
        worker.terminate()
        worker.wait(30)
    assert (tmp_path / "log").read_text().count("succeeded in") == 2


def test_the_sql_of_the_schema_document_runs(database: QueueDatabase) -> None:
    """As it is printed."""
    text = (ROOT / "docs" / "schema.md").read_text(encoding="utf-8")
    for block in re.findall(r"```sql\n(.*?)```", text, re.DOTALL):
        for statement in filter(str.strip, block.split(";\n")):
            database.execute(statement)
    assert database.stats().queued_tasks == 1


def test_documents_and_code_speak_of_the_project_alone() -> None:
    """No path of somebody's machine, no registry's host."""
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.split()
    paths = [ROOT / name for name in tracked] or [*DOCUMENTS, *ROOT.glob("*/*.py")]
    wrong = re.compile(
        "/" + r"work/|/" + r"root/|pypi\." + "org|python" + "hosted|registry" + r"\.npm"
    )
    for path in paths:
        if path.is_file():
            assert not wrong.search(path.read_text(encoding="utf-8")), path
