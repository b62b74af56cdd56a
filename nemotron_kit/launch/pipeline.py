"""A pipeline: its stages composed, put in the order of their artifacts, each decided on, run here or submitted."""

from __future__ import annotations

import gc
import json
import shlex
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Protocol

from nemotron_kit.app import App, Command, Pipeline, in_order, may_be, stage_prefix
from nemotron_kit.config.compose import Composed, compose
from nemotron_kit.config.config_files import config_files, load_mapping, other_command_of
from nemotron_kit.config.secrets import masked_overrides
from nemotron_kit.discovery import Tree
from nemotron_kit.envfile import EnvFile
from nemotron_kit.errors import NemotronError, Problem, UserError, nearest, sentence
from nemotron_kit.home import new_run_id, runs_root
from nemotron_kit.launch.fingerprint import Fingerprint, fingerprint
from nemotron_kit.launch.inputs import input_slots, look_up_for, makers
from nemotron_kit.launch.placing import ResolvedJob, TransportFactory, resolve_job
from nemotron_kit.launch.plan import build_plan
from nemotron_kit.quoting import hydra_text, hydra_unquoted, omegaconf_escaped, omegaconf_unescaped
from nemotron_kit.runs.folder import PIPELINE, RunFolder, create_run
from nemotron_kit.runs.job import DamagedRecord, process_facts
from nemotron_kit.runs.ledger import run_ids
from nemotron_kit.spec.plan import Plan, is_here, stored_plan
from nemotron_kit.worker.process import Outcome

if TYPE_CHECKING:
    from nemotron_kit.artifacts.reference import Pin

# The words of a pipeline's own, each of which takes a stage.
CHOICES = ("from", "to", "only", "force")
# How many of a pipeline's earlier runs are looked through for what is unchanged.
_REMEMBERED = 30


# --- what is asked for


@dataclass(frozen=True)
class Request:
    """What a launch of a pipeline asks for. `common` are the overrides of every stage, `own` those of one (by its place
    in the pipeline, `config=` among them); `selected` and `forced` are places, too."""

    pipeline: Pipeline
    common: tuple[str, ...]
    own: tuple[tuple[str, ...], ...]
    configs: tuple[str | None, ...]
    selected: tuple[int, ...]
    forced: tuple[int, ...]


def read_request(pipeline: Pipeline, config: str | None, overrides: Sequence[str]) -> Request:
    """Sort a line's overrides by the stages that they are about. Raises UserError, with the nearest names."""
    stages = pipeline.stages
    common: list[str] = []
    own: list[list[str]] = [[] for _ in stages]
    chosen: dict[str, list[int]] = {name: [] for name in CHOICES}
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        at = next(
            (at for at, stage in enumerate(stages) if _plain(key).startswith(f"{_plain(stage_prefix(stage))}.")), None
        )
        if key in chosen:
            chosen[key] += [_place(pipeline, word, f"--{key}") for word in _words(value)]
        elif at is not None:
            marks = override[: len(override) - len(override.lstrip("+~"))]
            own[at].append(marks + override[len(marks) + len(stage_prefix(stages[at])) + 1 :])
        elif key.startswith("run."):
            common.append(override)
        else:
            raise UserError(
                f"{override}: begins with no stage of {pipeline.full_name}.", hint=_meant(pipeline, override)
            )
    for name in ("from", "to"):
        if len(chosen[name]) > 1:
            raise UserError(f"--{name} names {len(chosen[name])} stages.", hint="Give one.")
    selected = _selected(pipeline, chosen)
    for at, words in enumerate(own):
        if words and at not in selected:
            prefix = stage_prefix(stages[at])
            raise UserError(f"{prefix}.{words[0]}: {prefix} is not among the stages that run.")
    return Request(
        pipeline,
        tuple(common),
        tuple(map(tuple, own)),
        _configs(pipeline, config, own),
        selected,
        tuple(chosen["force"]),
    )


