"""What the stages' scripts have in common: their config from a command line, files beside them, tracking, the model."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from nemotron_kit.data_prep.config import DEFAULT_TOKENIZER
from nemotron_kit.errors import Note, UserError
from nemotron_kit.home import expand_user

if TYPE_CHECKING:
    from _typeshed import DataclassInstance
    from omegaconf import DictConfig

    from nemotron_kit.artifacts import Artifact, ModelArtifact
    from nemotron_kit.training import TrainingOutcome

Config = TypeVar("Config", bound="DataclassInstance")
Prepared = TypeVar("Prepared", bound="Artifact")


# Names that stand for tokenizers which come with the recipe, wherever it is installed.
TOKENIZERS = {"nano3-tiny": Path(__file__).parent / "tokenizers" / "tiny"}


def no_effect(why: str) -> dict[str, Any]:
    """The metadata of a field that configs made for the reference have, and that decides nothing here."""
    return {"help": f"No effect here. {why}", _NO_EFFECT: True}


_NO_EFFECT = "no_effect"
_RAY = "It tunes the reference's Ray pipeline"


@dataclass
class ReferencePipeline:
    """The settings of the reference's Ray pipeline. They decide how it works, and no byte of what it writes, so that
    configs made for it are taken as they are."""

    execution_mode: str | None = field(default=None, metadata=no_effect(_RAY))
    plan: dict[str, Any] | None = field(default=None, metadata=no_effect(_RAY))
    download: dict[str, Any] | None = field(default=None, metadata=no_effect(_RAY))
    tokenization: dict[str, Any] | None = field(default=None, metadata=no_effect(_RAY))
    observability: dict[str, Any] | None = field(default=None, metadata=no_effect(_RAY))

    def unused(self) -> list[Note]:
        """A note on the settings that were given and have no effect."""
        given = [each.name for each in fields(self) if _NO_EFFECT in each.metadata and getattr(self, each.name)]
        verb = "has" if len(given) == 1 else "have"
        return [Note(f"{', '.join(given)} {verb} no effect here (--help says why).")] if given else []


@dataclass
class BlendInput(ReferencePipeline):
    """What the data preparations of all stages begin with."""

    blend_path: Path = field(
        default=Path("blends/default.json"),
        metadata={"help": "Blend file; a relative path is looked for in the working folder, then beside this script"},
    )
    output_dir: Path = Path("output")
    tasks: int | None = field(
        default=None,
        metadata={"help": "Jobs of an array among which a cluster divides the work (default: the profile's nodes)"},
    )
    step: str | None = field(
        default=None, metadata={"help": "Only this step: plan, shards (of one task) or finish; an array's jobs get it"}
    )
    task: int | None = field(default=None, metadata={"help": "With step=shards: which of the tasks, from 0"})
    sample: int | None = field(
        default=None, metadata={"help": "Take only the first rows of each dataset (of each of its splits), this many"}
    )
    force: bool = field(default=False, metadata={"help": "Replace what output_dir holds"})

    def as_input(self, kind: type[Config], stage: Path, **others: Any) -> Config:
        """This config as `kind`, that of the data preparation itself: fields of the same name have the same value, but
        for `others`; the blend file is a path that can be opened (see `beside`)."""
        own = {each.name for each in fields(self)}
        same = {each.name: getattr(self, each.name) for each in fields(kind) if each.name in own}
        places = {"blend_path": beside(stage, self.blend_path), "output_dir": Path(self.output_dir)}
        return kind(**{**same, **places, **others})


@dataclass
class ShardedOutput(BlendInput):
    """And those that write shards."""

    num_shards: int | None = field(
        default=None,
        metadata={"help": "Train shards in all, each of one source (default: 128, or more of 4 GiB of text each)"},
    )
    shard_size: str | None = field(default=None, metadata={"help": 'Text a shard, like "256MB", instead of num_shards'})
    tokenizer_model: str = field(
        default=DEFAULT_TOKENIZER,
        metadata={"help": "Folder, tokenizer.json or Hugging Face name; nano3-tiny comes with the recipe"},
    )
    max_doc_size: str = field(
        default="64MiB", metadata={"help": "Largest line, document or record of a source; a larger one is a bad row"}
    )
    on_bad_row: str = field(
        default="error", metadata={"help": "A row that can't be used: error stops there, skip leaves it out and counts"}
    )
    max_bad_rows: int | None = field(default=1000, metadata={"help": "With on_bad_row=skip, how many there may be"})
    num_workers: int | None = field(default=None, metadata={"help": "CPUs to use, of each process (default: all)"})
    num_actors: int | None = field(default=None, metadata={"help": "Another name of num_workers"})
    config_name: str | None = field(
        default=None, metadata={"help": "Ending of the artifact's name (default: the config file's name)"}
    )

    def as_input(self, kind: type[Config], stage: Path, **others: Any) -> Config:
        """The same; `num_actors` is `num_workers`. Raises UserError where they differ."""
        actors, workers = self.num_actors, self.num_workers
        if actors is not None and workers is not None and actors != workers:
            raise UserError(f"num_workers={workers} and num_actors={actors} are two names of one setting.")
        return super().as_input(kind, stage, num_workers=actors if workers is None else workers, **others)


def tokenizer_path(name: str) -> str:
    """A tokenizer as data preparation finds it: the recipe's own by their names, any other as it is."""
    return str(TOKENIZERS.get(name, name))


def config_from_command_line(
    default: Path, kind: type[Config], preflight: Callable[..., list[str]] | None = None
) -> Config:
    """The config of a stage's script: `--config FILE` (else `default`) with the overrides that follow. A `config_name`
    that is not set is the file's. Raises UserError for what `preflight(config, connect=True)` finds."""
    return raw_from_command_line(default, kind, preflight)[1]


