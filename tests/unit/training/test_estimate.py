from __future__ import annotations

import inspect
import json
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import nemotron.recipes.nano3.stage0_pretrain.train as recipe
import pytest
import torch
import yaml
from transformers import NemotronHForCausalLM

from nemotron_kit.errors import Note, UserError
from nemotron_kit.training import PretrainConfig, TrainConfig, model_size
from nemotron_kit.training.config_blocks import CheckpointConfig, ParallelBlock
from nemotron_kit.training.cost import Workload, disk_notes, step_work
from nemotron_kit.training.cost import preflight as sft_preflight
from nemotron_kit.training.grpo_config import CheckpointingBlock, DataBlock, GRPOConfig, PolicyBlock
from nemotron_kit.training.grpo_config import preflight as rl_preflight
from nemotron_kit.training.memory import (
    GIB,
    Step,
    available_bytes,
    memory_notes,
    memory_of,
    network_bytes,
    smallest_layout,
    usable,
)
from nemotron_kit.training.model import MODEL_FIELDS, UNUSED, model_config
from nemotron_kit.training.model_size import active_parameters, count_parameters
from nemotron_kit.training.parallel import Layout
from nemotron_kit.training.sft_config import SFTConfig, SFTTrainConfig

CONFIGS = Path(recipe.__file__).parent / "config"


def model_block(name: str) -> dict[str, Any]:
    block = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())["model"]
    return {"vocab_size": 4096, **block}  # tiny takes its vocabulary from the data


def meta_count(block: dict[str, Any]) -> int:
    with torch.device("meta"):
        model = NemotronHForCausalLM(model_config(block))
    return sum(parameter.numel() for parameter in model.parameters())


def test_default_is_the_published_model() -> None:
    block = model_block("default")
    count = meta_count(block)
    assert round(count / 1e9, 2) == 31.58
    assert count_parameters(block) == pytest.approx(count, rel=0.01)
    kinds = model_config(block).layers_block_type
    assert [kinds.count(kind) for kind in ("linear_attention", "full_attention", "moe")] == [23, 6, 23]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"hybrid_override_pattern": "M-*E", "intermediate_size": 96, "mlp_bias": True, "use_bias": True},
        {"moe_latent_size": 24, "use_conv_bias": False, "n_groups": 2, "num_key_value_heads": 2},
        {"vocab_size": 100, "hidden_size": 32},
        {"num_local_experts": 40},  # transformers' other name of n_routed_experts
    ],
)
def test_the_formula_is_the_model(changes: dict[str, Any]) -> None:
    block = {**model_block("tiny"), **changes}
    if "num_local_experts" in changes:
        del block["n_routed_experts"]
    assert count_parameters(block) == pytest.approx(meta_count(block), rel=0.01)


def test_a_block_that_says_nothing_is_transformers_default() -> None:
    assert count_parameters({}) == pytest.approx(meta_count({"vocab_size": 131072}), rel=0.01)


def test_what_can_not_be_held_is_said_at_once() -> None:
    config = PretrainConfig(
        recipe={"per_split_data_args_path": "/nowhere/blend.json"},
        model=model_block("default"),
        dataset={"seq_length": 8192},
        train=TrainConfig(global_batch_size=3072),
    )
    began = time.monotonic()
    (problem,) = recipe.preflight(config, connect=False)
    assert time.monotonic() - began < 5
    assert "31.6 B parameters" in problem and "try -c tiny" in problem


def test_tiny_fits_and_wrong_settings_are_problems(tiny_data: Path) -> None:
    config = PretrainConfig(recipe={"per_split_data_args_path": str(tiny_data)}, model=model_block("tiny"))
    assert recipe.preflight(config, connect=False) == []
    config.train.lr = -1.0
    config.recipe = {}
    (problem,) = recipe.preflight(config, connect=False)
    assert "train.lr is -1.0" in problem


def test_a_size_that_is_no_number_is_named() -> None:
    with pytest.raises(UserError, match=r"model\.hidden_size is 'large'; it must be a whole number"):
        count_parameters({"hidden_size": "large"})
    (problem,) = recipe.preflight(
        PretrainConfig(recipe={"per_split_data_args_path": "/x"}, model={"hidden_size": "large"}), connect=False
    )
    assert "model.hidden_size is 'large'" in problem


