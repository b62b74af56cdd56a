from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nemotron_kit.errors import UserError
from nemotron_kit.training import CheckpointConfig, PretrainConfig, processes
from nemotron_kit.training import checkpoint as checkpoints
from nemotron_kit.training.start import find_start, require_agreement

IDENTITY = {"model": {"hidden_size": 64, "layers": ["moe"]}, "train": {"lr": 0.001}}


def saved(folder: Path, step: int = 5, identity: dict = IDENTITY) -> Path:
    return checkpoints.write(folder, step, lambda _: {"progress": {"step": step}, "identity": identity})


def config(**block) -> PretrainConfig:
    return PretrainConfig(checkpoint=CheckpointConfig(**block))


def test_nothing_there_is_a_new_run(tmp_path: Path) -> None:
    start = find_start(config(save=str(tmp_path / "new")), IDENTITY)
    assert (start.weights, start.optimizer, start.progress) == (None, None, None)


def test_its_own_checkpoint_is_resumed_by_default(tmp_path: Path) -> None:
    path = saved(tmp_path)
    start = find_start(config(save=str(tmp_path), load="elsewhere"), IDENTITY)
    assert start.progress.step == 5
    assert (start.weights, start.optimizer) == (path / "model", path / "optimizer.safetensors")


def test_processes_that_see_other_checkpoints_do_not_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path / "node0")
    start, other = (find_start(config(save=str(tmp_path / name)), IDENTITY) for name in ("node0", "node1"))
    require_agreement(start)
    monkeypatch.setattr(processes, "on_all_ranks", lambda work: [5, work()])
    require_agreement(start)
    with pytest.raises(UserError, match=r"Process 0 starts at step 5, and process 1 at step 0[\s\S]*all nodes share"):
        require_agreement(other)


def test_a_checkpoint_behind_the_last_step_is_told(tmp_path: Path) -> None:
    saved(tmp_path, 5, {**IDENTITY, "train": {"lr": 0.001, "train_iters": 5}})
    given = config(save=str(tmp_path))
    given.scheduler.lr_decay_style = "constant"
    for last, notes in (
        (4, ("The checkpoint is of step 5, and train.train_iters is 4: nothing is trained.",)),
        (6, ()),
    ):
        assert find_start(given, {**IDENTITY, "train": {"lr": 0.001, "train_iters": last}}).notes == notes


def test_load_is_for_a_new_folder(tmp_path: Path) -> None:
    path = saved(tmp_path / "old")
    start = find_start(config(save=str(tmp_path / "new"), load=str(tmp_path / "old")), IDENTITY)
    assert start.progress.step == 5 and start.weights == path / "model"
    with pytest.raises(UserError, match=r"checkpoint\.load: .*/none holds no checkpoint"):
        find_start(config(load=str(tmp_path / "none")), IDENTITY)


def test_finetune_takes_the_weights_alone(tmp_path: Path) -> None:
    path = saved(tmp_path, identity={})
    start = find_start(config(load=str(tmp_path), finetune=True), IDENTITY)
    assert (start.weights, start.optimizer, start.progress) == (path / "model", None, None)


def test_pretrained_weights(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no model here"):
        find_start(config(pretrained_checkpoint=str(tmp_path)), IDENTITY)
    (tmp_path / "config.json").write_text("{}")
    assert find_start(config(pretrained_checkpoint=str(tmp_path)), IDENTITY).weights == tmp_path


@pytest.mark.parametrize(
    ("here", "error"),
    [
        (
            {**IDENTITY, "model": {"hidden_size": 128, "layers": ["moe"]}},
            r"a different model: model\.hidden_size is 64 there and 128 here",
        ),
        ({**IDENTITY, "model": {"hidden_size": 64, "layers": ["mlp"]}}, "a different model: model.layers"),
        ({**IDENTITY, "train": {"lr": 0.01}}, r"another configuration: train\.lr is 0\.001 there and 0\.01 here"),
    ],
)
def test_another_runs_checkpoint_is_refused(tmp_path: Path, here: dict, error: str) -> None:
    saved(tmp_path)
    with pytest.raises(UserError, match=error):
        find_start(config(save=str(tmp_path)), here)


def test_a_checkpoint_of_something_else_is_refused(tmp_path: Path) -> None:
    checkpoints.write(tmp_path, 5, lambda _: {"progress": {"steps": 5}, "identity": IDENTITY})
    with pytest.raises(UserError, match="not a record of training"):
        find_start(config(save=str(tmp_path)), IDENTITY)


def test_what_is_loaded_is_exempt_from_collection_and_open_files_are_written_whole(tmp_path: Path) -> None:
    (tmp_path / "transformers.py").write_text(
        "import gc\non = gc.isenabled()\nNemotronHForCausalLM = Trainer = object\n"
    )
    program = """
import gc, sys
from nemotron_kit.training.engine import load_libraries
class Own: pass
own = Own()
own.me, own.file, own.raw = own, open("text", "w"), open("bytes", "wb")
own.file.write("last line"), own.raw.write(b"last bytes")
frozen = gc.get_freeze_count()
load_libraries()
import transformers
assert (transformers.on, gc.isenabled()) == (False, True) and gc.get_freeze_count() > frozen + 1000
"""
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=env, check=True)
    assert ((tmp_path / "text").read_text(), (tmp_path / "bytes").read_text()) == ("last line", "last bytes")