def _plain(text: str) -> str:
    """A stage's words or a key, whichever of the ways to write it was taken."""
    return text.strip().replace("/", ".").replace(" ", ".").replace("-", "_")


def _words(value: str) -> list[str]:
    text = value.strip()
    parts = text[1:-1].split(",") if text[:1] + text[-1:] == "[]" else [text]
    return [hydra_unquoted(part.strip()) or part.strip() for part in parts if part.strip()]


def _place(pipeline: Pipeline, word: str, option: str) -> int:
    """Where a stage stands in the pipeline. Raises UserError for none."""
    for at, stage in enumerate(pipeline.stages):
        names = [stage_prefix(stage), *(".".join([*stage.path[1:-1], alias]) for alias in stage.aliases)]
        if _plain(word) in map(_plain, names):
            return at
    known = [stage_prefix(stage) for stage in pipeline.stages]
    hint = sentence(nearest(_plain(word), known))
    raise UserError(f"{option}: {pipeline.full_name} has no stage {word!r}.", hint=hint)


def _meant(pipeline: Pipeline, override: str) -> str:
    """Which stages have the key, else the stages that there are."""
    first_key = override.lstrip("+~").partition("=")[0]
    first = first_key.partition(".")[0]
    with suppress(Exception):  # a stage whose config does not import has no say in it
        having = [s for s in pipeline.stages if first in {f.name for f in fields(s.load_config_cls())}]
        if having:
            return f"Say whose value it is: {', '.join(f'{stage_prefix(stage)}.{override}' for stage in having)}."
    prefixes, parts = [stage_prefix(stage) for stage in pipeline.stages], _plain(first_key).split(".")
    for length in range(len(parts), 0, -1):
        close = nearest(".".join(parts[:length]), prefixes)
        if close.startswith("did"):
            return sentence(close)
    return f"Write STAGE.key=value; the stages are {', '.join(prefixes)}."


def _configs(pipeline: Pipeline, name: str | None, own: Sequence[Sequence[str]]) -> tuple[str | None, ...]:
    """Each stage's config: its own `STAGE.config=`, else the one called `name` where it has that. UserError for a name
    that no stage has. A file in a folder that stages share is that stage's whose fields it sets."""
    files = [config_files(stage) for stage in pipeline.stages]
    for stage, own_files in zip(pipeline.stages, files, strict=True):
        shared = any(other.config_folder == stage.config_folder for other in pipeline.stages if other is not stage)
        if shared and name in own_files and other_command_of(load_mapping(own_files[name]), stage, [*pipeline.stages]):
            del own_files[name]
    if name is not None and not any(name in each for each in files):
        known = sorted({each for names in files for each in names})
        hint = sentence(nearest(name, known)) if "/" not in name else "A file is one stage's: STAGE.config=PATH."
        raise UserError(f"No stage of {pipeline.full_name} has a config {name!r}.", hint=hint)
    given = [next((o.partition("=")[2] for o in reversed(words) if o.startswith("config=")), None) for words in own]
    return tuple(
        chosen if chosen is not None else name if name in each else None
        for chosen, each in zip(given, files, strict=True)
    )


def _selected(pipeline: Pipeline, chosen: Mapping[str, list[int]]) -> tuple[int, ...]:
    everything = range(len(pipeline.stages))
    if chosen["only"] and (chosen["from"] or chosen["to"]):
        raise UserError("--only leaves nothing for --from and --to to choose.", hint="Give --only, or the others.")
    if chosen["only"]:
        found = sorted(set(chosen["only"]))
    else:
        first, last = (chosen["from"] or [0])[0], (chosen["to"] or [everything[-1]])[0]
        found = [at for at in everything if first <= at <= last]
        if not found:
            names = [stage_prefix(pipeline.stages[at]) for at in (first, last)]
            raise UserError(f"--from {names[0]} --to {names[1]}: {names[0]} comes after {names[1]}.")
    for at in chosen["force"]:
        if at not in found:
            raise UserError(f"--force {stage_prefix(pipeline.stages[at])}: that stage is not among those that run.")
    return tuple(found)


