"""The program of a NeMo-Run task: a worker that prints nothing, since NeMo-Run would keep two more copies of the job's
log.
"""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

from nemotron_kit.runs.folder import open_job


def main() -> None:
    """Run the worker for the job folder that is named; its own errors go to logs/worker.log."""
    with open_job(Path(sys.argv[1])).open_log("worker") as log:
        os.dup2(log.fileno(), 2)
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.close(nothing)
    runpy.run_module("nemotron_kit.worker", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
