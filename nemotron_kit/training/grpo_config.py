"""The config of reinforcement learning (GRPO), with NeMo-RL's names. Every launch imports this module, so it imports no
torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from nemotron_kit.errors import Note, UserError
from nemotron_kit.training import nemo_rl
from nemotron_kit.training.bridge_config import engine_field
from nemotron_kit.training.config_blocks import (
    CheckpointConfig,
    LoggerConfig,
    ParallelBlock,
    SchedulerConfig,
    free_block,
    unknown,
)
from nemotron_kit.training.cost import JobFacts, disk_notes, steps_notes
from nemotron_kit.training.grpo_checks import METRICS, PRECISIONS, bad_values, other_engines, recorded_name
from nemotron_kit.training.memory import GpuFacts, Step, memory_notes
from nemotron_kit.training.model_size import given_block
from nemotron_kit.training.prompts import agents_in
from nemotron_kit.training.rewards import missing_verifiers


@dataclass
class GRPOBlock:
    """The `grpo` block."""

    num_prompts_per_step: int = field(default=128, metadata={"help": "Prompts a step, over all processes"})
    num_generations_per_prompt: int = field(default=16, metadata={"help": "Answers to each of them"})
    num_val_generations_per_prompt: int = field(default=4, metadata={"help": "Sampled answers to a validation prompt"})
    max_rollout_turns: int = field(default=1, metadata={"help": "Turns of an answer; this engine has 1"})
    max_num_epochs: int = field(
        default=1, metadata={"help": "How often the prompts come up at most (by env.weights: on average)"}
    )
    max_num_steps: int = field(default=1000000, metadata={"help": "Optimizer steps at most"})
    normalize_rewards: bool = field(
        default=True, metadata={"help": "Divide advantages by the rewards' standard deviation over a prompt's answers"}
    )
    use_leave_one_out_baseline: bool = field(
        default=True, metadata={"help": "Compare an answer with the prompt's other answers, not with all of them"}
    )
    overlong_filtering: bool = field(
        default=False, metadata={"help": "Learn nothing from answers that did not end within their tokens"}
    )
    val_period: int | None = field(
        default=5, metadata={"help": "Steps between validations (0 or null: only at the end)"}
    )
    val_at_start: bool = field(default=False, metadata={"help": "Validate before the first step, too"})
    max_val_samples: int | None = field(default=None, metadata={"help": "Validation prompts at most (null: all)"})
    val_batch_size: int = field(default=256, metadata={"help": "Validation answers that are generated at a time"})
    seed: int = field(default=42, metadata={"help": "Seed of the prompts' order and of what is sampled"})
    num_iterations: int | None = field(
        default=None, metadata={"help": "Another name of max_num_steps; it wins", "same_as": "grpo.max_num_steps"}
    )
    batch_size: int | None = field(
        default=None,
        metadata={"help": "Another name of num_prompts_per_step; it wins", "same_as": "grpo.num_prompts_per_step"},
    )
    learning_rate: float | None = field(
        default=None,
        metadata={
            "help": "Another name of policy.optimizer.kwargs.lr; it wins",
            "same_as": "policy.optimizer.kwargs.lr",
        },
    )
    async_grpo: dict[str, Any] | None = field(default=None, metadata={"help": "Not in this engine: enabled is false"})
    use_dynamic_sampling: bool = field(default=False, metadata={"help": "Not in this engine"})
    batch_multiplier: int = field(default=1, metadata={"help": "Of dynamic sampling, which this engine has not"})
    reward_shaping: dict[str, Any] | None = field(default=None, metadata={"help": "Not in this engine: a verifier's"})
    reward_scaling: dict[str, Any] | None = field(default=None, metadata={"help": "Not in this engine: a verifier's"})
    dynamic_sampling_oversample_ratio: float = field(default=1.0, metadata={"help": "Of dynamic sampling"})
    use_best_at_k: bool = field(default=False, metadata={"help": "Not in this engine"})
    best_at_k_k: int = field(default=8, metadata={"help": "Of use_best_at_k"})
    best_at_k_m: int = field(default=1000, metadata={"help": "Of use_best_at_k"})
    use_combined_training: bool = field(default=False, metadata={"help": "Not in this engine"})
    combined_training_weight_mode: str = field(default="auto", metadata={"help": "Of use_combined_training"})
    combined_training_best_at_k_weight: float = field(default=0.2, metadata={"help": "Of use_combined_training"})
    combined_training_pass_at_1_weight: float = field(default=1.0, metadata={"help": "Of use_combined_training"})


@dataclass
class LossBlock:
    """The `loss_fn` block."""

    reference_policy_kl_penalty: float = field(
        default=0.0, metadata={"help": "Weight of the divergence from the model that the run began with (0: none)"}
    )
    reference_policy_kl_type: str = field(default="k3", metadata={"help": "Its estimator: k3"})
    kl_input_clamp_value: float | None = field(default=None, metadata={"help": "Largest log ratio that counts in it"})
    kl_output_clamp_value: float | None = field(default=None, metadata={"help": "Its largest value for a token"})
    ratio_clip_min: float = field(
        default=0.2, metadata={"help": "How far a token's probability may fall and still count"}
    )
    ratio_clip_max: float = field(default=0.28, metadata={"help": "How far it may rise and still count"})
    ratio_clip_c: float | None = field(default=None, metadata={"help": "Not in this engine (dual clipping)"})
    use_on_policy_kl_approximation: bool = field(
        default=True, metadata={"help": "Exact here: what is sampled is sampled by the weights that are trained"}
    )
    use_importance_sampling_correction: bool = field(
        default=True, metadata={"help": "Nothing to correct here: one engine generates and trains"}
    )
    sequence_level_importance_ratios: bool = field(default=False, metadata={"help": "Not in this engine"})
    truncated_importance_sampling_ratio: float | None = field(default=None, metadata={"help": "Not in this engine"})
    token_level_loss: bool = field(
        default=True, metadata={"help": "The mean over all tokens; false: the mean over answers of their means"}
    )


@dataclass
class PolicyOptimizer:
    """The block `policy.optimizer`."""

    name: str = field(default="torch.optim.AdamW", metadata={"help": "torch.optim.AdamW"})
    kwargs: dict[str, Any] = field(
        default_factory=lambda: {"lr": 3e-6, "weight_decay": 0.0, "betas": [0.9, 0.999], "eps": 1e-8},
        metadata={"help": "lr, weight_decay, betas, eps"},
    )

    def value(self, name: str) -> Any:
        """A setting of AdamW's: that of `kwargs`, else its default. KeyError for a name that AdamW does not have."""
        return {**PolicyOptimizer().kwargs, **self.kwargs}[name]


