"""The config of a pretraining run and an estimate of its size. Every launch imports this module, so it imports no
torch."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from nemotron_kit.errors import Note, UserError
from nemotron_kit.training.bridge_config import BridgeBlocks, check_bridge, is_recipe
from nemotron_kit.training.config_blocks import (
    AdamWBlock,
    BatchBlock,
    CheckpointConfig,
    LoggerConfig,
    SchedulerConfig,
    TrainBlock,
    check_keys,
    check_limits,
    check_optimizer,
    check_target,
    free_block,
    peak_lr,
    unknown,
    whole_number,
)
from nemotron_kit.training.cost import Workload
from nemotron_kit.training.model import MODEL_DEFAULTS, with_data_settings
from nemotron_kit.training.model_size import check_block, count_parameters, expert_count


@dataclass
class _Rate:
    lr: float = peak_lr(1e-3)


# The fields of the last base come first.
@dataclass
class TrainConfig(TrainBlock, AdamWBlock, _Rate, BatchBlock):
    """The `train` block; the names are Megatron's."""

    fsdp: bool = field(default=False, metadata={"help": "Says no size, so true is refused: set train.parallelism"})

    def check(self) -> None:
        """Raises UserError for an invalid value."""
        super().check()
        check_limits("train", {each.name: getattr(self, each.name) for each in (*fields(AdamWBlock), *fields(_Rate))})
        if self.fsdp:
            # On a CPU the Trainer would accept the setting and silently train plain DDP.
            raise UserError(
                "train.fsdp does not say over how many processes the model is to be sharded.",
                hint="Set 'train.parallelism={fsdp_size: 8}', with the number of processes.",
            )

    def check_split(self, processes: int) -> None:
        """Raises UserError if `processes` are not those of the layout, or can't share the global batch evenly."""
        self.layout.check_ranks(processes)
        share = self.micro_batch_size * processes
        if self.global_batch_size % share:
            raise UserError(
                f"train.global_batch_size {self.global_batch_size} is no multiple of train.micro_batch_size "
                f"{self.micro_batch_size} × {processes} process{'es' if processes > 1 else ''}.",
                hint=f"For instance train.global_batch_size={math.ceil(self.global_batch_size / share) * share}.",
            )


@dataclass
class OptimizerConfig:
    """The `optimizer` block of pretraining: the same settings as in `train`, at Megatron's place. A value set here
    takes precedence."""

    lr: float | None = field(
        default=None, metadata={"help": "Peak learning rate (null: train.lr)", "same_as": "train.lr"}
    )
    min_lr: float | None = field(
        default=None, metadata={"help": "Where its decay ends (null: scheduler.min_lr)", "same_as": "scheduler.min_lr"}
    )
    weight_decay: float | None = field(
        default=None, metadata={"help": "AdamW's (null: train.weight_decay)", "same_as": "train.weight_decay"}
    )
    adam_beta1: float | None = field(
        default=None, metadata={"help": "null: train.adam_beta1", "same_as": "train.adam_beta1"}
    )
    adam_beta2: float | None = field(
        default=None, metadata={"help": "null: train.adam_beta2", "same_as": "train.adam_beta2"}
    )
    adam_eps: float | None = field(default=None, metadata={"help": "null: train.adam_eps", "same_as": "train.adam_eps"})
    clip_grad: float | None = field(
        default=None, metadata={"help": "Largest norm of the gradients (null: train's)", "same_as": "train.clip_grad"}
    )

    def check(self) -> None:
        """Raises UserError for an invalid value."""
        check_optimizer(self, closed=False)


# The functions that recipe._target_ may name: a config can't make any other be imported.
TARGETS = ("nemotron_kit.training.pretrain",)
_RECIPE_KEYS = ("_target_", "per_split_data_args_path")
_DATASET_KEYS = ("seq_length", "seed", "verify")


