"""The rooms: imports point one way, SQL stands in one place, importing opens nothing."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from contextlib import suppress
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
SQL = re.compile(
    r"\s*(SELECT|INSERT|UPDATE|DELETE|REPLACE|WITH|CREATE|DROP|ALTER|PRAGMA|ATTACH|VACUUM|ANALYZE"
    r"|BEGIN|COMMIT|ROLLBACK|SAVEPOINT|RELEASE)\b"
)
TRANSACTIONS = {"BEGIN", "COMMIT", "ROLLBACK", "SAVEPOINT", "RELEASE"}
ALLOWED_SQL = {
    "handles": TRANSACTIONS,
    "scopes": TRANSACTIONS,
    "schema": TRANSACTIONS | {"PRAGMA", "CREATE", "INSERT", "SELECT"},
}
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


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_no_import_hides_in_a_function(path: Path) -> None:
    """One that dodges a circle means that the cut is in the wrong place."""
    for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
            inside = [n for n in ast.walk(function) if isinstance(n, (ast.Import, ast.ImportFrom))]
            assert not inside, f"{path.name}: {function.name}"


@pytest.mark.parametrize("path", sorted(CORE.rglob("*.py")), ids=lambda path: path.stem)
def test_the_core_names_itself_only_relatively(path: Path) -> None:
    """Else the tests above would look past its imports."""
    used = {module.split(".")[0] for dots, module in imports_of(path) if not dots}
    assert not used & {"kombu_sqlite", "celery_integration"}


@pytest.mark.parametrize("path", sorted(INTEGRATION.glob("*.py")), ids=lambda path: path.stem)
def test_the_integration_uses_what_the_core_exports(path: Path) -> None:
    """The front door's names and the channel, which Celery hands to it; no SQL, no connection."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and not node.level:
            names = {alias.name for alias in node.names}
            if node.module == "kombu_sqlite":
                assert names <= set(kombu_sqlite.__all__)
            elif (node.module or "").startswith("kombu_sqlite."):
                assert (node.module, names) == ("kombu_sqlite.channel", {"Channel"})
            assert (node.module or "").split(".")[0] not in ("apsw", "sqlite3")
        elif isinstance(node, ast.Import):
            assert not {alias.name.split(".")[0] for alias in node.names} & {"apsw", "sqlite3"}


def test_kombu_sqlite_never_imports_celery() -> None:
    """It knows the wire format, not the application."""
    for path in CORE.rglob("*.py"):
        used = {module.split(".")[0] for dots, module in imports_of(path) if not dots}
        assert "celery" not in used, path.name


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_sql_stands_only_in_sql(path: Path) -> None:
    """Handles and scopes control transactions; schema sets pragmas and records migrations."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    docstrings = {
        ast.get_docstring(node, clean=False)
        for node in ast.walk(tree)
        if isinstance(node, documented)
    }
    texts = {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    found = {match[1] for text in texts - docstrings if (match := SQL.match(text))}
    assert found <= ALLOWED_SQL.get(path.stem, set())


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_rooms_are_small(path: Path) -> None:
    """A module beyond 350 lines, or a function beyond 50, is two things."""
    source = path.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 350
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert (node.end_lineno or 0) - node.lineno < 50, node.name


def test_every_statement_is_used() -> None:
    """What nobody executes is not kept."""
    code = "\n".join(path.read_text(encoding="utf-8") for path in MODULES)
    for name in sql._STATEMENTS:
        # "any_" statements may be asked for by the name of what they guard
        assert f'"{name}"' in code or f'"{name.removeprefix("any_")}"' in code, name


@pytest.mark.parametrize("name", sql._STATEMENTS)
def test_a_statement_is_named_for_what_it_does(name: str) -> None:
    """Verb and noun; values come in by name only."""
    assert re.fullmatch(r"[a-z]+(_[a-z]+)+", name)
    assert "?" not in re.sub(r"'[^']*'|--.*", "", sql.statement(name))


@pytest.mark.parametrize("path", sorted((CORE / "sql").glob("*.sql")), ids=lambda path: path.stem)
def test_a_statement_states_its_purpose(path: Path) -> None:
    """In a sentence right under its name."""
    headings = re.findall(r"-- name: (\w+)\n(.*)", path.read_text(encoding="utf-8"))
    assert headings
    for name, purpose in headings:
        assert re.match(r"-- [A-Z].{5,}", purpose), name


@pytest.mark.parametrize("package", ["kombu_sqlite", "celery_integration"])
def test_importing_opens_nothing_and_starts_nothing(package: str, tmp_path: Path) -> None:
    """No file, no thread, no file made in the working folder."""
    script = (
        f"import sys, threading, os; sys.path[:0] = {sys.path!r}\n"
        "def watch(event, args):\n"
        "    writes = event == 'open' and any(c in str(args[1] or 'r') for c in 'wax+')\n"
        "    if writes or event.startswith(('sqlite3.connect', 'socket.__new__', 'os.mkdir')):\n"
        "        raise AssertionError((event, args))\n"
        "sys.dont_write_bytecode = True; sys.addaudithook(watch)\n"
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
    "list_tasks_in_groups": "ix_task_type_status",
    "list_waiting": "ix_task_waiting",
    "list_waiting_in_groups": "ix_task_type_status",
    "sample_ended": "ix_task_finished",
    "find_ready_oldest": "ix_task_ready_age",
    "find_ready_newest": "ix_task_ready_age",
    "list_priorities": "ix_task_status_prio_time",
    "find_overflow": "ix_task_status_prio_time",
    "list_overflow": "ix_task_status_prio_time",
    "count_ready": "ix_task_status_prio_time",
    "count_waiting": "ix_task_waiting",
    "drop_transient_overflow": "ix_transient_ready",
    "any_cancel_expired": "ix_task_expiring",
    "any_finished_before": "ix_task_finished",
    "any_nameless_lease": "ix_task_leased",
    "release_leased_of": "ix_task_leased",
    "claim_transient": "ix_transient_ready",
    "peek_transient": "ix_transient_ready",
    "count_transient": "ix_transient_ready",
    "release_transient_of": "ix_transient_leased",
    "delete_expired_transient": "ix_transient_expiring",
    "delete_queue_bindings": "ix_bindings_queue",
    "delete_consumers_of": "ix_consumers_worker",
    "list_bells": "ix_consumers_bell",
    "list_irregular": "ix_task_irregular",
    "get_by_task_id": "ix_task_task_id",
    "list_logs": "ix_logs_task",
    "purge_queue": "ix_task_status_prio_time",
    "oldest_queued": "ix_task_type_status",
    "list_owed": "ix_task_outcome",
    "list_followers": "ix_task_followers",
    "delete_expired_results": "ix_results_expiring",
    "any_delete_expired_results": "ix_results_expiring",
    "delete_expired_groups": "ix_groups_expiring",
    "any_delete_expired_groups": "ix_groups_expiring",
    "delete_expired_chords": "ix_chords_expiring",
    "any_delete_expired_chords": "ix_chords_expiring",
    "list_due_chords": "ix_chords_due",
    "list_rows_of_task": "ix_task_task_id",
    "list_stamped": "ix_task_leased",
    "lose_leased_of": "ix_task_leased",
    "log_leased_of": "ix_task_leased",
    "get_key_holder": "uq_task_idempotency",
}


def plan_of(database: kombu_sqlite.QueueDatabase, name: str) -> list[str]:
    """SQLite's plan for a statement, a line each."""
    text = sql.statement(name)
    values = dict.fromkeys(re.findall(r":(\w+)", text))
    cursor = database.get_connection().cursor()
    cursor.execute(sql.statement("create_age_index"))
    return [row[3] for row in cursor.execute("EXPLAIN QUERY PLAN " + text, values)]


