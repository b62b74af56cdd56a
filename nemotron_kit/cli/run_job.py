"""One job from the command line: compose, plan, then print the plan or execute it."""

from __future__ import annotations

import gc
import json
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemotron_kit import worker
from nemotron_kit.artifacts.registry import open_registry
from nemotron_kit.cli.main import print_error
from nemotron_kit.cli.output import colour, escaped, print_status
from nemotron_kit.cli.request import Job, hydra_overrides
from nemotron_kit.config.freeze import resolve, to_yaml, typed
from nemotron_kit.config.resolvers import pinned
from nemotron_kit.envfile import check_reserved_tables, read_env_file
from nemotron_kit.errors import NemotronError, UserError, printable
from nemotron_kit.files import finite
from nemotron_kit.home import check_text, new_run_id
from nemotron_kit.spec.plan import IN_PROCESS, INTERACTIVE, Plan, is_local
from nemotron_kit.spec.runconfig import FIELDS

if TYPE_CHECKING:
    from nemotron_kit.app import Pipeline
    from nemotron_kit.config.compose import Composed
    from nemotron_kit.discovery import Tree
    from nemotron_kit.envfile import EnvFile
    from nemotron_kit.remote.ssh import Transport
    from nemotron_kit.spec.runconfig import RunConfig
    from nemotron_kit.worker.process import Outcome


_FOLDER = "${nemotron.run_dir:}/jobs/0"  # hydra.run.dir in conf/config.yaml
# Key, or a prefix that ends with a dot → what to use instead.
_INSTEAD = {
    "hydra.run.dir": "A job's folder is jobs/0 in its run's folder; ${oc.env:NEMO_RUN_DIR} names it in a config.",
    "hydra.output_subdir": "Hydra's files are in .hydra in the job's folder.",
    "hydra.job.chdir": "Jobs start in the working folder; ${oc.env:NEMO_RUN_DIR} is the job's folder.",
    "hydra.job.env_set.": "Set a job's environment variables in its profile: env_vars in env.toml.",
    "hydra.job.env_set": "Set a job's environment variables in its profile: env_vars in env.toml.",
    "hydra.mode": "Ask for a sweep on the command line: -m.",
}

# Settings of sweeps: a single job ignores them.
_SWEEPS = ("hydra/launcher", "hydra/sweeper", "hydra.launcher.", "hydra.sweeper.", "hydra.sweep.")
_SWEEP = "Add -m for a sweep (-m key=1,2). To run one job on another machine: --run PROFILE or --batch PROFILE."


def refuse_without_effect(overrides: Sequence[str]) -> None:
    """Raise UserError for the first override that has no effect on a single job. In a sweep, Hydra itself applies
    them."""
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        if key.startswith(_SWEEPS):
            raise UserError(f"{override}: has no effect on a single job.", hint=_SWEEP)
        found = next(
            (text for name, text in _INSTEAD.items() if key == name or (name[-1] == "." and key.startswith(name))), None
        )
        if found and value not in ("null", "false", "False"):
            raise UserError(f"{override}: has no effect on a single job.", hint=found)


def refuse_settings_in_files(hydra: Any) -> None:
    """Raise UserError for a setting in a config file that has no effect on a single job; `hydra` is the composed
    config's node hydra."""
    from omegaconf import OmegaConf

    run: Any = OmegaConf.to_container(hydra.run, resolve=False)
    job = hydra.job
    found = {
        "hydra.run.dir": run.get("dir") != _FOLDER,
        "hydra.output_subdir": hydra.output_subdir is not None,
        "hydra.job.chdir": bool(job.chdir),
        "hydra.job.env_set": bool(job.env_set),
        "hydra.mode": str(hydra.mode).endswith("MULTIRUN"),
    }
    for key, is_set in found.items():
        if is_set:
            raise UserError(f"{key}: has no effect on a single job.", hint=_INSTEAD[key])


