"""Launches a pipeline: composes its stages, sorts them by their artifacts, decides which to skip, runs or submits the
others."""

from __future__ import annotations

import gc
import shlex
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol

from nemotron_kit.app import App, Command, in_order, may_be
from nemotron_kit.artifacts.reference import LATEST, Pin, parse_override
from nemotron_kit.config.compose import Composed, compose
from nemotron_kit.config.secrets import masked_overrides
from nemotron_kit.discovery import Tree
from nemotron_kit.envfile import EnvFile
from nemotron_kit.errors import NemotronError, UserError, listed
from nemotron_kit.executors.base import executor_for
from nemotron_kit.home import new_run_id, runs_root
from nemotron_kit.launch.dependencies import After, wait_for
from nemotron_kit.launch.fingerprint import Earlier, Fingerprint, earlier_runs, fingerprint, saved_by
from nemotron_kit.launch.inputs import input_slots, look_up_for, makers
from nemotron_kit.launch.launch import code_facts, execute
from nemotron_kit.launch.pipeline_request import Request
from nemotron_kit.launch.placing import ResolvedJob, TransportFactory, resolve_job
from nemotron_kit.launch.plan import build_plan
from nemotron_kit.quoting import hydra_text, omegaconf_escaped, omegaconf_unescaped
from nemotron_kit.runs.folder import PIPELINE, RunFolder, create_run
from nemotron_kit.runs.process_facts import process_facts
from nemotron_kit.spec.plan import Labels, Plan, is_local
from nemotron_kit.worker.process import Outcome


@dataclass
class Stage:
    """One stage of a launch. `wired` is slot → (the stage whose artifact it reads, that artifact's name), `pins` the
    pins of the other inputs, or why there is none; `outputs` what it has saved, once that is known. `run` is its run.
    """

    number: int
    command: Command
    config: str | None
    overrides: list[str]
    composed: Composed
    resolved: ResolvedJob
    fingerprint: Fingerprint
    references: dict[str, str]
    wired: dict[str, tuple[Stage, str]] = field(default_factory=dict)
    pins: dict[str, Pin | NemotronError | None] = field(default_factory=dict)
    outputs: list[Pin] | None = None
    run: str | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The stage's name in its recipe, as records have it: `prep/data`."""
        return self.command.stage

    @property
    def label(self) -> str:
        """The stage as a user types it: `prep data`."""
        return " ".join(self.command.path[1:])

    @property
    def given(self) -> set[str]:
        """The inputs named on the command line, which are used unchanged."""
        return {
            override.removeprefix("run.").partition("=")[0]
            for override in self.overrides
            if override.startswith("run.")
        }

    @property
    def produces(self) -> list[str]:
        """The names of the artifacts that it declares to save."""
        return [name.replace("{config}", self.composed.config_name) for name in self.command.produces]

    def inputs(self) -> dict[str, Pin | None]:
        """Slot → pin; None for an artifact that an earlier stage has yet to save, or that is missing or unknown."""
        found: dict[str, Pin | None] = {}
        for slot in self.references:
            if slot in self.wired:
                stage, name = self.wired[slot]
                found[slot] = next((pin for pin in reversed(stage.outputs or ()) if pin.name == name), None)
            else:
                pin = self.pins.get(slot)
                found[slot] = None if isinstance(pin, NemotronError) else pin
        return found

    def waits_for(self) -> list[Stage]:
        """The stages whose artifacts it reads, and that have not saved them yet."""
        return list({stage.number: stage for stage, _ in self.wired.values() if stage.outputs is None}.values())


@dataclass(frozen=True)
class Decision:
    """Whether a stage is skipped, and why. `before` is the earlier run that it was compared with; `open`: only its
    inputs, which are not known yet, can differ."""

    skip: bool
    why: str
    before: Earlier | None = None
    open: bool = False


class PipelineProgress(Protocol):
    """Receives the progress of a pipeline."""

    def decided(self, stage: Stage, decision: Decision, of: int) -> None:
        """A stage is skipped, or about to run."""

    def starts(self, plan: Plan) -> None:
        """A stage's run begins or is submitted."""

    def ended(self, plan: Plan, outcome: Outcome, seconds: float) -> None:
        """A stage's run has ended, or was submitted."""


