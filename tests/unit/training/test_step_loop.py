"""The step loop: the gradient's sum does not depend on the processes, and a resumed run is the same run."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nemotron_kit.errors import NemotronError, UserError
from nemotron_kit.home import new_run_id
from nemotron_kit.runs.folder import create_run
from nemotron_kit.runs.job import SLURM_STEP
from nemotron_kit.training import checkpoint, processes, sharded
from nemotron_kit.training.checkpoint import TrainingProgress
from nemotron_kit.training.config_blocks import CheckpointConfig, LoggerConfig, SchedulerConfig
from nemotron_kit.training.loop import LoopSettings, build_optimizer, preempted
from nemotron_kit.training.pretrain_config import PretrainConfig, TrainConfig
from nemotron_kit.training.pretrain_loop import TrainingRun, loop_settings
from nemotron_kit.training.processes import Preempted, StopRequest
from nemotron_kit.training.reporter import Reporter, metrics_path
from nemotron_kit.training.step_loop import StepLoop

ROWS = torch.randn((8, 5), generator=torch.Generator().manual_seed(0))


class Run:
    """A regression of four rows a step, on the loop."""

    def __init__(self, folder: Path, steps: int = 6) -> None:
        torch.manual_seed(3)
        self.model = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Tanh(), torch.nn.Linear(7, 1))
        self.optimizer = build_optimizer(TrainConfig(lr=0.05), self.model)
        self.progress, self.stop = TrainingProgress(), StopRequest()
        latest = checkpoint.latest(folder)
        if latest is not None:
            self.progress = TrainingProgress(**checkpoint.read(latest, verify=True)["progress"])
            self.model.load_state_dict(torch.load(latest / "weights.pt", weights_only=True))
            sharded.load_optimizer(self.optimizer, self.model, latest / "optimizer.safetensors")
        settings = LoopSettings(
            steps,
            0.05,
            SchedulerConfig(lr_warmup_iters=2),
            CheckpointConfig(save=str(folder), save_interval=2),
            log_interval=4,
            eval_interval=3,
        )
        self.rows = metrics_path(LoggerConfig(), folder)
        self.loop = StepLoop(
            settings,
            self.model,
            self.optimizer,
            progress=self.progress,
            identity={"seed": 3},
            reporter=Reporter(self.rows, self.progress.step, steps),
            stop=self.stop,
            write_model=lambda into: torch.save(self.model.state_dict(), into / "weights.pt"),
        )

    def step(self, number: int) -> dict[str, object]:
        loss = torch.zeros(())
        for part in self.loop.parts(4):
            rows = ROWS[[(4 * number + index) % 8 for index in part]] + torch.rand(1)
            part_loss = (self.model(rows) ** 2).sum() / 4
            part_loss.backward()
            loss = loss + part_loss.detach()
        return {"loss": loss, "tokens": 4 / processes.world_size()}

    def go(self) -> list[torch.Tensor]:
        self.loop.run(self.step, lambda _: {"valid_loss": float((self.model(ROWS) ** 2).mean())})
        return [parameter.detach().clone() for parameter in self.model.parameters()]


def pretraining_after_two_steps(folder: Path, steps: int, order: list[object]) -> TrainingRun:
    """The loop of a pretraining of so many steps, with two done. `order` gets what its checkpoints say of the held-out
    data."""
    model, block = torch.nn.Linear(2, 2), CheckpointConfig(save=str(folder))
    config = PretrainConfig(train=TrainConfig(train_iters=steps), checkpoint=block, logger=LoggerConfig(100))
    held_out: Any = SimpleNamespace()
    run = TrainingRun(
        loop_settings(config),
        model,
        build_optimizer(config.train, model),
        config=config,
        held_out=held_out,
        progress=TrainingProgress(step=2, steps_in_window=1, valid_on="a"),
        identity={},
        reporter=Reporter(folder / "metrics.jsonl", 0, steps),
        stop=StopRequest(),
    )
    run.saves.save = lambda _, record, *, last: order.append(("save", record["progress"]["valid_on"]))  # type: ignore[method-assign]
    return run


def rows(run: Run) -> list[dict]:
    timed = ("elapsed", "tokens_per_second", "_timestamp")
    found = [json.loads(line) for line in run.rows.read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in timed} for row in found]


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(a.equal(b) for a, b in zip(one, other, strict=True))


def test_a_stopped_run_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    straight = Run(tmp_path / "straight")
    weights = straight.go()
    first = Run(tmp_path / "stopped")

    def stopping(number: int) -> dict[str, object]:
        first.stop.signal = "SIGTERM" if number == 3 else None
        return first.step(number)

    with pytest.raises(Preempted, match="Stopped by SIGTERM after step 3 of 6; saved in") as stopped:
        first.loop.run(stopping)
    assert stopped.value.exit_code == 75
    second = Run(tmp_path / "stopped")
    assert second.loop.first_step == 4 and same(second.go(), weights)
    kept = [row for row in rows(straight) if row["step"] != 3]  # a run that is told to stop evaluates nothing
    assert rows(second) == kept and [row["step"] for row in kept] == [4, 6, 6]
    assert kept[-2]["tokens"] == 24 and second.progress.held_out == {"valid_loss": second.progress.valid_loss}


def test_a_step_takes_the_samples_behind_those_of_all_steps_before(tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert (run.loop.samples(1, 4), run.loop.samples(2, 4), run.progress.samples) == (range(4), range(4, 8), 8)
    for taken, found in ((6, range(10, 14)), (0, range(12, 16))):  # 0: a record of an earlier version
        run.progress.step, run.progress.samples = 2, taken
        other = StepLoop(
            run.loop.settings,
            run.model,
            run.optimizer,
            progress=run.progress,
            identity={},
            reporter=run.loop.reporter,
            stop=run.stop,
        )
        assert other.samples(4, 4) == found and run.progress.samples == found.stop


def test_a_run_that_is_stopped_in_its_last_step_is_saved_and_then_evaluated(tmp_path: Path) -> None:
    run = Run(tmp_path, steps=2)
    saved: list[Path | None] = []

    def stopping(number: int) -> dict[str, object]:
        run.stop.signal = "SIGTERM" if number == 2 else None
        return run.step(number)

    run.loop.run(stopping, lambda _: saved.append(checkpoint.latest(tmp_path)) or {"valid_loss": 1.0})
    assert saved == [tmp_path / checkpoint.name(2)] and run.progress.valid_loss == 1.0
    # Killed before it had measured: the checkpoint says that it did not.
    assert saved[0] is not None
    assert checkpoint.read(saved[0], verify=True)["progress"]["held_out_step"] == 0
    order: list[object] = []
    for steps in (2, 3):
        pretraining = pretraining_after_two_steps(tmp_path / "pretraining", steps, order)
        pretraining.evaluate = lambda _: order.append("evaluate")  # type: ignore[method-assign]
        pretraining.stopped = "SIGTERM"
        assert pretraining.report(2, None)
    assert order == [("save", None), "evaluate", ("save", "a")]


def test_a_stopped_run_says_what_starts_it_again(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A local job that runs inside an allocation is not started again by Slurm: only its own steps are."""
    run = create_run(new_run_id("r", "go"), {"recipe": "r", "stage": "go"}, [{"config.yaml": "a: 1\n"}])
    monkeypatch.setenv("NEMO_RUN_DIR", str(run.job().path))
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    line = f"nemotron runs resume {run.id}"
    assert preempted("SIGTERM", 3, 6, "out").hint == f"To go on: {line}"
    monkeypatch.setenv(SLURM_STEP, "7.0")
    assert preempted("SIGTERM", 3, 6, "out").hint == f"If Slurm does not start it again: {line}"