def show_plan(plan: Plan, *, as_json: bool, theme: str | None = None, array: Sequence[str] = ()) -> int:
    """Print the plan, as JSON or in sections; problems that would prevent the run are in the section Problems.

    `theme` is the Pygments style of the config; `array` are lines about the other jobs of the same run. Returns 0, also
    with problems: the job composes.
    """
    if as_json:
        more = {"array": list(array)} if array else {}
        print(json.dumps(finite({**plan.to_dict(), **more}), indent=2, ensure_ascii=escaped()), flush=True)  # noqa: T201
        return 0
    coloured = colour(sys.stdout)
    for title, lines in [*_sections(plan), *([("Array", list(array))] if array else [])]:
        print(f"\x1b[1m{title}\x1b[0m" if coloured else title)  # noqa: T201
        text = printable("\n".join(lines))
        if title == "Config" and coloured:
            _print_highlighted(text, theme)
        else:
            print("\n".join(f"  {line}" if line else "" for line in text.splitlines()))  # noqa: T201
        print()  # noqa: T201
    sys.stdout.flush()
    return 0


def _sections(plan: Plan) -> Iterator[tuple[str, list[str]]]:
    source = plan.config_file or "the dataclass's defaults"
    yield (
        "Job",
        [
            f"{plan.recipe} {plan.stage.replace('/', ' ')}   (config {plan.config_name}: {source})",
            f"in Hydra's syntax: {plan.hydra_command}",
        ],
    )
    yield "Config", plan.files["config.yaml"].splitlines()
    if plan.references:
        yield "Artifacts", [_input_line(slot, plan) for slot in plan.references]
    where = f"profile {plan.profile} ({plan.executor})" if plan.profile else "this machine"
    launch = [f"{plan.launch} on {where}: {shlex.join(plan.launch_command)}"]
    if tree := plan.paths.tree:
        launch.append(f"code, as it is now: {tree.root} → {plan.paths.code} (packager {tree.packager})")
    if plan.settings.env_vars or plan.environment:
        launch.append("environment: " + ", ".join(f"{k}={v}" for k, v in sorted(plan.environment.items())))
    if plan.secrets:
        launch.append("secrets, by name: " + ", ".join(plan.secrets))
    if plan.captured:
        launch.append("fixed at launch: " + ", ".join(f"{k}={v}" for k, v in plan.captured.items()))
    yield "Launch", launch
    if plan.files.get("sbatch.sh"):
        yield "Script", plan.files["sbatch.sh"].splitlines()
    if plan.container:
        yield "Container", [shlex.join(plan.container.arguments)]
    if plan.request:
        yield "Request", to_yaml(plan.request).splitlines()
    if plan.launch == INTERACTIVE:
        yield "Would write", ["nothing: it runs on this terminal and leaves no record"]
    else:
        yield "Would write", [f"{plan.job_folder}/", *(f"  {name}" for name in plan.files)]
    if plan.notes:
        yield "Notes", list(plan.notes)
    if plan.problems:
        yield "Problems", [f"- {line}" for problem in plan.problems for line in problem.splitlines()]


def _input_line(slot: str, plan: Plan) -> str:
    pin, reference = plan.inputs.get(slot), plan.references[slot]
    if pin:
        return f"{slot}: {reference} → {pin.label} at {pin.path}"
    wrong = any(problem.slot == slot for problem in plan.problems)
    return f"{slot}: {reference} → {'not found (see Problems)' if wrong else 'pinned at launch'}"


def _print_highlighted(text: str, theme: str | None) -> None:
    from rich.console import Console
    from rich.padding import Padding
    from rich.style import Style
    from rich.syntax import ANSISyntaxTheme, Syntax

    # Keys in cyan and the rest in the terminal's own colour: all of it is read on a dark and on a light ground.
    plain = ANSISyntaxTheme({("Name", "Tag"): Style(color="cyan"), ("Comment",): Style(dim=True)})
    shown = Syntax(text, "yaml", theme=plain if theme is None else theme, background_color="default", word_wrap=True)
    Console().print(Padding(shown, (0, 2)))


