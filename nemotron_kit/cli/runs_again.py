"""A recorded job composed and planned again: same config, same artifacts, same settings; new overrides on top."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemotron_kit.cli.request import Job
from nemotron_kit.cli.runs_recorded import Recorded, enter
from nemotron_kit.errors import UserError

if TYPE_CHECKING:
    from nemotron_kit.app import App
    from nemotron_kit.config.compose import Composed
    from nemotron_kit.discovery import Tree
    from nemotron_kit.envfile import EnvFile
    from nemotron_kit.plan.plan import Plan


@dataclass(frozen=True)
class Scene:
    """Where a recorded run was launched, and what is found from there now."""

    tree: Tree
    app: App
    env: EnvFile

    @classmethod
    def of(cls, recorded: Recorded) -> Scene:
        """Goes there: this process's folder and import path become the launch's."""
        enter(recorded.folder)
        from nemotron_kit.app import add_import_folders

        add_import_folders(map(str, recorded.spec.get("sys_path") or ()))
        from nemotron_kit.discovery import Tree, discover, use
        from nemotron_kit.envfile import read_env_file

        found = discover()
        app = recorded.app(found)
        tree = Tree(apps={**found.apps, app.name: app}, broken=found.broken, sources=found.sources)
        use(tree)
        return cls(tree, app, read_env_file())


def request_of(words: Sequence[str], recorded: Recorded, tree: Tree) -> Job:
    """The words behind the run, read as those of its command."""
    from nemotron_kit.cli import indexing
    from nemotron_kit.cli import tree as trees
    from nemotron_kit.cli.job import spelled_out
    from nemotron_kit.cli.options import NEMOTRON
    from nemotron_kit.cli.reader import Reader
    from nemotron_kit.config.compose import find_command

    command = find_command(tree, recorded.recipe, recorded.stage)
    index = indexing.live(tree)
    node = trees.find(index, command.path)
    where = f"nemotron runs rerun {recorded.label}"
    job = Reader(words, NEMOTRON, index.detail(node) if node else {}, where, "nemotron runs rerun --help").read()
    if job.config or job.recipe or job.stage:
        raise UserError("A rerun has the command and the config of its run.", hint="Override single values: KEY=VALUE.")
    if job.flags:
        raise UserError(f"{job.flags[0]} has no meaning for a rerun.", hint="See nemotron runs rerun --help.")
    for word in job.overrides:
        if _key(word).startswith(("hydra.", "hydra/")):
            raise UserError(
                f"{word} has no meaning for a rerun.", hint="The kit itself runs its jobs; give the profile's fields."
            )
    return replace(job, recipe=command.recipe, stage=command.stage, overrides=spelled_out(job.overrides))


def compose_again(recorded: Recorded, request: Job, tree: Tree, env: Any) -> Composed:
    """The recorded config, checked against the command's schema as it is now, with the new overrides on top."""
    from nemotron_kit.config.compose import compose
    from nemotron_kit.config.foreign import taken
    from nemotron_kit.config.freeze import to_yaml

    values, words = recorded.values(keep_env=request.profile is not None, is_open=_open_blocks(recorded, tree))
    given = {_key(word) for word in request.overrides}
    mode, profile = request.mode or recorded.plan.get("mode"), request.profile or recorded.plan.get("profile")
    chosen = [f"recipe={request.recipe}", f"stage={request.stage}"]
    chosen += [f"run.profile={profile}"] if profile else []
    chosen += [f"run.mode={mode}"] if mode else []
    pins = [f"run.{slot}={_quoted(text)}" for slot, text in recorded.references().items() if f"run.{slot}" not in given]
    kept = [word for word in words if _key(word) not in given]
    with tempfile.TemporaryDirectory(prefix="nemotron-rerun-") as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(to_yaml(values), encoding="utf-8")
        try:
            with taken(path.parent):
                composed = compose(tree, [*chosen, f"config={path}", *pins, *kept, *request.overrides], env)
        except UserError as error:  # the file is gone in a moment; what it was made of is not
            kept_file = str(recorded.job.config_path)
            hint = error.hint and error.hint.replace(str(path), kept_file)
            raise UserError(error.message.replace(str(path), kept_file), hint=hint) from error
    # On record it is what was typed, then and now: the file is gone in a moment.
    typed = [word for word in recorded.overrides if _key(word) not in given]
    overrides = [*typed, *request.overrides]
    return replace(composed, overrides=overrides, config_name=recorded.config_name, config_file=None)


def _key(word: str) -> str:
    return word.partition("=")[0].lstrip("+~")


def _open_blocks(recorded: Recorded, tree: Tree) -> Callable[[str], bool]:
    """Whether a dotted key stands in a block of the command's that takes any key."""
    from omegaconf import DictConfig, OmegaConf

    from nemotron_kit.config.compose import find_command
    from nemotron_kit.config.schema import schema_node

    schema = schema_node(find_command(tree, recorded.recipe, recorded.stage), {})

    def is_open(key: str) -> bool:
        above = key.rpartition(".")[0]
        while above:
            block = OmegaConf.select(schema, above)
            if isinstance(block, DictConfig):
                return not OmegaConf.is_struct(block)
            above = above.rpartition(".")[0]
        return False

    return is_open


def plan_again(
    recorded: Recorded,
    request: Job,
    composed: Composed,
    app: App,
    argv: Sequence[str],
    *,
    run_id: str,
    job: int = 0,
    alone: bool = True,
) -> Plan:
    """Its plan, in the run and under the number that it gets. UserError where a pinned input is not what it was."""
    from nemotron_kit.execution.reach import reach_for
    from nemotron_kit.plan.build import build_plan

    connect = not request.dry_run
    plan = build_plan(
        composed,
        app,
        run_id=run_id,
        argv=argv,
        job=job,
        alone=alone,
        connect=connect,
        reach=reach_for if connect else None,
        recorded=None if request.profile else recorded.settings,
    )
    check_pins(recorded, request, plan)
    typed = [f"run.profile={plan.profile}", f"run.mode={plan.mode}"] if request.profile else []
    words = (*recorded.overrides, *typed, *request.overrides)
    # Its mounts are on record as folders; those of repositories may have been removed since.
    fetched = {} if request.profile else {k: v for k, v in recorded.plan.items() if k == "repositories"}
    return replace(plan, hydra=words, extra={**fetched, **plan.extra})


def check_pins(recorded: Recorded, request: Job, plan: Plan) -> None:
    """UserError where an input that nobody has chosen anew is not what it was: another content, or another registry."""
    given = {word.partition("=")[0] for word in request.overrides}
    for slot, old in recorded.pins.items():
        new = plan.inputs.get(slot)
        if new is None or f"run.{slot}" in given:
            continue  # gone: a problem of the plan already; or not read any more
        if new.registry != old.registry:
            raise UserError(
                f"{slot}: {old.label} was read from another registry than the one where the job would run now.",
                hint=f"Name what is meant there: --art.{slot} NAME:vN.",
            )
        if (new.digest, new.path if new.version is None else None) != (
            old.digest,
            old.path if old.version is None else None,
        ):
            raise UserError(
                f"{slot}: {old.label} is not what {recorded.run.id} read: sha256 {str(new.digest)[:12]}, and it was "
                f"{str(old.digest)[:12]}.",
                hint=f"To run with what is there now: --art.{slot} {old.label}.",
            )


def _quoted(text: str) -> str:
    from nemotron_kit.cli.quoting import string

    return string(text)