@dataclass
class PretrainConfig(BridgeBlocks):
    """A pretraining run."""

    recipe: dict[str, Any] = free_block(
        "per_split_data_args_path: the data's blend.json; _target_: the engine, if named at all"
    )
    model: dict[str, Any] = free_block(
        "Fields of transformers' NemotronHConfig; hybrid_override_pattern gives the layers, a letter each; "
        "vocab_size is the data's unless set"
    )
    dataset: dict[str, Any] = free_block(
        "seq_length (4096); seed, of the shuffle (1234); verify, whether to read all shards and compare "
        "them with their records before the run (null: where that takes seconds)"
    )
    train: TrainConfig = field(default_factory=TrainConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig, metadata={"open": True})
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)

    def with_optimizer(self) -> PretrainConfig:
        """The same run with the values of the `optimizer` block merged into `train` and `scheduler`, and that block
        empty."""
        given = {name: value for name, value in asdict(self.optimizer).items() if value is not None}
        min_lr = given.pop("min_lr", self.scheduler.min_lr)
        return replace(
            self,
            train=replace(self.train, **given),
            scheduler=replace(self.scheduler, min_lr=min_lr),
            optimizer=OptimizerConfig(),
        )

    @property
    def peak_lr(self) -> float:
        """The peak learning rate, train.lr: after `with_optimizer` that of the `optimizer` block, if it has one."""
        return self.train.lr

    @property
    def seq_length(self) -> int:
        """Tokens that a window predicts; it has one more. 4096 unless dataset.seq_length is set."""
        return int(self.dataset.get("seq_length", 4096))

    @property
    def data_seed(self) -> int:
        """The seed of the windows' order."""
        return int(self.dataset.get("seed", 1234))

    @property
    def verify_data(self) -> bool | None:
        """Whether every recorded shard is read before the run; None: if that takes seconds only."""
        value: bool | None = self.dataset.get("verify")
        return value

    @property
    def blend_path(self) -> Path:
        """The path of blend.json. Raises UserError if the config names none."""
        path = self.recipe.get("per_split_data_args_path")
        if not path:
            raise UserError(
                "recipe.per_split_data_args_path is not set: there is no data to train on.",
                hint="In the config: recipe.per_split_data_args_path: ${art:data,path}/blend.json",
            )
        return Path(str(path))

    def check(self) -> None:
        """Raises UserError, naming the field, for every error that can be found without the data."""
        self.check_engine()
        if self.on_bridge:
            check_bridge(self)
        else:
            check_keys("recipe", self.recipe, _RECIPE_KEYS)
            check_optimizer(self.optimizer)
            names_bridge = is_recipe(str(self.recipe.get("_target_")))
            check_target(self.recipe, TARGETS, f" by engine {self.engine!r}" if names_bridge else "")
        check_keys("dataset", self.dataset, _DATASET_KEYS)
        whole_number("dataset.seq_length", self.dataset.get("seq_length", 4096), least=1)
        whole_number("dataset.seed", self.dataset.get("seed", 1234), least=0)
        if not isinstance(self.verify_data, bool | None) and not unknown(self.verify_data):
            raise UserError(f"dataset.verify is {self.verify_data!r}; it must be true, false or null.")
        for block in (self.train, self.optimizer, self.scheduler, self.checkpoint, self.logger):
            block.check()
        used = self.with_optimizer()
        used.scheduler.check_peak(used.peak_lr, "train.lr" if self.optimizer.lr is None else "optimizer.lr")
        if self.on_bridge:
            self.blend_path  # noqa: B018 - raises when it isn't set

    def check_model(self) -> list[Note]:
        """Raises UserError for a model that can't be trained so, or without data; see `check_block`."""
        self.train.layout.check_experts(expert_count(self.model))
        self.blend_path  # noqa: B018 - raises when it isn't set
        return check_block(self.model)

    def workload(self) -> Workload | None:
        """The run by its size; None where that is known only when it starts. A vocabulary that neither the config nor
        the data gives yet is taken to be the largest common one."""
        if any(map(unknown, (*self.model.values(), self.dataset.get("seq_length")))):
            return None
        try:
            vocab_size = with_data_settings(self.model, self.blend_path.parent)["vocab_size"]
        except UserError:  # the data need not exist yet; its own check reports it
            vocab_size = MODEL_DEFAULTS["vocab_size"]
        model = {**self.model, "vocab_size": vocab_size}
        what = f"Training this model of {count_parameters(model) / 1e9:.1f} B parameters"
        seq_length, train, saving = self.seq_length, self.train, self.checkpoint
        return Workload(what, model, seq_length, train, saving, instead="try -c tiny", gradients_stay=False)
