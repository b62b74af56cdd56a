"""Sweeps and Hydra's own flags (--cfg, --info, …): a real @hydra.main app over the same primary config."""

from __future__ import annotations

import gc
import io
import os
import shlex
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Any, NoReturn

from nemotron_kit.app import shadows_library
from nemotron_kit.cli.output import print_status
from nemotron_kit.cli.request import Job, hydra_overrides, hydra_spelling
from nemotron_kit.cli.run_job import print_commands, print_end, show_plan
from nemotron_kit.config.compose import (
    CHOICES,
    PreparedCommand,
    compose,
    expand_choice,
    prepare,
    stages_of,
)
from nemotron_kit.config.config_files import config_files
from nemotron_kit.config.freeze import environment
from nemotron_kit.config.limits import bounded_interpolations, hydra_reading_fixes
from nemotron_kit.config.registration import broken_choice, conf_dir, main_hydra, register_recipes
from nemotron_kit.config.resolvers import multiplying, set_run_dir
from nemotron_kit.config.secrets import masked_overrides
from nemotron_kit.config.wording import translated, unreadable
from nemotron_kit.discovery import Tree, use
from nemotron_kit.envfile import EnvFile
from nemotron_kit.errors import NemotronError, Unreachable, UserError, listed
from nemotron_kit.home import nemotron_home, new_run_id
from nemotron_kit.launch.dependencies import wait_for
from nemotron_kit.launch.launch import code_facts
from nemotron_kit.launch.plan import build_plan, not_submitted
from nemotron_kit.masking import mask
from nemotron_kit.quoting import hydra_text
from nemotron_kit.runs.folder import RunFolder, create_run
from nemotron_kit.runs.job import TERMINAL, JobFolder, run_state
from nemotron_kit.runs.process_facts import is_on_this_host, process_facts
from nemotron_kit.sweep.objective import objective_problem, quiet_alembic
from nemotron_kit.sweep.recipe_task import REFUSED, SAFE_PATH, RecipeTask, set_run
from nemotron_kit.sweep.sweep_job import Settings
from nemotron_kit.worker.hydra import plain
from nemotron_kit.worker.process import INTERRUPTED, TERMINATED, Terminated, hangup_ignored, term_raises
from nemotron_kit.worker.streams import unless_gone


def create_sweep(run_id: str, request: Job, argv: Sequence[str], hydra: Sequence[str], **more: str | None) -> RunFolder:
    """Create the record of a sweep and return it. Waits first for the runs named by --after, unless the sweep's jobs
    are detached and wait themselves. `hydra` is the request in Hydra's spelling, `more` further facts for the
    record. Once the sweep has all of its jobs, the caller calls `all_jobs_added`."""
    if request.after and request.mode != "batch":
        wait_for(None, request.after)
    plan = {"recipe": request.recipe, "stage": request.stage, "kind": "sweep", "after": list(request.after),
            "command_line": shlex.join(masked_overrides(argv)), "hydra": masked_overrides(hydra),
            "code": code_facts(), "launcher": process_facts()}  # fmt: skip
    plan |= {name: value for name, value in more.items() if value is not None}
    return create_run(run_id, plan, [], labels=request.labels.to_dict(), more_jobs=True)


def report_sweep(run: RunFolder, as_json: bool) -> int:
    """Print the result of a sweep without failures, or the state of one that is still running; returns 0."""
    states = Counter(job.state().state for job in run.jobs())
    counts = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
    over = states.keys() <= TERMINAL
    if over and not as_json:
        _print_results(run)
    more = f" · nemotron runs show {run.id}" if over else ""
    print_status(f"{run.id}: of {states.total()} jobs {counts}{more}")
    if not over:
        print_commands(run.id, "show", "attach", "cancel")
    if as_json:
        print_end(run.id, run_state(states), 0, jobs=dict(states), folder=str(run.path))
    return 0


def sweep_failures(run: RunFolder, why: object, as_json: bool) -> NemotronError | None:
    """The error of a sweep some of whose jobs did not succeed; None where all did."""
    states = {job.number: _state_at_end(job) for job in run.jobs()}
    failed = [number for number, state in states.items() if state != "succeeded"]
    if not failed:
        return None
    # A sweep that was refused, or whose target became unreachable before anything ran, is no failure of a job.
    kind = next((each for each in (UserError, Unreachable) if isinstance(why, each)), NemotronError)
    if as_json:
        ended = Counter(states.values())
        print_end(run.id, run_state(ended), kind.exit_code, jobs=dict(ended), folder=str(run.path))
    elif kind is NemotronError:
        _print_results(run)
    names = listed(list(map(str, failed)), 8)
    return kind(
        f"{run.id}: {len(failed)} of {len(states)} jobs did not succeed (job {names}): {why}",
        hint=f"Their logs: nemotron runs logs {run.id} --job {failed[0]}"
        if kind is NemotronError
        else f"Its record: nemotron runs show {run.id}",
    )