# --- the stages of a launch


@dataclass
class Stage:
    """One stage of a launch. `wired` is slot → (the stage whose artifact it reads, that one's name), `pins` what the
    other inputs stand for, or why there is none; `outputs` what it has saved, once that is known. `run` is its run."""

    number: int
    command: Command
    config: str | None
    overrides: list[str]
    composed: Composed
    placed: ResolvedJob
    print: Fingerprint
    references: dict[str, str]
    wired: dict[str, tuple[Stage, str]] = field(default_factory=dict)
    pins: dict[str, Pin | NemotronError | None] = field(default_factory=dict)
    outputs: list[Pin] | None = None
    run: str | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.command.stage

    @property
    def words(self) -> str:
        return " ".join(self.command.path[1:])

    @property
    def given(self) -> set[str]:
        """The inputs that the command line names: they are meant as they stand."""
        return {word.removeprefix("run.").partition("=")[0] for word in self.overrides if word.startswith("run.")}

    @property
    def produces(self) -> list[str]:
        return [name.replace("{config}", self.composed.config_name) for name in self.command.produces]

    def inputs(self) -> dict[str, Pin | None]:
        """Slot → pin; None for what an earlier stage has yet to save, and for what is not there or not known."""
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
    """Whether a stage is skipped, and why. `before` is the earlier run of it that was compared; `open`: nothing but its
    inputs, which are not known yet, can differ."""

    skip: bool
    why: str
    before: Earlier | None = None
    open: bool = False


class Reporter(Protocol):
    """Who is told how a pipeline goes on."""

    def decided(self, stage: Stage, decision: Decision, of: int) -> None:
        """A stage is skipped, or about to run."""

    def starts(self, plan: Plan) -> None:
        """A stage's run begins or is submitted."""

    def ended(self, plan: Plan, outcome: Outcome, seconds: float) -> None:
        """A stage's run has ended, or goes on by itself."""


