"""The rooms: imports point one way, SQL stands in one place, importing opens nothing."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import apsw
import pytest

import celery_integration
import kombu_sqlite
from kombu_sqlite import sql

CORE = Path(kombu_sqlite.__file__).parent
INTEGRATION = Path(celery_integration.__file__).parent
MODULES = sorted(CORE.glob("*.py")) + sorted(INTEGRATION.glob("*.py"))
#: From the ground up, as the front door's docstring lists them.
ORDER = [
    name
    for name in re.findall(r"``(\w+)``", (kombu_sqlite.__doc__ or "").partition("Rooms")[2])
    if (CORE / f"{name}.py").exists() or name == "sql"
]
#: The last room that knows nothing of Kombu.
LAST_WITHOUT_KOMBU = "queue"


def imports_of(path: Path) -> set[tuple[str, str]]:
    """The modules a file imports: (level of dots as text, name)."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            if node.level and not node.module:
                found |= {(".", alias.name) for alias in node.names}
            else:
                found.add(("." * node.level, node.module or ""))
        elif isinstance(node, ast.Import):
            found |= {("", alias.name) for alias in node.names}
    return found


def runtime_imports_of(path: Path) -> set[tuple[str, str]]:
    """As above, without what only type checkers see."""
    source = path.read_text(encoding="utf-8")
    guarded = re.sub(r"\nif TYPE_CHECKING:\n(?:    .*\n)+", "\n", source)
    scratch = ast.parse(guarded)
    found = set()
    for node in ast.walk(scratch):
        if isinstance(node, ast.ImportFrom) and node.level:
            names = [node.module] if node.module else [alias.name for alias in node.names]
            found |= {(".", name) for name in names if name}
    return found


def test_the_front_door_lists_every_room() -> None:
    """A map that leaves a room out is wrong."""
    rooms = {path.stem for path in CORE.glob("*.py")} - {"__init__"} | {"sql"}
    assert set(ORDER) == rooms


@pytest.mark.parametrize("name", [name for name in ORDER if name != "sql"])
def test_a_room_imports_only_from_rooms_above_it(name: str) -> None:
    """So that nothing is imported in a circle."""
    allowed = set(ORDER[: ORDER.index(name)])
    used = {module for _, module in runtime_imports_of(CORE / f"{name}.py")}
    assert used <= allowed


@pytest.mark.parametrize("name", ORDER[: ORDER.index(LAST_WITHOUT_KOMBU) + 1])
def test_the_queue_itself_knows_no_kombu(name: str) -> None:
    """Everything up to its public face."""
    path = CORE / "sql" / "__init__.py" if name == "sql" else CORE / f"{name}.py"
    used = {module.split(".")[0] for dots, module in imports_of(path) if not dots}
    assert not used & {"kombu", "celery", "amqp", "vine"}


