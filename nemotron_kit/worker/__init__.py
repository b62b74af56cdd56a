"""What runs on the node: `python -P -m nemotron_kit.worker FOLDER`."""

import sys


def torchrun_command(processes: int, folder: str) -> list[str]:
    """torchrun on this machine for a job folder: a worker on each rank, which runs the command's script if it has one,
    with `--config`."""
    start = [sys.executable, "-P", "-m", "nemotron_kit.worker.elastic", "--standalone"]
    return [*start, f"--nproc-per-node={processes}", *rank_command(folder)]


def rank_command(folder: str) -> list[str]:
    """torchrun's arguments for a rank that is a worker. `python -m`, its default, would look for modules in the working
    folder first, where a json.py would shadow the standard library's.
    """
    return ["--no-python", sys.executable, "-P", "-u", "-m", "nemotron_kit.worker", "--rank", folder]
