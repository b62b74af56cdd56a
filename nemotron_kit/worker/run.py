"""Runs one job folder on this machine to its end, calls its handler, and records how it ended."""

from __future__ import annotations

import os
import platform
import signal
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from numbers import Integral
from typing import Any

from nemotron_kit import artifacts, files, installed
from nemotron_kit.artifacts import lineage
from nemotron_kit.artifacts.reference import Pin
from nemotron_kit.artifacts.registry import open_registry
from nemotron_kit.config.freeze import environment, resolve, to_yaml, typed
from nemotron_kit.config.resolvers import pinned
from nemotron_kit.errors import Cancelled, NemotronError, error_text, text_of
from nemotron_kit.masking import mask, masked, note_secrets
from nemotron_kit.runs.job import PREEMPTED, VALUE, DamagedRunRecord, JobFolder
from nemotron_kit.runs.metrics import flush_metrics, summary
from nemotron_kit.spec.plan import JobSpec, rank, read_config, read_spec
from nemotron_kit.worker import RESTART, python_module, ray_command, torchrun_command
from nemotron_kit.worker.hydra import enter_hydra, with_hydra_callbacks
from nemotron_kit.worker.process import (
    INTERRUPTED,
    TERMINATED,
    Outcome,
    Terminated,
    collect_again,
    exit_code,
    hangup_ignored,
    ignore_usr1,
    leave_fork,
    run_child,
    run_file,
    term_raises,
)
from nemotron_kit.worker.streams import captured, masked_streams

Handler = Callable[[Any], Any]


def run_job(
    job: JobFolder,
    handler: Handler | None = None,
    config_cls: type | None = None,
    *,
    shown: bool = True,
    until_exit: bool = False,
    if_left: bool = False,
) -> Outcome:
    """Run the job in `job`: in this process if `handler` is given, else as its spec specifies.

    The handler's output in this process goes to its log, and if `shown` also to this process's streams; `until_exit`
    and `if_left` are those of streams.captured. The outcome is always recorded as exit.json. Errors of the job are not
    raised.
    """
    spec = read_spec(job.path)
    note_secrets(spec.secrets)
    with hangup_ignored():
        try:
            with term_raises():
                if spec.after and not job.has_run:
                    from nemotron_kit.launch.dependencies import wait_for

                    collect_again()
                    wait_for(job, spec.after)
                job.transition("running", pgid=os.getpgid(0), versions=installed_versions())
                with environment({**_others_ranks(), **spec.environment}, spec.expand):
                    capture = {"shown": shown, "until_exit": until_exit, "if_left": if_left}
                    outcome = _run(job, spec, handler, config_cls, **capture)
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