NANO3 = {"per_split_data_args_path": "${art:data,path}/blend.json"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, None),
        (
            {"model": {"hiden_size": 96}},
            "model.hiden_size: NemotronHConfig has no such field; did you mean hidden_size",
        ),
        ({"model": {"norm_topk_prob": 7}}, "model.norm_topk_prob is 7; it must be true or false."),
        ({"model": {"conv_kernel": True}}, "model.conv_kernel is True; it must be a whole number."),
        ({"model": {"layer_norm_epsilon": "small"}}, "model.layer_norm_epsilon is 'small'; it must be a number."),
        ({"model": {"num_hidden_layers": 3}}, "model.num_hidden_layers is 3, but the pattern has 4 layers"),
        ({"model": {"hidden_size": "${art:data,size}"}, "dataset": {"seq_length": "${art:data,n}"}}, None),
        (
            {"recipe": {**NANO3, "_target_": "megatron.bridge.pretrain"}},
            "recipe._target_ is 'megatron.bridge.pretrain'",
        ),
        ({"recipe": {}}, "recipe.per_split_data_args_path is not set"),
    ],
)
def test_a_run_elsewhere_is_judged_by_its_settings_alone(changes: dict[str, Any], said: str | None) -> None:
    config = PretrainConfig(**{"recipe": NANO3, "model": model_block("default"), **changes})
    found = [each for each in recipe.preflight(config, connect=False, here=False) if not isinstance(each, Note)]
    assert [said in problem for problem in found] == ([True] if said else [])


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"layers_block_type": ["mamba", "odd"]}, r"model\.layers_block_type: there is no layer 'odd'; .*moe"),
        ({"layers_block_type": "mamba"}, r"layers_block_type is 'mamba'; it must be a list"),
        ({"chunk_size": 0}, r"model\.chunk_size is 0; it must be a whole number, 1 or more"),
        ({"num_key_value_heads": 3}, r"model\.num_key_value_heads is 3; it must divide model\.num_attention_heads, 2"),
        ({"n_groups": 3}, r"model\.n_groups is 3; it must divide model\.mamba_num_heads"),
        ({"num_experts_per_tok": 99}, r"model\.num_experts_per_tok is 99; it must be at most model\.n_routed_experts"),
        ({"layers_block_type": ["mamba", "attention", "moe", "mlp"]}, None),  # as published configs have it
    ],
)
def test_sizes_that_no_model_can_have_are_told_before_the_job(
    changes: dict[str, Any], error: str | None, tiny_data: Path
) -> None:
    block = {**model_block("tiny"), **changes}
    if "layers_block_type" in changes:
        del block["hybrid_override_pattern"]
    config = PretrainConfig(recipe={"per_split_data_args_path": str(tiny_data / "blend.json")}, model=block)
    found = [problem for problem in recipe.preflight(config, connect=False) if not isinstance(problem, Note)]
    if error is None:
        assert found == [] and count_parameters(block) == meta_count(block)
        return
    assert len(found) == 1 and re.search(error, found[0])
    with pytest.raises(UserError):
        count_parameters(block)
        model_config(block)


def test_without_transformers_a_strange_field_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_size, "find_spec", lambda _: None)
    config = PretrainConfig(recipe=NANO3, model={"hiden_size": 96})
    note, *_ = recipe.preflight(config, connect=False, here=False)
    assert isinstance(note, Note) and "model.hiden_size" in note and "Did you mean hidden_size" in note


def test_the_fields_are_transformers_own() -> None:
    from dataclasses import fields as fields_of

    from transformers import NemotronHConfig

    assert {field.name for field in fields_of(NemotronHConfig)} <= MODEL_FIELDS.keys()
    # What its model doesn't read can't be set; once it reads one of them, that one can.
    source = inspect.getsource(inspect.getmodule(NemotronHForCausalLM))
    assert not [name for name in UNUSED if re.search(rf"config\.{name}\b", source)]
    assert {name: getattr(NemotronHConfig(), name) for name in UNUSED} == UNUSED
    for name, value in {"tie_word_embeddings": True, "n_shared_experts": 2}.items():
        for check in (model_size.check_block, model_config):
            with pytest.raises(UserError, match=rf"model\.{name} is {value}: .* and no other"):
                check({name: value})
    assert model_size.check_block({"sliding_window": None, "hidden_dropout": 0}) == []