def test_two_processes_sum_the_same_gradient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gradient(rank: int, size: int) -> torch.Tensor:
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", str(size))
        run = Run(tmp_path / f"{rank}-{size}")
        run.loop._attach_gradients()
        for part in run.loop.parts(8):
            (run.model(ROWS[list(part)]) ** 2).sum().backward()
        return torch.cat([parameter.grad.flatten().clone() for parameter in run.model.parameters()])

    assert gradient(0, 1).equal(gradient(0, 2) + gradient(1, 2))


def test_the_norm_of_a_large_gradient_is_exact(tmp_path: Path) -> None:
    """float32 sums of millions of squares are off by more than the layouts may differ."""
    run = Run(tmp_path)
    run.loop._gradient = torch.full((5_000_000,), 0.1) * torch.linspace(0.5, 1.5, 5_000_000)
    exact = run.loop._gradient.double().norm()
    assert float(run.loop._update(1)) == pytest.approx(float(exact), rel=1e-12)


def test_what_is_no_number_ends_the_run_before_it_is_saved(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with pytest.raises(NemotronError, match=r"The step's loss is nan at step 2: training has diverged"):
        run.loop.run(lambda number: {**run.step(number), "loss": float("nan") if number == 2 else 0.0})
    assert checkpoint.latest(tmp_path) is None
    # Nor do weights whose held-out loss is none take the place of earlier ones.
    with pytest.raises(NemotronError, match=r"The held-out valid_loss is nan at step 6: training has diverged"):
        other = Run(tmp_path / "other")
        other.loop.run(other.step, lambda step: {"valid_loss": float("nan") if step == 6 else 1.0})
    assert checkpoint.latest(tmp_path / "other") == tmp_path / "other" / checkpoint.name(4)


def test_a_held_out_loss_that_was_not_measured_is_not_the_one_of_an_earlier_step(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.loop.run(run.step, lambda step: {"valid_loss": 1.0} if step == 3 else {})
    assert (run.progress.valid_loss, run.progress.held_out_step) == (None, 6)
    run.progress.valid_loss, run.progress.before = 1.0, {"val_reward": 0.5}
    run.progress.forget_held_out()
    assert (run.progress.valid_loss, run.progress.before, run.progress.held_out_step) == (None, {}, 0)


def test_an_evaluation_that_fails_does_not_lose_the_steps_that_are_done(tmp_path: Path) -> None:
    run = Run(tmp_path)

    def broken(step: int, at: int = 6) -> dict[str, float]:
        if step == at:
            raise UserError("a row can't be read")
        return {"valid_loss": 1.0}

    with pytest.raises(UserError, match="a row can't be read"):
        run.loop.run(run.step, broken)
    saved = checkpoint.read(tmp_path / checkpoint.name(6), verify=True)["progress"]
    assert (saved["step"], saved["held_out_step"]) == (6, 3)  # the same command measures, and exports the model
    with pytest.raises(UserError):
        Run(tmp_path / "first").loop.evaluate(lambda _: broken(6))  # before the first step there is nothing to save
    assert checkpoint.latest(tmp_path / "first") is None
    order: list[object] = []
    pretraining = pretraining_after_two_steps(tmp_path / "pretraining", 2, order)
    with pytest.raises(UserError):
        pretraining.evaluate(lambda step: broken(step, 2))
    assert order == [("save", None)]


def test_each_part_of_a_step_has_the_time_after_which_a_run_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    monkeypatch.setattr(processes.HangWatch, "beat", lambda _: order.append("beat"))
    run = Run(tmp_path)
    for name in ("evaluate", "save"):
        monkeypatch.setattr(run.loop, name, lambda *_, name=name: order.append(name))
    run.loop.run(lambda number: order.append("step") or run.step(number), lambda _: {})
    both = order.index("evaluate"), order.index("save")
    assert {order[at - 1] for at in both} == {order[at + 1] for at in both} == {"beat"} and "beat" in order[: min(both)]


def test_a_checkpoint_that_one_process_cant_write_ends_all_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[dict[str, object]] = []
    monkeypatch.setattr(processes, "_all_gather_json", lambda own: told.append(own) or [own, {"value": None}])
    saves = Run(tmp_path).loop.saves
    saves.save(1, {"identity": {"seed": 3}}, last=False)
    with pytest.raises(NemotronError, match="with the weights of another one"):
        saves.save(1, {"identity": {"seed": 4}}, last=False)
    assert told[0] == {"value": None} and "with the weights of another one" in str(told[1]["error"])
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(processes, "_all_gather_json", lambda own: [told[1], own])
    with pytest.raises(NemotronError, match=r"with the weights of another one\. \(process 0 of 1\)"):
        saves.save(2, {"identity": {"seed": 3}}, last=False)


def test_the_processes_wait_for_one_another_as_long_as_a_step_may_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    module = importlib.import_module("torch.distributed.rendezvous")
    monkeypatch.setattr(module, "rendezvous", lambda _: iter([(None, 0, 2)]))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    limits: list[timedelta] = []
    monkeypatch.setattr("torch.distributed.init_process_group", lambda _, timeout, **__: limits.append(timeout))
    for minutes in (45, None, 5):  # a model takes longer than a step to load, which no shorter limit must end
        processes.join(minutes)
    assert [limit.total_seconds() / 60 for limit in limits] == [46, 30, 30]


HANGS = """
import sys, threading, time
from nemotron_kit.training import processes

processes._OTHERS_SECONDS = 0.2
seconds, beats = 0.5, int(sys.argv[1])

def stuck():
    threading.Event().wait(30)

with processes.HangWatch(seconds / 60) as watch:
    for _ in range(beats):
        time.sleep(0.1)
        watch.beat()
    if sys.argv[2] == "hang":
        stuck()
time.sleep(0.8)
"""


def test_a_run_without_a_step_prints_its_stacks_and_ends() -> None:
    run = {}
    for how in ("hang", "end"):  # side by side: both mostly wait
        run[how] = subprocess.Popen([sys.executable, "-c", HANGS, "8", how], stderr=subprocess.PIPE, text=True)
    for how, process in run.items():
        said, hangs = process.communicate(timeout=60)[1], how == "hang"
        assert process.returncode == (70 if hangs else 0), said
        assert (" in stuck" in said, "no step for" in said) == (hangs, hangs)
        # Ranks of one machine have one log: each says which one it is before its stacks.
        assert not hangs or said.index("rank 0: no step for") < said.index(" in stuck")


@pytest.mark.parametrize(("given", "seen", "said"), [("8", False, True), ("8", True, False), (None, False, False)])
def test_gpus_that_slurm_gave_and_torch_does_not_see_are_told(
    monkeypatch: pytest.MonkeyPatch, given: str | None, seen: bool, said: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: seen)
    monkeypatch.delenv("SLURM_GPUS_ON_NODE", raising=False)
    if given:
        monkeypatch.setenv("SLURM_GPUS_ON_NODE", given)
    lines = processes.gpus_not_seen()
    assert bool(lines) == said and all("gave 8 GPUs" in line and "runs on the CPU" in line for line in lines)
