"""The config of supervised fine-tuning. Every launch imports this module, so it imports no torch."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from nemotron_kit.errors import Note, UserError, nearest
from nemotron_kit.training.bridge_config import BridgeBlocks, check_bridge
from nemotron_kit.training.config_blocks import (
    FREE_SETTINGS,
    AdamWBlock,
    CheckpointConfig,
    LoggerConfig,
    SchedulerConfig,
    TrainBlock,
    check_keys,
    check_optimizer,
    check_target,
    free_block,
    peak_lr,
    unknown,
    whole_number,
)
from nemotron_kit.training.cost import Workload
from nemotron_kit.training.model import MODEL_FIELDS, check_unused
from nemotron_kit.training.model_size import check_block, expert_count, given_block

# The functions that recipe._target_ may name: a config can't make any other be imported.
TARGETS = ("nemotron_kit.training.sft",)
_RECIPE_KEYS = ("_target_", "packed_sequence", "peft")
_DATASET_KEYS = ("dataset_root", "nano3_packed_sft_dir", "seq_length", "seed", "packed_sequence_specs")
_PACKED_KEYS = (
    "packed_sequence_size",
    "packed_train_data_path",
    "packed_val_data_path",
    "packed_metadata_path",
    "pad_cu_seqlens",
    "pad_seq_to_mult",
)
# How Megatron cuts a model into pieces: there is one piece here.
_PARALLEL = (
    "tensor_model_parallel_size",
    "pipeline_model_parallel_size",
    "virtual_pipeline_model_parallel_size",
    "context_parallel_size",
    "expert_model_parallel_size",
    "expert_tensor_parallel_size",
    "sequence_parallel",
)
LORA_MODULES = ("in_proj", "out_proj", "q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj")


@dataclass
class SFTTrainConfig(TrainBlock):
    """The `train` block; the names are Megatron's."""

    train_iters: int = field(default=1700, metadata={"help": "Optimizer steps"})
    global_batch_size: int = field(default=32, metadata={"help": "Packed rows a step, over all processes"})
    micro_batch_size: int = field(
        default=1, metadata={"help": "Rows whose tokens one process handles at a time, padding included"}
    )
    seed: int = field(default=1234, metadata={"help": "Seed of everything random in a step, and of new adapters"})

    def check_split(self, processes: int) -> None:
        """Raises UserError if `processes` are not those of the layout, or can't share the global batch evenly."""
        self.layout.check_ranks(processes)
        if self.global_batch_size % processes:
            raise UserError(
                f"train.global_batch_size {self.global_batch_size} is no multiple of {processes} processes.",
                hint=f"For instance train.global_batch_size={-(-self.global_batch_size // processes) * processes}.",
            )


@dataclass
class _Rates:
    lr: float = peak_lr(1e-5)
    min_lr: float | None = field(default=None, metadata={"help": "Where its decay ends (null: scheduler.min_lr)"})


# The fields of the last base come first.
@dataclass
class SFTOptimizerConfig(AdamWBlock, _Rates):
    """The `optimizer` block; the names are Megatron's."""

    def check(self) -> None:
        """Raises UserError for an invalid value."""
        check_optimizer(self, closed=False)


@dataclass
class PeftConfig:
    """The `peft` block: low-rank adapters (LoRA, arXiv 2106.09685) beside frozen weights, merged into these in the
    saved model."""

    scheme: str | None = field(default=None, metadata={"help": "lora, or null: all weights are trained"})
    dim: int = field(default=8, metadata={"help": "Rank of the adapters"})
    alpha: float = field(default=16.0, metadata={"help": "An adapter counts alpha / dim times"})
    dropout: float = field(default=0.0, metadata={"help": "Not available in this engine; must be 0"})
    target_modules: list[str] = field(
        default_factory=lambda: list(LORA_MODULES), metadata={"help": "Names of the linear layers that get adapters"}
    )

    def check(self) -> None:
        """Raises UserError for an invalid value."""
        if self.scheme not in (None, "lora"):
            raise UserError(f"peft.scheme is {self.scheme!r}; this engine has lora, or null for training all weights.")
        if self.dim < 1 or not 0 < self.alpha < math.inf:
            raise UserError(f"peft: dim {self.dim} and alpha {self.alpha} must be more than 0, and finite.")
        if self.dropout:
            raise UserError(f"peft.dropout is {self.dropout}; this engine's adapters have none.", hint="Set it to 0.")
        for name in self.target_modules:
            if name not in LORA_MODULES:
                raise UserError(f"peft.target_modules: {name!r} is no linear layer; {nearest(name, LORA_MODULES)}")
        if self.scheme and not self.target_modules:
            raise UserError("peft.target_modules is empty: there would be nothing to train.")


