"""Calls a handler with its verified inputs and its typed config, and returns how it ended."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from nemotron_kit import files
from nemotron_kit.artifacts import finish_wandb
from nemotron_kit.artifacts.reference import Pin
from nemotron_kit.artifacts.registry import open_registry
from nemotron_kit.errors import NemotronError
from nemotron_kit.runs.job import PREEMPTED, JobFolder
from nemotron_kit.runs.metrics import flush_metrics
from nemotron_kit.spec.plan import JobSpec
from nemotron_kit.worker.process import INTERRUPTED, TERMINATED, Outcome, Terminated, exit_code, term_raises

if TYPE_CHECKING:
    from nemotron_kit.artifacts.reference import Pin


def verified_inputs(job: JobFolder, spec: JobSpec) -> dict[str, Pin]:
    """Slot → pin, of a job with this spec. Inputs that another run had not saved at launch are pinned now. Raises
    UserError when an artifact's files are no longer those that its version records."""
    registry, recorded = open_registry(), job.artifacts()["inputs"]
    pins = {slot: Pin.from_dict(value) for slot, value in recorded.items()} if isinstance(recorded, Mapping) else {}
    for pin in pins.values():
        registry.verify(pin)
    deferred = {slot: text for slot, text in spec.deferred_inputs.items() if slot not in pins}
    if deferred:
        pins |= {slot: registry.resolve(reference) for slot, reference in deferred.items()}
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
    from nemotron_kit.artifacts import lineage

    registry, outputs = open_registry(), [Pin.from_dict(pin) for pin in before["outputs"]]
    try:
        for pin in outputs:
            registry.verify(pin)
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
    """Run `handler(config)`. A non-zero int that it returns is the exit code, as is the code of a SystemExit."""
    try:
        with term_raises():
            if os.environ.get("WANDB_PROJECT"):
                from nemotron_kit.train_script import init_wandb_from_env

                init_wandb_from_env()
            value = handler(config)
    except KeyboardInterrupt:
        outcome = Outcome(INTERRUPTED, "cancelled", "interrupted")
    except Terminated:
        outcome = Outcome(TERMINATED, "cancelled", "terminated")
    except SystemExit as error:
        outcome = _from_code(error.code)
    except NemotronError as error:
        state = "preempted" if error.exit_code == PREEMPTED else "failed"
        outcome = Outcome(error.exit_code, state, str(error), exception=error)
    # Whatever a handler raises is the job's failure, never the launcher's.
    except Exception as error:  # noqa: BLE001
        _print_traceback(error)
        outcome = Outcome(1, "failed", f"{type(error).__name__}: {error}", exception=error)
    else:
        is_code = isinstance(value, int) and not isinstance(value, bool)
        outcome = _from_code(value) if is_code else Outcome(0, "succeeded", value=value)
    flush_metrics()  # before its end is on record
    if "wandb" in sys.modules:
        finish_wandb(exit_code=outcome.code)
    return outcome


def _from_code(code: Any) -> Outcome:
    if code is None or (isinstance(code, int) and code == 0):
        return Outcome(0, "succeeded", value=code)
    if not isinstance(code, int):
        print(code, file=sys.stderr)  # noqa: T201 — what Python does with SystemExit("text")
        return Outcome(1, "failed", str(code))
    number = exit_code(code)
    state = "preempted" if number == PREEMPTED else "failed"
    asked = "" if number == code else f" (from {int(code)}: a process has one byte for it)"
    return Outcome(number, state, f"exit code {number}{asked}", value=code)


def _print_traceback(error: Exception) -> None:
    """Print the traceback from the handler on, without the launcher's frames."""
    trace = error.__traceback__
    with suppress(OSError):  # its record has the error, too
        traceback.print_exception(type(error), error, trace.tb_next if trace else None)
