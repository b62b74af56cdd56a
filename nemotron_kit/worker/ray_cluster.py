"""Runs one node of a job on its own Ray cluster: `python -m nemotron_kit.worker.ray_cluster FOLDER`.

Started by the worker of each node. Node 0 starts Ray's head, waits until all nodes have joined, and runs the job's
program with RAY_ADDRESS; the others join, and end when that program has ended. Whatever Ray has started on a node is
stopped before this process ends. Its exit code is the program's.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import math
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from nemotron_kit import files
from nemotron_kit.errors import NemotronError
from nemotron_kit.masking import mask
from nemotron_kit.polling import polls, until
from nemotron_kit.runs.folder import open_job
from nemotron_kit.runs.job import NODES, PREEMPTED, SLURM_STEP, JobFolder
from nemotron_kit.spec.plan import JobSpec, read_spec
from nemotron_kit.worker import python_module
from nemotron_kit.worker.distributed import SAVING_SECONDS, Node, this_node
from nemotron_kit.worker.process import adopt_orphans, exit_code, handled, ignore_usr1, noted, stop_orphans

# Pulling a container's image takes minutes, and not the same number on each node.
JOIN_SECONDS = 1800.0
# How long the file system that the nodes share may take to show what node 0 has written.
_VISIBLE_SECONDS = 60.0
_GRACE_SECONDS = 5.0
_PARENT_DEATH = 1  # prctl: PR_SET_PDEATHSIG
# Ray's defaults are fixed ones, 10002 to 19999 among them, where another job, or this one's head, may be.
_ANY_PORTS = ("--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0")
# A socket's path has 107 bytes, of which Ray needs about 70.
_LONGEST_FOLDER = 24


def main(folder: str) -> int:
    """Run this node's part of the job; the exit code."""
    job = open_job(Path(folder))
    node = this_node() if SLURM_STEP in os.environ else Node()
    adopt_orphans()
    with suppress(OSError, AttributeError):  # a worker that is killed takes this process, and so Ray, with it
        ctypes.CDLL(None).prctl(_PARENT_DEATH, signal.SIGTERM, 0, 0, 0)
    received: set[str] = set()
    # A short folder for Ray's files on this node: the job's own, so that no other job's cluster is found there.
    name = f"nk-ray-{hashlib.sha256(f'{os.getuid()} {job.path}'.encode()).hexdigest()[:8]}"
    parent = tempfile.gettempdir()
    ray_folder = Path(parent if len(parent) <= _LONGEST_FOLDER else "/tmp", name)  # noqa: S108
    # Without a token Ray runs whatever anyone on the network sends it. Versions before 2.52 know of none.
    token = _end_file(job, node).with_suffix(".token")
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_AUTH_TOKEN_PATH", str(token))
    with noted((signal.SIGTERM,), received):
        try:
            if not node.is_head:
                return _join(job, node, token, received)
            token.parent.mkdir(mode=0o700, exist_ok=True)
            files.write_text(token, secrets.token_hex(32))
            return _lead(job, read_spec(job.path), node, ray_folder, received)
        except NemotronError as error:
            print(f"error: {mask(str(error))}", file=sys.stderr, flush=True)  # noqa: T201
            return error.exit_code
        finally:
            stop_orphans(_GRACE_SECONDS)
            shutil.rmtree(ray_folder, ignore_errors=True)
            if node.is_head:
                token.unlink(missing_ok=True)


def _lead(job: JobFolder, spec: JobSpec, node: Node, ray_folder: Path, received: set[str]) -> int:
    end = _end_file(job, node)
    end.unlink(missing_ok=True)
    shutil.rmtree(ray_folder, ignore_errors=True)  # of an attempt that was killed
    code = 1
    try:
        host, port = _ip(node.head), node.port or _free_port()
        address = f"{host}:{port}"
        options = ["--head", f"--node-ip-address={host}", f"--port={port}", "--include-dashboard=false"]
        options.append(f"--ray-client-server-port={_free_port()}")
        with _ray(job, node, [*options, f"--temp-dir={ray_folder}"]) as ray:
            if _all_joined(job, node, address, ray, received):
                code = _run_program(job, spec, node, address, ray, received)
            elif received:
                code = 128 + signal.SIGTERM
        return code
    finally:
        files.write_json(end, {"code": code})


def _join(job: JobFolder, node: Node, token: Path, received: set[str]) -> int:
    """Join node 0's cluster until its program has ended. 75 is passed on, so that all nodes agree on it; any other
    failure of the program is node 0's to report."""
    end = _end_file(job, node)
    if not until(
        lambda: bool(received) or (_answers(node.head, node.port) and token.exists()), 0.5, within=JOIN_SECONDS
    ):
        raise NemotronError(f"Ray's head on {node.head}:{node.port} did not answer within {JOIN_SECONDS / 60:.0f} min.")
    if not received:
        with _ray(job, node, [f"--address={_ip(node.head)}:{node.port}"]) as ray:
            until(lambda: bool(received) or end.exists() or ray.poll() is not None, 0.5, within=math.inf)
            if not received and not until(end.exists, 0.5, within=_VISIBLE_SECONDS):
                _print_failure(
                    f"Ray has ended on this node before the job did (exit code {ray.returncode}).", _log(job, node)
                )
                return 1
    # Node 0's program may be saving.
    if not until(end.exists, 0.5, within=SAVING_SECONDS):
        return 128 + signal.SIGTERM
    return PREEMPTED if json.loads(files.read_regular(end))["code"] == PREEMPTED else 0