def test_kombu_sqlite_never_imports_celery() -> None:
    """It knows the wire format, not the application."""
    for path in CORE.rglob("*.py"):
        used = {module.split(".")[0] for dots, module in imports_of(path) if not dots}
        assert "celery" not in used, path.name


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_sql_stands_only_in_sql(path: Path) -> None:
    """Pragmas and transaction control excepted."""
    text = re.sub(r'""".*?"""', "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    text = re.sub(r"#.*", "", text)
    if path.stem == "schema":  # the table that records the migrations, and its probes
        return
    assert not re.search(r"\b(SELECT .* FROM|INSERT INTO|UPDATE \w+ SET|DELETE FROM)\b", text)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_rooms_are_small(path: Path) -> None:
    """A module near 400 lines, or a function near 60, is two things."""
    source = path.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 400
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 60, node.name


def test_every_statement_is_used() -> None:
    """What nobody executes is not kept."""
    code = "\n".join(path.read_text(encoding="utf-8") for path in MODULES)
    for name in sql._STATEMENTS:
        if not name.startswith("any_"):  # asked for by the name of what they guard
            assert f'"{name}"' in code, name


@pytest.mark.parametrize("package", ["kombu_sqlite", "celery_integration"])
def test_importing_opens_nothing_and_starts_nothing(package: str, tmp_path: Path) -> None:
    """No file, no thread, no file made in the working folder."""
    script = (
        f"import sys, threading, os; sys.path[:0] = {sys.path!r}\n"
        f"import {package}\n"
        "assert threading.active_count() == 1\n"
        "links = [os.readlink(f'/proc/self/fd/{f}') for f in os.listdir('/proc/self/fd')"
        " if os.path.exists(f'/proc/self/fd/{f}')] if os.path.isdir('/proc/self/fd') else []\n"
        "assert not [name for name in links if name.endswith(('.db', '-wal', '-bells'))]\n"
        "assert os.listdir('.') == []\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path)


HOT = {
    "find_ready": "ix_task_status_prio_time",
    "find_ready_at_priority": "ix_task_status_prio_time",
    "peek_ready": "ix_task_status_prio_time",
    "list_lanes": "ix_task_status_prio_time",
    "promote_due": "ix_task_waiting",
    "next_due": "ix_task_waiting",
    "list_owners": "ix_task_leased",
    "requeue_leased_of": "ix_task_leased",
    "exhaust_leased_of": "ix_task_leased",
    "cancel_expired": "ix_task_expiring",
    "prune_finished": "ix_task_finished",
    "any_lane": "ix_task_region",
    "list_tasks_of_format": "ix_task_format",
    "list_irregular": "ix_task_irregular",
    "get_by_task_id": "ix_task_task_id",
    "get_by_key": "uq_task_idempotency",
    "list_logs": "ix_logs_task",
    "purge_queue": "ix_task_status_prio_time",
    "oldest_queued": "ix_task_status_prio_time",
}


def plan_of(database: kombu_sqlite.QueueDatabase, name: str) -> list[str]:
    """SQLite's plan for a statement, a line each."""
    text = sql.statement(name)
    values = dict.fromkeys(re.findall(r":(\w+)", text))
    cursor = database.get_connection().cursor()
    return [row[3] for row in cursor.execute("EXPLAIN QUERY PLAN " + text, values)]


@pytest.mark.parametrize(("name", "index"), HOT.items())
def test_an_index_serves_its_statement(
    database: kombu_sqlite.QueueDatabase, name: str, index: str
) -> None:
    """The plan names it, and reads the table by nothing else."""
    plan = plan_of(database, name)
    assert any(index in line for line in plan), plan
    assert not any(re.match(r"SCAN task_queue( AS \w+)?$", line) for line in plan), plan


@pytest.mark.parametrize("name", ["find_ready", "find_ready_at_priority", "promote_due"])
def test_a_claim_never_sorts(database: kombu_sqlite.QueueDatabase, name: str) -> None:
    """The index is in the order of delivery."""
    assert not any("TEMP B-TREE" in line for line in plan_of(database, name))


@pytest.mark.parametrize("name", ["lease_row", "end_delivery", "requeue_delivery", "cancel_found"])
def test_an_end_goes_straight_to_its_row(database: kombu_sqlite.QueueDatabase, name: str) -> None:
    """By its row id."""
    plan = plan_of(database, name)
    assert plan[0] == "SEARCH task_queue USING INTEGER PRIMARY KEY (rowid=?)"


def test_no_index_or_trigger_uses_a_json_function(database: kombu_sqlite.QueueDatabase) -> None:
    """Their results differ between SQLite versions, and the index is then corrupt."""
    rows = database.execute("SELECT sql FROM sqlite_schema WHERE type IN ('index', 'trigger')")
    assert not [row[0] for row in rows if row[0] and "json" in row[0].lower()]


def test_the_library_is_new_enough() -> None:
    """The one these tests run on."""
    assert tuple(map(int, apsw.sqlite_lib_version().split("."))) >= (3, 51, 3)