def _others_ranks() -> dict[str, None]:
    """The variables, to be unset, by which a process is one rank of another job: those of RANK and the like that are
    left over, and Kubeflow's PET_…, from which torchrun takes its nodes. A launch in a shell or pod that has them would
    wait for the others. Where they say where the ranks meet, as below a torchrun that was started by hand, this process
    is a rank; but not within a job of ours, whose ranks run something else."""
    names = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "TORCHELASTIC_RUN_ID"}
    if {"MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys() and "NEMOTRON_RUN_ID" not in os.environ:
        names = set()
    return {name: None for name in os.environ if name in names or name.startswith("PET_")}


# The packages whose versions a result may depend on; the recipe's own code is in the plan.
_PACKAGES = (
    "accelerate", "datasets", "hydra-core", "megatron-bridge", "megatron-core", "nemo-rl", "nemo-run", "nemotron-kit",
    "numpy", "omegaconf", "pyarrow", "tokenizers", "torch", "transformers", "triton", "wandb",
)  # fmt: skip


def installed_versions() -> dict[str, str]:
    """Python's version where the job runs, and those of the packages that are installed there."""
    return {"python": platform.python_version(), **installed.versions(_PACKAGES)}


def _put_on_record(job: JobFolder, outcome: Outcome) -> Outcome:
    """Write the exit record; returns the outcome as it was recorded, so that the command's exit code is the
    record's."""
    if job.cancel_requested and outcome.state in ("failed", "preempted"):
        error = f"cancelled: {outcome.error}" if outcome.state == "preempted" else "cancelled"
        outcome = Outcome(Cancelled.exit_code, "cancelled", error, job_exit_code=outcome.recorded)
    try:
        skipped = {"skipped": outcome.skipped} if outcome.skipped else {}
        job.finish(
            outcome.recorded, outcome.state, error=outcome.error, **skipped, **_value(outcome), **summary(job.path)
        )
    except OSError as error:
        # If only its last step failed, the record is there.
        if job.state().state != outcome.state:
            error_text = (
                f"the job {outcome.state}, and its record can't be written: {job.path / 'exit.json'}: {error.strerror}"
            )
            return Outcome(outcome.code or 1, "failed", error_text, exception=outcome.exception)
    return outcome


def _run(job: JobFolder, spec: JobSpec, handler: Handler | None, config_cls: type | None, **capture: bool) -> Outcome:
    pins = verified_inputs(job, spec)
    if (done := skip_unchanged(job, spec, pins)) is not None:
        return done
    if spec.module:
        read_config(job.path)  # it notes the secrets
        return _with_cause(run_child(program_command(job, spec, spec.retries), spec.cwd, job), job)
    with pinned(pins):
        frozen = write_resolved(job)
        if spec.ray or spec.nproc_per_node > 1 or (handler is None and spec.script):
            return run_child(program_command(job, spec, spec.retries), spec.cwd, job)
        return _call(job, spec, frozen, handler, config_cls, **capture)


def write_resolved(job: JobFolder) -> Mapping[str, Any]:
    """Write resolved.yaml, the config as the job reads it, with the artifacts that are pinned now; returns the frozen
    config."""
    frozen = read_config(job.path)
    files.write_text(job.path / "resolved.yaml", to_yaml(masked(resolve(frozen, keep_secrets=True))))
    return frozen


def program_command(
    job: JobFolder, spec: JobSpec, restarts: int = 0, rendezvous: Sequence[str] = ("--standalone",)
) -> list[str]:
    """The command that a job's worker starts on its node. `restarts` and `rendezvous` are torchrun_command's."""
    folder = str(job.path)
    if spec.ray:
        return ray_command(folder)
    if spec.torchrun or spec.nproc_per_node > 1:
        return torchrun_command(spec.nproc_per_node, folder, restarts, rendezvous)
    if spec.module:  # it reads the job's folder itself
        return python_module(spec.module, folder)
    return python_module("nemotron_kit.worker", "--rank", folder)


def _with_cause(outcome: Outcome, job: JobFolder) -> Outcome:
    """The outcome of a task that ran in another process, with the exception that it raised in place of the exit code
    alone."""
    if outcome.state != "failed" or outcome.signal is not None:
        return outcome
    from nemotron_kit.worker.result import read_task_result

    try:
        done = read_task_result(job)
    except DamagedRunRecord:
        return outcome
    # An exit that the task chose has no other cause; a result with another code is of an earlier attempt.
    if done is None or done.failure is None or done.failure.type == "builtins.SystemExit" or done.code != outcome.code:
        return outcome
    return replace(outcome, error=mask(done.failure.text))


def _call(
    job: JobFolder,
    spec: JobSpec,
    frozen: Mapping[str, Any],
    handler: Handler | None,
    config_cls: type | None,
    **capture: bool,
) -> Outcome:
    values = resolve(frozen)  # it notes the secrets that what is printed must not show
    with job.open_log() as log:
        with captured(log, job=job.path, **capture):
            enter_hydra(job.path)
            collect_again()
            config: Any = typed(values, config_cls or spec.load_config_cls())
            call = handler or spec.load_handler()
            outcome = with_hydra_callbacks(job.path, call, lambda: call_handler(call, config))
        if outcome.error and outcome.state == "failed" and outcome.exception is None:
            log.write(f"error: {mask(outcome.error)}\n".encode())
    return outcome


def verified_inputs(job: JobFolder, spec: JobSpec) -> dict[str, Pin]:
    """Slot → pin, of a job with this spec. Inputs that another run had not saved at launch are pinned now. Raises
    UserError when an artifact's files are no longer those that its version records."""
    registry, recorded = open_registry(), job.artifacts()["inputs"]
    pins = {slot: Pin.from_dict(value) for slot, value in recorded.items()} if isinstance(recorded, Mapping) else {}
    # Of a version whose files were moved since, the registry has the new path.
    verified = {slot: version.pin if (version := registry.verify(pin)) else pin for slot, pin in pins.items()}
    changed, pins = verified != pins, verified
    deferred = {slot: text for slot, text in spec.deferred_inputs.items() if slot not in pins}
    if deferred:
        pins |= {slot: registry.resolve(reference) for slot, reference in deferred.items()}
    if deferred or changed:
        record = {**job.artifacts(), "inputs": {slot: pin.to_dict() for slot, pin in pins.items()}}
        files.write_json(job.path / "artifacts.json", record)
    return pins


def skip_unchanged(job: JobFolder, spec: JobSpec, pins: Mapping[str, Pin]) -> Outcome | None:
    """The outcome of a job that need not run, because its inputs are those of the earlier run in `spec.unchanged` and
    that run's outputs are intact: they become this job's outputs. None: the job has to run. Must be called in the job's
    environment."""
    before = spec.unchanged
    if not before or {slot: pin.digest for slot, pin in pins.items()} != before["inputs"]:
        return None
    registry, outputs = open_registry(), [Pin.from_dict(pin) for pin in before["outputs"]]
    try:
        outputs = [record.pin if (record := registry.verify(pin)) else pin for pin in outputs]
    except NemotronError as error:
        print(f"runs again: {error}", file=sys.stderr)  # noqa: T201
        return None
    for pin in outputs:
        registry.note_run(pin, job.run_id)
        lineage.record_output(pin)
    reason = f"unchanged since {before['run']}: {', '.join(pin.label for pin in outputs)}"
    print(f"skipped: {reason}", file=sys.stderr, flush=True)  # noqa: T201
    return Outcome(0, "succeeded", skipped=reason)


def call_handler(handler: Callable[[Any], Any], config: Any) -> Outcome:
    """Run `handler(config)`. A non-zero int that it returns is the exit code, as is the code of a SystemExit. A child
    that the handler forked, and that returns as well, ends here: its end is not the job's."""
    process = os.getpid()
    outcome = _called(handler, config)
    if os.getpid() != process:
        leave_fork(outcome.code)
    flush_metrics()  # before its end is on record
    if "wandb" in sys.modules:
        artifacts.finish_wandb(exit_code=outcome.code)
    return outcome


def _called(handler: Callable[[Any], Any], config: Any) -> Outcome:
    try:
        with term_raises():
            if os.environ.get("WANDB_PROJECT"):
                from nemotron_kit.train_script import init_wandb_from_env

                init_wandb_from_env()
            value = handler(config)
    except KeyboardInterrupt:
        return Outcome(INTERRUPTED, "cancelled", "interrupted")
    except Terminated:
        return Outcome(TERMINATED, "cancelled", "terminated")
    except SystemExit as error:
        return _from_code(error.code)
    except NemotronError as error:
        state = "preempted" if error.exit_code == PREEMPTED else "failed"
        return Outcome(error.exit_code, state, str(error), exception=error)
    # Whatever a handler raises is the job's failure, never the launcher's: asyncio's CancelledError is no Exception.
    except BaseException as error:  # noqa: BLE001
        with suppress(OSError):  # its record has the error, too
            # From the handler on, without the launcher's frames.
            trace = error.__traceback__
            traceback.print_exception(type(error), error, trace.tb_next if trace else None)
        return Outcome(1, "failed", error_text(error), exception=error if isinstance(error, Exception) else None)
    # NumPy's whole numbers are Integral and no int.
    is_code = isinstance(value, Integral) and not isinstance(value, bool)
    return _from_code(int(value)) if is_code else Outcome(0, "succeeded", value=value)


def _from_code(code: Any) -> Outcome:
    if code is None or (isinstance(code, int) and code == 0):
        return Outcome(0, "succeeded", value=code)
    if not isinstance(code, int):
        text = text_of(code)
        print(text, file=sys.stderr)  # noqa: T201 — what Python does with SystemExit("text")
        return Outcome(1, "failed", text)
    number = exit_code(code)
    state = "preempted" if number == PREEMPTED else "failed"
    asked = "" if number == code else f" (from {int(code)}: a process has one byte for it)"
    return Outcome(number, state, f"exit code {number}{asked}", value=code)


def run_rank(job: JobFolder) -> int:
    """One process of a job that has a worker above it: the script, or the handler called with the job's config."""
    from nemotron_kit.worker.distributed import print_to_rank_log

    if (restart := os.environ.pop(RESTART, None)) is not None:
        os.environ["TORCHELASTIC_RESTART_COUNT"] = restart
    spec = read_spec(job.path)
    note_secrets(spec.secrets)
    # torchrun stops its ranks with TERM; a rank that ends by it must not print a traceback.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    ignore_usr1()
    print_to_rank_log(job, spec)
    if spec.module:
        os.execv(sys.executable, python_module(spec.module, str(job.path)))  # noqa: S606
    masked_streams()
    spec.prepare_imports()
    enter_hydra(job.path)
    collect_again()
    if script := spec.script:
        process = os.getpid()

        def run_script() -> Outcome:
            # In this process, which has the launch's import path, as `python SCRIPT --config …` would.
            sys.argv = [script, "--config", str(job.config_path)]
            sys.path.insert(0, os.path.dirname(script))  # noqa: PTH120
            try:
                run_file(script)
            except SystemExit as error:
                if os.getpid() != process:  # a child that the script forked
                    raise
                return _from_code(error.code)
            return Outcome(0, "succeeded")

        return with_hydra_callbacks(job.path, script, run_script).code
    config: Any = typed(resolve(read_config(job.path)), spec.load_config_cls())
    handler = spec.load_handler()
    outcome = with_hydra_callbacks(job.path, handler, lambda: call_handler(handler, config))
    if isinstance(outcome.exception, NemotronError):  # it has no traceback, and no caller prints it
        print(f"error: rank {rank()}: {outcome.error}", file=sys.stderr)  # noqa: T201
    if rank() == 0 and (value := _value(outcome)):
        files.write_json(job.path / VALUE, masked(value))
    return outcome.code


def _value(outcome: Outcome) -> dict[str, Any]:
    """What a handler returned, encoded for a sweeper; {} for nothing, or an artifact, which artifacts.json lists."""
    if outcome.value is None or hasattr(outcome.value, "art_path"):
        return {}
    from nemotron_kit.worker.result import sendable

    return sendable(outcome.value)