@dataclass
class Launch:
    """A launch of a pipeline. `prog` is the program before a command's names (`nemotron`)."""

    request: Request
    app: App
    tree: Tree
    env: EnvFile
    argv: Sequence[str]
    prog: Sequence[str]
    base: Sequence[str]
    config_dir: str | None
    transports: TransportFactory | None
    after: Sequence[str] = ()
    labels: Labels = field(default_factory=Labels)
    id: str = ""
    stages: list[Stage] = field(default_factory=list)
    history: dict[str, list[Earlier]] = field(default_factory=dict)

    # --- preparing: nothing is written

    def prepare(self) -> Launch:
        """Compose every selected stage, connect the stages by their artifacts, and pin the other inputs.

        Raises UserError for any mistake in them.
        """
        pipeline = self.request.pipeline
        self.id = new_run_id(pipeline.recipe, pipeline.stage)
        for at in self.request.selected:
            command, config = pipeline.stages[at], self.request.configs[at]
            overrides, composed = self._composed(at)
            resolved = resolve_job(composed, self.id, 0, None, self.transports)
            run = resolved.config["run"]
            references = {
                slot: omegaconf_unescaped(str(run[slot]))
                for slot in input_slots(command, resolved.config)
                if run.get(slot) is not None
            }
            code = fingerprint(resolved, command)
            self.stages.append(Stage(at, command, config, overrides, composed, resolved, code, references))
        self._wire()
        self.history = earlier_runs(pipeline, self.transports is not None)
        for stage in self.stages:
            self._pin(stage)
        return self

    @property
    def mode(self) -> str:
        """`local`, `run` or `batch`, the same for all stages."""
        return str(self.stages[0].resolved.config["run"]["mode"])

    @property
    def submitted(self) -> bool:
        """Whether the stages are submitted, rather than run one after another by this process."""
        return self.mode == "batch" or not is_local(self.stages[0].resolved.settings.executor)

    def _composed(self, at: int, pins: Sequence[str] = ()) -> tuple[list[str], Composed]:
        """(overrides, config) of a stage."""
        command, config = self.request.pipeline.stages[at], self.request.configs[at]
        overrides = [
            *(f"recipe={command.recipe}", f"stage={command.stage}"),
            *([f"config={config}"] if config is not None else []),
            *(*self.base, *self.request.common, *self._stage_overrides(at), *pins),
        ]
        try:
            return overrides, compose(self.tree, overrides, self.env, self.config_dir)
        except UserError as error:
            # A stage's values have its name before them here.
            named = f"Add a new one with +{command.stage.replace('/', '.')}."
            hint = (error.hint or "").replace("Add a new one with +", named)
            raise UserError(f"{command.full_name.partition(' ')[2]}: {error.message}", hint=hint or None) from error

    def _wire(self) -> None:
        """Connect every input that names the newest version of what another stage saves with that stage."""
        made: dict[str, Stage] = {}
        for stage in self.stages:
            made.update(dict.fromkeys(stage.produces, stage))
        for stage in self.stages:
            for slot, text in stage.references.items():
                declared = stage.command.artifacts.get(slot)
                default = declared.default_name if declared else None
                reference = parse_override(text, default, aliases=lambda _: ())
                maker = made.get(reference.slug) if reference.path is None else None
                if maker and maker is not stage and reference.alias == LATEST and slot not in stage.given:
                    stage.wired[slot] = (maker, reference.slug)
        by_command = {id(stage.command): stage for stage in self.stages}

        def stages_before(command: Command) -> dict[str, Command]:
            return {slot: maker.command for slot, (maker, _) in by_command[id(command)].wired.items()}

        try:
            ordered = in_order([stage.command for stage in self.stages], stages_before)
        except ValueError as error:
            raise UserError(f"{self.request.pipeline.full_name}: {error}.") from error
        self.stages = [by_command[id(command)] for command in ordered]

    def _pin(self, stage: Stage) -> None:
        """Pin the inputs that no selected stage saves: the version that another stage of the pipeline saved last, else
        as named."""
        settings = stage.resolved.settings
        config = stage.composed.config
        count = int(config.tasks or settings.nodes or 1) if stage.command.array and config.step is None else 1
        if count > 1:
            alone = f"; 'nemotron {stage.command.full_name}' by itself does"
            otherwise = alone if executor_for(settings).holds_back else ""
            stage.notes.append(f"one job does all of its work: a pipeline submits no array of {count} tasks{otherwise}")
        asked: dict[str, tuple[str, str | None]] = {}
        for slot, text in stage.references.items():
            if slot in stage.wired:
                continue
            declared = stage.command.artifacts.get(slot)
            version = self._last_version(stage, slot, text) if slot not in stage.given else None
            asked[slot] = (version or text, declared.default_name if declared else None)
        look_up = look_up_for(stage.resolved, self.id, self.transports)
        stage.pins = dict(look_up(asked, {})) if look_up and asked else dict.fromkeys(asked)
        for slot, pin in stage.pins.items():
            if isinstance(pin, NemotronError):
                hint = " ".join(filter(None, [pin.hint, makers(asked[slot][0], self.app, stage.composed)]))
                stage.pins[slot] = UserError(f"{stage.label}: {slot}: {pin.message}", hint=hint or None)

    def _last_version(self, stage: Stage, slot: str, text: str) -> str | None:
        """`Name:vN` of the version that this pipeline saved last, for an input that another of its stages produces;
        else None."""
        name = text.partition(":")[0]
        if text not in (name, f"{name}:latest"):
            return None
        for other in self.request.pipeline.stages:
            if other is stage.command or not any(may_be(pattern, name) for pattern in other.produces):
                continue
            for earlier in self.history.get(other.stage, ()):
                if earlier.succeeded and (pin := next((p for p in earlier.outputs() if p.name == name), None)):
                    return pin.label
            stage.notes.append(f"{slot}: this pipeline has not saved {name} yet: the newest version is read")
        return None

    # --- deciding

    def decide(self, stage: Stage) -> Decision:
        """Decide whether the stage is skipped, by its fingerprint and the inputs known now."""
        if stage.number in self.request.forced:
            return Decision(False, "--force")
        known = self.history.get(stage.name, [])
        successes = [earlier for earlier in known if earlier.succeeded]
        waits = stage.waits_for()
        if not successes:
            last = known[0] if known else None
            why = f"it did not succeed in {last.id}" if last else "it has not run yet"
            return Decision(False, f"the record of {last.id} was removed" if last and last.removed else why)
        differing: list[tuple[list[str], Earlier]] = []
        for earlier in successes:
            if changes := self._changes(stage, earlier, inputs=not waits):
                differing.append((changes, earlier))
                continue
            if waits:
                names = " and ".join(other.label for other in waits)
                return Decision(False, f"{names} runs; skipped if that saves the same again", earlier, open=True)
            broken = self._broken(stage, earlier)
            if broken is None:
                labels = ", ".join(pin.label for pin in earlier.outputs())
                return Decision(True, f"unchanged since {earlier.id}: {labels}", earlier)
            return Decision(False, broken, earlier)
        changes, nearest_one = min(differing, key=lambda pair: len(pair[0]))
        return Decision(False, listed(changes, 2), nearest_one)

    def _changes(self, stage: Stage, earlier: Earlier, *, inputs: bool) -> list[str]:
        found = []
        before = earlier.inputs()
        for slot, pin in stage.inputs().items() if inputs else ():
            old = before.get(slot)
            if pin is None or pin.digest is None:
                found.append(f"input {slot}: {pin.label if pin else stage.references[slot]} can't be compared")
            elif old is None or old.digest != pin.digest:
                found.append(f"input {slot}: {old.label if old else '(nothing)'} → {pin.label}")
        return found + stage.fingerprint.changes(earlier.fingerprint, [pin.path for pin in earlier.outputs()])

    def _broken(self, stage: Stage, earlier: Earlier) -> str | None:
        """Why the saved outputs of the stage can't be used again; None if all are intact."""
        outputs = earlier.outputs()
        lacking = [name for name in stage.produces if name not in {pin.name for pin in outputs}]
        if lacking or not outputs:
            return f"{earlier.id} saved no {lacking[0]}" if lacking else "it saves no artifact"
        look_up = look_up_for(stage.resolved, self.id, self.transports)
        if look_up is None:
            return "its registry is queried at launch"
        for pin in outputs:
            found = look_up({pin.name: (pin.label, None)}, {})[pin.name]
            if isinstance(found, NemotronError):
                return " ".join(found.message.split("\n"))
            if found is None or found.digest != pin.digest:
                return f"{pin.label} has been replaced"
        return None

    # --- starting

    def check(self) -> None:
        """Raise UserError for what would stop any stage that runs, before the first one starts."""
        for stage in self.stages:
            for pin in stage.pins.values():
                if isinstance(pin, NemotronError):
                    raise pin
            decision = self.decide(stage)
            if decision.skip:
                stage.outputs = decision.before.outputs() if decision.before else []
                continue
            _, plan = self.plan(stage, new_run_id(stage.command.recipe, stage.name), deferred=self.id)
            _refuse(stage, [problem for problem in plan.problems if problem.slot not in stage.wired])
        for stage in self.stages:
            stage.outputs = None

    def plan(self, stage: Stage, run_id: str, *, deferred: str | None = None) -> tuple[Composed, Plan]:
        """The plan of a stage's run. Its inputs are versions; one that is still to be saved is what the run that saves
        it (`deferred`, where there is none yet) will have saved."""
        pins = []
        for slot, pin in stage.inputs().items():
            if pin is not None:
                text = pin.label
            elif slot in stage.wired:
                maker, name = stage.wired[slot]
                text = f"{name}@run:{maker.run or deferred}"
            else:
                continue
            pins.append(f"run.{slot}={hydra_text(omegaconf_escaped(text))}")
        _, composed = self._composed(stage.number, pins)
        plan = build_plan(
            composed,
            self.app,
            run_id=run_id,
            # The command line that starts the same job by itself.
            argv=[
                *(*self.prog, *stage.command.path[1:]),
                *(["-c", stage.config] if stage.config is not None else []),
                *(*self.base, *self.request.common, *self._stage_overrides(stage.number), *pins),
            ],
            connect=self.transports is not None,
            transports=self.transports,
            labels=self.labels,
        )
        return composed, replace(plan, part_of=self.id, labels=None)  # the labels are the whole run's

    def _stage_overrides(self, at: int) -> list[str]:
        """The overrides that concern one stage only. A forced one with a field `force` gets `force=true`."""
        found = [override for override in self.request.by_stage[at] if not override.startswith("config=")]
        if at in self.request.forced and not any(override.lstrip("+").startswith("force=") for override in found):
            named = {field.name: field.type for field in fields(self.request.pipeline.stages[at].load_config_cls())}
            found += ["force=true"] if named.get("force") in (bool, "bool") else []
        return found

    def record(self) -> RunFolder:
        """Create the run of the pipeline, without stages yet."""
        first, pipeline = self.stages[0], self.request.pipeline
        plan = {
            "kind": PIPELINE,
            "recipe": pipeline.recipe,
            "stage": pipeline.stage,
            "command_line": shlex.join(masked_overrides(self.argv)),
            "mode": first.resolved.config["run"]["mode"],
            "profile": first.resolved.config["run"]["profile"],
            # The pipeline runs on this machine; the runs of its stages have their executors.
            "executor": "local",
            "launcher": process_facts(),
            "stages": [stage.name for stage in self.stages],
            "code": code_facts(),
        }
        return create_run(self.id, plan, [], labels=self.labels.to_dict())

    def run_stages(self, progress: PipelineProgress) -> Outcome:
        """Run the stages one after another, each with its profile, until one does not succeed."""
        if self.after:
            wait_for(None, self.after)
        run, outcome = self.record(), Outcome(0, "succeeded")
        for index, stage, decision in self._unskipped(run, progress):
            for slot, pin in stage.inputs().items():
                if pin is None and slot in stage.wired:
                    maker, name = stage.wired[slot]
                    saved = ", ".join(each.label for each in maker.outputs or ()) or "nothing"
                    raise UserError(
                        f"{stage.label} reads {name}, which {maker.label} was to save; it saved {saved}.",
                        hint=f"Its record: nemotron runs show {maker.run}" if maker.run else None,
                    )
            stage.run = new_run_id(stage.command.recipe, stage.name)
            composed, plan = self.plan(stage, stage.run)
            _refuse(stage, plan.problems)
            plan = replace(plan, code=code_facts())
            progress.starts(plan)
            started = time.monotonic()
            self._note(run, index, stage, decision, run=stage.run, state=None)
            outcome = execute(plan, composed)
            progress.ended(plan, outcome, time.monotonic() - started)
            # The run may be removed later.
            self._note(run, index, stage, decision, run=stage.run, state=outcome.state)
            if outcome.state != "succeeded":
                return outcome
            stage.outputs = saved_by(RunFolder(runs_root() / stage.run))
            del composed, plan
            gc.collect()  # free the memory of this stage's model before the next one starts
        return outcome

    def submit(self, progress: PipelineProgress) -> list[tuple[Stage, Plan]]:
        """Submit every stage that is not skipped, each to start after those whose artifacts it reads (on this machine
        after the one before it). The decision is made again when a stage starts, once its inputs exist."""
        run = self.record()
        given: list[tuple[Stage, Plan]] = []
        for index, stage, decision in self._unskipped(run, progress):
            stage.run = new_run_id(stage.command.recipe, stage.name)
            composed, plan = self.plan(stage, stage.run)
            after = [other.run for other in stage.waits_for() if other.run]
            if is_local(plan.executor) and given:
                after = [*after, str(given[-1][0].run)]
            after = list(dict.fromkeys(after or self.after))
            if after:
                plan = After.of(after).apply(plan, stage.command)
            _refuse(stage, plan.problems)
            plan = replace(_with_unchanged(plan, decision), code=code_facts())
            progress.starts(plan)
            self._note(run, index, stage, decision, run=stage.run, state=None)
            progress.ended(plan, execute(plan, composed), 0.0)
            given.append((stage, plan))
        return given

    def _unskipped(self, run: RunFolder, progress: PipelineProgress) -> Iterator[tuple[int, Stage, Decision]]:
        """(index, stage, decision) of the stages, each decided when it is its turn; one that is skipped is only
        recorded."""
        for index, stage in enumerate(self.stages):
            decision = self.decide(stage)
            progress.decided(stage, decision, len(self.stages))
            if not decision.skip:
                yield index, stage, decision
                continue
            assert decision.before is not None  # noqa: S101 — only what ran before is skipped
            stage.outputs = decision.before.outputs()
            saved = [pin.to_dict() for pin in stage.outputs]
            self._note(run, index, stage, decision, skipped=True, producer=decision.before.id, outputs=saved)

    def _note(self, run: RunFolder, index: int, stage: Stage, decision: Decision, /, **facts: Any) -> None:
        """Write a stage's entry in the pipeline's record."""
        inputs = {slot: pin.to_dict() for slot, pin in stage.inputs().items() if pin}
        entry = {"stage": stage.name, **facts, "why": decision.why, "inputs": inputs}
        run.add_stage(index, {**entry, "fingerprint": stage.fingerprint.to_dict()})


def _refuse(stage: Stage, problems: Sequence[str]) -> None:
    """Raise the problems of a stage as one UserError that names it."""
    if problems:
        raise UserError(f"{stage.label}: {problems[0]}", hint="\n".join(problems[1:]) or None)


def _with_unchanged(plan: Plan, decision: Decision) -> Plan:
    """The plan with the earlier run that the worker compares its inputs with, where nothing else can differ."""
    before = decision.before
    if before is None or not decision.open or any(pin.digest is None for pin in before.inputs().values()):
        return plan
    inputs = {slot: pin.digest for slot, pin in before.inputs().items()}
    outputs = [pin.to_dict() for pin in before.outputs()]
    return plan.with_spec(unchanged={"run": before.id, "inputs": inputs, "outputs": outputs})


def problems_of(launch: Launch, stage: Stage) -> list[str]:
    """The problems of a stage, for a dry-run; an artifact that an earlier stage will save is no problem."""
    found = [str(pin) for pin in stage.pins.values() if isinstance(pin, NemotronError)]
    _, plan = launch.plan(stage, new_run_id(stage.command.recipe, stage.name), deferred=launch.id)
    return found + [str(problem) for problem in plan.problems if problem.slot not in stage.references]