@dataclass
class Launch:
    """A pipeline, ready to be shown or started. `prog` are the words before a command's own (`nemotron`)."""

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
    id: str = ""
    stages: list[Stage] = field(default_factory=list)
    memory: dict[str, list[Earlier]] = field(default_factory=dict)

    # --- making it ready: nothing is written

    def prepare(self) -> Launch:
        """Compose every stage that is selected, find out who reads whose artifacts, and pin the other inputs.

        Raises UserError for what is wrong with any of them.
        """
        pipeline = self.request.pipeline
        self.id = new_run_id(pipeline.recipe, pipeline.stage)
        for at in self.request.selected:
            self.stages.append(self._composed(at))
        self._wire()
        self.memory = earlier_runs(pipeline, self.transports is not None)
        for stage in self.stages:
            self._pin(stage)
        return self

    @property
    def mode(self) -> str:
        return str(self.stages[0].placed.config["run"]["mode"])

    @property
    def submitted(self) -> bool:
        """Whether the stages are handed over, rather than run one after the other from here."""
        return self.mode == "batch" or not is_here(self.stages[0].placed.settings.executor)

    def _composed(self, at: int, pins: Sequence[str] = ()) -> Stage:
        request = self.request
        command, config = request.pipeline.stages[at], request.configs[at]
        own = self._own(at)
        overrides = [
            f"recipe={command.recipe}",
            f"stage={command.stage}",
            *([f"config={config}"] if config is not None else []),
            *self.base,
            *request.common,
            *own,
            *pins,
        ]
        composed = compose(self.tree, overrides, self.env, self.config_dir)
        placed = resolve_job(composed, self.id, 0, None, self.transports)
        run = placed.config["run"]
        references = {
            slot: omegaconf_unescaped(str(run[slot]))
            for slot in input_slots(command, placed.config)
            if run.get(slot) is not None
        }
        return Stage(at, command, config, overrides, composed, placed, fingerprint(placed, command), references)

    def _wire(self) -> None:
        """Connect every input that names the newest version of what another stage saves with that stage."""
        from nemotron_kit.artifacts.reference import LATEST, parse_override

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
        """Pin the inputs that no selected stage saves: what another stage of the pipeline saved last, else as named."""
        asked: dict[str, tuple[str, str | None]] = {}
        for slot, text in stage.references.items():
            if slot in stage.wired:
                continue
            declared = stage.command.artifacts.get(slot)
            own = self._own_version(stage, slot, text) if slot not in stage.given else None
            asked[slot] = (own or text, declared.default_name if declared else None)
        look_up = look_up_for(stage.placed, self.id, self.transports)
        stage.pins = dict(look_up(asked, {})) if look_up and asked else dict.fromkeys(asked)
        for slot, pin in stage.pins.items():
            if isinstance(pin, NemotronError):
                hint = " ".join(filter(None, [pin.hint, makers(asked[slot][0], self.app, stage.command)]))
                stage.pins[slot] = UserError(f"{stage.words}: {slot}: {pin.message}", hint=hint or None)

    def _own_version(self, stage: Stage, slot: str, text: str) -> str | None:
        """`Name:vN` of what the pipeline itself saved last, for an input of which another stage is the maker."""
        name = text.partition(":")[0]
        if text not in (name, f"{name}:latest"):
            return None
        for other in self.request.pipeline.stages:
            if other is stage.command or not any(may_be(pattern, name) for pattern in other.produces):
                continue
            for earlier in self.memory.get(other.stage, ()):
                if earlier.succeeded and (pin := next((p for p in earlier.outputs() if p.name == name), None)):
                    return pin.label
            stage.notes.append(f"{slot}: this pipeline has not saved {name} yet: the newest version is read")
        return None

    # --- deciding

    def decide(self, stage: Stage) -> Decision:
        """Whether the stage would do what it did before. Its inputs are those that are known now."""
        if stage.number in self.request.forced:
            return Decision(False, "--force")
        known = self.memory.get(stage.name, [])
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
                names = " and ".join(other.words for other in waits)
                return Decision(False, f"{names} runs; skipped if that saves the same again", earlier, open=True)
            broken = self._broken(stage, earlier)
            if broken is None:
                labels = ", ".join(pin.label for pin in earlier.outputs())
                return Decision(True, f"unchanged since {earlier.id}: {labels}", earlier)
            return Decision(False, broken, earlier)
        changes, nearest_one = min(differing, key=lambda pair: len(pair[0]))
        more = f" (and {len(changes) - 2} more)" if len(changes) > 2 else ""
        return Decision(False, f"{', '.join(changes[:2])}{more}", nearest_one)

    def _changes(self, stage: Stage, earlier: Earlier, *, inputs: bool) -> list[str]:
        found = []
        before = earlier.inputs()
        for slot, pin in stage.inputs().items() if inputs else ():
            old = before.get(slot)
            if pin is None or pin.digest is None:
                found.append(f"input {slot}: {pin.label if pin else stage.references[slot]} can't be compared")
            elif old is None or old.digest != pin.digest:
                found.append(f"input {slot}: {old.label if old else '(nothing)'} → {pin.label}")
        return found + stage.print.changes(earlier.print, [pin.path for pin in earlier.outputs()])

    def _broken(self, stage: Stage, earlier: Earlier) -> str | None:
        """Why what the stage saved can't be handed on; None where all of it is whole."""
        outputs = earlier.outputs()
        lacking = [name for name in stage.produces if name not in {pin.name for pin in outputs}]
        if lacking or not outputs:
            return f"{earlier.id} saved no {lacking[0]}" if lacking else "it saves no artifact"
        look_up = look_up_for(stage.placed, self.id, self.transports)
        if look_up is None:
            return "its registry is asked at launch"
        for pin in outputs:
            found = look_up({pin.name: (pin.label, None)}, {})[pin.name]
            if isinstance(found, NemotronError):
                return " ".join(found.message.split("\n"))
            if found is None or found.digest != pin.digest:
                return f"{pin.label} is another one now"
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
        composed = self._composed(stage.number, pins).composed
        plan = build_plan(
            composed,
            self.app,
            run_id=run_id,
            argv=self._line(stage, pins),
            connect=self.transports is not None,
            transports=self.transports,
        )
        return composed, replace(plan, part_of=self.id)

    def _line(self, stage: Stage, pins: Sequence[str]) -> list[str]:
        """The line that starts the same job alone."""
        config = ["-c", stage.config] if stage.config is not None else []
        own = self._own(stage.number)
        return [*self.prog, *stage.command.path[1:], *config, *self.base, *self.request.common, *own, *pins]

    def _own(self, at: int) -> list[str]:
        """The overrides of a stage alone. One that is forced, and has a switch of that name, begins anew, too."""
        own = [override for override in self.request.own[at] if not override.startswith("config=")]
        if at in self.request.forced and not any(override.lstrip("+").startswith("force=") for override in own):
            named = {field.name: field.type for field in fields(self.request.pipeline.stages[at].load_config_cls())}
            own += ["force=true"] if named.get("force") in (bool, "bool") else []
        return own

    def record(self) -> RunFolder:
        """The pipeline's own record, without stages yet."""
        from nemotron_kit.launch.launch import code_facts

        first, pipeline = self.stages[0], self.request.pipeline

        plan = {
            "kind": PIPELINE,
            "recipe": pipeline.recipe,
            "stage": pipeline.stage,
            "command_line": shlex.join(masked_overrides(self.argv)),
            "mode": first.placed.config["run"]["mode"],
            "profile": first.placed.config["run"]["profile"],
            # The record is of this machine; its stages' runs say where they are.
            "executor": "local",
            "launcher": process_facts(),
            "stages": [stage.name for stage in self.stages],
            "code": code_facts(),
        }
        return create_run(self.id, plan, [])

    def run_here(self, say: Reporter) -> Outcome:
        """Run the stages one after the other, each in the way that its profile says, until one does not succeed."""
        from nemotron_kit.launch.launch import code_facts, execute
        from nemotron_kit.worker.hydra import hydra_files

        if self.after:
            from nemotron_kit.launch.dependencies import wait_for

            wait_for(None, self.after)
        run, outcome = self.record(), Outcome(0, "succeeded")
        for place, stage in enumerate(self.stages):
            decision = self.decide(stage)
            say.decided(stage, decision, len(self.stages))
            if decision.skip:
                self._skip(run, place, stage, decision)
                continue
            self._require_inputs(stage)
            stage.run = new_run_id(stage.command.recipe, stage.name)
            composed, plan = self.plan(stage, stage.run)
            _refuse(stage, plan.problems)
            plan = replace(plan, code=code_facts(), files={**plan.files, **hydra_files(composed)})
            say.starts(plan)
            started = time.monotonic()
            self._note(run, place, stage, decision)
            outcome = execute(plan, composed)
            say.ended(plan, outcome, time.monotonic() - started)
            self._note(run, place, stage, decision, state=outcome.state)
            if outcome.state != "succeeded":
                return outcome
            stage.outputs = saved_by(RunFolder(runs_root() / stage.run))
            del composed, plan
            gc.collect()  # a model of the stage before is in the way of the next one
        return outcome

    def submit(self, say: Reporter) -> list[tuple[Stage, Plan]]:
        """Hand over every stage that is not skipped, each to start after those whose artifacts it reads (on this
        machine after the one before it). The decision is made again where a stage starts, once its inputs are there."""
        from nemotron_kit.launch.dependencies import After
        from nemotron_kit.launch.launch import code_facts, execute
        from nemotron_kit.worker.hydra import hydra_files

        run = self.record()
        given: list[tuple[Stage, Plan]] = []
        for place, stage in enumerate(self.stages):
            decision = self.decide(stage)
            say.decided(stage, decision, len(self.stages))
            if decision.skip:
                self._skip(run, place, stage, decision)
                continue
            stage.run = new_run_id(stage.command.recipe, stage.name)
            composed, plan = self.plan(stage, stage.run)
            after = [other.run for other in stage.waits_for() if other.run]
            if is_here(plan.executor) and given:
                after = [*after, str(given[-1][0].run)]
            after = list(dict.fromkeys(after or self.after))
            if after:
                plan = After.of(after).apply(plan, stage.command)
            _refuse(stage, plan.problems)
            plan = replace(
                plan, code=code_facts(), files={**plan.files, **hydra_files(composed), **_again(plan, decision)}
            )
            say.starts(plan)
            self._note(run, place, stage, decision)
            say.ended(plan, execute(plan, composed), 0.0)
            given.append((stage, plan))
        return given

    def _require_inputs(self, stage: Stage) -> None:
        for slot, pin in stage.inputs().items():
            if pin is None and slot in stage.wired:
                maker, name = stage.wired[slot]
                saved = ", ".join(each.label for each in maker.outputs or ()) or "nothing"
                raise UserError(
                    f"{stage.words} reads {name}, which {maker.words} was to save; it saved {saved}.",
                    hint=f"Its record: nemotron runs show {maker.run}" if maker.run else None,
                )

    def _note(self, run: RunFolder, place: int, stage: Stage, decision: Decision, *, state: str | None = None) -> None:
        """Put a stage's run on the pipeline's record, with its `state` once it has ended here: it may be removed."""
        run.add_stage(
            place,
            {
                "stage": stage.name,
                "run": stage.run,
                "state": state,
                "why": decision.why,
                "inputs": {slot: pin.to_dict() for slot, pin in stage.inputs().items() if pin},
                "fingerprint": stage.print.to_dict(),
            },
        )

    def _skip(self, run: RunFolder, place: int, stage: Stage, decision: Decision) -> None:
        assert decision.before is not None  # noqa: S101 — only what ran before is skipped
        stage.outputs = decision.before.outputs()
        run.add_stage(
            place,
            {
                "stage": stage.name,
                "skipped": True,
                "why": decision.why,
                "producer": decision.before.id,
                "inputs": {slot: pin.to_dict() for slot, pin in stage.inputs().items() if pin},
                "outputs": [pin.to_dict() for pin in stage.outputs],
                "fingerprint": stage.print.to_dict(),
            },
        )