def _state_at_end(job: JobFolder) -> str:
    """A job's state as it is once this process has ended. A job of this process whose end could not be recorded, on a
    full disk, has failed then."""
    state = job.state()
    process = state.facts.get("process") or {}
    is_ours = process.get("pid") == os.getpid() and is_on_this_host(process)
    return "failed" if is_ours and not state.terminal else state.state


def _print_results(run: RunFolder) -> None:
    from nemotron_kit.cli.runs.results_table import print_sweep_end  # not needed to launch a sweep

    with unless_gone(sys.stderr):
        print_sweep_end(run)


_SWEEPS = ("hydra.sweeper", "hydra.launcher")


def run_hydra(request: Job, argv: Sequence[str], tree: Tree, env: EnvFile) -> int:
    """Hand a request with Hydra's flags to Hydra; the exit code."""
    if request.flag("--hydra-help") is not None:  # needs no composed config
        return _ask_hydra(request, [], None)
    topic = request.flag("--info")
    swept = any(override.startswith(("recipe=", "stage=")) for override in request.overrides)
    if topic not in (None, "plugins") and not swept and not (request.recipe and request.stage):
        asked_for = f"--info {topic}" if topic else "--info"  # except for the plugins, it shows a composed job
        raise UserError(
            f"{asked_for} needs a command: it shows how its config is composed.",
            hint="For instance: nemotron nano3 pretrain --info defaults. Without a command: --info plugins.",
        )
    use(tree)
    gc.enable()
    asked = _expanded(hydra_overrides(request), tree)
    choices = [override.partition("=")[2] for override in asked if override.startswith(("recipe=", "stage="))]
    prepared = None
    if len(choices) == 2 and not any("," in choice or "(" in choice for choice in choices):
        prepared = prepare(tree, asked, env, sweep=True)
    else:  # several commands, or none: all are registered
        register_recipes(tree.apps.values(), env)
    overrides = prepared.overrides if prepared else _with_choices(asked)
    if request.multirun and request.dry_run:
        return _dry_sweep(prepared, (overrides, asked), argv, tree, env, request)
    if not request.multirun:
        return _ask_hydra(request, overrides, prepared)
    if prepared and prepared.command.interactive:
        raise not_submitted(prepared.command, single=False)
    return _sweep(request, overrides, argv, tree, prepared)


def _with_choices(overrides: Sequence[str]) -> list[str]:
    """The overrides, preceded by one choice of each group that is swept over: Hydra needs one to compose the sweep's
    config, which it does without the sweep."""
    chosen = []
    for name in ("recipe", "stage"):
        given = [override.partition("=")[2] for override in overrides if override.startswith(f"{name}=")]
        if given and all("," in value and "(" not in value for value in given):
            chosen.append(f"{name}={given[0].partition(',')[0]}")
    return [*chosen, *overrides]


def _ask_hydra(request: Job, overrides: list[str], prepared: PreparedCommand | None) -> int:
    """Run Hydra for --cfg, --info or --hydra-help and print its output; returns 0. The output is captured first: Hydra
    logs it, and logging prints a long error if the reader has closed the pipe (`| head`)."""
    answer, complaint = io.StringIO(), io.StringIO()
    try:
        with (
            _translated(prepared),
            bounded_interpolations(),
            multiplying(),
            _plain_yaml(request.flag("--package")),
            redirect_stdout(answer),
            redirect_stderr(complaint),
        ):
            _hydra_main(lambda _: None, [*overrides, *request.flags])
    except SystemExit as exit_:
        if exit_.code:  # for an unknown --package, which Hydra prints instead of raising an exception
            hydra = request.flag("--cfg") == "hydra"
            example = (
                "Its keys begin with hydra, as in --package hydra.launcher."
                if hydra
                else "It takes a key that isn't null."
            )
            hint = f"{example} Without --package, the whole config is printed."
            raise UserError(f"--package: {complaint.getvalue().strip()}.", hint=hint) from None
    sys.stdout.write(mask(answer.getvalue()))  # --resolve prints the values of secrets
    sys.stdout.flush()
    sys.stderr.write(complaint.getvalue())
    return 0