@dataclass
class GenerationBlock:
    """The block `policy.generation`."""

    backend: str = field(default="hf", metadata={"help": "hf: the model that is trained also answers"})
    max_new_tokens: int | None = field(
        default=None,
        metadata={
            "help": "Tokens of an answer at most (null, or policy.max_total_sequence_length: what its prompt leaves)"
        },
    )
    temperature: float = field(default=1.0, metadata={"help": "Of sampling, and of the probabilities in the loss"})
    top_p: float = field(default=1.0, metadata={"help": "This engine samples from the whole distribution: 1"})
    top_k: int | None = field(default=None, metadata={"help": "Likewise: null"})
    stop_token_ids: list[int] | None = field(default=None, metadata={"help": "More tokens that end an answer"})
    stop_strings: list[str] | None = field(default=None, metadata={"help": "Not in this engine"})
    vllm_cfg: dict[str, Any] | None = field(default=None, metadata={"help": "Another engine's"})
    vllm_kwargs: dict[str, Any] | None = field(default=None, metadata={"help": "Another engine's"})
    colocated: dict[str, Any] | None = field(default=None, metadata={"help": "Another engine's"})


def _constant() -> SchedulerConfig:
    return SchedulerConfig(lr_decay_style="constant")


@dataclass
class PolicyBlock:
    """The `policy` block."""

    model_name: str | None = field(default=None, metadata={"help": "Folder of the model to begin with"})
    tokenizer: Any = field(
        default=None,
        metadata={
            "help": "Folder of the tokenizer (null: the model's); or a block with name and chat_template_kwargs, "
            "such as enable_thinking"
        },
    )
    train_global_batch_size: int | None = field(
        default=None, metadata={"help": "Answers of an optimizer step: all of a step's (null), or that number"}
    )
    train_micro_batch_size: int = field(default=1, metadata={"help": "Answers of a forward and backward pass"})
    generation_batch_size: int = field(default=64, metadata={"help": "Answers that are generated at a time"})
    logprob_batch_size: int = field(default=1, metadata={"help": "Answers of a pass of the reference model"})
    max_total_sequence_length: int = field(default=4096, metadata={"help": "Tokens of prompt and answer at most"})
    precision: str = field(
        default="auto", metadata={"help": "bfloat16 (over float32 weights), float32, or auto: the former on a GPU"}
    )
    max_grad_norm: float = field(default=1.0, metadata={"help": "Largest norm of the gradients (0: no limit)"})
    optimizer: PolicyOptimizer | None = field(default_factory=PolicyOptimizer)
    scheduler: SchedulerConfig | None = field(default_factory=_constant)
    generation: GenerationBlock = field(default_factory=GenerationBlock)
    dtensor_cfg: dict[str, Any] | None = field(default=None, metadata={"help": "Another engine's"})
    megatron_cfg: dict[str, Any] | None = field(default=None, metadata={"help": "Another engine's"})
    sequence_packing: dict[str, Any] | None = field(default=None, metadata={"help": "Another engine's"})
    dynamic_batching: dict[str, Any] | None = field(default=None, metadata={"help": "Another engine's"})
    make_sequence_length_divisible_by: int | None = field(
        default=None, metadata={"help": "Another engine's; here no length has to be"}
    )
    logprob_chunk_size: int | None = field(default=None, metadata={"help": "Another engine's: see train.loss_chunk"})
    offload_optimizer_for_logprob: bool = field(default=False, metadata={"help": "Not in this engine"})