def _refuse(stage: Stage, problems: Sequence[str]) -> None:
    """Raise what would stop a stage as one UserError that names it."""
    if problems:
        raise UserError(f"{stage.words}: {problems[0]}", hint="\n".join(problems[1:]) or None)


def _again(plan: Plan, decision: Decision) -> dict[str, str]:
    """job.json with what the worker compares, where nothing but the inputs can differ."""
    before = decision.before
    if before is None or not decision.open or any(pin.digest is None for pin in before.inputs().values()):
        return {}
    spec = json.loads(plan.files["job.json"])
    spec["unchanged"] = {
        "run": before.id,
        "inputs": {slot: pin.digest for slot, pin in before.inputs().items()},
        "outputs": [pin.to_dict() for pin in before.outputs()],
    }
    return {"job.json": json.dumps(spec, indent=2) + "\n"}


# --- what ran before


@dataclass(frozen=True)
class Earlier:
    """A stage's record in an earlier run of its pipeline, and the run that it was, where that is still there."""

    record: Mapping[str, Any]
    pipeline: str
    run: RunFolder | None

    @property
    def id(self) -> str:
        """The run that did the stage's work."""
        return str(self.record.get("run") or self.record.get("producer") or self.pipeline)

    @property
    def removed(self) -> bool:
        return bool(self.record.get("run")) and self.run is None

    @property
    def succeeded(self) -> bool:
        return bool(self.record.get("skipped")) or (self.run is not None and self.run.state() == "succeeded")

    @property
    def print(self) -> Fingerprint:
        return Fingerprint.from_dict(self.record.get("fingerprint") or {})

    def inputs(self) -> dict[str, Pin]:
        return _pins_of(self._artifacts("inputs") or self.record.get("inputs") or {})

    def outputs(self) -> list[Pin]:
        found = self.record.get("outputs") if self.record.get("skipped") else self._artifacts("outputs")
        return list(_pins_of(dict(enumerate(found or ()))).values())

    def _artifacts(self, what: str) -> Any:
        try:
            return self.run.job(0).artifacts()[what] if self.run is not None else None
        except (DamagedRecord, UserError):
            return None