def test_this_machines_memory_is_known() -> None:
    have, whose = available_bytes()
    assert 2**28 < have < 2**50 and whose.startswith("this machine")


def published(ranks: int, **changes: Any) -> Step:
    layout = Layout(fsdp_size=ranks, sharded=True)
    return Step(model_block("default"), 8192, layout, ranks, **{"activation_checkpointing": True, **changes})


@pytest.mark.parametrize(
    ("ranks", "whole", "chunked"),
    [(8, 71.2, 66.2), (16, 42.2, 37.2), (24, 35.7, 30.6), (32, 30.1, 22.7), (64, 24.6, 15.8), (96, 24.4, 19.2)],
)
def test_the_estimate_is_what_fsdps_memory_tracker_counts(ranks: int, whole: float, chunked: float) -> None:
    """FSDPMemTracker's peak for the published model on fake tensors, one micro-batch (scripts/bench/memory_table.py):
    with whole logits, and by 1,024 tokens. On 24 and on 96 the 128 experts of a layer are cut into unequal parts."""
    assert memory_of(published(ranks)).peak / GIB == pytest.approx(whole, rel=0.05)
    assert memory_of(published(ranks, loss_chunk=1024)).peak / GIB == pytest.approx(chunked, rel=0.05)


def test_the_estimate_holds_for_kept_activations_and_for_more_processes_than_experts() -> None:
    assert memory_of(published(64, activation_checkpointing=False)).peak / GIB == pytest.approx(81.4, rel=0.05)
    assert memory_of(published(256)).peak / GIB == pytest.approx(25.1, rel=0.15)
    assert memory_of(published(256, loss_chunk=1024)).peak / GIB == pytest.approx(20.0, rel=0.15)


def test_what_takes_less_takes_less() -> None:
    whole = memory_of(published(64))
    chunked, dealt = memory_of(published(64, loss_chunk=1024)), Layout(64, 8, 4, sharded=True)
    assert whole.logits == 16 * GIB and chunked.logits == 2 * GIB and chunked.peak < whole.peak
    in_node = Step(model_block("default"), 8192, dealt, 256, activation_checkpointing=True)
    assert memory_of(in_node).copies < whole.copies / 3
    assert memory_of(in_node).states == whole.states  # replicas share nothing
    assert network_bytes(in_node) < network_bytes(published(64)) / 2
    assert memory_of(published(8, micro_batches=4)).peak > memory_of(published(8)).peak
    alone = Step(model_block("default"), 8192)
    assert network_bytes(alone) == 0 and memory_of(alone).states == 16 * count_parameters(model_block("default"))


class Known(NamedTuple):
    name: str
    memory: int
    unsure: str | None = None
    flops: float | None = None


def plan_of(gpu: Known | None, processes: int = 32, **train: Any) -> list[str]:
    config = PretrainConfig(
        recipe=NANO3,
        model=model_block("default"),
        dataset={"seq_length": 8192},
        train=TrainConfig(global_batch_size=3072, **train),
    )
    return recipe.preflight(config, connect=False, here=False, processes=processes, gpu=gpu)


def test_a_model_that_does_not_fit_is_refused_with_the_layout_that_does() -> None:
    h100 = Known("an H100 with 80 GB", 80 * GIB)
    (problem,) = plan_of(h100)
    assert not isinstance(problem, Note) and "an H100 with 80 GB has 73.6 GiB for it" in problem
    right = "'train.parallelism={fsdp_size: 8, ep_size: 8, dp_replicate_size: 4}' train.activation_checkpointing=true"
    assert f"it fits on 32 of these with {right}" in problem
    sizes = {"fsdp_size": 8, "ep_size": 8, "dp_replicate_size": 4}
    (note,) = plan_of(h100, parallelism=sizes, activation_checkpointing=True)
    assert isinstance(note, Note) and "64.3 GiB in each of 32 processes (weights 14.7 GiB, " in note
    assert "GB from each in a step" in note
    (unknown,) = plan_of(None)
    assert isinstance(unknown, Note) and 'gpu_memory = "80GB"' in unknown and "724 GiB" in unknown