def raw_from_command_line(
    default: Path, kind: type[Config], preflight: Callable[..., list[str]] | None = None
) -> tuple[DictConfig, Config]:
    """The same, and what it was made from: the file's own values (its `run` section among them) with the overrides."""
    from nemotron_kit.config.schema import contradictions
    from nemotron_kit.train_script import (
        apply_hydra_overrides,
        load_omegaconf_yaml,
        omegaconf_to_dataclass,
        parse_config_and_overrides,
    )

    path, overrides = parse_config_and_overrides(default)
    raw = apply_hydra_overrides(load_omegaconf_yaml(path), overrides)
    config = omegaconf_to_dataclass(raw, kind)
    for problem in contradictions(overrides, asdict(config), kind):
        raise UserError(problem)
    # A job's config file is always called config.
    if getattr(config, "config_name", "") is None and "NEMO_RUN_DIR" not in os.environ:
        config.config_name = path.stem
    found = preflight(config, connect=True) if preflight is not None else []
    for note in (each for each in found if isinstance(each, Note)):
        print(f"note: {note}", file=sys.stderr)
    problems = [each for each in found if not isinstance(each, Note)]
    if problems:
        raise UserError("This can't run here:\n" + "\n".join(f"- {problem}" for problem in problems))
    return raw, config


def config_name(given: str | None) -> str:
    """The ending of a data artifact's name: as given, else that of the launch's config."""
    return given or os.environ.get("NEMOTRON_CONFIG_NAME") or "default"


def beside(stage: Path, path: Path) -> Path:
    """A file of the working folder, else of the stage's own; as it is where there is neither."""
    given = expand_user(path)
    return next((place for place in (given, stage / given) if place.is_file()), given)


def shards_preflight(cfg: ShardedOutput, settings: Callable[[Any], Any], *, connect: bool, here: bool) -> list[str]:
    """What would stop a run that writes shards by `settings(cfg)`: wrong settings, and on this machine (`here`) a
    missing file, no network, a disk that is too small."""
    from nemotron_kit.data_prep.preflight import preflight, setting_problems

    try:
        config = settings(cfg)
    except UserError as error:
        return [str(error).replace("\n", " ")]
    found = preflight(config, connect=connect, smaller="-c tiny") if here else setting_problems(config)
    return [*found, *cfg.unused()]


def prepare_data(run: Callable[[Any], Prepared | None], config: Any) -> Prepared | None:
    """Prepare data by `run(config)`. The rank that leads opens a W&B run, and tells the next step where the data is."""
    from nemotron_kit.artifacts import print_step_complete
    from nemotron_kit.data_prep.ranks import ranks_here
    from nemotron_kit.train_script import init_wandb_from_env

    ranks = ranks_here()
    leads = ranks is None or ranks.leads
    if leads:
        init_wandb_from_env()
    artifact = run(config)
    if leads and artifact is not None:
        print_step_complete(data=artifact)
    return artifact


def start_tracking(project: str | None, entity: str | None, name: str | None = None) -> None:
    """Open a W&B run, on rank 0, if the launcher, the environment or the logger block (`project`, `entity`, `name` of
    the run) asks for one; the environment wins."""
    from nemotron_kit.train_script import init_wandb_from_env
    from nemotron_kit.training.processes import rank

    if rank() != 0:
        return
    for variable, value in (("WANDB_PROJECT", project), ("WANDB_ENTITY", entity), ("WANDB_NAME", name)):
        if value:
            os.environ.setdefault(variable, str(value))
    init_wandb_from_env()


def train_stage(cfg: Any, engine: Callable[[Any], TrainingOutcome], name: str) -> ModelArtifact:
    """Train by `engine` and return the model, which rank 0 registers under `name`; its loss is the held-out one where
    there is a valid split. Raises UserError for settings that are wrong, and with the estimate of its size instead of
    driving the machine out of memory."""
    from nemotron_kit.artifacts import ModelArtifact

    cfg.check()
    work = cfg.workload()
    for problem in work.problems() if work else ():
        raise UserError(problem)
    start_tracking(cfg.logger.wandb_project, cfg.logger.wandb_entity, cfg.logger.wandb_exp_name)
    outcome = engine(cfg)
    loss = outcome.loss if outcome.valid_loss is None else outcome.valid_loss
    metadata: dict[str, Any] = {"train_loss": outcome.loss, "tokens": outcome.tokens, "seq_length": cfg.seq_length}
    if outcome.changes:
        metadata["changes"] = list(outcome.changes)
    return publish(ModelArtifact(path=outcome.path, step=outcome.step, loss=loss, metadata=metadata), name)


def bridge_stage(cfg: Any, recipe: str, name: str) -> ModelArtifact:
    """Train by Megatron-Bridge, with its recipe of this name unless the config names one, and return the model: the
    folder of its last checkpoint, which rank 0 registers under `name`."""
    from nemotron_kit.artifacts import ModelArtifact
    from nemotron_kit.training import bridge

    cfg.check()
    start_tracking(cfg.logger.wandb_project, cfg.logger.wandb_entity, cfg.logger.wandb_exp_name)
    outcome = bridge.train(cfg, getattr(bridge, recipe))
    metadata = {"tokens": outcome.tokens, "seq_length": cfg.seq_length, "engine": cfg.engine}
    step = outcome.iteration
    return publish(ModelArtifact(path=outcome.path, step=step, iteration=step, metadata=metadata), name)


def publish(artifact: ModelArtifact, name: str) -> ModelArtifact:
    """On rank 0, register the model, and tell the next step where it is; returns it."""
    from nemotron_kit.artifacts import print_step_complete
    from nemotron_kit.training.processes import rank

    if rank() == 0:
        artifact.save(name=name)
        print_step_complete(model=artifact)
    return artifact