@contextmanager
def _plain_yaml(package: str | None) -> Iterator[None]:
    """Within the block Hydra prints paths as text, as in a job's config.yaml: OmegaConf would print Python objects,
    which no safe loader reads. An enum member that is the value of `package` itself is printed by its name."""
    from omegaconf import OmegaConf

    theirs, select = OmegaConf.to_yaml, OmegaConf.select

    def to_yaml(config: Any, *, resolve: bool = False, sort_keys: bool = False) -> str:
        values = plain(OmegaConf.to_container(config, resolve=resolve, enum_to_str=True))
        return theirs(OmegaConf.create(values), sort_keys=sort_keys)

    def selected(config: Any, key: str, **options: Any) -> Any:
        found = select(config, key, **options)
        return found.name if isinstance(found, Enum) and key == package else found

    OmegaConf.to_yaml, OmegaConf.select = to_yaml, selected  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        OmegaConf.to_yaml, OmegaConf.select = theirs, select  # type: ignore[method-assign]


def _expanded(overrides: Sequence[str], tree: Tree) -> list[str]:
    """The overrides with each `glob(…)` and `choice(…)` of recipes, stages and configs expanded to names."""
    names: dict[str, list[str]] = {"recipe": list(tree.apps)}
    result = []
    for override in overrides:
        key, _, value = override.partition("=")
        if key not in CHOICES:
            result.append(override)
            continue
        options = expand_choice(key, value, names.get(key, []))
        result.append(f"{key}={','.join(map(hydra_text, options))}")
        # The stages to choose from are known once the recipes are chosen, and the configs once the stages are.
        if key == "recipe":
            names["recipe"] = [name for name in options if name in tree.apps]
        commands = {stage: found for recipe in names["recipe"] for stage, found in stages_of(tree, recipe).items()}
        if key == "recipe":
            names["stage"] = [stage for stage, command in commands.items() if stage == command.stage]
        elif key == "stage":
            files = (config_files(commands[stage]) for stage in options if stage in commands)
            names["config"] = list(dict.fromkeys(name for found in files for name in found))
    return result


@contextmanager
def _translated(prepared: PreparedCommand | None) -> Iterator[None]:
    from hydra.errors import HydraException, OverrideParseException
    from omegaconf.errors import OmegaConfBaseException

    if prepared is not None:
        with translated(prepared):
            yield
        return
    try:
        yield
    except OverrideParseException as error:
        raise unreadable(error) from error
    except (HydraException, OmegaConfBaseException) as error:
        if broken := broken_choice(str(error)):
            raise broken from error
        first, *more = str(error).split("\nConfig search path:")[0].splitlines()
        raise UserError(first, hint="\n".join(more) or None) from error


def _hydra_main(task: Callable[[Any], Any], overrides: Sequence[str]) -> None:
    """Run @hydra.main on `overrides`. Its errors are raised, so that they get our messages and exit codes."""
    import hydra

    before = sys.argv
    sys.argv = ["nemotron", *overrides]
    try:
        with environment({"HYDRA_FULL_ERROR": "1"}), hydra_reading_fixes():
            hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")(task)()
    finally:
        sys.argv = before


def _sweep(
    request: Job, overrides: list[str], argv: Sequence[str], tree: Tree, prepared: PreparedCommand | None
) -> int:
    run_id = new_run_id(request.recipe or "sweep", request.stage or "jobs")
    run = create_sweep(run_id, request, argv, hydra_spelling(request))
    set_run_dir(str(run.path))
    after = request.after if request.mode == "batch" else ()
    title = f"{run_id}: a sweep over {request.recipe} {request.stage}"
    task = RecipeTask(run.path, argv, after, request.labels, lambda: print_status(title))
    quiet_alembic()
    try:
        with term_raises(), hangup_ignored(), _translated(prepared), environment(_importable(tree)), task.counted():
            _hydra_main(task, [*overrides, *request.flags])
    # Ctrl-C and TERM among them.
    except BaseException as error:
        # No job has started, and nobody was told of the run. Hydra makes a job's folder before it calls the task.
        if not task.begun and all(_is_refused(job) for job in run.jobs()):
            shutil.rmtree(run.path)
            if isinstance(error, Terminated):
                raise SystemExit(TERMINATED) from None
            raise
        if not isinstance(error, Exception):
            raise _stopped(run, error, request.json) from None
        _failed(run, error, request.json, task.count)
    run.all_jobs_added()
    if not run.jobs():
        shutil.rmtree(run.path)
        raise UserError("The sweep has no jobs.", hint="A range or a glob among its values has none.")
    return report_sweep(run, request.json)


def _stopped(run: RunFolder, error: BaseException, as_json: bool) -> BaseException:
    """Print how a sweep ended that Ctrl-C or SIGTERM has stopped; returns the exception that ends this process."""
    if isinstance(error, Terminated):
        error = SystemExit(TERMINATED)
    ended = Counter(_state_at_end(job) for job in run.jobs())
    with suppress(OSError):
        print_status(f"{run.id}: stopped · nemotron runs show {run.id}")
        if as_json:
            code = error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else INTERRUPTED
            state = run_state(ended)
            state = "failed" if state == "succeeded" else state  # jobs may be missing
            print_end(run.id, state, code, jobs=dict(ended), folder=str(run.path))
    return error