def run(request: Job, argv: Sequence[str], tree: Tree, *, exits: bool = False) -> int:
    """Run what a request asks for, or with --dry-run only print its plan; returns the exit code. `exits`: this process
    exits with it."""
    worker.process_exits = exits
    check_text(Path.cwd(), "The working folder", "Rename it, or launch from another one.")
    env = read_env_file()
    check_reserved_tables(env)
    request = normalized(request)
    if (pipeline := find_pipeline(tree, request)) is not None:
        from nemotron_kit.cli.run_pipeline import run_pipeline

        return run_pipeline(pipeline, request, argv, tree, env)
    if asks_hydra(request):
        from nemotron_kit.cli.sweep import run_hydra

        return run_hydra(request, argv, tree, env)
    from nemotron_kit.config.compose import compose, find_command
    from nemotron_kit.launch.inputs import piped_overrides
    from nemotron_kit.launch.plan import build_plan

    command = find_command(tree, request.recipe, request.stage)
    overrides = hydra_overrides(request)
    notes: list[str] = []
    if command.interactive and request.labels.to_dict():
        raise UserError(f"{command.full_name} is interactive: it leaves no record to name or tag.")
    if command.interactive and (request.after or (request.json and not request.dry_run)):
        option = "--after" if request.after else "--json without --dry-run"
        raise UserError(f"{command.full_name} is interactive: it does not take {option}.")
    # An interactive command reads standard input itself.
    piped = [] if command.interactive else piped_overrides(command, overrides, notes, dry_run=request.dry_run)
    composed = compose(tree, [*overrides, *piped], env, request.flag("--config-dir"))
    composed.notes.extend(notes)
    if composed.config_file or request.flag("--config-dir"):
        refuse_settings_in_files(composed.hydra)
    run_id = new_run_id(command.recipe, command.stage)
    app, connect = tree.apps[command.recipe], not request.dry_run
    plan = build_plan(
        *(composed, app),
        run_id=run_id,
        argv=argv,
        connect=connect,
        transports=transport_to if connect else None,
        labels=request.labels,
    )
    if command.array:
        from nemotron_kit.cli.run_array import count_tasks, run_array

        tasks = count_tasks(plan, composed)
        if tasks is not None:
            return run_array(tasks, plan, composed, app, request, env)
    return carry_out(plan, composed, request, env)


def find_pipeline(tree: Tree, request: Job) -> Pipeline | None:
    """The pipeline that a request names; None for a command, and for an unknown name."""
    app = tree.apps.get(request.recipe)
    return next((each for each in app.pipelines() if each.stage == request.stage), None) if app else None


def transport_to(settings: RunConfig) -> Transport:
    """`remote.ssh.transport_for`, imported only when a job runs on another machine."""
    from nemotron_kit.remote.ssh import transport_for

    return transport_for(settings)


def carry_out(plan: Plan, composed: Composed, request: Job, env: EnvFile) -> int:
    """Execute a plan, or print it if the request or its profile asks for a dry-run; returns the exit code."""
    if request.after:
        from nemotron_kit.launch.dependencies import After

        plan = After.of(request.after, connect=not request.dry_run).apply(plan, composed.command)
    if (folder := request.flag("--config-dir")) is not None:
        plan = replace(plan, hydra=(*plan.hydra, f"--config-dir={folder}"))
    if request.dry_run or plan.settings.dry_run:
        if not request.dry_run:
            print_status("dry_run is set in the profile: nothing is started. --run.dry_run false starts the job.")
        return show_plan(plan, as_json=request.json, theme=env.table("cli").get("theme"))
    if plan.launch not in (IN_PROCESS, INTERACTIVE):
        gc.freeze()  # NeMo-Run is half a million objects, and no job's code runs in this process (see main.leave)
    gc.enable()
    from nemotron_kit.launch.launch import code_facts, execute, refuse_problems

    # With composed.notes: an unread pipe may be the missing input.
    refuse_problems(plan, composed.notes)
    if plan.launch == INTERACTIVE:
        return _run_interactive(plan, composed)
    announce(plan)
    if plan.wait_first and not plan.deferred:
        from nemotron_kit.launch.dependencies import wait_for

        wait_for(None, plan.wait_first)
    plan = replace(plan, code=code_facts())
    started = time.monotonic()
    outcome = execute(plan, composed)
    seconds = time.monotonic() - started
    # The job has ended and is on record: an error while printing must not change its exit code.
    with suppress(OSError):
        report(plan, outcome, seconds)
        if request.json:
            facts = {"job_exit_code": outcome.job_exit_code, "error": outcome.error, "folder": plan.folder}
            print_end(plan.run_id, outcome.state, outcome.code, **facts)
    return outcome.code


def _run_interactive(plan: Plan, composed: Composed) -> int:
    """Call the handler of an interactive command on this process's streams: no log is written, and no record."""
    from nemotron_kit.artifacts.lineage import given_inputs

    pins = {slot: pin for slot, pin in plan.inputs.items() if pin is not None}
    for pin in pins.values():
        open_registry().verify(pin)
    for note in plan.notes:
        print_status(f"note: {note}")
    command = composed.command
    with pinned(pins), given_inputs(pins):
        config: Any = typed(resolve(plan.config), command.load_config_cls())
        code = command.load_handler()(config)
    return code if isinstance(code, int) else 0