@dataclass
class DataBlock:
    """The `data` block."""

    train_jsonl_fpath: str | None = field(default=None, metadata={"help": "Rows to train on"})
    validation_jsonl_fpath: str | None = field(default=None, metadata={"help": "Rows to validate with (null: none)"})
    shuffle: bool = field(default=True, metadata={"help": "Another order of the rows in each epoch"})
    num_workers: int = field(default=1, metadata={"help": "Rows are read before the first step, by one process"})


@dataclass
class EnvBlock:
    """The `env` block: verifiers, and the share of each environment."""

    weights: dict[str, float] = free_block(
        "Share of the prompts by agent_ref.name (empty: as the rows have it; unnamed ones: none)"
    )
    verifiers: dict[str, Any] = free_block(
        "Verifiers of one's own, by agent_ref.name: {_target_: module.function, and its arguments}"
    )
    should_use_nemo_gym: bool = field(default=False, metadata={"help": "Another engine's"})
    nemo_gym: dict[str, Any] | None = field(default=None, metadata={"help": "Another engine's"})


@dataclass
class CheckpointingBlock:
    """The `checkpointing` block."""

    enabled: bool = field(default=True, metadata={"help": "Whether checkpoints are saved"})
    checkpoint_dir: str | None = field(
        default=None,
        metadata={"help": "Folder for checkpoints and the trained model; a complete checkpoint there is resumed from"},
    )
    metric_name: str | None = field(
        default="val:total_reward/mean", metadata={"help": f"What makes one better: {', '.join(METRICS)}; null: newer"}
    )
    higher_is_better: bool = field(default=True, metadata={"help": "Whether more of it is better"})
    keep_top_k: int = field(default=3, metadata={"help": "How many of the best are kept, beside the newest"})
    save_period: int | None = field(default=10, metadata={"help": "Steps between checkpoints"})
    checkpoint_must_save_by: str | None = field(
        default=None, metadata={"help": "Time after which a checkpoint is saved and the run stops: DD:HH:MM:SS"}
    )
    may_differ: list[str] = field(
        default_factory=list, metadata={"help": "Settings in which a checkpoint may differ and is resumed all the same"}
    )