def _is_refused(job: JobFolder) -> bool:
    record = job.exit_record()
    return not job.history() if record is None else bool(record.get(REFUSED))


def _importable(tree: Tree) -> dict[str, str]:
    """The variables by which started processes can import the recipes, and no modules of the working folder: the jobs
    of Hydra's other launchers unpickle the recipes' classes before any of our code runs."""
    import_path = {str(Path(entry).absolute()) for entry in sys.path}
    folders = {str(folder) for source in tree.sources for folder in source.parents if str(folder) in import_path}
    # A json.py beside a recipe must not shadow the standard library's.
    folders = {folder for folder in folders if not shadows_library(folder)}
    path = os.pathsep.join([*sorted(folders), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {"PYTHONPATH": path, SAFE_PATH: "1"}


def _failed(run: RunFolder, error: Exception, as_json: bool, count: int | None) -> NoReturn:
    """Raise the error of a sweep that has failed. `count`: the number of its jobs, if it is known."""
    failures = sweep_failures(run, error, as_json)
    if failures is not None and count in (None, len(run.jobs())):
        run.all_jobs_added()
        raise failures from error
    why = error.message if isinstance(error, NemotronError) else str(error)
    if isinstance(error, OSError) and error.filename is not None:
        why = f"{os.fsdecode(error.filename)}: {error.strerror}"
    run.launch_failed(why)
    if failures is not None:
        raise failures from error
    if as_json:
        ended = Counter(job.state().state for job in run.jobs())
        code = error.exit_code if isinstance(error, NemotronError) else 1
        print_end(run.id, "failed", code, jobs=dict(ended), error=why, folder=str(run.path))
    raise error


def _dry_sweep(
    prepared: PreparedCommand | None,
    overrides: tuple[list[str], list[str]],
    argv: Sequence[str],
    tree: Tree,
    env: EnvFile,
    request: Job,
) -> int:
    """Print the plans of a sweep's jobs, and start none; returns 0. For a sweeper that chooses values from earlier
    results, one plan is printed, with the config's values.

    `overrides` are (those that Hydra gets for the sweep, those as typed), of which a recipe's jobs are composed.
    """
    from omegaconf import OmegaConf

    run_id = new_run_id(request.recipe or "sweep", request.stage or "jobs")
    set_run_dir(str(nemotron_home() / "runs" / run_id))
    with _translated(prepared), hydra_reading_fixes():
        hydra, jobs, notes = _sweep_jobs(*overrides, request)
    launcher: Any = OmegaConf.to_container(hydra.launcher)
    settings = Settings(**launcher) if launcher.pop("_target_", "").endswith(".NemoRunLauncher") else Settings()
    for number, job in enumerate(jobs):
        composed = compose(tree, job, env, request.flag("--config-dir"))
        composed.notes.extend(notes)
        set_run(composed.config.run, settings)
        plan = build_plan(
            *(composed, tree.apps[composed.command.recipe]),
            run_id=run_id,
            argv=argv,
            job=number,
            connect=False,
            labels=request.labels,
        )
        detached = composed.config.run.mode == "batch" or settings.detach
        if problem := objective_problem(hydra, composed.command, detached=detached):
            plan = replace(plan, problems=(*plan.problems, problem))
        show_plan(plan, as_json=request.json, theme=env.table("cli").get("theme"))
    return 0


def _sweep_jobs(overrides: list[str], typed: list[str], request: Job) -> tuple[Any, list[list[str]], list[str]]:
    """(Hydra's node as the sweep composes it, the overrides of each job, notes on them)."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.types import RunMode

    with main_hydra(request.flag("--config-dir")) as hydra:
        node = hydra.compose_config("config", overrides, RunMode.MULTIRUN, with_log_configuration=False).hydra
        params = [f"{key}={value}" for key, value in (node.sweeper.get("params") or {}).items()]
        # Overrides of the sweep only; a single job's composition has no sweeper params.
        sweep_overrides = [
            override for override in typed if not override.lstrip("+~").replace("/", ".").startswith(_SWEEPS)
        ]
        parsed = OverridesParser.create(config_loader=hydra.config_loader).parse_overrides([*params, *sweep_overrides])
        if node.sweeper._target_.endswith(".BasicSweeper"):
            jobs = BasicSweeper.split_arguments(parsed, max_batch_size=None)[0]
            return node, [list(job) for job in jobs], []
    swept = [override.input_line for override in parsed if override.is_sweep_override()]
    sweeper = node.runtime.choices["hydra/sweeper"]
    note = f"hydra/sweeper={sweeper} chooses values as jobs end: for {', '.join(swept)} this plan has the config's."
    kept = [override.input_line for override in parsed if not override.is_sweep_override()]
    return node, [kept], [note]
