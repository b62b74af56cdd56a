"""Layouts, fresh weights and sharded checkpoints in one process; runs over ranks are in integration."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from nemotron_kit.errors import UserError
from nemotron_kit.training import PretrainConfig, TrainConfig, checkpoint, sharded
from nemotron_kit.training.cost import preflight
from nemotron_kit.training.loop import build_optimizer
from nemotron_kit.training.model import load_model, model_config, new_model
from nemotron_kit.training.parallel import Layout, empty_model, initialise, prepare, tensors, token_nll

from ...shards import MODEL

BLOCK = {**MODEL, "vocab_size": 33}


@pytest.mark.parametrize(
    ("value", "error"),
    [
        ("fsdp", r"train\.parallelism is 'fsdp'; it must be ddp, or sizes"),
        ({"fsdp_sise": 2}, r"train\.parallelism\.fsdp_sise: there is no such size; did you mean fsdp_size"),
        ({"fsdp_size": 0}, r"train\.parallelism\.fsdp_size is 0; it must be a whole number, 1 or more"),
        ({"fsdp_size": True}, r"fsdp_size is True; it must be a whole number"),
        ({"fsdp_size": 6, "ep_size": 4}, r"ep_size 4 does not divide fsdp_size 6.*\s.*ep_size can be 1, 2, 3, 6\."),
    ],
)
def test_a_layout_that_is_none_is_refused(value: Any, error: str) -> None:
    with pytest.raises(UserError, match=f"(?i){error}"):
        PretrainConfig(train=TrainConfig(parallelism=value)).check()


@pytest.mark.parametrize(
    ("sizes", "processes", "error"),
    [
        ({"fsdp_size": 8}, 16, r"is for 8 processes, and the job has 16\. Set dp_replicate_size=2, or give the job 8"),
        ({"fsdp_size": 8}, 1, r"is for 8 processes, and the job has 1\. Set fsdp_size=1, or give the job 8"),
        ({"fsdp_size": 3, "dp_replicate_size": 2}, 4, r"is for 6 processes, and the job has 4\. Set fsdp_size=2"),
        (
            {"fsdp_size": 6, "ep_size": 3},
            6,
            r"ep_size 3 does not divide the 4 experts of a layer\. ep_size can be 1, 2",
        ),
        ({"fsdp_size": 2}, 2, None),
        ({"fsdp_size": 4, "ep_size": 4}, 4, None),
    ],
)
def test_a_plan_says_what_does_not_fit_its_processes(sizes: dict[str, int], processes: int, error: str | None) -> None:
    config = PretrainConfig(
        recipe={"per_split_data_args_path": "blend.json"},
        model=dict(BLOCK),
        train=TrainConfig(parallelism=sizes, global_batch_size=48),
    )
    found = [str(each) for each in preflight(config, connect=False, here=False, processes=processes)]
    assert len(found) == (error is not None)
    assert not error or re.search(error, found[0]), found


def test_experts_without_a_layer_of_them() -> None:
    with pytest.raises(UserError, match="the model has no experts"):
        Layout.of({"fsdp_size": 2, "ep_size": 2}).check_experts(0)


def test_fresh_weights_fill_every_tensor_and_are_each_blocks_own() -> None:
    model = empty_model(model_config(BLOCK), Layout())
    with torch.no_grad():
        for tensor in tensors(model).values():
            tensor.fill_(float("nan"))
    initialise(model, 3)
    assert not any(tensor.isnan().any() for tensor in tensors(model).values())
    longer = tensors(new_model(model_config({**BLOCK, "hybrid_override_pattern": "ME*M"}), 3))
    same = {name: tensor for name, tensor in tensors(model).items() if "out_proj" not in name}  # scaled by the depth
    assert all(torch.equal(tensor, longer[name]) for name, tensor in same.items())
    other = longer["model.layers.3.mixer.in_proj.weight"], longer["model.layers.0.mixer.in_proj.weight"]
    assert not torch.equal(*other) and abs(other[0].std() / other[1].std() - 1) < 0.1


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_a_loss_in_chunks_is_the_loss(chunk: int) -> None:
    model: Any = new_model(model_config(BLOCK), 1)
    prepare(model)
    ids = torch.arange(66).reshape(2, 33) % 33
    losses, gradients = [], []
    for size in (None, chunk):
        model.zero_grad()
        nll = token_nll(model, ids[:, :-1], ids[:, 1:], size)
        nll.backward()
        losses.append(nll.item())
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-4) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize(
    ("set_by_user", "parameters", "threads"),
    [({}, 10_000_000, [1]), ({"OMP_NUM_THREADS": "2"}, 10_000_000, []), ({}, 1000, [])],
)
def test_a_small_model_has_one_thread(
    set_by_user: dict[str, str], parameters: int, threads: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in set_by_user.items():
        monkeypatch.setenv(name, value)
    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    monkeypatch.setattr("nemotron_kit.training.parallel._SMALL", parameters)
    prepare(new_model(model_config(BLOCK), 0))
    assert asked == threads


def test_activations_computed_again_change_no_gradient_and_count_no_token_twice() -> None:
    from nemotron_kit.training.model import ExpertBalance

    ids = torch.arange(66).reshape(2, 33) % 33
    found = []
    for again in (False, True):
        model: Any = new_model(model_config(BLOCK), 1).train()
        balance = ExpertBalance(model, 0.1)
        prepare(model, activation_checkpointing=again)
        token_nll(model, ids[:, :-1], ids[:, 1:], None).backward()
        found.append(([parameter.grad for parameter in model.parameters()], balance.loads[0][1].tolist()))
    assert found[0][1] == found[1][1]
    assert all(torch.equal(a, b) for a, b in zip(found[0][0], found[1][0], strict=True))


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, Any, torch.optim.Optimizer]:
    """A sharded checkpoint, the model and the optimizer that it is of."""
    model: Any = new_model(model_config(BLOCK), 1)
    prepare(model)
    model.generation_config.eos_token_id = [2, 5]
    optimizer = build_optimizer(TrainConfig(), model)
    ids = torch.arange(66).reshape(2, 33) % 33
    token_nll(model, ids[:, :-1], ids[:, 1:], None).backward()
    optimizer.step()
    record = {"progress": {}, "identity": {}}
    save = sharded.save(tmp_path, 1, record, model, optimizer, later=True)
    save.commit()
    return save.final, model, optimizer


def test_a_sharded_checkpoint_comes_back_bit_for_bit(saved: tuple[Path, Any, torch.optim.Optimizer]) -> None:
    path, model, optimizer = saved
    assert {file.suffix for file in path.rglob("*") if file.is_file()} == {".json", ".safetensors"}
    assert checkpoint.read(path, verify=True)["step"] == 1
    other = load_model(path / "model")
    assert all(torch.equal(tensor, tensors(other)[name]) for name, tensor in tensors(model).items())
    assert other.generation_config.eos_token_id == [2, 5]  # what the model generates by, too
    again = build_optimizer(TrainConfig(), other)
    sharded.load_optimizer(again, other, path / checkpoint.OPTIMIZER)
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert all(torch.equal(value, again.state[theirs][entry]) for entry, value in optimizer.state[mine].items())


def test_a_damaged_shard_is_told(saved: tuple[Path, Any, torch.optim.Optimizer]) -> None:
    path = saved[0]
    shard = path / "shards/rank-00000.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.raises(UserError, match=r"rank-00000\.safetensors: the file is missing, or not what was saved"):
        checkpoint.read(path, verify=sharded.verifies)
    shard.unlink()
    with pytest.raises(UserError, match="is missing, or not what was saved"):
        checkpoint.read(path, verify=False)


def test_rows_that_no_file_has_are_told(saved: tuple[Path, Any, torch.optim.Optimizer]) -> None:
    shards = sharded.Shards(saved[0])
    key, file = "weights.lm_head.weight", "shards/rank-00000.safetensors"
    shards.index[key]["rows"] = [[0, 10, file], [20, 33, file]]
    with pytest.raises(UserError, match=r"rows 10 to 33 of weights\.lm_head\.weight are in none of its files"):
        shards.read_into(torch.zeros(33, 32), key)


def test_a_sharded_checkpoint_of_another_model_is_refused(saved: tuple[Path, Any, torch.optim.Optimizer]) -> None:
    other = new_model(model_config({**BLOCK, "hybrid_override_pattern": "MEM"}), seed=1)
    with pytest.raises(UserError, match=r"don't fit the model \(model\.layers\.2"):
        sharded.load_weights(other, saved[0])
    wider = new_model(model_config({**BLOCK, "vocab_size": 34}), seed=1)
    with pytest.raises(UserError, match=r"is of the shape \[33, 32\]; the model's is \[34, 32\]"):
        sharded.load_weights(wider, saved[0])


def test_no_checkpoint_where_the_disk_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nemotron_kit.errors import NemotronError

    def full(_values: Any, _path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    model: Any = new_model(model_config(BLOCK), 1)
    save = sharded.save(tmp_path, 1, {"identity": {}}, model, build_optimizer(TrainConfig(), model), later=False)
    with pytest.raises(NemotronError, match="can't be written: No space left on device"):
        save.commit()
    assert list(tmp_path.iterdir()) == []


def test_the_exported_model_is_transformers_own(
    tmp_path: Path, saved: tuple[Path, Any, torch.optim.Optimizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, model, _ = saved
    monkeypatch.setattr(sharded, "_EXPORT_BYTES", 10_000)
    files = sharded.export_weights(model, tmp_path)
    checkpoint.save_config(model.config, model.generation_config, tmp_path)
    assert len(files) > 2 and "model.safetensors.index.json" not in files
    other = load_model(tmp_path)
    assert all(torch.equal(tensor, tensors(other)[name]) for name, tensor in tensors(model).items())
