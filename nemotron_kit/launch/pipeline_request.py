"""A pipeline's request: its command line's arguments and overrides, sorted by stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields

from nemotron_kit.app import Pipeline, stage_prefix
from nemotron_kit.config.config_files import config_files, load_mapping, other_command_of
from nemotron_kit.errors import UserError, near, nearest, sentence
from nemotron_kit.quoting import hydra_unquoted

# The options of a pipeline that take a stage.
CHOICES = ("from", "to", "only", "force")


@dataclass(frozen=True)
class Request:
    """What a launch of a pipeline asks for. `common` are the overrides of every stage, `by_stage` those of one (by its
    index in the pipeline, `config=` among them); `selected` and `forced` are indices, too."""

    pipeline: Pipeline
    common: tuple[str, ...]
    by_stage: tuple[tuple[str, ...], ...]
    configs: tuple[str | None, ...]
    selected: tuple[int, ...]
    forced: tuple[int, ...]


def read_request(pipeline: Pipeline, config: str | None, overrides: Sequence[str]) -> Request:
    """Sort a line's overrides by the stages that they are about. Raises UserError, with the nearest names."""
    stages = pipeline.stages
    common: list[str] = []
    by_stage: list[list[str]] = [[] for _ in stages]
    first_of: dict[int, str] = {}
    chosen: dict[str, list[int]] = {name: [] for name in CHOICES}
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        at = next(
            (at for at, stage in enumerate(stages) if _plain(key).startswith(f"{_plain(stage_prefix(stage))}.")), None
        )
        if key in chosen:
            text = value.strip()
            parts = text[1:-1].split(",") if text[:1] + text[-1:] == "[]" else [text]
            names = [hydra_unquoted(part.strip()) or part.strip() for part in parts if part.strip()]
            if not names:
                raise UserError(
                    f"--{key} names no stage.", hint=f"Give one of {_stages_of(pipeline)}, or leave it out."
                )
            chosen[key] += [_index_of(pipeline, name, f"--{key}") for name in names]
        elif at is not None:
            marks = override[: len(override) - len(override.lstrip("+~"))]
            first_of.setdefault(at, override)
            by_stage[at].append(marks + override[len(marks) + len(stage_prefix(stages[at])) + 1 :])
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
    for at, override in first_of.items():
        if at not in selected:
            raise UserError(f"{override}: {stage_prefix(stages[at])} is not among the stages that run.")
    return Request(
        pipeline,
        tuple(common),
        tuple(map(tuple, by_stage)),
        _configs(pipeline, config, by_stage),
        selected,
        tuple(chosen["force"]),
    )


def _plain(text: str) -> str:
    """A stage's names or a key in a normal form, whichever spelling was used."""
    return text.strip().replace("/", ".").replace(" ", ".").replace("-", "_")


def _stages_of(pipeline: Pipeline) -> str:
    return ", ".join(map(stage_prefix, pipeline.stages))


def _index_of(pipeline: Pipeline, name: str, option: str) -> int:
    """The index of a stage in the pipeline. Raises UserError for an unknown one."""
    for at, stage in enumerate(pipeline.stages):
        names = [stage_prefix(stage), *(".".join([*stage.path[1:-1], alias]) for alias in stage.aliases)]
        if _plain(name) in map(_plain, names):
            return at
    known = [stage_prefix(stage) for stage in pipeline.stages]
    hint = near(_plain(name), known)
    raise UserError(f"{option}: {pipeline.full_name} has no stage {name!r}.", hint=hint)


def _meant(pipeline: Pipeline, override: str) -> str:
    """Which stages have the key, else the stages that there are."""
    first_key = override.lstrip("+~").partition("=")[0]
    first = first_key.partition(".")[0]
    with suppress(Exception):  # a stage whose config can't be imported
        having = [s for s in pipeline.stages if first in {f.name for f in fields(s.load_config_cls())}]
        if having:
            return f"Name the stage: {', '.join(f'{stage_prefix(stage)}.{override}' for stage in having)}."
    prefixes, parts = [stage_prefix(stage) for stage in pipeline.stages], _plain(first_key).split(".")
    for length in range(len(parts), 0, -1):
        close = nearest(".".join(parts[:length]), prefixes)
        if close.startswith("did"):
            return sentence(close)
    return f"Write STAGE.key=value; the stages are {_stages_of(pipeline)}."


def _configs(pipeline: Pipeline, name: str | None, by_stage: Sequence[Sequence[str]]) -> tuple[str | None, ...]:
    """Each stage's config: that of `STAGE.config=`, else the one called `name` where it has that. UserError for a name
    that no stage has. A file in a folder that stages share is that stage's whose fields it sets."""
    files = [config_files(stage) for stage in pipeline.stages]
    for stage, stage_files in zip(pipeline.stages, files, strict=True):
        shared = any(other.config_folder == stage.config_folder for other in pipeline.stages if other is not stage)
        if (
            shared
            and name in stage_files
            and other_command_of(load_mapping(stage_files[name]), stage, [*pipeline.stages])
        ):
            del stage_files[name]
    if name is not None and not any(name in each for each in files):
        known = sorted({each for names in files for each in names})
        hint = near(name, known) if "/" not in name else "A file is one stage's: STAGE.config=PATH."
        raise UserError(f"No stage of {pipeline.full_name} has a config {name!r}.", hint=hint)
    given = [
        next((o.partition("=")[2] for o in reversed(overrides) if o.startswith("config=")), None)
        for overrides in by_stage
    ]
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