@dataclass
class RLLoggerBlock:
    """The `logger` block."""

    log_dir: str | None = field(default=None, metadata={"help": "Folder of metrics.jsonl (null: the job's)"})
    log_interval: int = field(default=1, metadata={"help": "Steps between two rows of metrics"})
    num_val_samples_to_print: int = field(default=0, metadata={"help": "Validation answers that are shown"})
    wandb_enabled: bool = field(default=False, metadata={"help": "Log to W&B"})
    wandb: dict[str, Any] = free_block("project, name, entity")
    tensorboard_enabled: bool = field(default=False, metadata={"help": "Not in this engine"})
    mlflow_enabled: bool = field(default=False, metadata={"help": "Not in this engine"})
    swanlab_enabled: bool = field(default=False, metadata={"help": "Not in this engine"})
    monitor_gpus: bool = field(default=False, metadata={"help": "Not in this engine"})
    tensorboard: dict[str, Any] = free_block("Of tensorboard_enabled")
    mlflow: dict[str, Any] = free_block("Of mlflow_enabled")
    swanlab: dict[str, Any] = free_block("Of swanlab_enabled")
    gpu_monitoring: dict[str, Any] = free_block("Of monitor_gpus")


@dataclass
class GRPOConfig:
    """A run of reinforcement learning."""

    grpo: GRPOBlock = field(default_factory=GRPOBlock)
    loss_fn: LossBlock = field(default_factory=LossBlock)
    policy: PolicyBlock = field(default_factory=PolicyBlock)
    data: DataBlock = field(default_factory=DataBlock)
    env: EnvBlock = field(default_factory=EnvBlock)
    checkpointing: CheckpointingBlock = field(default_factory=CheckpointingBlock)
    logger: RLLoggerBlock = field(default_factory=RLLoggerBlock)
    cluster: dict[str, Any] | None = field(default=None, metadata={"help": "Another engine's: a profile says it here"})
    train: ParallelBlock = field(default_factory=ParallelBlock)
    engine: Literal["hf", "nemo_rl"] = engine_field("hf", nemo_rl.NEMO_RL)
    initial_checkpoint: str | None = field(default=None, metadata={"help": "Refused: see policy.model_name"})
    convert_initial_checkpoint_to_hf: bool = field(default=False, metadata={"help": "Of initial_checkpoint"})
    converted_checkpoint_dir: str | None = field(default=None, metadata={"help": "Of initial_checkpoint"})
    nemo_rl: dict[str, Any] = free_block(
        "More settings of NeMo-RL, by the blocks of its config, in the last place; +name adds one that its "
        "own example leaves out"
    )

    @property
    def on_nemo_rl(self) -> bool:
        """Whether NeMo-RL trains, and not the hf engine."""
        return self.engine == nemo_rl.NEMO_RL

    @property
    def steps(self) -> int:
        """The maximum number of optimizer steps."""
        given = self.grpo.num_iterations
        return self.grpo.max_num_steps if given is None else given

    @property
    def prompts(self) -> int:
        """The number of prompts per step."""
        return self.grpo.num_prompts_per_step if self.grpo.batch_size is None else self.grpo.batch_size

    @property
    def answers(self) -> int:
        """The number of answers per step."""
        return self.prompts * self.grpo.num_generations_per_prompt

    @property
    def optimizer(self) -> PolicyOptimizer:
        """The block `policy.optimizer`; null (NeMo-RL's way to say that Megatron's is used) stands for its defaults."""
        return self.policy.optimizer or PolicyOptimizer()

    @property
    def peak_lr(self) -> float:
        """The peak learning rate: grpo.learning_rate, else policy.optimizer.kwargs.lr."""
        given = self.grpo.learning_rate
        return float(self.optimizer.value("lr")) if given is None else given

    @property
    def scheduler(self) -> SchedulerConfig:
        """The block `policy.scheduler`; null stands for a constant learning rate."""
        return self.policy.scheduler or _constant()

    @property
    def tokenizer(self) -> str | None:
        """The tokenizer's folder; None for the model's own."""
        given = self.policy.tokenizer
        name = given.get("name") if isinstance(given, Mapping) else given
        return None if name is None else str(name)

    @property
    def template_settings(self) -> dict[str, Any]:
        """The chat template's variables: policy.tokenizer.chat_template_kwargs, such as enable_thinking."""
        given = self.policy.tokenizer
        return dict((given.get("chat_template_kwargs") if isinstance(given, Mapping) else None) or {})

    @property
    def precision(self) -> str:
        """policy.precision by the other stages' names: auto, bf16 or fp32."""
        return PRECISIONS[self.policy.precision]

    @property
    def checkpoint(self) -> CheckpointConfig:
        """The same settings as the other stages' CheckpointConfig."""
        block = self.checkpointing
        return CheckpointConfig(
            save=block.checkpoint_dir if block.enabled else None,
            save_interval=block.save_period or None,
            pretrained_checkpoint=self.policy.model_name,
            may_differ=list(map(recorded_name, block.may_differ)),
        )

    @property
    def seconds(self) -> float | None:
        """The time by which a checkpoint must have been saved (checkpoint_must_save_by), in seconds from the start;
        None without one."""
        text = self.checkpointing.checkpoint_must_save_by
        if text is None:
            return None
        parts = str(text).split(":")
        if len(parts) > 4 or not all(part.isdecimal() for part in parts):
            raise UserError(
                f"checkpointing.checkpoint_must_save_by is {text!r}; it must be DD:HH:MM:SS, such as 00:03:40:00."
            )
        *longer, seconds = [0, 0, 0, *map(int, parts)][-4:]
        days, hours, minutes = longer
        return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)

    @property
    def metrics(self) -> LoggerConfig:
        """Where and how often rows of metrics are written, as the other stages' LoggerConfig."""
        folder = self.logger.log_dir
        return LoggerConfig(
            log_interval=self.logger.log_interval, metrics_file=str(Path(folder) / "metrics.jsonl") if folder else None
        )

    def check(self) -> None:
        """Raises UserError, naming the field, for the first setting that is invalid or unsupported."""
        found = nemo_rl.problems(self, here=True, processes=None) if self.on_nemo_rl else self.problems()
        for problem in (each for each in found if not isinstance(each, Note)):
            raise UserError(problem)

    def check_split(self, processes: int) -> None:
        """Raises UserError if `processes` are not those of the layout, or can't share the prompts of a step evenly."""
        self.train.layout.check_ranks(processes)
        if self.prompts % processes:
            raise UserError(
                f"grpo.num_prompts_per_step {self.prompts} is no multiple of {processes} processes.",
                hint=f"For instance {-(-self.prompts // processes) * processes}.",
            )

    def problems(self) -> list[str]:
        """A sentence for each setting that is another engine's, or invalid."""
        only = (
            ["nemo_rl is set, which is another engine's. Set engine=nemo_rl, or leave it out."] if self.nemo_rl else []
        )
        return [*only, *other_engines(self), *bad_values(self)]


