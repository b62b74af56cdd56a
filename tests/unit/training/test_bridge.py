"""The engine megatron_bridge without Bridge: what a config becomes, what is refused, and how a run's end is read.

scripts/check-engines compares the same with the real packages' classes, which need another Python.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from nemotron_kit.config.convert import to_dataclass
from nemotron_kit.errors import Note, UserError
from nemotron_kit.training import bridge
from nemotron_kit.training.bridge_config import container_values, model_values
from nemotron_kit.training.cost import preflight
from nemotron_kit.training.pretrain_config import PretrainConfig
from nemotron_kit.training.processes import Preempted
from nemotron_kit.training.sft_config import SFTConfig

ROOT = Path(__file__).parents[3]
TARGET = "megatron.bridge.recipes.here.small_config"


def config(folder: Path, **changes: Any) -> PretrainConfig:
    values: dict[str, Any] = {
        "engine": "megatron_bridge",
        "recipe": {"_target_": TARGET, "per_split_data_args_path": str(folder / "blend.json")},
        "model": {"hybrid_override_pattern": "MEM*E", "num_key_value_heads": 2, "conv_kernel": 4},
        "train": {"train_iters": 20, "global_batch_size": 4},
        "checkpoint": {"save": str(folder / "saved")},
    }
    for name, value in changes.items():
        old = values.get(name)
        values[name] = {**old, **value} if isinstance(old, dict) and isinstance(value, dict) else value
    return to_dataclass(values, PretrainConfig)


@dataclass
class Train:
    train_iters: int = 1
    global_batch_size: int = 1
    micro_batch_size: int = 1
    manual_gc: bool = True
    exit_signal_handler: bool = False
    exit_duration_in_mins: int | None = None


@dataclass
class Validation:
    eval_interval: int = 500
    eval_iters: int = 32


@dataclass
class Rng:
    seed: int = 1


@dataclass
class Optimizer:
    lr: float = 1.0
    min_lr: float = 0.0
    weight_decay: float = 0.01
    adam_beta1: float = 0.5
    adam_beta2: float = 0.5
    adam_eps: float = 1.0
    clip_grad: float = 5.0
    use_precision_aware_optimizer: bool = False


@dataclass
class Scheduler:
    lr_warmup_iters: int = 5
    lr_decay_style: str = "cosine"
    lr_decay_iters: int | None = None
    lr_wsd_decay_iters: int | None = None
    lr_wsd_decay_style: str = "exponential"
    start_weight_decay: float = 0.033
    end_weight_decay: float = 0.033


@dataclass
class Checkpoint:
    save: str | None = "elsewhere"
    load: str | None = "elsewhere"
    save_interval: int = 1
    most_recent_k: int = -1
    async_save: bool = False
    pretrained_checkpoint: str | None = None
    finetune: bool = False


@dataclass
class Logger:
    log_interval: int = 1
    wandb_project: str | None = None
    wandb_entity: str | None = None


@dataclass
class Model:
    hybrid_override_pattern: str = ""
    num_layers: int = 0
    num_query_groups: int = 1
    seq_length: int = 1
    moe_router_bias_update_rate: float = 0.5
    activation_func: Any = len


@dataclass
class Dataset:
    random_seed: int = 0
    seq_length: int = 1
    blend: Any = ("mock",)
    blend_per_split: Any = None
    split: str | None = "9999,8,2"


@dataclass
class Tokenizer:
    tokenizer_type: str = "HuggingFaceTokenizer"
    tokenizer_model: str = "hub/name"


@dataclass
class Overlap:
    tp_comm_overlap: bool = True


@dataclass
class Container:
    """As megatron.bridge.training.config.ConfigContainer, of which it has the fields that are set here."""

    train: Train = field(default_factory=Train)
    validation: Validation = field(default_factory=Validation)
    rng: Rng = field(default_factory=Rng)
    optimizer: Optimizer = field(default_factory=Optimizer)
    scheduler: Scheduler = field(default_factory=Scheduler)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    logger: Logger = field(default_factory=Logger)
    model: Model = field(default_factory=Model)
    dataset: Dataset = field(default_factory=Dataset)
    tokenizer: Tokenizer = field(default_factory=Tokenizer)
    ddp: Overlap = field(default_factory=Overlap)
    comm_overlap: Overlap | None = None
    mixed_precision: str | None = None


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ModuleType]:
    """A stand-in for megatron.bridge: its recipes' module, and a `pretrain` that notes what it was called with."""
    (tmp_path / "blend.json").write_text(json.dumps({"train": ["1", "a", "3", "b"]}))
    (tmp_path / "tokenizer").mkdir()
    recipes = ModuleType("megatron.bridge.recipes.here")

    def small_config() -> Container:
        return Container()

    def old_config(per_split_data_args_path: str | None = None, peft: str = "lora") -> Container:
        return Container(dataset=Dataset(blend=(per_split_data_args_path, peft)))

    recipes.small_config, recipes.old_config = small_config, old_config  # type: ignore[attr-defined]
    training, step = ModuleType("megatron.bridge.training.pretrain"), ModuleType("megatron.bridge.training.gpt_step")
    step.forward_step = object()  # type: ignore[attr-defined]
    for module in (recipes, training, step):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    before = signal.getsignal(signal.SIGUSR1)
    monkeypatch.setenv("NEMO_RUN_DIR", str(tmp_path))
    yield training
    signal.signal(signal.SIGUSR1, before)


