"""Runs one job folder on this machine to its end, calls its handler, and records how it ended."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from nemotron_kit import files
from nemotron_kit.config.freeze import environment, resolve, to_yaml, typed
from nemotron_kit.config.resolvers import pinned
from nemotron_kit.errors import Cancelled, NemotronError
from nemotron_kit.masking import mask, masked, note_secrets
from nemotron_kit.runs.job import VALUE, JobFolder
from nemotron_kit.spec.plan import JobSpec, rank, read_config, read_spec
from nemotron_kit.worker import python_module, ray_command, torchrun_command
from nemotron_kit.worker.elastic import RESTART
from nemotron_kit.worker.handler import call_handler, skip_unchanged, verified_inputs
from nemotron_kit.worker.hydra import enter_hydra, hydra_callbacks
from nemotron_kit.worker.process import (
    INTERRUPTED,
    TERMINATED,
    Outcome,
    Terminated,
    hangup_ignored,
    ignore_usr1,
    run_child,
    term_raises,
)
from nemotron_kit.worker.result import sendable
from nemotron_kit.worker.streams import captured, masked_streams

Handler = Callable[[Any], Any]


def run_job(
    job: JobFolder, handler: Handler | None = None, config_cls: type | None = None, *, shown: bool = True
) -> Outcome:
    """Run the job in `job`: in this process if `handler` is given, else as its spec specifies.

    The handler's output in this process goes to its log, and if `shown` also to this process's streams. The outcome
    is always recorded as exit.json. Errors of the job are not raised.
    """
    spec = read_spec(job.path)
    note_secrets(spec.secrets)
    with hangup_ignored():
        try:
            with term_raises():
                if spec.after and all(entry["state"] != "running" for entry in job.history()):
                    from nemotron_kit.launch.dependencies import wait_for

                    wait_for(job, spec.after)
                job.transition("running", pgid=os.getpgid(0))
                with environment(spec.environment, spec.expand):
                    outcome = _run(job, spec, handler, config_cls, shown=shown)
        except Cancelled as error:
            outcome = Outcome(error.exit_code, "cancelled", str(error))
        except NemotronError as error:
            outcome = Outcome(error.exit_code, "failed", str(error), exception=error)
        except KeyboardInterrupt:
            outcome = Outcome(INTERRUPTED, "cancelled", "interrupted")
        except Terminated:
            outcome = Outcome(TERMINATED, "cancelled", "terminated")
        except OSError as error:  # not of the handler, whose errors call_handler catches: a record could not be written
            what = os.fsdecode(error.filename) if error.filename is not None else str(job.path)
            outcome = Outcome(1, "failed", f"{what}: {error.strerror}")
        return _put_on_record(job, outcome)


def _put_on_record(job: JobFolder, outcome: Outcome) -> Outcome:
    """Write the exit record; returns the outcome as it was recorded, so that the command's exit code is the
    record's."""
    if job.cancel_requested and outcome.state in ("failed", "preempted"):
        error = f"cancelled: {outcome.error}" if outcome.state == "preempted" else "cancelled"
        outcome = Outcome(Cancelled.exit_code, "cancelled", error, job_exit_code=outcome.recorded)
    try:
        skipped = {"skipped": outcome.skipped} if outcome.skipped else {}
        job.finish(outcome.recorded, outcome.state, error=outcome.error, **skipped, **_value(outcome))
    except OSError as error:
        # If only its last step failed, the record is there.
        if job.state().state != outcome.state:
            error_text = (
                f"the job {outcome.state}, and its record can't be written: {job.path / 'exit.json'}: {error.strerror}"
            )
            return Outcome(outcome.code or 1, "failed", error_text, exception=outcome.exception)
    return outcome


