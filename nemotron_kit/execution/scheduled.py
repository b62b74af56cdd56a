"""A job whose worker a scheduler starts on each of its nodes: what runs there, and where its output goes.

The worker only supervises: what runs is a child, so that a job that crashes, exits or is killed still gets its record.
Node 0 writes the job's record; every other node writes its own end beside it.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from io import FileIO
from pathlib import Path

from nemotron_kit import files
from nemotron_kit.config.environment import environment
from nemotron_kit.config.freeze import to_yaml
from nemotron_kit.config.job import resolve
from nemotron_kit.config.resolvers import pinned
from nemotron_kit.errors import Cancelled, NemotronError
from nemotron_kit.execution.child import ignore_usr1, supervise
from nemotron_kit.execution.inputs import verified_inputs
from nemotron_kit.execution.jobspec import JobSpec, read_config
from nemotron_kit.execution.merge import Merged
from nemotron_kit.execution.nodes import Node
from nemotron_kit.execution.outcome import Outcome
from nemotron_kit.execution.scheduled_ends import VALUE, again_file, record, wait_for_nodes, with_others, write_end
from nemotron_kit.execution.tee import captured, named_channels
from nemotron_kit.masking import mask, note_secrets
from nemotron_kit.plan.launching import rank_command
from nemotron_kit.runs.job import JobFolder

SAVING_SECONDS = 600.0
# Names to a rank the folder of its node's channels.
_CHANNELS = "NEMOTRON_RANK_CHANNELS"


def run_scheduled(job: JobFolder, spec: JobSpec, node: Node) -> Outcome:
    """This node's part of the job, to its end; what it prints goes to the node's log."""
    ignore_usr1()
    with job.open_log(node.log) as log:
        _print_to(log)  # what the worker itself has to say of its end, too
        try:
            place_code(job, spec)
            os.chdir(spec.cwd)
            note_secrets(spec.secrets)
            read_config(job.path)  # which notes its secrets
            with captured(log, shown=False):
                return _lead(job, spec, node) if node.is_head else _join(job, spec, node)
        # Whatever keeps a worker from its work must be on record: nobody else sees it.
        except Exception as error:
            lacking = _lacking(error) if isinstance(error, ModuleNotFoundError) else None
            if node.is_head:
                what = f"the worker failed: {type(error).__name__}: {error}"
                job.finish(1, "failed", error=lacking.message if lacking else what)
            if lacking:
                raise lacking from error
            raise


def _lacking(error: ModuleNotFoundError) -> NemotronError:
    """What the worker needs of an environment that somebody else made: a container's, or another machine's."""
    version = sys.version.split()[0]
    return NemotronError(
        f"{sys.executable} (Python {version}) has no module {error.name!r}, which the job's worker needs.",
        hint="Where jobs run, an image's Python included, there must be omegaconf, and pydantic to save artifacts.",
    )


def place_code(job: JobFolder, spec: JobSpec) -> None:
    """Unpack the launch's code as this job's own copy, unless another node was faster or it is there from before."""
    if spec.code is None or Path(spec.code).is_dir():
        return
    from nemotron_kit.target.code import place_code as unpack
    from nemotron_kit.target.folders import CODE

    record = json.loads(files.read_regular(job.path.parent.parent / CODE))
    unpack(b"", root=record["target_root"], digest=record["digest"], folders=[spec.code])


def _lead(job: JobFolder, spec: JobSpec, node: Node) -> Outcome:
    seen: set[str] = set()
    scheduler = {"kind": spec.executor or "slurm", "job": node.job, "node": node.name, "nodes": node.count}
    scheduler |= {"step": node.step} if node.step else {}
    (job.path / VALUE).unlink(missing_ok=True)
    if node.job:  # until now the script has asked for another try in the worker's place
        again_file(job).unlink(missing_ok=True)
    try:
        # Where it runs is told by the scheduler, not by a process: that of a job that was sent back is gone, too.
        job.transition("running", process=None, scheduler=scheduler)
    except Cancelled as error:
        job.finish(error.exit_code, "cancelled", error=str(error))
        return Outcome(error.exit_code, "cancelled", str(error))
    outcome = _run(job, spec, node, seen)
    write_end(job, node, outcome)
    outcome = with_others(job, node, outcome, seen)
    record(job, spec, node, outcome, seen)
    return outcome


def _join(job: JobFolder, spec: JobSpec, node: Node) -> Outcome:
    outcome = _run(job, spec, node, set())
    write_end(job, node, outcome)
    if outcome.state == "preempted":
        # srun kills all nodes once one has ended with an exit code, and node 0 may still be saving.
        wait_for_nodes(job, [0], SAVING_SECONDS)
    return outcome


def _run(job: JobFolder, spec: JobSpec, node: Node, seen: set[str]) -> Outcome:
    try:
        with environment(spec.environment, spec.expand), pinned(verified_inputs(job)):
            if node.is_head and not spec.module:
                files.write_text(job.path / "resolved.yaml", to_yaml(resolve(read_config(job.path), keep_secrets=True)))
            with _rank_logs(job, spec, node):
                outcome = supervise(_command(job, spec, node), spec.cwd, seen, slurm=node.job is not None)
    except NemotronError as error:
        outcome = Outcome(error.exit_code, "failed", str(error))
    if outcome.error:
        print(f"error: {mask(outcome.error)}", file=sys.stderr, flush=True)  # noqa: T201
    return outcome


def _command(job: JobFolder, spec: JobSpec, node: Node) -> list[str]:
    if spec.torchrun:
        start = [sys.executable, "-P", "-m", "nemotron_kit.execution.elastic"]
        return [*start, *_rendezvous(spec, node), *rank_command(str(job.path))]
    if spec.module:  # it reads the job's folder itself
        return [sys.executable, "-P", "-m", spec.module, str(job.path)]
    return [sys.executable, "-P", "-m", "nemotron_kit.worker", "--rank", str(job.path)]


def _rendezvous(spec: JobSpec, node: Node) -> list[str]:
    processes = f"--nproc-per-node={spec.nproc_per_node}"
    if node.count == 1:
        return ["--standalone", processes]
    return [
        *(f"--nnodes={node.count}", f"--node-rank={node.rank}", processes),
        *(f"--master-addr={node.head}", f"--master-port={node.port}", f"--rdzv-id={node.meeting}"),
    ]


@contextmanager
def _rank_logs(job: JobFolder, spec: JobSpec, node: Node) -> Iterator[None]:
    """Within the block the ranks write to channels of their logs, each of which is a file of its own; what is in them
    is in this node's log, too."""
    if not spec.torchrun:
        yield
        return
    first = node.rank * spec.nproc_per_node
    ranks = range(first, first + spec.nproc_per_node)
    with ExitStack() as stack:
        logs = {f"rank-{rank}": stack.enter_context(job.open_log(f"rank-{rank}")) for rank in ranks}
        stack.enter_context(Merged({f"rank {rank}": job.log_path(f"rank-{rank}") for rank in ranks}, _to_log))
        folder = stack.enter_context(named_channels(logs))
        stack.enter_context(environment({_CHANNELS: str(folder)}))
        yield


def _to_log(data: bytes) -> None:
    os.write(1, data)


def _print_to(log: FileIO) -> None:
    """From here on what this process and its children print is in the log."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)


@contextmanager
def rank_log(job: JobFolder, spec: JobSpec) -> Iterator[None]:
    """One rank's output goes to its own log, where a scheduler's worker merges it."""
    if spec.scheduled and spec.torchrun:
        name = f"rank-{os.environ.get('RANK', '0')}"
        with _channel(name) or job.open_log(name) as log:
            _print_to(log)
    yield


def _channel(name: str) -> FileIO | None:
    """The worker's channel of a name, None where there is none any more."""
    folder = os.environ.pop(_CHANNELS, None)
    if folder is None:
        return None
    try:
        end = os.open(f"{folder}/{name}", os.O_WRONLY | os.O_NONBLOCK)  # else it would wait for one who reads
    except OSError:
        return None
    os.set_blocking(end, True)
    return FileIO(end, "w")
