"""One job from the command line: compose, plan, and then print the plan or execute it."""

from __future__ import annotations

import gc
import json
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from nemotron_kit.cli.request import Job, hydra_words
from nemotron_kit.envfile import read_env_file
from nemotron_kit.errors import UserError, printable
from nemotron_kit.files import finite
from nemotron_kit.home import check_text
from nemotron_kit.plan.tables import check_reserved_tables
from nemotron_kit.runs.ids import new_run_id

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nemotron_kit.config.compose import Composed
    from nemotron_kit.discovery import Tree
    from nemotron_kit.envfile import EnvFile
    from nemotron_kit.execution.outcome import Outcome
    from nemotron_kit.plan.plan import Plan


def run(request: Job, argv: Sequence[str], tree: Tree) -> int:
    """Run, or with --dry-run only show, what a request asks for; the exit code."""
    check_text(Path.cwd(), "The working folder", "Rename it, or launch from another one.")
    env = read_env_file()
    check_reserved_tables(env)
    request = as_meant(request)
    if asks_hydra(request):
        from nemotron_kit.cli.hydra_app import run_hydra

        return run_hydra(request, argv, tree, env)
    from nemotron_kit.config.compose import compose, find_command
    from nemotron_kit.execution.reach import reach_for
    from nemotron_kit.plan.build import build_plan
    from nemotron_kit.plan.piped import piped_overrides

    command = find_command(tree, request.recipe, request.stage)
    words = hydra_words(request)
    notes: list[str] = []
    piped = piped_overrides(command, words, notes, dry_run=request.dry_run)
    composed = compose(tree, [*words, *piped], env, request.flag("--config-dir"))
    composed.notes.extend(notes)
    if composed.config_file or request.flag("--config-dir"):
        from nemotron_kit.cli.hydra_settings import refuse_settings_in_files

        refuse_settings_in_files(composed.hydra)
    run_id = new_run_id(command.recipe, command.stage)
    app, connect = tree.apps[command.recipe], not request.dry_run
    plan = build_plan(composed, app, run_id=run_id, argv=argv, connect=connect, reach=reach_for if connect else None)
    return carry_out(plan, composed, request, env)


def carry_out(plan: Plan, composed: Composed, request: Job, env: EnvFile) -> int:
    """Show a plan, or execute it, as the request says; the exit code."""
    if request.after:
        from nemotron_kit.execution.after import After

        plan = After.of(request.after, connect=not request.dry_run).apply(plan, composed.command)
    if (folder := request.flag("--config-dir")) is not None:
        plan = replace(plan, hydra=(*plan.hydra, f"--config-dir={folder}"))
    if request.dry_run or plan.settings.get("dry_run"):
        if not request.dry_run:
            _say("dry_run is set in the profile: nothing is started. --run.dry_run false starts the job.")
        from nemotron_kit.cli.dryrun import show_plan

        return show_plan(plan, as_json=request.json, theme=env.table("cli").get("theme"))
    gc.enable()
    from nemotron_kit.execution.code_facts import code_facts
    from nemotron_kit.execution.hydra_files import hydra_files
    from nemotron_kit.execution.launch import execute, refuse_problems

    refuse_problems(plan)
    announce(plan)
    if plan.wait_first and not plan.deferred:
        from nemotron_kit.execution.after import wait_for

        wait_for(None, plan.wait_first)
    plan = replace(plan, extra={**plan.extra, "code": code_facts()})
    started = time.monotonic()
    outcome = execute(replace(plan, files={**plan.files, **hydra_files(composed)}), composed)
    seconds = time.monotonic() - started
    # The job is over and on record: a full disk or a terminal that has gone changes nothing about how it ended.
    with suppress(OSError):
        report(plan, outcome, seconds)
        if request.json:
            said = {"job_exit_code": outcome.own, "error": outcome.error, "folder": plan.folder}
            print_end(plan.run_id, outcome.state, outcome.code, **said)
    return outcome.code


