"""The worker, which runs on the node: `python -P -m nemotron_kit.worker FOLDER`."""

import sys
from collections.abc import Sequence

# The variable with the number of the restart, for the ranks: torchrun is started anew for each and would set 0.
RESTART = "NEMOTRON_RESTART"
# The variable by which a job's script tells the worker that the one before it was killed, and is retried.
WORKER_KILLED = "NEMOTRON_WORKER_KILLED"
# The variable that names the folder, shared by all nodes of a job, where each writes how its ranks ended, and the first
# one how often they have started again.
NODES_FOLDER = "NEMOTRON_NODES_FOLDER"
# Whether this process exits after the jobs that it runs itself: as a program it does, in a notebook it does not.
process_exits = False


def python_module(module: str, *arguments: str, python: str = "") -> list[str]:
    """The command that runs one of our modules, or a job's, by this Python or another. -P: a json.py in the working
    folder must not shadow the standard library's."""
    return [python or sys.executable, "-P", "-m", module, *arguments]


def worker_command(python: str, package: str | None, *arguments: str) -> list[str]:
    """The command that starts a job's worker; the last of `arguments` is the job's folder, or with `--array` the record
    of a submission of many. `package` is the folder with nemotron_kit, which has a __main__.py; None if it is
    installed."""
    if package:
        return [python, package, *arguments]
    return python_module("nemotron_kit.worker", *arguments, python=python)


def torchrun_command(
    processes: int, folder: str, restarts: int = 0, rendezvous: Sequence[str] = ("--standalone",)
) -> list[str]:
    """torchrun for a job folder: on each of this node's ranks a worker, which runs the command's script if it has one,
    with `--config`. `restarts`: how often all ranks start again when one has died; `rendezvous`: torchrun's arguments
    for where the nodes of a job meet."""
    options = [*rendezvous, f"--nproc-per-node={processes}", *([f"--max-restarts={restarts}"] if restarts else [])]
    # `python -m`, its default, would look for modules in the working folder first, where a json.py would shadow the
    # standard library's.
    rank = ["--no-python", sys.executable, "-P", "-u", "-m", "nemotron_kit.worker", "--rank", folder]
    return python_module("nemotron_kit.worker.elastic", *options, *rank)


def ray_command(folder: str) -> list[str]:
    """The command that runs one node of a job on its own Ray cluster."""
    return python_module("nemotron_kit.worker.ray_cluster", folder)