def normalized(request: Job) -> Job:
    """The request with its overrides normalised, and `hydra.mode=MULTIRUN` as -m.

    Raises UserError for settings of Hydra's that a job would not get, so that none is ignored silently.
    """
    request = replace(request, overrides=expand_profile_keys(request.overrides))
    if not any(override.lstrip("+~").startswith(("hydra.", "hydra/")) for override in request.overrides):
        return request

    if "hydra.mode=MULTIRUN" in request.overrides and not request.multirun:
        request = replace(request, flags=(*request.flags, "--multirun"))
    if not any(request.flag(name) is not None for name in ("--multirun", "--cfg", "--info")):
        refuse_without_effect(request.overrides)
    return request


def asks_hydra(request: Job) -> bool:
    """Whether Hydra itself handles the request: a sweep, or a question about the config. Raises UserError for an
    incomplete question, and for options that exclude each other."""
    given = [name for name in ("--multirun", "--cfg", "--info", "--hydra-help") if request.flag(name) is not None]
    if len(given) > 1:
        raise UserError(f"{given[0]} and {given[1]} exclude each other.", hint="Leave one of them out.")
    if given and given != ["--multirun"] and request.json:
        raise UserError(f"{given[0]} does not print JSON.", hint="The config as JSON, in the plan: --dry-run --json.")
    if given:
        return True
    for name in ("--package", "--resolve"):
        if request.flag(name) is not None:
            raise UserError(f"{name} is an option of --cfg, which is not given.", hint="Add --cfg job.")
    return False


def expand_profile_keys(overrides: Sequence[str]) -> tuple[str, ...]:
    """The overrides with `run.nodes=8`, the reference's spelling for a field of the profile, as `run.env.nodes=8`."""
    if not any(override.startswith("run.") for override in overrides):
        return tuple(overrides)
    keys = {f"run.{name}": f"run.env.{name}" for name in FIELDS}
    parts = [(override.partition("=")[0], override) for override in overrides]
    return tuple(keys[key] + override[len(key) :] if key in keys else override for key, override in parts)


def announce(plan: Plan) -> None:
    """Print the job that is about to run, its inputs and its notes on standard error."""
    for note in plan.notes:
        print_status(f"note: {note}")
    inputs = "".join(f" · {slot}={pin.label}" for slot, pin in plan.inputs.items() if pin)
    config = f" · config {plan.config_name}" if plan.config_file else ""
    print_status(f"{plan.run_id}: {plan.recipe} {plan.stage.replace('/', ' ')}{config}{inputs}")


def report(plan: Plan, outcome: Outcome, seconds: float) -> None:
    """Print how the job ended, on standard error."""
    run_id = plan.run_id
    if outcome.state in ("pending", "detached"):
        is_here = is_local(plan.executor)
        if outcome.state == "detached":
            print_status(f"Detached from {run_id}, which keeps running.")
        elif is_here:
            print_status(f"{run_id} is {'waiting, detached' if plan.after else 'running detached'}.")
        elif plan.deferred:
            print_status(f"{run_id} is waiting on this machine, to be submitted to {plan.profile}.")
        else:
            print_status(f"{run_id} is submitted to {plan.profile}.")
        print_commands(run_id, "show", "logs -f" if is_here else "attach", "cancel")
    elif outcome.state == "succeeded":
        print_status(f"{run_id}: succeeded in {seconds:.1f} s · nemotron runs show {run_id}")
    else:
        hint, resumption = f"Its record: nemotron runs show {run_id}", f"nemotron runs resume {run_id}"
        if outcome.state == "preempted" and resumption not in str(outcome.error):
            hint += f"\nTo resume it: {resumption}"
        print_error(NemotronError(f"{run_id} {outcome.state}: {outcome.error}", hint=hint))


def print_end(run_id: str, state: str, code: int, **facts: object) -> None:
    """Print how a launch ended as one line of JSON on standard output; `code` is the command's exit code."""
    facts = {"run_id": run_id, "state": state, "exit_code": code, **facts}
    print(json.dumps(finite(facts), ensure_ascii=escaped()))  # noqa: T201


def print_commands(run_id: str, *commands: str) -> None:
    """Print the commands for a detached run, on standard error."""
    for command in commands:
        print_status(f"  nemotron runs {command} {run_id}")