@contextmanager
def _ray(job: JobFolder, node: Node, options: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    """Within the block Ray runs on this node. A signal for the job's program does not end it: it runs in its own
    session (Slurm sends its signals to every process all the same)."""
    with os.fdopen(os.open(_log(job, node), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as log:
        ray = subprocess.Popen(
            python_module("ray.scripts.scripts", "start", *options, *_ANY_PORTS, "--block", "--disable-usage-stats"),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=ignore_usr1,
        )
    try:
        yield ray
    finally:
        if ray.poll() is None:
            ray.terminate()


def _all_joined(job: JobFolder, node: Node, address: str, ray: subprocess.Popen[bytes], received: set[str]) -> bool:
    """Wait until every node of the job has joined; False, with an error printed, if they have not."""
    host, _, port = address.rpartition(":")
    until(lambda: bool(received) or ray.poll() is not None or _answers(host, int(port)), 0.2, within=JOIN_SECONDS)
    if not received and ray.poll() is None:
        counting = python_module("nemotron_kit.worker.ray_cluster", "--count", address, str(node.count))
        counter = subprocess.Popen(counting, stdin=subprocess.DEVNULL, preexec_fn=ignore_usr1)
        until(lambda: bool(received) or ray.poll() is not None or counter.poll() is not None, 0.1, within=math.inf)
        if counter.poll() is not None and not received:
            return counter.returncode == 0
        counter.terminate()
    if not received:
        _print_failure(f"Ray's head did not start (exit code {ray.poll()}).", _log(job, node))
    return False


def count_nodes(address: str, wanted: int) -> int:
    """Wait until the cluster at `address` has `wanted` nodes: 0 once it has, 1 after JOIN_SECONDS. A separate process
    does this: it becomes one of Ray's drivers, with Ray's signal handlers."""
    import ray

    ray.init(address=address, log_to_driver=False, logging_level="ERROR", configure_logging=False)
    joined = 0
    for _ in polls(0.3, within=JOIN_SECONDS):
        joined = sum(1 for each in ray.nodes() if each["Alive"])
        if joined >= wanted:
            print(f"Ray: {joined} node{'s' if joined > 1 else ''} at {address}", flush=True)  # noqa: T201
            return 0
    print(f"error: Ray: only {joined} of {wanted} nodes had joined after {JOIN_SECONDS / 60:.0f} min", file=sys.stderr)  # noqa: T201
    return 1


def _run_program(
    job: JobFolder, spec: JobSpec, node: Node, address: str, ray: subprocess.Popen[bytes], received: set[str]
) -> int:
    """Run the job's program to its end; its exit code, also where a signal ended it."""
    program = subprocess.Popen(
        python_module("nemotron_kit.worker", "--rank", str(job.path)),
        cwd=spec.ray_working_dir or spec.cwd,
        env={**os.environ, "RAY_ADDRESS": address},
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=ignore_usr1,
    )
    with _passed_on(program, received):
        until(lambda: program.poll() is not None or ray.poll() is not None, 0.1, within=math.inf)
        if program.poll() is None:
            # The program may be about to end, too; without Ray it can wait for ever.
            if not until(
                lambda: program.poll() is not None, 0.1, within=SAVING_SECONDS if received else _GRACE_SECONDS
            ):
                _print_failure(
                    f"Ray's head has ended before the job's program (exit code {ray.returncode}).", _log(job, node)
                )
                program.kill()
            program.wait()
            if program.returncode == 0 and not received:
                return 0
    code = program.returncode
    return exit_code(code) if code >= 0 else 128 - code


@contextmanager
def _passed_on(program: subprocess.Popen[bytes], received: set[str]) -> Iterator[None]:
    """Within the block TERM and USR1 go to the program, but not where Slurm sends them to every process."""

    def handle(number: int, _: FrameType | None) -> None:
        if number == signal.SIGTERM:
            received.add("TERM")
        if SLURM_STEP not in os.environ:
            with suppress(ProcessLookupError):
                program.send_signal(number)

    with handled((signal.SIGTERM, signal.SIGUSR1), handle):
        if received:  # it came before the program did
            handle(signal.SIGTERM, None)
        yield


def _end_file(job: JobFolder, node: Node) -> Path:
    """The file in which node 0 records the exit code of this attempt."""
    return job.path / NODES / f"ray-{node.job or 'here'}-{os.environ.get('SLURM_RESTART_COUNT', '0')}.json"


def _log(job: JobFolder, node: Node) -> Path:
    """The file with Ray's output, whose end is printed if Ray fails."""
    return job.path / f"ray-{node.rank}.log"


def _print_failure(what: str, log: Path) -> None:
    last = log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:]
    print("\n".join([f"error: {what} The end of {log}:", *last]), file=sys.stderr, flush=True)  # noqa: T201


def _ip(host: str) -> str:
    try:
        return socket.gethostbyname(host)
    except OSError as error:
        raise NemotronError(f"{host}, the job's first node, has no address: {error}.") from error


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answers(host: str, port: int) -> bool:
    with suppress(OSError), socket.create_connection((host, port), timeout=2):
        return True
    return False


if __name__ == "__main__":
    from nemotron_kit.worker.process import recording_end

    if sys.argv[1] == "--count":
        sys.exit(count_nodes(sys.argv[2], int(sys.argv[3])))
    sys.exit(recording_end(lambda: main(sys.argv[1])))