def saved_by(run: RunFolder) -> list[Pin]:
    """What a run has saved. Raises DamagedRecord."""
    return list(_pins_of(dict(enumerate(run.job(0).artifacts()["outputs"]))).values())


def _pins_of(stored: Mapping[Any, Any]) -> dict[Any, Pin]:
    from nemotron_kit.artifacts.reference import DamagedRecordError, Pin

    found = {}
    for key, value in stored.items():
        with suppress(DamagedRecordError):
            found[key] = Pin.from_dict(value)
    return found


def earlier_runs(pipeline: Pipeline, connect: bool) -> dict[str, list[Earlier]]:
    """Stage → its records, the newest first, in the last runs of the pipeline."""
    middle = new_run_id(pipeline.recipe, pipeline.stage)[15:-6]
    ids = [run_id for run_id in run_ids() if run_id[15:-6] == middle][:_REMEMBERED]
    found: dict[str, list[Earlier]] = {}
    for run in (RunFolder(runs_root() / run_id) for run_id in ids):
        try:
            plan = run.plan()
        except DamagedRecord:
            continue
        if (plan.get("kind"), plan.get("recipe"), plan.get("stage")) != (PIPELINE, pipeline.recipe, pipeline.stage):
            continue
        for record in run.stages():
            found.setdefault(str(record.get("stage")), []).append(Earlier(record, run.id, run.stage_run(record)))
    if connect:
        _bring_up_to_date(each.run for records in found.values() for each in records if each.run is not None)
    return found