def settings_identity(config: GRPOConfig, precision: str) -> dict[str, Any]:
    """The settings that, together with data and given weights, determine the weights at a step: by the names of the
    config, aliases under the name that they stand for."""
    free = {
        "max_num_epochs",
        "val_period",
        "val_at_start",
        "max_val_samples",
        "val_batch_size",
        "num_val_generations_per_prompt",
        # Of other engines: here they have no effect, or are refused.
        *("use_best_at_k", "best_at_k_k", "best_at_k_m", "dynamic_sampling_oversample_ratio", "use_combined_training"),
        *(f"combined_training_{each}" for each in ("weight_mode", "best_at_k_weight", "pass_at_1_weight")),
    }
    grpo = {
        name: value
        for name, value in asdict(
            replace(config.grpo, num_iterations=None, batch_size=None, learning_rate=None)
        ).items()
        if name not in free and value is not None
    }
    policy, generation = config.policy, config.policy.generation
    return {
        "grpo": {**grpo, "max_num_steps": config.steps, "num_prompts_per_step": config.prompts},
        "loss_fn": asdict(config.loss_fn),
        "policy": {
            "optimizer": {**PolicyOptimizer().kwargs, **config.optimizer.kwargs, "lr": config.peak_lr},
            "scheduler": asdict(config.scheduler),
            "precision": precision,
            "max_grad_norm": policy.max_grad_norm,
            "generation_batch_size": policy.generation_batch_size,
            "train_micro_batch_size": policy.train_micro_batch_size,
            "max_total_sequence_length": policy.max_total_sequence_length,
            "generation": {
                "max_new_tokens": generation.max_new_tokens,
                "temperature": generation.temperature,
                "stop_token_ids": generation.stop_token_ids,
            },
            "chat_template_kwargs": config.template_settings,
        },
        "data": {"shuffle": config.data.shuffle},
        "env": {"weights": dict(config.env.weights), "verifiers": dict(config.env.verifiers)},
    }


