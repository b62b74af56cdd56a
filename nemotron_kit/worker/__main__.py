"""The entry point of every job: `python -P -m nemotron_kit.worker <job folder>`.

It reads the job's folder, resolves its artifacts, sets its environment, starts the script (or calls the handler), under
torchrun when asked, forwards signals, and writes state and exit record. `--rank` is one rank of a torchrun job; with
`--array` the argument is the record of a submission, of which this is one task.
"""

from __future__ import annotations

import gc

if __name__ == "__main__":
    gc.disable()  # until the job begins, see process.collect_again

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from nemotron_kit.errors import NemotronError, full_trace
from nemotron_kit.files import read_regular
from nemotron_kit.masking import mask
from nemotron_kit.runs.folder import open_job
from nemotron_kit.spec.plan import read_spec
from nemotron_kit.worker.distributed import run_scheduled, this_node
from nemotron_kit.worker.run import run_job, run_rank


def main(argv: Sequence[str] | None = None) -> int:
    """Run a job folder; the exit code is the job's."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    as_rank = "--rank" in arguments
    folders = [argument for argument in arguments if argument not in ("--rank", "--array")]
    if len(folders) != 1:
        print("usage: python -m nemotron_kit.worker [--rank | --array] JOB_FOLDER", file=sys.stderr)  # noqa: T201
        return 2
    try:
        folder = Path(folders[0])
        if "--array" in arguments:
            jobs = json.loads(read_regular(folder))["jobs"]
            folder = folder.parent.parent / "jobs" / str(jobs[int(os.environ["SLURM_ARRAY_TASK_ID"])])
        return _run(folder, as_rank)
    except NemotronError as error:
        print(mask(f"{full_trace(error)}error: {error}"), file=sys.stderr)  # noqa: T201
        return error.exit_code


def _run(folder: Path, as_rank: bool) -> int:
    job = open_job(folder)
    if as_rank:
        return run_rank(job)
    spec = read_spec(job.path)
    if spec.scheduled:
        return run_scheduled(job, spec, this_node()).recorded
    spec.prepare_imports()
    try:
        os.chdir(spec.cwd)
    except OSError as error:
        message = f"{spec.cwd}, the folder that it was launched in: {error.strerror}"
        job.finish(1, "failed", error=message)
        raise NemotronError(f"{message}.") from error
    # Its output is in its log. On a terminal it was started by hand: there the output is printed, too.
    with os.fdopen(os.dup(2), "w") as stderr:  # what is written to descriptor 2 after the job goes to its log, too
        outcome = run_job(job, shown=os.isatty(1), until_exit=True)
        if outcome.error:
            print(f"error: {mask(outcome.error)}", file=stderr)
    return outcome.code


if __name__ == "__main__":
    from nemotron_kit.worker.process import recording_end

    sys.exit(recording_end(main))
