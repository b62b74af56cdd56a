"""Jobs of one or several nodes, whose workers a scheduler starts: their rendezvous, the logs of their ranks, and their
common end."""

from __future__ import annotations

import ipaddress
import json
import os
import re
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from io import FileIO
from pathlib import Path
from typing import Any

from nemotron_kit import files
from nemotron_kit.config.freeze import environment
from nemotron_kit.config.resolvers import pinned
from nemotron_kit.errors import Cancelled, NemotronError
from nemotron_kit.masking import mask, masked, note_secrets
from nemotron_kit.polling import until
from nemotron_kit.remote.agent.code import registered_folders, unpack_code, written_since
from nemotron_kit.remote.agent.operations import CODE
from nemotron_kit.runs.job import AGAIN, NODES, RESUMED, SLURM_STEP, UNEXPLAINED, VALUE, JobFolder, read_object_if_any
from nemotron_kit.runs.logs import read_from
from nemotron_kit.runs.metrics import summary
from nemotron_kit.spec.plan import JobSpec, read_config
from nemotron_kit.worker import NODES_FOLDER, WORKER_KILLED
from nemotron_kit.worker.elastic import restarts_in
from nemotron_kit.worker.process import Outcome, beside, ignore_usr1, noted, supervise
from nemotron_kit.worker.pump import write_all
from nemotron_kit.worker.run import installed_versions, program_command, skip_unchanged, verified_inputs, write_resolved
from nemotron_kit.worker.streams import Channels, captured

# Below the ports that Linux hands out by itself.
_FIRST_PORT, _PORTS = 10_000, 20_000
_FIRST_GROUP = re.compile(r"(?:[^,\[]|\[[^\]]*\])*")


@dataclass(frozen=True)
class Node:
    """The node that this worker runs on: node `rank` of the job's `count`.

    `head` is the address of node 0. `rdzv_id` and `port` are torchrun's rendezvous; they differ for any two jobs that
    can run at once. `job` is the scheduler's id of the job, None without one. `step` is Slurm's id of the step that
    started this worker (`17.1`), also in an array.
    """

    rank: int = 0
    count: int = 1
    head: str = "localhost"
    port: int = 0
    rdzv_id: str = ""
    job: str | None = None
    name: str | None = None
    step: str | None = None

    @property
    def is_head(self) -> bool:
        """Whether this is node 0, which writes the job's record."""
        return self.rank == 0

    @property
    def log(self) -> str:
        """The name of this node's log: each has one writer."""
        return "job" if self.is_head else f"node-{self.rank}"


def this_node(environ: Mapping[str, str] = os.environ) -> Node:
    """The node that this worker of a Slurm job is on, from the environment that its srun set."""
    if "SLURM_JOB_ID" not in environ:
        return Node()
    number = int(environ["SLURM_JOB_ID"])
    array, task = environ.get("SLURM_ARRAY_JOB_ID"), environ.get("SLURM_ARRAY_TASK_ID")
    job = f"{array}_{task}" if array else str(number)
    return Node(
        rank=int(environ.get("SLURM_NODEID", "0")),
        count=int(environ.get("SLURM_NNODES", "1")),
        head=_head(environ),
        # Each task of an array has a number of its own too, so jobs near one another never share a port.
        port=_FIRST_PORT + number % _PORTS,
        rdzv_id=job,
        job=job,
        name=environ.get("SLURMD_NODENAME"),
        step=f"{number}.{environ['SLURM_STEP_ID']}" if "SLURM_STEP_ID" in environ else None,
    )


def first_host(nodelist: str) -> str:
    """The first host of Slurm's short form: `n[01-03],x` gives n01."""
    group = _FIRST_GROUP.match(nodelist)
    return re.sub(r"\[(\d+)[^\]]*\]", r"\1", group[0] if group else nodelist)