def test_what_a_config_says_is_what_bridge_gets(package: ModuleType, tmp_path: Path) -> None:
    given = config(
        tmp_path, optimizer={"lr": 0.5, "use_precision_aware_optimizer": True}, ddp={"tp_comm_overlap": False},
        bridge={"train": {"manual_gc": False}, "comm_overlap": {"tp_comm_overlap": False}},
        mixed_precision="bf16_mixed", dataset={"seed": 7},
        train={"weight_decay": 0.2, "moe_router_bias_update_rate": 0.0},
    )  # fmt: skip
    given.check()
    cfg = bridge.build(given, "not.asked.for")
    assert (cfg.train.train_iters, cfg.train.manual_gc, cfg.train.exit_signal_handler) == (20, False, True)
    assert (cfg.optimizer.lr, cfg.optimizer.use_precision_aware_optimizer, cfg.rng.seed) == (0.5, True, 1234)
    # Bridge applies the scheduler's weight decay, and its recipes' is 0.033.
    assert cfg.scheduler.start_weight_decay == cfg.scheduler.end_weight_decay == 0.2
    assert (cfg.scheduler.lr_decay_style, cfg.scheduler.lr_wsd_decay_iters) == ("WSD", 4)
    assert (cfg.model.hybrid_override_pattern, cfg.model.num_layers, cfg.model.num_query_groups) == ("MEM*E", 5, 2)
    weights = [([str(tmp_path / "a"), str(tmp_path / "b")], [1.0, 3.0]), None, None]
    assert (cfg.dataset.blend, cfg.dataset.blend_per_split, cfg.dataset.split) == (None, weights, None)
    assert cfg.validation.eval_iters == 0  # there is no valid split
    assert cfg.model.moe_router_bias_update_rate == 0.0  # and not its recipe's
    assert (cfg.tokenizer.tokenizer_model, cfg.dataset.random_seed) == (str(tmp_path / "tokenizer"), 7)
    assert (cfg.checkpoint.save, cfg.checkpoint.load) == (str(tmp_path / "saved"), None)
    assert (cfg.ddp.tp_comm_overlap, cfg.comm_overlap.tp_comm_overlap) == (False, False)
    assert cfg.mixed_precision == "bf16_mixed"


def test_layers_are_counted_as_megatron_counts_its_pattern() -> None:
    for pattern, layers in (("MEM*E", 5), ("M-M-|M-M*-", 9), ("M-M*/MM/MM", 4)):
        assert model_values({"hybrid_override_pattern": pattern})["num_layers"] == layers


