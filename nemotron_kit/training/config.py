"""PretrainConfig: the blocks of a nano3 pretraining config. Light: a launch imports it, and no torch with it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nemotron_kit.errors import UserError, nearest
from nemotron_kit.training.blocks import CheckpointConfig, LoggerConfig, SchedulerConfig, TrainConfig

# What a config may name in recipe._target_: nothing else is ever imported on a config's word.
TARGETS = ("nemotron_kit.training.pretrain",)
_RECIPE_KEYS = ("_target_", "per_split_data_args_path")
_DATASET_KEYS = ("seq_length", "seed", "verify")


@dataclass
class PretrainConfig:
    """A pretraining run."""

    recipe: dict[str, Any] = field(
        default_factory=dict,
        metadata={"help": "per_split_data_args_path: the data's blend.json; _target_: the engine, if named at all"},
    )
    model: dict[str, Any] = field(
        default_factory=dict,
        metadata={
            "help": "Fields of transformers' NemotronHConfig; hybrid_override_pattern gives the layers, a letter each; "
            "vocab_size is the data's unless set"
        },
    )
    dataset: dict[str, Any] = field(
        default_factory=dict,
        metadata={
            "help": "seq_length (4096); seed, of the shuffle (1234); verify, whether to read all shards and compare "
            "them with their records before the run (null: where that takes seconds)"
        },
    )
    train: TrainConfig = field(default_factory=TrainConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)

    @property
    def seq_length(self) -> int:
        return int(self.dataset.get("seq_length", 4096))

    @property
    def data_seed(self) -> int:
        return int(self.dataset.get("seed", 1234))

    @property
    def verify_data(self) -> bool | None:
        """Whether every recorded shard is read before the run; None: where that takes seconds."""
        value: bool | None = self.dataset.get("verify")
        return value

    @property
    def blend_path(self) -> Path:
        """The blend.json. UserError when the config names none."""
        path = self.recipe.get("per_split_data_args_path")
        if not path:
            raise UserError(
                "recipe.per_split_data_args_path is not set: there is no data to train on.",
                hint="In the config: recipe.per_split_data_args_path: ${art:data,path}/blend.json",
            )
        return Path(str(path))

    def check(self) -> None:
        """Raises UserError, naming the field, for anything that can be told to be wrong without the data."""
        _known("recipe", self.recipe, _RECIPE_KEYS)
        _known("dataset", self.dataset, _DATASET_KEYS)
        target = self.recipe.get("_target_")
        if target is not None and not unknown(target) and target not in TARGETS:
            raise UserError(
                f"recipe._target_ is {target!r}, which this recipe doesn't run.",
                hint=f"Leave it out, or set it to {' or '.join(TARGETS)}.",
            )
        _whole_number("dataset.seq_length", self.dataset.get("seq_length", 4096), least=1)
        _whole_number("dataset.seed", self.dataset.get("seed", 1234), least=0)
        if not isinstance(self.verify_data, bool | None) and not unknown(self.verify_data):
            raise UserError(f"dataset.verify is {self.verify_data!r}; it must be true, false or null.")
        for block in (self.train, self.scheduler, self.checkpoint, self.logger):
            block.check()


def _known(block: str, values: dict[str, Any], names: tuple[str, ...]) -> None:
    for name in values:
        if name not in names:
            raise UserError(f"{block}.{name}: this engine has no such setting; {nearest(name, names)}")


def unknown(value: Any) -> bool:
    """Whether a value is a reference that only the job can resolve (`${art:…}`): a plan may hold such."""
    return isinstance(value, str) and "${" in value


def _whole_number(name: str, value: Any, *, least: int) -> None:
    if unknown(value):
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(f"{name} is {value!r}; it must be a whole number, {least} or more.")