@dataclass
class SFTConfig(BridgeBlocks):
    """A run of supervised fine-tuning on packed rows."""

    recipe: dict[str, Any] = free_block(
        "packed_sequence: true; peft: null or lora; _target_: the engine, if named at all"
    )
    model: dict[str, Any] = free_block(
        "seq_length; fields of transformers' NemotronHConfig in place of the pretrained model's, without "
        "those that decide its shape; Megatron's parallel sizes, which must be 1"
    )
    dataset: dict[str, Any] = free_block(
        "nano3_packed_sft_dir, a folder with train/ and valid/ (or packed_sequence_specs with "
        "packed_train_data_path and packed_val_data_path); seq_length, of the longest row (4096); seed, of the "
        "shuffle (1234)"
    )
    train: SFTTrainConfig = field(default_factory=SFTTrainConfig)
    optimizer: SFTOptimizerConfig = field(default_factory=SFTOptimizerConfig, metadata={"open": True})
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    peft: PeftConfig = field(default_factory=PeftConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)

    @property
    def peak_lr(self) -> float:
        """The peak learning rate."""
        return self.optimizer.lr

    @property
    def seq_length(self) -> int:
        """Tokens of the longest packed row: dataset.seq_length, else packed_sequence_size, model.seq_length or 4096."""
        packed = self.dataset.get("packed_sequence_specs") or {}
        given = self.dataset.get("seq_length") or packed.get("packed_sequence_size") or self.model.get("seq_length")
        return int(given or 4096)

    @property
    def data_seed(self) -> int:
        """The seed of the rows' order."""
        return int(self.dataset.get("seed", 1234))

    @property
    def lora(self) -> PeftConfig | None:
        """The adapters to train; None if all weights are trained."""
        return self.peft if self.peft.scheme == "lora" or self.recipe.get("peft") == "lora" else None

    @property
    def model_settings(self) -> dict[str, Any]:
        """The settings of NemotronHConfig in the `model` block."""
        return {name: value for name, value in self.model.items() if name in MODEL_FIELDS}

    def split_folder(self, split: str) -> Path | None:
        """The folder (or file) of the rows of `split` (train or valid); None if the config names none."""
        packed = self.dataset.get("packed_sequence_specs") or {}
        given = packed.get("packed_train_data_path" if split == "train" else "packed_val_data_path")
        if given:
            return Path(str(given))
        root = self.dataset.get("nano3_packed_sft_dir") or (None if packed else self.dataset.get("dataset_root"))
        return Path(str(root)) / split if root else None

    def without_finetune(self) -> SFTConfig:
        """The config with a single source of weights: checkpoint.load, a run to continue, takes precedence over the
        pretrained model; scheduler.min_lr is the optimizer's if that is set."""
        block = self.checkpoint
        if block.load and block.pretrained_checkpoint:
            block = replace(block, finetune=False, pretrained_checkpoint=None)
        min_lr = self.scheduler.min_lr if self.optimizer.min_lr is None else self.optimizer.min_lr
        return replace(self, checkpoint=block, scheduler=replace(self.scheduler, min_lr=min_lr))

    def check(self) -> None:
        """Raises UserError, naming the field, for every error that can be found without the data."""
        packed = self.dataset.get("packed_sequence_specs") or {}
        self.check_engine()
        if self.on_bridge:
            check_bridge(self)
        for place, values, names in (
            *(() if self.on_bridge else (("recipe", self.recipe, _RECIPE_KEYS),)),
            ("dataset", self.dataset, _DATASET_KEYS),
            ("dataset.packed_sequence_specs", packed, _PACKED_KEYS),
        ):
            check_keys(place, values, names)
        if not self.on_bridge:
            self._check_ours()
        for name, value in (
            ("dataset.seq_length", self.dataset.get("seq_length")),
            ("dataset.packed_sequence_specs.packed_sequence_size", packed.get("packed_sequence_size")),
            ("model.seq_length", self.model.get("seq_length")),
        ):
            if value is not None:
                whole_number(name, value, least=2)
                if not unknown(value) and not unknown(self.dataset.get("seq_length")) and value != self.seq_length:
                    raise UserError(f"{name} is {value}, but dataset.seq_length is {self.seq_length}.")
        whole_number("dataset.seed", self.dataset.get("seed", 1234), least=0)
        for block in (self.train, self.optimizer, self.scheduler, self.peft, self.logger):
            block.check()
        used = self.without_finetune()
        used.checkpoint.check()
        used.scheduler.check_peak(used.peak_lr, "optimizer.lr")
        if self.split_folder("train") is None:
            raise UserError(
                "dataset.nano3_packed_sft_dir is not set: there is no data to train on.",
                hint="In the config: dataset.nano3_packed_sft_dir: ${art:data,path}",
            )
        if not (self.checkpoint.pretrained_checkpoint or self.checkpoint.load):
            raise UserError(
                "checkpoint.pretrained_checkpoint is not set: there is no model to fine-tune.",
                hint="In the config: checkpoint.pretrained_checkpoint: ${art:model,path}",
            )
        if self.lora and not self.checkpoint.pretrained_checkpoint:
            raise UserError(
                "checkpoint.pretrained_checkpoint is not set: a checkpoint of adapters has not the model that they "
                "stand beside.",
                hint="In the config: checkpoint.pretrained_checkpoint: ${art:model,path}",
            )

    def _check_ours(self) -> None:
        """Raises UserError for what the hf engine does not have."""
        check_target(self.recipe, TARGETS, ": its engine is another one")
        if self.recipe.get("packed_sequence") not in (None, True):
            raise UserError("recipe.packed_sequence: the rows are packed; it must be true or left out.")
        if self.recipe.get("peft") not in (None, "lora"):
            raise UserError(
                f"recipe.peft is {self.recipe['peft']!r}; this engine has lora, or null for training all weights.",
                hint="The adapters' settings are the block peft (dim, alpha, target_modules).",
            )
        if self.lora and self.train.layout.sharded:
            raise UserError(
                "train.parallelism: adapters (peft) are trained with the whole model in each process.",
                hint="Set train.parallelism=ddp, or train all weights (lora=none).",
            )
        for name in _PARALLEL:
            if self.model.get(name) not in (None, 1, False):
                raise UserError(
                    f"model.{name} is {self.model[name]!r}: this engine shards a model by train.parallelism.",
                    hint="Set it to 1, and for instance 'train.parallelism={fsdp_size: 8, ep_size: 8}'.",
                )
        if self.model.get("calculate_per_token_loss") not in (None, True):
            raise UserError("model.calculate_per_token_loss: the loss is that of each token; it must be true.")
        known = [*MODEL_FIELDS, *_PARALLEL, "seq_length", "calculate_per_token_loss"]
        check_keys("model", self.model, known)
        check_unused(self.model)
        check_optimizer(self.optimizer)

    def check_model(self) -> list[Note]:
        """Raises UserError for a model that can't be trained so; see `check_block`."""
        block = given_block(self.checkpoint.pretrained_checkpoint)
        self.train.layout.check_experts(expert_count(block) if block else None)
        return check_block(self.model_settings)

    def workload(self) -> Workload | None:
        """The run by its size; None for a pretrained model that does not exist yet, or is not known before the job
        runs."""
        block = given_block(self.checkpoint.pretrained_checkpoint)
        if not block or unknown(self.dataset.get("seq_length")):
            return None
        what = f"Fine-tuning {self.checkpoint.pretrained_checkpoint}"
        instead, adapters = "train adapters (lora=small), or try -c tiny", self.lora is not None
        return Workload(what, block, self.seq_length, self.train, self.checkpoint, instead, adapters)


def settings_identity(config: SFTConfig, precision: str) -> dict[str, Any]:
    """The settings that, together with data and given weights, determine the weights at a step, by the names of the
    config."""
    train = {name: value for name, value in asdict(config.train).items() if name not in FREE_SETTINGS}
    return {
        "model": dict(config.model_settings),
        "train": {**train, "precision": precision},
        "optimizer": {name: value for name, value in asdict(config.optimizer).items() if name != "min_lr"},
        "scheduler": asdict(config.scheduler),
        "peft": {**asdict(config.lora), "scheme": "lora"} if config.lora else {"scheme": None},
    }
