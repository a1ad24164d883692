"""Results in a file while the queue is in Redis."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery, chord, group

DATABASES = [f"redis://localhost:6379/{number}" for number in range(13, 8, -1)]
HERE = Path(__file__).parent


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Any]:
    """An app of its own, with a worker that runs the tasks of ``results_app``."""
    try:
        empty = [url for url in DATABASES if not redis.Redis.from_url(url).dbsize()]
    except redis.ConnectionError:
        pytest.skip("no Redis server on this machine")
    assert empty, f"none of {DATABASES} is empty; what is there may be somebody's"
    broker = empty[0]
    server = redis.Redis.from_url(broker)
    results = f"sqlite:///{tmp_path}/results.db"
    app = Celery("producer", broker=broker, backend=results, set_as_current=False)
    log = (tmp_path / "w.log").open("w")
    worker = subprocess.Popen(
        [sys.executable, "-m", "celery", "-A", "results_app", "worker", "-c", "2", "-l", "info"],
        env={
            **os.environ,
            "TEST_BROKER": broker,
            "TEST_RESULTS": results,
            "TEST_LEDGER": str(tmp_path / "ledger"),
            "PYTHONPATH": os.pathsep.join([str(HERE), *filter(None, sys.path)]),
            "PYTHONWARNINGS": "ignore",
        },
        stdout=log,
        stderr=subprocess.STDOUT,
        cwd=tmp_path,
        start_new_session=True,
    )
    try:
        yield app
    finally:
        # not asked to stop: Celery's own pool may wait for ever for what it has begun to read
        os.killpg(worker.pid, signal.SIGKILL)
        worker.wait(30)
        log.close()
        app.close()
        server.flushdb()
        server.close()


@pytest.mark.filterwarnings("ignore:Call to deprecated")  # Celery's use of redis-py
def test_results_do_not_need_our_broker(app: Any) -> None:
    """Values, errors, groups, chords and their failures."""

    def task(name: str, *args: Any) -> Any:
        return app.signature(f"results_app.{name}", args=args)

    good, bad, total = task("add", 1, 1), task("broken"), task("total")
    assert good.apply_async().get(timeout=60) == 2
    with pytest.raises(ValueError, match="on purpose"):
        bad.apply_async().get(timeout=60)
    assert group([good, good], app=app).apply_async().get(timeout=60) == [2, 2]
    assert chord([good] * 20, total, app=app)().get(timeout=60) == 40
    outer = chord([chord([good, bad], total, app=app), good], total, app=app)()
    ended = app.AsyncResult(outer.id).get(timeout=60, propagate=False)
    assert "on purpose" in repr(ended)
