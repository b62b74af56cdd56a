"""`nemotron RECIPE PIPELINE`: parses the command line of a pipeline, prints its graph for --dry-run, and reports its
progress."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemotron_kit.app import Pipeline
from nemotron_kit.cli.output import print_json, print_status, write_lines
from nemotron_kit.cli.request import Job, shell_line
from nemotron_kit.cli.run_job import announce, print_commands, print_end, report, transport_to
from nemotron_kit.errors import UserError
from nemotron_kit.executors.base import executor_for
from nemotron_kit.launch.attach import attach
from nemotron_kit.launch.pipeline import Decision, Launch, Stage, problems_of
from nemotron_kit.launch.pipeline_request import read_request
from nemotron_kit.quoting import hydra_text
from nemotron_kit.runs.folder import RunFolder
from nemotron_kit.spec.plan import is_local

if TYPE_CHECKING:
    from nemotron_kit.discovery import Tree
    from nemotron_kit.envfile import EnvFile
    from nemotron_kit.spec.plan import Plan
    from nemotron_kit.worker.process import Outcome

# Hydra's flags that apply to one job only, and what to use instead.
_ONE_JOB = {
    "--cfg": "--cfg prints the config of one stage: {line} --cfg job. --dry-run shows the pipeline.",
    "--info": "For one stage: {line} --info.",
    "--resolve": "For one stage: {line} --cfg job --resolve.",
    "--package": "For one stage: {line} --cfg job --package KEY.",
    "--multirun": "Sweep over one stage ({line} -m key=1,2), or run the pipeline once for each value.",
    "--hydra-help": "For one stage: {line} --hydra-help.",
}


def run_pipeline(pipeline: Pipeline, request: Job, argv: Sequence[str], tree: Tree, env: EnvFile) -> int:
    """Run or submit a pipeline, or with --dry-run print its stages and decisions; returns the exit code."""
    for flag, instead in _ONE_JOB.items():
        if request.flag(flag) is not None:
            line = " ".join(_program(argv, pipeline, pipeline.stages[0].path))
            raise UserError(f"{flag} can't be used with a pipeline.", hint=instead.format(line=line))
    base = [f"run.profile={hydra_text(request.profile)}"] if request.profile else []
    base += [f"run.mode={request.mode}"] if request.mode else []
    asked = read_request(pipeline, request.config, request.overrides)
    launch = Launch(
        request=asked,
        app=tree.apps[pipeline.recipe],
        tree=tree,
        env=env,
        argv=argv,
        prog=_program(argv, pipeline, ()),
        base=base,
        config_dir=request.flag("--config-dir"),
        transports=None if request.dry_run else transport_to,
        after=request.after,
        labels=request.labels,
    ).prepare()
    if request.dry_run:
        return _show(launch, request)
    if launch.stages[0].resolved.settings.dry_run:
        print_status("dry_run is set in the profile: nothing is started. --run.dry_run false starts the pipeline.")
        return _show(launch, request)
    return _start(launch, request)


def _program(argv: Sequence[str], pipeline: Pipeline, path: Sequence[str]) -> list[str]:
    """The start of the command line of a command in the pipeline's recipe: `nemotron RECIPE …`, or the recipe's program
    if the pipeline was started by it."""
    is_own_program = bool(argv) and argv[0] != "nemotron" and list(argv[:3]) != ["python", "-m", "nemotron_kit"]
    before = list(argv[: 3 if list(argv[1:2]) == ["-m"] else 2]) if is_own_program else ["nemotron", pipeline.recipe]
    return [*before, *path[1:]]


# --- dry-run


def _show(launch: Launch, request: Job) -> int:
    """Print the stages, the decisions, and each stage's problems; returns 0, also with problems."""
    rows = []
    for stage in launch.stages:
        decision = launch.decide(stage)
        problems = [] if decision.skip else problems_of(launch, stage)
        if decision.skip and decision.before is not None:
            stage.outputs = decision.before.outputs()
        rows.append((stage, decision, problems))
    if request.json:
        print_json(
            {
                "pipeline": launch.request.pipeline.full_name,
                "hydra": shell_line(request),
                "mode": launch.mode,
                "profile": launch.stages[0].resolved.config["run"]["profile"],
                "stages": [_stage_json(*row) for row in rows],
            }
        )
        return 0
    write_lines(
        [
            "Pipeline",
            f"  {launch.request.pipeline.full_name}: {_count(launch)}",
            f"  in Hydra's syntax: {shell_line(request)}",
            "",
            "Stages",
        ]
    )
    for number, (stage, decision, problems) in enumerate(rows, 1):
        write_lines([f"  {line}" for line in _stage_lines(number, stage, decision, problems)])
    return 0


def _count(launch: Launch) -> str:
    chosen, every = len(launch.stages), len(launch.request.pipeline.stages)
    return f"{chosen} of {every} stages" if chosen < every else f"{every} stage{'s' if every > 1 else ''}"