def test_the_smallest_layout_is_on_the_jobs_processes_if_it_fits_there() -> None:
    one = Step(model_block("default"), 8192)
    found = smallest_layout(one, usable(80 * GIB))
    assert found is not None and found.processes == found.layout.ranks == 8  # no fewer would hold it
    assert smallest_layout(one, GIB) is None
    held = Step(model_block("default"), 8192, processes=8, micro_batches=2)  # as fine-tuning, whatever its batch
    found = smallest_layout(held, usable(24 * GIB))
    assert found is not None and (found.processes, found.micro_batches) == (32, 2)
    for count, memory in ((24, 40), (12, 80), (6, 141)):  # three nodes of 8 and of 4, one of 6
        found = smallest_layout(Step(model_block("default"), 8192, processes=count), usable(memory * GIB))
        assert found is not None and found.processes == found.layout.fsdp_size == count
    (problem,) = memory_notes("It", one, "auto", here=False, gpu=Known("a GPU", GIB))
    assert "no layout on up to 4096 of these fits" in problem
    (note,) = memory_notes("It", published(64), "auto", here=False, gpu=Known("an A100", 80 * GIB, "40 or 80"))
    assert "40 or 80 GB: gpu_memory says which" in note


class Job(NamedTuple):
    home: str | None = "/home/me"
    root: str | None = None
    seconds: float | None = None
    segments: int | None = 1
    bytes_free: int | None = None
    rate: float | None = None

    def free(self, folder: str) -> int | None:
        return self.bytes_free if folder else None

    def earlier_rate(self, keys: Sequence[str], of: str = "tokens") -> tuple[float, str] | None:
        assert {"model" if of == "tokens" else "grpo.num_prompts_per_step", "train.parallelism"} <= set(keys)
        return (self.rate, "run-7") if self.rate else None


@pytest.mark.parametrize(
    ("place", "job", "said"),
    [
        ("/data/run", Job(bytes_free=2 * 10**12), "379 GB; 2 are kept while one is written"),
        ("/data/run", Job(bytes_free=10**12), "Warning: checkpoint.save: .* Only 1,000 GB are free there"),
        ("/home/me/.nemotron/x", Job(), "Warning: .* below the home folder: set remote_job_dir in the profile"),
        ("/home/me/x", Job(root="/lustre/me"), "Warning: .* set checkpoint.save to a folder below /lustre/me"),
        ("/home/meg/x", Job(), "1,263 GB in /home/meg/x.$"),
    ],
)
def test_the_disk_of_checkpoints_is_told(place: str, job: Job, said: str) -> None:
    (note,) = disk_notes(model_block("default"), place, 2, job)
    assert isinstance(note, Note) and re.search(said, note) and "1,263 GB" in note
    assert ("Warning" in said) == ("Warning" in note)
    assert disk_notes(model_block("tiny"), place, 2, Job(bytes_free=0)) == []


def test_fine_tuning_and_rl_are_told_of_their_disk_and_hours(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(model_block("default")))
    h100 = Known("an H100 with 80 GB", 80 * GIB, flops=989e12)
    job = Job(home=str(tmp_path), seconds=4 * 3600)

    def sft(**changes: Any) -> list[str]:
        config = SFTConfig(
            dataset={"nano3_packed_sft_dir": "/data/packed"},
            train=SFTTrainConfig(global_batch_size=64, parallelism={"fsdp_size": 64}, **changes),
            checkpoint=CheckpointConfig(save=f"{tmp_path}/run", pretrained_checkpoint=str(tmp_path)),
        )
        return sft_preflight(config, connect=False, here=False, processes=64, gpu=h100, job=job)

    _, disk, hours = sft(activation_checkpointing=True, train_iters=60000)
    assert re.search("^Warning: checkpoint.save: a checkpoint is 379 GB; .* below the home folder", disk)
    assert re.search("^Warning: training takes about .* the time limit is 4.0 hours, and nothing goes on", hours)
    rl = GRPOConfig(
        policy=PolicyBlock(model_name=str(tmp_path)),
        data=DataBlock(train_jsonl_fpath="/data/rows.jsonl"),
        checkpointing=CheckpointingBlock(checkpoint_dir=f"{tmp_path}/run"),
        train=ParallelBlock(parallelism={"fsdp_size": 32}),
    )
    rl.grpo.max_num_steps = 200

    def rl_notes(job: Job) -> list[str]:
        return rl_preflight(rl, connect=False, here=False, processes=32, gpu=h100, job=job)

    _, disk, hours = rl_notes(job)
    assert re.search("^Warning: checkpointing.checkpoint_dir: .*379 GB; 3 are kept while one is written", disk)
    assert re.search("^How long the training takes is not known: .* no run like it has logged its steps here", hours)
    hours = rl_notes(job._replace(rate=1 / 90))[-1]
    assert re.search(r"^Warning: training takes about 5.0 hours for 200 steps \(the most\) at the 90.0 s a step", hours)
    assert "hours" not in rl_notes(job._replace(rate=1.0))[-1], "minutes are not worth a word"