@pytest.mark.parametrize(("name", "index"), HOT.items())
def test_an_index_serves_its_statement(
    database: kombu_sqlite.QueueDatabase, name: str, index: str
) -> None:
    """The plan names it, and reads the table by nothing else."""
    plan = plan_of(database, name)
    assert any(index in line for line in plan), plan
    assert not any(re.match(r"SCAN task_queue( AS \w+)?$", line) for line in plan), plan


def test_every_index_serves_a_statement(database: kombu_sqlite.QueueDatabase) -> None:
    """What nobody reads is not worth its price at each insert."""
    database.execute(sql.statement("create_age_index"))
    rows = database.execute("SELECT name FROM sqlite_schema WHERE type = 'index' AND sql <> ''")
    assert {row[0] for row in rows} == set(HOT.values())


SORTED = [
    "find_ready",
    "find_ready_at_priority",
    "find_ready_oldest",
    "find_ready_newest",
    "claim_transient",
    "list_tasks",
    "list_waiting",
    "sample_ended",
    "promote_due",
    "prune_finished",
    "find_overflow",
    "drop_transient_overflow",
]


@pytest.mark.parametrize("name", SORTED)
def test_a_claim_never_sorts(database: kombu_sqlite.QueueDatabase, name: str) -> None:
    """The index is in the order of delivery."""
    assert not any("TEMP B-TREE" in line for line in plan_of(database, name))


@pytest.mark.parametrize("name", ["lease_row", "end_delivery", "requeue_delivery", "cancel_found"])
def test_an_end_goes_straight_to_its_row(database: kombu_sqlite.QueueDatabase, name: str) -> None:
    """By its row id."""
    plan = plan_of(database, name)
    assert plan[0] == "SEARCH task_queue USING INTEGER PRIMARY KEY (rowid=?)"


#: What runs at an upgrade or when upkeep has nothing else to do; pragmas are compiled as they run.
COMPILED_EACH_TIME = {
    *("create_age_index", "list_columns", "list_unique_constraints", "give_back_pages"),
}


@pytest.mark.parametrize("name", sorted(set(sql._STATEMENTS) - COMPILED_EACH_TIME))
def test_no_statement_is_compiled_twice(database: kombu_sqlite.QueueDatabase, name: str) -> None:
    """Other values change nothing: SQLite asks what is allowed only when it compiles."""
    database.execute(sql.statement("create_age_index"))
    text = sql.statement(name)
    parameters = re.findall(r":(\w+)", text)
    connection = database.get_connection()
    compiled: list[object] = []

    def allow(*action: object) -> int:
        compiled.append(action)
        return apsw.SQLITE_OK

    connection.authorizer = allow
    counts = []
    for value in (1, 2):
        compiled.clear()
        with suppress(apsw.ConstraintError, apsw.MismatchError):
            connection.execute(text, dict.fromkeys(parameters, value)).fetchall()
        counts.append(len(compiled))
    assert counts[0] > 0
    assert counts[1] == 0


def test_no_index_or_trigger_uses_a_json_function(database: kombu_sqlite.QueueDatabase) -> None:
    """Their results differ between SQLite versions, and the index is then corrupt."""
    rows = database.execute("SELECT sql FROM sqlite_schema WHERE type IN ('index', 'trigger')")
    assert not [row[0] for row in rows if row[0] and "json" in row[0].lower()]


def test_the_library_is_new_enough() -> None:
    """The one these tests run on."""
    assert tuple(map(int, apsw.sqlite_lib_version().split("."))) >= (3, 51, 3)