# The number of rows checked before a launch for the verifiers that they name.
_LOOKED_AT = 20000


def preflight(
    config: GRPOConfig,
    *,
    connect: bool,
    here: bool = True,
    processes: int | None = None,
    gpu: GpuFacts | None = None,
    job: JobFacts | None = None,
) -> list[str]:
    """The problems that would prevent this run, one sentence each, and a note on what it takes. Opens no connection:
    `connect` is ignored. With `here=False` the run is for another machine, and only its settings are checked.
    `processes`: how many the job has, if that is known; `gpu`: the kind that it gets; `job`: what else is known of
    it."""
    del connect
    if config.on_nemo_rl:
        return list(nemo_rl.problems(config, here=here, processes=processes))
    if problems := config.problems():
        return problems
    processes = processes or max(1, config.train.layout.ranks)
    try:
        config.check_split(processes)
    except UserError as error:
        return [" ".join(str(error).split("\n"))]
    named: dict[str, None] = {}
    for path in (config.data.train_jsonl_fpath, config.data.validation_jsonl_fpath) if here else ():
        if path is not None and not unknown(path):  # a rows file that does not exist yet names no verifier
            named |= dict.fromkeys(agents_in(Path(path), _LOOKED_AT))
    return [*missing_verifiers(named, config.env.verifiers), *_costs(config, processes, here, gpu, job)]


def _costs(config: GRPOConfig, processes: int, here: bool, gpu: GpuFacts | None, job: JobFacts | None) -> list[str]:
    """What training the given model takes, of memory and of disk, and whether that is there; nothing where its folder
    can't be read here."""
    policy, train, saving = config.policy, config.train, config.checkpointing
    model = given_block(policy.model_name)
    if not model:
        return []
    try:
        step = Step(
            model,
            policy.max_total_sequence_length,
            train.layout,
            processes,
            policy.train_micro_batch_size,
            micro_batches=2,  # the gradients' memory is there all the time
            activation_checkpointing=train.activation_checkpointing,
            loss_chunk=train.tokens_per_chunk,
            reference=bool(config.loss_fn.reference_policy_kl_penalty),
        )
        notes = memory_notes(f"Training {policy.model_name}", step, config.precision, here=here, gpu=gpu)
        folder = config.checkpoint.save
        if folder and not unknown(folder):
            by_value = saving.metric_name is not None and config.data.validation_jsonl_fpath is not None
            kept = saving.keep_top_k + by_value  # the newest beside the best
            notes += disk_notes(model, folder, kept, job, key="checkpointing.checkpoint_dir")
        return [*notes, *steps_notes(model, config.steps, folder, job)]
    except (ValueError, TypeError, AttributeError, UserError):  # the run reports the error
        return []