def _stage_lines(number: int, stage: Stage, decision: Decision, problems: Sequence[str]) -> Iterator[str]:
    settings = stage.resolved.settings
    resources = f"   (resources {stage.command.resources})" if stage.command.resources else ""
    where = f"   on {settings.executor}" if not is_local(settings.executor) else ""
    config = f" -c {stage.composed.config_name}" if stage.composed.config_file else ""
    yield f"{number}  {stage.label}{config}: {'skip' if decision.skip else 'run'}: {decision.why}{where}{resources}"
    for slot, text in stage.references.items():
        pin = stage.inputs().get(slot)
        source = f", from {stage.wired[slot][0].label}" if slot in stage.wired else ""
        yield f"     reads {slot}: {pin.label if pin else text}{source}"
    for name in stage.produces:
        yield f"     saves {name}"
    yield from (f"     note: {note}" for note in [*stage.notes, *stage.composed.notes])
    yield from (f"     problem: {line}" for problem in problems for line in problem.splitlines())


def _stage_json(stage: Stage, decision: Decision, problems: Sequence[str]) -> dict[str, Any]:
    pins = stage.inputs()
    return {
        "stage": stage.name,
        "config": stage.composed.config_name,
        "decision": "skip" if decision.skip else "run",
        "why": decision.why,
        "inputs": {
            slot: {
                "reference": text,
                "from": stage.wired[slot][0].name if slot in stage.wired else None,
                "version": pin.label if (pin := pins.get(slot)) else None,
            }
            for slot, text in stage.references.items()
        },
        "produces": stage.produces,
        "outputs": [pin.label for pin in stage.outputs or ()],
        "resources": stage.command.resources,
        "executor": stage.resolved.settings.executor,
        "problems": list(problems),
        "notes": [*stage.notes, *stage.composed.notes],
    }


# --- run


class _Progress:
    """Prints the progress of a pipeline on standard error, and keeps a row for each stage; see launch.pipeline."""

    def __init__(self) -> None:
        self.number = 0
        self.rows: list[dict[str, Any]] = []

    def decided(self, stage: Stage, decision: Decision, of: int) -> None:
        self.number += 1
        verb = "skipped" if decision.skip else "runs"
        print_status(f"[{self.number}/{of}] {stage.label} {verb}: {decision.why}")
        for note in stage.notes:
            print_status(f"note: {note}")
        self.rows.append({"stage": stage.name, "state": "skipped" if decision.skip else "pending", "why": decision.why})

    def starts(self, plan: Plan) -> None:
        announce(plan)
        self.rows[-1]["run_id"] = plan.run_id

    def ended(self, plan: Plan, outcome: Outcome, seconds: float) -> None:
        self.rows[-1]["state"] = outcome.state
        if outcome.state != "pending":
            report(plan, outcome, seconds)


def _start(launch: Launch, request: Job) -> int:
    launch.check()
    gc.enable()  # the stages' code may run in this process (see main.leave)
    progress, started = _Progress(), time.monotonic()
    print_status(f"{launch.id}: {launch.request.pipeline.full_name}, {_count(launch)}")
    if launch.submitted:
        return _submit(launch, request, progress)
    outcome = launch.run_stages(progress)
    seconds = time.monotonic() - started
    ran = sum(row["state"] != "skipped" for row in progress.rows)
    if outcome.state == "succeeded":
        how = f"{ran} ran, {len(progress.rows) - ran} skipped" if ran else "nothing to do"
        print_status(f"{launch.id}: {launch.request.pipeline.full_name}: {how}, in {seconds:.1f} s")
    else:
        print_status(f"{launch.id}: {_stopped(launch, len(progress.rows) - 1)}")
    _end(launch, request, progress, outcome.state, outcome.code)
    return outcome.code


def _stopped(launch: Launch, at: int) -> str:
    """Where a pipeline has stopped, and what the same command does next: what is never skipped is not done yet."""
    *before, stage = launch.stages[: at + 1]
    again = [each.label for each in before if not each.produces or each.number in launch.request.forced]
    if not again:
        return f"stopped at {stage.label}; the same command continues there"
    return f"stopped at {stage.label}; the same command first runs {', '.join(again)} again, which is never skipped"


def _submit(launch: Launch, request: Job, progress: _Progress) -> int:
    attached = launch.mode == "run" and not launch.stages[0].resolved.settings.detach
    launch.base = ["run.mode=batch" if override == "run.mode=run" else override for override in launch.base]
    submitted = launch.submit(progress)
    count = f"{len(submitted)} stage{'s' if len(submitted) != 1 else ''}"
    print_status(f"{launch.id}: {count} submitted, {len(progress.rows) - len(submitted)} skipped")
    state, code = "pending" if submitted else "succeeded", 0
    if not attached or not submitted:
        if submitted:
            print_commands(launch.id, "show", "wait", "cancel")
    else:  # each run's log until it ends, in order
        for _, plan in submitted:
            run, started = RunFolder(Path(plan.folder)), time.monotonic()
            outcome = attach(run, executor_for(plan.settings), [run.job(plan.job)])
            report(plan, outcome, time.monotonic() - started)
            state, code = outcome.state, outcome.code
            if state != "succeeded":
                break
    _end(launch, request, progress, state, code)
    return code


def _end(launch: Launch, request: Job, progress: _Progress, state: str, code: int) -> None:
    if request.json:
        print_end(launch.id, state, code, stages=progress.rows)