def time_notes(
    model: dict[str, Any],
    seq_length: int,
    tokens: int,
    processes: int,
    train: TrainConfig,
    place: Any,
    gpu: Any,
    job: Any,
) -> list[Note]:
    work = Workload("It", model, seq_length, train, CheckpointConfig(save=place), "")
    return work.time_notes(tokens, processes, gpu, job)


@pytest.mark.parametrize(
    ("place", "job", "said"),
    [
        ("/x", None, "^Training takes about 10,0.. hours for 25.0 T tokens of 27.. GFLOP, if 64 GPUs reach 30% of"),
        (
            "/x",
            Job(seconds=14400, segments=None),
            r"queued again each time that its limit of 4.0 hours .* 2,5\d\d t",
        ),
        ("/x", Job(seconds=14400, segments=3), "^Warning: .* 4.0 hours, which the job gets 3 times"),
        ("/x", Job(seconds=14400), "^Warning: .* and nothing goes on"),
        (None, Job(seconds=14400, segments=None), "^Warning: .* without a folder for checkpoints nothing goes on"),
        (
            "/x",
            Job(rate=1e6),
            r"about 6,944 hours for 25.0 T tokens at the 1,000,000 tokens/s of run-7",
        ),
    ],
)
def test_the_hours_of_a_training_are_told(place: str | None, job: Job | None, said: str) -> None:
    h100 = Known("an H100 with 80 GB", 80 * GIB, flops=989e12)
    train = TrainConfig(activation_checkpointing=True)
    (note,) = time_notes(model_block("default"), 8192, 25 * 10**12, 64, train, place, h100, job)
    assert isinstance(note, Note) and re.search(said, note), note


def test_hours_need_a_gpu_that_is_known_or_a_run_before_and_are_of_long_trainings() -> None:
    default, train = model_block("default"), TrainConfig()
    named = Known("an H100", 80 * GIB, flops=989e12)
    assert time_notes(default, 8192, 10**12, 64, train, "/x", Known("a GPU", 80 * GIB), Job()) == []
    assert time_notes(default, 8192, 10**12, 64, TrainConfig(precision="fp32"), "/x", named, Job()) == []
    assert time_notes(model_block("tiny"), 256, 10**6, 1, train, "/x", named, Job(rate=1.0)) == []


def test_the_work_of_a_token_is_what_torch_counts() -> None:
    """3.2 B of the published model's parameters are active, beside the embeddings. A small model's operations, of its
    matrices, are those that torch's counter sees."""
    from torch.utils.flop_counter import FlopCounterMode

    default = model_block("default")
    assert round(active_parameters(default) / 1e9, 1) == 3.2
    assert step_work(default, 8192) == pytest.approx(6 * active_parameters(default), rel=0.07)
    block = {"vocab_size": 512, "hidden_size": 64, "hybrid_override_pattern": "-*-", "intermediate_size": 256}
    block |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
    model, ids = NemotronHForCausalLM(model_config(block)), torch.zeros(1, 128, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        model(ids, labels=ids).loss.backward()
    assert counter.get_total_flops() / 128 == pytest.approx(step_work(block, 128), rel=0.1)
