"""The first view of `nemotron ui` with 10,000 runs, in a browser, in turns with `mlflow ui` on its sqlite store.

python scripts/bench/ui.py [--runs 10000] [--rounds 5] [--mlflow PYTHON]

PYTHON is that of an environment with mlflow (python3 -m venv X; X/bin/pip install mlflow). Each round starts both
servers anew. Seconds from the request to the first row of runs in the page's text, in a fresh browser; then once more,
and what the server alone takes for the rows.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from _pairs import load
from runs import fill

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from chromium import Browser, executable

NEMOTRON = [sys.executable, "-c", "import sys; from nemotron_kit.cli.main import nemotron; sys.exit(nemotron())"]
ROW = "document.body && (document.body.innerText.match(/pretrain-[0-9a-z]{6}/) || []).length > 0"
_FILL = """
import sys, time, uuid
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from mlflow.store.tracking.dbmodels.models import SqlRun, SqlLatestMetric, SqlMetric, SqlParam, SqlTag
uri, root, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
store, now = SqlAlchemyStore(uri, root), int(time.time() * 1000)
for first in range(0, count, 500):
    with store.ManagedSessionMaker() as session:
        for number in range(first, min(first + 500, count)):
            run, start = uuid.uuid4().hex, now - number * 60_000
            name = f"nano3-pretrain-{number:06d}"
            session.add(SqlRun(run_uuid=run, name=name, experiment_id=0, user_id="me", status="FINISHED",
                source_type="LOCAL", start_time=start, end_time=start + 1000, lifecycle_stage="active",
                artifact_uri=f"{root}/0/{run}/artifacts"))
            session.flush()
            session.add(SqlTag(run_uuid=run, key="mlflow.runName", value=name))
            session.add(SqlParam(run_uuid=run, key="lr", value="0.1"))
            session.add(SqlLatestMetric(run_uuid=run, key="loss", value=1.0, step=99, timestamp=start, is_nan=False))
            row = dict(run_uuid=run, key="loss", value=1.0, is_nan=False)
            rows = [{**row, "step": step, "timestamp": start + step} for step in range(100)]
            session.bulk_insert_mappings(SqlMetric, rows)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--mlflow", metavar="PYTHON")
    options = parser.parse_args()
    if executable() is None:
        sys.exit("no Chromium on this machine")
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        home = fill(folder / "home", options.runs)
        rows = "".join(f'{{"step": {step}, "loss": 1.0}}\n' for step in range(100))
        for job in home.glob("runs/*/jobs/0"):
            (job / "metrics.jsonl").write_text(rows)
        database = f"sqlite:///{folder}/mlflow.db"
        if options.mlflow:
            subprocess.run([options.mlflow, "-c", _FILL, database, f"{folder}/ml", str(options.runs)], check=True)
        times: dict[str, list[tuple[float, ...]]] = {}
        for number in range(options.rounds):
            with nemotron_ui(home) as (url, rows_url):
                times.setdefault("nemotron ui", []).append(measure(url, rows_url, folder / f"n{number}"))
            if options.mlflow:
                with mlflow_ui(options.mlflow, database, folder) as (url, rows_url):
                    times.setdefault("mlflow ui", []).append(measure(url, rows_url, folder / f"m{number}"))
        for name, found in times.items():
            first, again, server = (statistics.median(column) for column in zip(*found, strict=True))
            print(
                f"{name}, {options.runs} runs: first view {first:.2f} s, again {again:.2f} s; the rows from the server "
                f"alone {server * 1e3:.0f} ms (medians of {options.rounds}; goal for the first view: 1 s)   {load()}"
            )


def measure(url: str, rows_url: tuple[str, bytes | None], folder: Path) -> tuple[float, float, float]:
    """(first view, second view, the rows from the server alone) in seconds, with a fresh browser."""
    browser = Browser(folder)
    try:
        views = []
        for _ in range(2):
            browser.call("Page.navigate", url="about:blank")
            start = time.perf_counter()
            browser.call("Page.navigate", url=url)
            browser.wait(ROW, timeout=120)
            views.append(time.perf_counter() - start)
    finally:
        browser.close()
    opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
    address, body = rows_url
    took = []
    for _ in range(5):
        start = time.perf_counter()
        request = urllib.request.Request(address, body, {"Content-Type": "application/json"})  # noqa: S310 — our own
        with opener.open(request) as answer:
            answer.read()
        took.append(time.perf_counter() - start)
    return views[0], views[1], statistics.median(took[1:])


@contextmanager
def nemotron_ui(home: Path) -> Iterator[tuple[str, tuple[str, None]]]:
    environment = {**os.environ, "NEMOTRON_HOME": str(home)}
    server = subprocess.Popen([*NEMOTRON, "ui", "--json"], env=environment, stdout=subprocess.PIPE, text=True)
    assert server.stdout
    text = ""
    while not text.endswith("}\n"):
        text += server.stdout.readline() or sys.exit("nemotron ui ended")
    url = json.loads(text)["url"]
    answers(re.sub(r"/\?.*", "/", url))
    try:
        yield url, (url, None)
    finally:
        server.terminate()
        server.wait()


@contextmanager
def mlflow_ui(python: str, database: str, folder: Path) -> Iterator[tuple[str, tuple[str, bytes]]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    base = f"http://127.0.0.1:{port}"
    arguments = [python, "-m", "mlflow", "ui", "--backend-store-uri", database, "--port", str(port), "--workers", "1"]
    server = subprocess.Popen(arguments, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    answers(f"{base}/health")
    search = json.dumps({"experiment_ids": ["0"], "max_results": 100, "order_by": ["attributes.start_time DESC"]})
    try:
        yield f"{base}/#/experiments/0/runs", (f"{base}/api/2.0/mlflow/runs/search", search.encode())
    finally:
        server.terminate()
        server.wait()


def answers(url: str) -> None:
    """Wait until a server responds, with whatever status."""
    for _ in range(600):
        try:
            urllib.request.urlopen(url, timeout=30).close()  # noqa: S310 — our own
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.2)
        else:
            return
    sys.exit(f"{url} does not answer")


if __name__ == "__main__":
    main()