def _head(environ: Mapping[str, str]) -> str:
    """Node 0's name where it leads to an address that other nodes reach, else the address that its srun called from."""
    name = first_host(environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST", ""))
    address = environ.get("SLURM_LAUNCH_NODE_IPADDR") or environ.get("NEMOTRON_HEAD_ADDRESS", "").split(" ")[0]
    # A node's own name often means 127.0.1.1 to itself.
    if name and not _is_loopback(name):
        return name
    return address or name or "localhost"


def _is_loopback(name: str) -> bool:
    try:
        found = {str(info[4][0]) for info in socket.getaddrinfo(name, None)}
    except OSError:
        return True
    return any(ipaddress.ip_address(address.partition("%")[0]).is_loopback for address in found)


OTHERS_SECONDS = 20.0
_LAST = "this was the last of its segments, max_segments"


def write_end(job: JobFolder, node: Node, outcome: Outcome, received: set[str]) -> None:
    """Write how this node ended, and the signals that it had `received` (`TERM`), for the other nodes; nothing for a
    job on one node."""
    if node.count == 1:
        return
    path = _end_of(job, node.rank)
    path.parent.mkdir(mode=0o700, exist_ok=True)
    end = {"code": outcome.recorded, "state": outcome.state, "error": outcome.error, "host": socket.gethostname()}
    files.write_json(path, masked({**end, "node": node.name, "signals": sorted(received)}))


def wait_for_nodes(job: JobFolder, ranks: Iterable[int], seconds: float) -> None:
    """Wait until the nodes of these ranks have ended, or `seconds` are over."""
    paths = [_end_of(job, rank) for rank in ranks]
    until(lambda: all(path.exists() for path in paths), 0.1, within=seconds)


def with_others(job: JobFolder, node: Node, outcome: Outcome, received: set[str]) -> Outcome:
    """The outcome of all nodes, where this is node 0 with its own `outcome`. It waits OTHERS_SECONDS for the other
    nodes to end, 2 s where it was sent a signal. Clears `received` where a node's failure explains the signal."""
    others = range(1, node.count)
    wait_for_nodes(job, others, OTHERS_SECONDS if not received else 2.0)
    for end in filter(None, (read_object_if_any(_end_of(job, rank)) for rank in others)):
        if end["state"] == "failed" and (outcome.state == "succeeded" or received):
            error = f"node {end['node'] or end['host']}: {end['error']}"
            if not end.get("signals"):
                received.clear()  # it failed by itself, and srun sent TERM here only because of that: no preemption
            return Outcome(1, "failed", error, job_exit_code=int(end["code"]) or 1)
    return outcome


def record(job: JobFolder, spec: JobSpec, node: Node, outcome: Outcome, received: set[str]) -> None:
    """Write the exit record, or, for a job that is requeued, the marker and the state by which its script and the
    launch know that. `received` holds the signals that this node got."""
    # Only the scheduler can explain a signal that ended the job, unless `runs cancel` had it sent. USR1 ends nothing.
    asked = not node.job or job.cancel_requested
    explained = outcome.state == "succeeded" or asked or not ("TERM" in received or outcome.signal)
    unexplained = {} if explained else {UNEXPLAINED: sorted(received)}
    requeued = node.job is not None and not job.cancel_requested and _is_requeued(job, spec, outcome, received)
    # TERM alone: a preemption, or srun after another node's worker was killed, which the script knows by srun's code.
    told = _KILLED if node.job and received == {"TERM"} and not job.cancel_requested and _may_retry(job, spec) else ""
    if requeued:
        files.write_text(requeue_marker(job), f"told {told}".strip() if received == {"TERM"} else "always")
    elif node.job and not told:
        requeue_marker(job).unlink(missing_ok=True)
    if requeued and outcome.state != "preempted":
        reason = f"retry after {outcome.error}"
        job.transition("pending", process=None, retry=True, reason=reason, error=outcome.error)
    elif outcome.state == "preempted" and job.cancel_requested:
        job.finish(128 + signal.SIGTERM, "cancelled", error="cancelled")
    elif outcome.state == "preempted":
        last = f"{_LAST}={spec.max_segments}" if node.job else None
        resume = f"{last or 'nothing starts it again'}: nemotron runs resume {job.reference}"
        then = "it goes on from there" if requeued else resume
        facts = {**unexplained, **({AGAIN: True} if requeued else {}), **_written(job, spec), **summary(job.path)}
        state = "failed" if last and not requeued else "preempted"
        job.finish(outcome.recorded, state, error=f"stopped with a checkpoint; {then}", **facts)
    else:
        value = read_object_if_any(job.path / VALUE) or {}
        skipped = {"skipped": outcome.skipped} if outcome.skipped else {}
        facts = {**unexplained, **value, **_written(job, spec), **skipped, **summary(job.path)}
        asked_to_stop = outcome.state == "cancelled" and job.cancel_requested
        job.finish(outcome.recorded, outcome.state, error="cancelled" if asked_to_stop else outcome.error, **facts)


def _written(job: JobFolder, spec: JobSpec) -> dict[str, Any]:
    """Files in the job's copy of the code that were neither sent nor registered: they are deleted with the run's
    folder."""
    found = written_since(Path(spec.code), registered_folders(job)) if spec.code else {}
    return {"written": found} if found else {}


# In the marker: the job may be retried if its worker is killed.
_KILLED = "killed"
_WORKER_KILLED = "its worker was killed (KILL)"


def requeue_marker(job: JobFolder) -> Path:
    """The file by which the job's script is asked to requeue it; see executors/slurm/script.py."""
    return job.path.parent.parent / "slurm" / f"again-{os.environ['SLURM_JOB_ID']}"


def _is_requeued(job: JobFolder, spec: JobSpec, outcome: Outcome, received: set[str]) -> bool:
    """Whether the job is requeued: after a checkpoint, or after a failure that was not caused by a signal."""
    if outcome.state == "preempted":
        # A preemption does not count as a segment.
        done = sum(
            1 for entry in _since_resumed(job) if entry["state"] == "preempted" and entry.get(UNEXPLAINED) != ["TERM"]
        )
        return spec.max_segments is None or done + 1 < spec.max_segments or received == {"TERM"}
    if outcome.state == "failed" and not received:
        return _may_retry(job, spec)
    return False


def _may_retry(job: JobFolder, spec: JobSpec) -> bool:
    """Whether another failure would be retried: those in place and those of the queue count together."""
    return _retries(job) + restarts_in(job.path / NODES) < spec.retries


def _since_resumed(job: JobFolder) -> list[dict[str, Any]]:
    """The history from the last `runs resume` on, which starts every count anew."""
    history = job.history()
    begun = max((number for number, entry in enumerate(history) if entry.get(RESUMED)), default=0)
    return history[begun:]


def _retries(job: JobFolder) -> int:
    """How often the whole job was queued again after a failure."""
    return sum(1 for entry in _since_resumed(job) if entry.get("retry"))


def _end_of(job: JobFolder, rank: int) -> Path:
    return job.path / NODES / f"{os.environ.get('SLURM_RESTART_COUNT', '0')}-{rank}.json"


SAVING_SECONDS = 600.0
# The variable that names the folder of its node's channels to a rank.
_CHANNELS = "NEMOTRON_RANK_CHANNELS"


def run_scheduled(job: JobFolder, spec: JobSpec, node: Node) -> Outcome:
    """This node's part of the job, to its end; what it prints goes to the node's log."""
    ignore_usr1()
    with job.open_log(node.log) as log:
        _print_to(log)  # the worker's own messages too
        try:
            if spec.code is not None and not Path(spec.code).is_dir():
                # The launch's code becomes this job's own copy, unless another node or an earlier attempt has made it.
                sent = json.loads(files.read_regular(job.path.parent.parent / CODE))
                unpack_code(sent["target_root"], sent["digest"], Path(spec.code))
            os.chdir(spec.cwd)
            note_secrets(spec.secrets)
            read_config(job.path)  # which notes its secrets
            with captured(log, job=job.path, shown=False):
                return _lead(job, spec, node) if node.is_head else _join(job, spec, node)
        # Any error of the worker must be on record: nobody reads what it prints.
        except Exception as error:
            lacking = _lacking(error) if isinstance(error, ModuleNotFoundError) else None
            what = lacking.message if lacking else f"the worker failed: {type(error).__name__}: {error}"
            if node.is_head:
                job.finish(1, "failed", error=what)
            else:  # else the first node would take the TERM that srun then sends for a preemption
                write_end(job, node, Outcome(1, "failed", what), set())
            if lacking:
                raise lacking from error
            raise


def _lacking(error: ModuleNotFoundError) -> NemotronError:
    """The error of a worker whose environment (a container's, or another machine's) lacks a module."""
    version = sys.version.split()[0]
    return NemotronError(
        f"{sys.executable} (Python {version}) has no module {error.name!r}, which the job's worker needs.",
        hint="Where jobs run, an image's Python included, there must be omegaconf, and pydantic to save artifacts.",
    )


def _lead(job: JobFolder, spec: JobSpec, node: Node) -> Outcome:
    received: set[str] = set()
    scheduler = {"kind": spec.executor or "slurm", "job": node.job, "node": node.name, "nodes": node.count}
    scheduler |= {"step": node.step} if node.step else {}
    (job.path / VALUE).unlink(missing_ok=True)
    try:
        if node.job and (used_up := _prepare_for_a_kill(job, spec)):
            job.finish(128 + signal.SIGKILL, "failed", error=used_up)
            return Outcome(128 + signal.SIGKILL, "failed", used_up)
        # Which node it runs on is known to the scheduler. A requeued job's earlier process is gone.
        job.transition("running", process=None, scheduler=scheduler, versions=installed_versions())
    except Cancelled as error:
        job.finish(error.exit_code, "cancelled", error=str(error))
        return Outcome(error.exit_code, "cancelled", str(error))
    with ExitStack() as ending:
        outcome = _run(job, spec, node, received, ending)
        write_end(job, node, outcome, received)
        outcome = with_others(job, node, outcome, received)
        record(job, spec, node, outcome, received)
    return outcome


def _prepare_for_a_kill(job: JobFolder, spec: JobSpec) -> str | None:
    """Count the retry if the worker before this one was killed, and leave the file by which the script knows whether to
    retry if this one is. Until now the file was the script's own, in case that no worker would start. Returns an error
    if the job has no retries left."""
    marker = requeue_marker(job)
    if os.environ.pop(WORKER_KILLED, None) and not job.cancel_requested:
        if not _may_retry(job, spec):
            marker.unlink(missing_ok=True)
            return f"{_WORKER_KILLED}, and all retries are used up (retries={spec.retries})"
        job.transition("pending", process=None, retry=True, reason=f"retry: {_WORKER_KILLED}", error=_WORKER_KILLED)
    if _may_retry(job, spec):
        files.write_text(marker, _KILLED)
    else:
        marker.unlink(missing_ok=True)
    return None


def _join(job: JobFolder, spec: JobSpec, node: Node) -> Outcome:
    received: set[str] = set()
    with ExitStack() as ending:
        outcome = _run(job, spec, node, received, ending)
        write_end(job, node, outcome, received)
        if outcome.state == "preempted":
            # srun kills all nodes once one has ended with an exit code, and node 0 may still be saving.
            wait_for_nodes(job, [0], SAVING_SECONDS)
    return outcome


def _run(job: JobFolder, spec: JobSpec, node: Node, received: set[str], ending: ExitStack) -> Outcome:
    """Run the program to its end. From its start until `ending` is closed, TERM does not end this process: the failure
    of one node, for which srun sends TERM to the others, must not keep them from recording theirs."""
    variables = {**spec.environment, **({SLURM_STEP: node.step or "1"} if node.job else {})}
    try:
        with environment(variables, spec.expand), pinned(pins := verified_inputs(job, spec)):
            if (done := skip_unchanged(job, spec, pins)) is not None:
                return done
            if node.is_head and not spec.module:
                write_resolved(job)
            with _rank_logs(job, spec, node):
                ending.enter_context(noted((signal.SIGTERM,), set()))
                outcome = supervise(_command(job, spec, node), spec.cwd, received, slurm=node.job is not None)
    except NemotronError as error:
        outcome = Outcome(error.exit_code, "failed", str(error))
    if outcome.error:
        print(f"error: {mask(outcome.error)}", file=sys.stderr, flush=True)  # noqa: T201
    return outcome


def _command(job: JobFolder, spec: JobSpec, node: Node) -> list[str]:
    if not spec.torchrun:
        return program_command(job, spec)
    # What earlier allocations have used up is the same for all nodes; this one's own may be written meanwhile.
    left = max(0, spec.retries - _retries(job) - restarts_in(job.path / NODES, earlier=True))
    if node.count == 1:
        return program_command(job, spec, left)
    nodes = (f"--nnodes={node.count}", f"--node-rank={node.rank}", f"--rdzv-id={node.rdzv_id}")
    return program_command(job, spec, left, (*nodes, f"--master-addr={node.head}", f"--master-port={node.port}"))


def _print_to(log: FileIO) -> None:
    """Redirect stdout and stderr of this process and its children to the log."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)


@contextmanager
def _rank_logs(job: JobFolder, spec: JobSpec, node: Node) -> Iterator[None]:
    """Within the block each rank writes to its own log, through a channel that it opens by its name, and the node's log
    gets the lines of all. When the block ends, what was written until then is in the logs."""
    if not spec.torchrun:
        yield
        return
    first = node.rank * spec.nproc_per_node
    ranks = range(first, first + spec.nproc_per_node)
    with ExitStack() as stack:
        logs = {f"rank-{rank}": stack.enter_context(job.open_log(f"rank-{rank}")) for rank in ranks}
        paths = {f"rank {rank}": job.log_path(f"rank-{rank}") for rank in ranks}
        stack.enter_context(merged(paths, partial(write_all, 1)))
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="nemotron-"))
        fifos = [(*_fifo(f"{folder}/{name}"), log.fileno(), None) for name, log in logs.items()]
        stack.callback(Channels(fifos, job.path).finish)
        stack.enter_context(environment({_CHANNELS: folder, NODES_FOLDER: str(job.path / NODES)}))
        yield


def _fifo(path: str) -> tuple[int, int]:
    """A new FIFO's ends: (what is read, what is written to)."""
    os.mkfifo(path, 0o600)
    source = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # otherwise it would wait for a writer
    end = os.open(path, os.O_WRONLY)
    os.set_blocking(source, True)
    return source, end


def print_to_rank_log(job: JobFolder, spec: JobSpec) -> None:
    """Redirect the output of a rank that a node's worker started to the rank's own log, which that worker merges."""
    if spec.scheduled and spec.torchrun:
        name = f"rank-{os.environ.get('RANK', '0')}"
        with _channel(name) or job.open_log(name) as log:
            _print_to(log)


def _channel(name: str) -> FileIO | None:
    """The worker's channel of that name; None if the worker has ended or made none."""
    folder = os.environ.pop(_CHANNELS, None)
    if folder is None:
        return None
    try:
        end = os.open(f"{folder}/{name}", os.O_WRONLY | os.O_NONBLOCK)  # otherwise it would block until somebody reads
    except OSError:
        return None
    os.set_blocking(end, True)
    return FileIO(end, "w")


POLL_SECONDS = 0.2
# Bytes of a line without an end after which it is passed on as it is.
LONGEST = 1 << 20


def merged(logs: Mapping[str, Path], write: Callable[[bytes], object]) -> AbstractContextManager[None]:
    """`with merged({"rank 0": path, …}, write):` passes each line that is appended to the files within the block to
    `write`, as `[rank 0] line`."""
    sources = [_Source(label, path) for label, path in logs.items()]

    def run(ended: threading.Event) -> None:
        last = False
        while not last:
            last = ended.wait(POLL_SECONDS)
            for source in sources:
                for lines in source.new_lines():
                    write(lines)
        for source in sources:
            write(source.rest())

    return beside(run)


class _Source:
    def __init__(self, label: str, path: Path) -> None:
        self._mark = f"[{label}] ".encode()
        self._path = path
        # What an earlier attempt wrote is already in the node's log.
        self._offset = path.stat().st_size if path.exists() else 0
        self._held = b""

    def new_lines(self) -> Iterator[bytes]:
        """The complete lines that were appended since the last call, marked, by pieces."""
        with suppress(OSError):  # its file system does not answer: it is read later
            for data in read_from(self._path, self._offset):
                self._offset += len(data)
                whole, end, self._held = (self._held + data).rpartition(b"\n")
                if not end and len(self._held) > LONGEST:
                    whole, end, self._held = self._held, b"\n", b""
                if end:
                    yield self._marked(whole)

    def rest(self) -> bytes:
        held, self._held = self._held, b""
        return self._marked(held) if held else b""

    def _marked(self, lines: bytes) -> bytes:
        return b"".join(self._mark + line + b"\n" for line in lines.split(b"\n"))