def as_meant(request: Job) -> Job:
    """The request with its overrides spelled out, and `hydra.mode=MULTIRUN` as the -m that it is.

    Raises UserError for settings of Hydra's that a job would not get: none is dropped in silence.
    """
    request = replace(request, overrides=spelled_out(request.overrides))
    if not any(override.lstrip("+~").startswith(("hydra.", "hydra/")) for override in request.overrides):
        return request
    from nemotron_kit.cli.hydra_settings import refuse_without_effect

    if "hydra.mode=MULTIRUN" in request.overrides and not request.multirun:
        request = replace(request, flags=(*request.flags, "--multirun"))
    if not any(request.flag(name) is not None for name in ("--multirun", "--cfg", "--info")):
        refuse_without_effect(request.overrides)
    return request


def asks_hydra(request: Job) -> bool:
    """Whether Hydra itself answers: a sweep, or a question about the config. Raises UserError for half a question."""
    if any(request.flag(name) is not None for name in ("--multirun", "--cfg", "--info", "--hydra-help")):
        return True
    for name in ("--package", "--resolve"):
        if request.flag(name) is not None:
            raise UserError(f"{name} says what --cfg prints, and there is no --cfg.", hint="Add --cfg job.")
    return False


def spelled_out(overrides: Sequence[str]) -> tuple[str, ...]:
    """`run.nodes=8`, as the reference writes it, is `run.env.nodes=8`: a field of the profile."""
    if not any(override.startswith("run.") for override in overrides):
        return tuple(overrides)
    from nemotron_kit.plan.runconfig import FIELDS

    keys = {f"run.{name}": f"run.env.{name}" for name in FIELDS}
    parts = [(override.partition("=")[0], override) for override in overrides]
    return tuple(keys[key] + override[len(key) :] if key in keys else override for key, override in parts)


def announce(plan: Plan) -> None:
    """What is about to run, on standard error: standard output is the job's own."""
    for note in plan.notes:
        _say(f"note: {note}")
    inputs = "".join(f" · {slot}={pin.label}" for slot, pin in plan.inputs.items() if pin)
    config = f" · config {plan.config_name}" if plan.config_file else ""
    _say(f"{plan.run_id}: {plan.recipe} {plan.stage.replace('/', ' ')}{config}{inputs}")


def report(plan: Plan, outcome: Outcome, seconds: float) -> None:
    """How it ended, on standard error."""
    if outcome.state in ("pending", "detached"):
        _detached(plan, outcome)
        return
    if outcome.state == "succeeded":
        _say(f"{plan.run_id}: succeeded in {seconds:.1f} s · nemotron runs show {plan.run_id}")
        return
    from nemotron_kit.cli.main import print_error
    from nemotron_kit.errors import NemotronError

    print_error(
        NemotronError(
            f"{plan.run_id} {outcome.state}: {outcome.error}",
            hint=f"Its record: nemotron runs show {plan.run_id}{_then(plan, outcome)}",
        )
    )


def _then(plan: Plan, outcome: Outcome) -> str:
    """The line that has a job go on that has saved where it was."""
    line = f"nemotron runs resume {plan.run_id}"
    return f"\nTo go on: {line}" if outcome.state == "preempted" and line not in str(outcome.error) else ""


def print_end(run_id: str, state: str, code: int, **facts: object) -> None:
    """--json: how a launch ended, as one line of JSON on standard output. `exit_code` is the command's."""
    print(json.dumps(finite({"run_id": run_id, "state": state, "exit_code": code, **facts}), ensure_ascii=False))  # noqa: T201


def _detached(plan: Plan, outcome: Outcome) -> None:
    here = plan.executor == "local"
    if outcome.state == "detached":
        _say(f"Detached from {plan.run_id}, which goes on.")
    else:
        _say(f"{plan.run_id} is {_doing(plan, here)}.")
    say_commands(plan.run_id, "show", "logs -f" if here else "attach", "cancel")


def _doing(plan: Plan, here: bool) -> str:
    if here:
        return "waiting, detached" if plan.extra.get("after") else "running detached"
    if plan.deferred:
        return f"waiting on this machine, to be submitted to {plan.profile}"
    return f"submitted to {plan.profile}"


def say_commands(run_id: str, *commands: str) -> None:
    """What can be done with a run that goes on by itself, on standard error."""
    for command in commands:
        _say(f"  nemotron runs {command} {run_id}")


def _say(text: str) -> None:
    print(printable(text), file=sys.stderr)  # noqa: T201
