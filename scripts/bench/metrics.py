"""How many calls of log_metrics a process makes a second, and that every row is written: by one thread, and by four.

python scripts/bench/metrics.py [--calls 300000]
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
from pathlib import Path

from nemotron_kit import log_metrics
from nemotron_kit.runs.metrics import flush_metrics


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=300_000)
    calls = parser.parse_args().calls
    for threads in (1, 4):
        with tempfile.TemporaryDirectory() as folder:
            os.environ["NEMO_RUN_DIR"] = folder
            workers = [threading.Thread(target=_log, args=(calls // threads,)) for _ in range(threads)]
            begun = time.perf_counter()
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()
            flush_metrics()
            took = time.perf_counter() - begun
            rows = Path(folder, "metrics.jsonl").read_bytes().count(b"\n")
        print(f"{threads} thread(s): {rows / took:,.0f} calls/s, {rows} of {calls // threads * threads} rows written")


def _log(calls: int) -> None:
    for step in range(calls):
        log_metrics({"loss": 1.25, "lr": 1e-3}, step=step)


if __name__ == "__main__":
    main()