def _run(job: JobFolder, spec: JobSpec, handler: Handler | None, config_cls: type | None, *, shown: bool) -> Outcome:
    pins = verified_inputs(job, spec)
    if (done := skip_unchanged(job, spec, pins)) is not None:
        return done
    if spec.module:
        read_config(job.path)  # it notes the secrets
        if spec.nproc_per_node > 1:
            return run_child(torchrun_command(spec.nproc_per_node, str(job.path), spec.retries), {}, spec.cwd, job)
        return run_child(python_module(spec.module, str(job.path)), {}, spec.cwd, job)
    with pinned(pins):
        values = resolve(read_config(job.path), keep_secrets=True)
        files.write_text(job.path / "resolved.yaml", to_yaml(masked(values)))
        if spec.ray:
            return run_child(ray_command(str(job.path)), {}, spec.cwd, job)
        if spec.nproc_per_node > 1:
            return run_child(torchrun_command(spec.nproc_per_node, str(job.path), spec.retries), {}, spec.cwd, job)
        if handler is None and spec.script:
            script = python_module("nemotron_kit.worker", "--rank", str(job.path))
            return run_child(script, {}, spec.cwd, job)
        return _call(job, spec, handler, config_cls, shown=shown)


def _call(job: JobFolder, spec: JobSpec, handler: Handler | None, config_cls: type | None, *, shown: bool) -> Outcome:
    values = resolve(read_config(job.path))  # it notes the secrets that what is printed must not show
    with job.open_log() as log:
        with captured(log, job=job.path, shown=shown):
            enter_hydra(job.path)
            config: Any = typed(values, config_cls or spec.load_config_cls())
            call = handler or spec.load_handler()
            with hydra_callbacks(job.path, call) as end:
                end.outcome = outcome = call_handler(call, config)
        if outcome.error and outcome.state == "failed" and outcome.exception is None:
            log.write(f"error: {mask(outcome.error)}\n".encode())
    return outcome


def run_rank(job: JobFolder) -> int:
    """One process of a job that has a worker above it: the script, or the handler called with the job's config."""
    from nemotron_kit.worker.distributed import rank_log

    if (restart := os.environ.pop(RESTART, None)) is not None:
        os.environ["TORCHELASTIC_RESTART_COUNT"] = restart
    spec = read_spec(job.path)
    note_secrets(spec.secrets)
    # torchrun stops its ranks with TERM; a rank that ends by it must not print a traceback.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    ignore_usr1()
    with rank_log(job, spec):
        if spec.module:
            os.execv(sys.executable, python_module(spec.module, str(job.path)))  # noqa: S606
        masked_streams()
        spec.prepare_imports()
        enter_hydra(job.path)
        if spec.script:
            with hydra_callbacks(job.path, spec.script):
                return _run_script(spec.script, job)
        config: Any = typed(resolve(read_config(job.path)), spec.load_config_cls())
        handler = spec.load_handler()
        with hydra_callbacks(job.path, handler) as end:
            end.outcome = outcome = call_handler(handler, config)
        if isinstance(outcome.exception, NemotronError):  # it has no traceback, and no caller prints it
            print(f"error: rank {rank()}: {outcome.error}", file=sys.stderr)  # noqa: T201
    if rank() == 0 and (value := _value(outcome)):
        files.write_json(job.path / VALUE, masked(value))
    return outcome.code


def _run_script(script: str, job: JobFolder) -> int:
    """Run the script in this process, which has the launch's import path, as `python SCRIPT --config …` would: its
    folder comes first in sys.path."""
    from nemotron_kit.worker.hydra_job import run_file

    sys.argv = [script, "--config", str(job.config_path)]
    sys.path.insert(0, os.path.dirname(script))  # noqa: PTH120
    run_file(script)
    return 0


def _value(outcome: Outcome) -> dict[str, Any]:
    """What a handler returned, encoded for a sweeper; {} for nothing, or an artifact, which artifacts.json lists."""
    if outcome.value is None or hasattr(outcome.value, "art_path"):
        return {}
    return sendable(outcome.value)