def _bring_up_to_date(runs: Iterable[RunFolder]) -> None:
    """Ask about the runs elsewhere that were not over when they were last looked at, and fetch what they saved."""
    elsewhere = []
    for run in runs:
        with suppress(DamagedRecord):
            plan = stored_plan(run)
            if not is_here(plan.executor) and not (run.jobs() and (run.job(0).exit_record() or {}).get("mirrored")):
                elsewhere.append((run, plan))
    if not elsewhere:
        return
    from nemotron_kit.launch.status import mirror, refresh

    snapshots = refresh([run for run, _ in elsewhere])
    for run, plan in elsewhere:
        lost = run.id in snapshots and snapshots[run.id].lost
        if not lost and run.state() == "succeeded":
            with suppress(NemotronError):  # then it is not known what it saved, and the stage runs again
                mirror(plan, run.jobs())


def problems_of(launch: Launch, stage: Stage) -> list[str]:
    """What would stop a stage, for a dry-run; what an earlier stage is to save is no problem."""
    found = [str(pin) for pin in stage.pins.values() if isinstance(pin, NemotronError)]
    _, plan = launch.plan(stage, new_run_id(stage.command.recipe, stage.name), deferred=launch.id)
    known: list[Problem] = [problem for problem in plan.problems if problem.slot not in stage.references]
    return found + [str(problem) for problem in known]