def test_a_recipe_that_takes_the_blend_gets_it(package: ModuleType, tmp_path: Path) -> None:
    recipe = {"_target_": TARGET.replace("small", "old"), "peft": "dora"}
    cfg = bridge.build(config(tmp_path, recipe=recipe), "")
    assert cfg.dataset.blend == (str(tmp_path / "blend.json"), "dora")
    assert cfg.dataset.split == "9999,8,2"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"bridge": {"train": {"train_itres": 1}}}, r"bridge\.train\.train_itres: .*Train has no .*; did you mean"),
        ({"bridge": {"dpp": {}}}, r"bridge\.dpp: .*Container has no such field; did you mean ddp"),
        ({"ddp": {"overlap": True}}, r"ddp\.overlap: .*no such field"),
        ({"optimizer": {"lrr": 1}}, r"optimizer\.lrr: .*Optimizer has no such field; did you mean lr"),
        ({"bridge": {"train": {"manual_gc": 1}}}, r"bridge\.train\.manual_gc is 1; it must be true or false"),
        ({"model": {"activation_func": "gelu"}}, r"model\.activation_func is a function"),
        ({"recipe": {"hf_path": "x"}}, r"recipe\.hf_path: .* it takes no arguments"),
        ({"recipe": {"_target_": f"{TARGET}s"}}, r"has no function 'small_configs'; did you mean small_config"),
        ({"recipe": {"_target_": "megatron.bridge.recipes.gone.x"}}, r"has no module 'megatron"),
    ],
)  # fmt: skip
def test_what_bridge_does_not_have_is_refused_by_name(
    package: ModuleType, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        bridge.build(config(tmp_path, **changes), "")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"recipe": {"_target_": "os.system"}}, r"recipe\._target_ is 'os\.system'; .*recipes\.\* alone"),
        ({"recipe": {"_target_": "megatron.bridge.recipes.x;y"}}, r"recipe\._target_ is"),
        ({"train": {"compile": True}}, r"train\.compile: Megatron-Bridge has no such setting"),
        ({"train": {"parallelism": {"fsdp_size": 8}}}, r"train\.parallelism: .*tensor_model_parallel_size"),
        ({"train": {"hang_minutes": 5}}, r"train\.hang_minutes: .*bridge\.dist\.distributed_timeout_minutes"),
        ({"logger": {"metrics_file": "m.jsonl"}}, r"logger\.metrics_file: .*leave it out"),
        ({"model": {"conv_kernel": 8}}, r"model\.conv_kernel is 8; Megatron has 4 and no other"),
        ({"checkpoint": {"save": None}}, r"checkpoint\.save is not set"),
        ({"bridge": {"train": 3}}, r"bridge\.train is 3; it must be a block"),
        ({"engine": "hf", "ddp": {"a": 1}}, r"ddp is set, which is Megatron-Bridge's; engine is 'hf'"),
        ({"engine": "hf"}, r"recipe\._target_ is 'megatron.*engine"),
        ({"engine": "hf", "optimizer": {"lrr": 1}, "recipe": {"_target_": None}}, r"optimizer\.lrr: this engine"),
    ],
)  # fmt: skip
def test_what_the_launch_refuses(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        config(tmp_path, **changes).check()


def test_the_end_of_a_run(package: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given, saved, calls = config(tmp_path), tmp_path / "saved", []

    def run(config: Container, forward_step_func: Any) -> None:
        """Bridge exits with 0 where it was told to stop."""
        calls.append(config)
        saved.mkdir(exist_ok=True)
        (saved / "latest_checkpointed_iteration.txt").write_text(str(10 * len(calls)))
        if len(calls) == 1:
            raise SystemExit(0)

    package.pretrain = run  # type: ignore[attr-defined]
    with pytest.raises(Preempted, match="stopped after step 10 of 20") as stopped:
        bridge.train(given, "")
    assert stopped.value.exit_code == 75
    outcome = bridge.train(given, "")
    assert (outcome.path, outcome.iteration) == (saved / "iter_0000020", 20)
    assert outcome.tokens == 20 * 4 * 4096
    assert [call.checkpoint.load for call in calls] == [None, str(saved)]
    ran = json.loads((tmp_path / "megatron_bridge.json").read_text())
    assert ran["train"]["train_iters"] == 20

    def fail(config: Container, forward_step_func: Any) -> None:
        raise SystemExit(3)

    package.pretrain = fail  # type: ignore[attr-defined]
    with pytest.raises(SystemExit, match="3"):
        bridge.train(given, "")
    (saved / "latest_checkpointed_iteration.txt").unlink()
    with pytest.raises(UserError, match=r"left no checkpoint there"):
        bridge.outcome(saved, given)


def test_it_stops_before_the_time_limit() -> None:
    assert bridge.stopping(0, {}) == {"exit_signal_handler": True}
    limits = {"NEMOTRON_TIME_LIMIT": "3600", "NEMOTRON_SIGNAL_LEAD": "300"}
    assert bridge.stopping(0, limits)["exit_duration_in_mins"] == 55
    later = {**limits, "SLURM_JOB_END_TIME": "2400"}  # ten minutes of it are over
    assert bridge.stopping(600, later)["exit_duration_in_mins"] == 25
    assert bridge.stopping(0, {"NEMOTRON_TIME_LIMIT": "60"})["exit_duration_in_mins"] == 1


def test_usr1_is_what_term_is_once_bridge_has_a_handler(package: ModuleType) -> None:
    told: list[int] = []
    bridge._usr1_is_term()
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        signal.raise_signal(signal.SIGUSR1)  # Bridge is not there yet: nothing ends
        signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
        signal.raise_signal(signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert told == [signal.SIGTERM]


def test_default_yaml_is_taken_and_the_plan_says_what_was_never_run(tmp_path: Path) -> None:
    text = (ROOT / "recipes/nano3/stage0_pretrain/config/default.yaml").read_text()
    values = {k: v for k, v in yaml.safe_load(text).items() if k != "run"}
    given = to_dataclass({**values, "engine": "megatron_bridge"}, PretrainConfig)
    model = model_values(given.model)
    assert (model["num_layers"], model["ffn_hidden_size"], model["kv_channels"]) == (52, 1856, 128)
    assert "conv_kernel" not in model and "max_position_embeddings" not in model
    assert container_values(given)["scheduler"]["lr_wsd_decay_iters"] == 198682
    there = preflight(given, connect=False, here=False, processes=256)
    assert all(isinstance(each, Note) for each in there)
    assert "was ever run by us" in there[0] and "seen when it starts" in there[1]
    here = [each for each in preflight(given, connect=False, here=True) if not isinstance(each, Note)]
    assert [each.partition(":")[0] for each in here] == ["engine=megatron_bridge"]


def test_packed_rows_of_an_older_bridge_are_refused(package: ModuleType, tmp_path: Path) -> None:
    dataset = {"nano3_packed_sft_dir": str(tmp_path)}
    block = {"save": str(tmp_path / "s"), "pretrained_checkpoint": str(tmp_path)}
    given = to_dataclass({"engine": "megatron_bridge", "dataset": dataset, "checkpoint": block}, SFTConfig)
    given.check()
    with pytest.raises(UserError, match=r"Dataset takes no folder of packed rows"):
        bridge.build(given, TARGET)


@dataclass
class PackedSequenceSpecs:
    packed_sequence_size: int = -1
    packed_train_data_path: str | None = None
    packed_val_data_path: str | None = None
    packed_metadata_path: str | None = None
    pad_cu_seqlens: bool = False


@dataclass
class PackedDataset:
    dataset_root: str | None = None
    offline_packing_specs: Any = None
    seq_length: int = 1
    enable_offline_packing: bool = False
    do_validation: bool = True
    do_test: bool = True
    random_seed: int = 0


def test_settings_of_packed_rows_reach_bridge_or_are_refused(
    package: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packing = ModuleType("megatron.bridge.data.packing")
    packing.PackedSequenceSpecs = PackedSequenceSpecs  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, packing.__name__, packing)

    def packed_config() -> Container:
        return Container(dataset=PackedDataset())  # type: ignore[arg-type]

    sys.modules["megatron.bridge.recipes.here"].packed_config = packed_config  # type: ignore[attr-defined]
    (tmp_path / "train").mkdir()

    def specs(**more: Any) -> Any:
        rows = {"packed_train_data_path": str(tmp_path / "train"), **more}
        block = {"save": str(tmp_path / "s"), "pretrained_checkpoint": str(tmp_path)}
        values = {"dataset": {"packed_sequence_specs": rows}, "checkpoint": block, "engine": "megatron_bridge"}
        return bridge.build(to_dataclass(values, SFTConfig), TARGET.replace("small", "packed")).dataset

    found = specs(pad_cu_seqlens=True, packed_metadata_path="/m.json")
    assert (found.dataset_root, found.do_validation) == (str(tmp_path), False)
    rows = found.offline_packing_specs
    assert (rows.packed_sequence_size, rows.pad_cu_seqlens, rows.packed_metadata_path) == (4096, True, "/m.json")
    with pytest.raises(UserError, match=r"dataset\.packed_sequence_specs\.pad_seq_to_mult: .* no such field"):
        specs(pad_seq_to_mult=2)
