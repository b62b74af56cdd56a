"""kill -9 at random moments: what was acknowledged is there and whole, and the next one is in nobody's way."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

from nemotron_kit.artifacts import Artifact
from nemotron_kit.artifacts.registry import open_registry
from nemotron_kit.home import new_run_id
from nemotron_kit.runs.folder import create_run
from nemotron_kit.runs.ledger import list_runs


def run(work: Path, scale: float, seed: int) -> tuple[int, list[str]]:
    """(cases, what did not hold)."""
    rng, failures, cases = random.Random(seed), [], 0
    for harness in (_saves, _launches, _preps, _trainings):
        tried, found = harness(work / harness.__name__, scale, rng)
        cases += tried
        failures += [f"{harness.__name__[1:]}: {line}" for line in found]
    return cases, failures


def _killed(action: Callable[[int], None], after: float) -> list[str]:
    """Fork a child that runs `action` with a pipe to acknowledge on, kill it after so many seconds; its whole lines."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        try:
            action(writing)
        finally:
            os._exit(0)
    os.close(writing)
    time.sleep(after)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with os.fdopen(reading, "rb") as pipe:
        text = pipe.read().decode()
    return text.split("\n")[:-1]


def _saves(work: Path, scale: float, rng: random.Random) -> tuple[int, list[str]]:
    work.mkdir()
    failures: list[str] = []
    acknowledged: list[str] = []
    (work / "first").mkdir()
    one = _seconds(lambda: Artifact(path=work / "first").save(name="First"))
    cases = int(120 * scale)
    for number in range(cases):

        def save(pipe: int, number: int = number) -> None:
            for turn in range(10**6):
                folder = work / f"{number}-{turn}"
                folder.mkdir()
                (folder / "data").write_text(f"{number} {turn}")
                Artifact(path=folder).save(name="Kept")
                os.write(pipe, f"{folder}\n".encode())

        acknowledged += _killed(save, rng.uniform(0.1, 4) * one)
        one = _longer(one, number, acknowledged)
    registry = open_registry()
    versions = registry.versions("Kept")
    kept: dict[str, int] = {}
    for version in versions:
        pin = registry.resolve(f"Kept:v{version}")
        registry.verify(pin, deep=True)
        if kept.setdefault(pin.path, version) != version:
            failures.append(f"{pin.path} is v{version} and v{kept[pin.path]}")
    failures += [f"{folder} was acknowledged and is lost" for folder in acknowledged if folder not in kept]
    if versions != list(range(len(versions))) or not acknowledged:
        failures.append(f"{len(acknowledged)} acknowledged, versions {versions[:5]}…{versions[-5:]}")
    (work / "last").mkdir()
    (work / "last/data").write_text("last")
    Artifact(path=work / "last").save(name="Kept")
    return cases, failures


def _launches(work: Path, scale: float, rng: random.Random) -> tuple[int, list[str]]:
    def launch(pipe: int) -> None:
        while True:
            made = create_run(new_run_id("r", "go"), {"recipe": "r", "stage": "go"}, [{"config.yaml": "a: 1\n"}] * 2)
            for job in made.jobs():
                job.transition("running")
                job.finish(0)
            os.write(pipe, f"{made.id}\n".encode())

    one = _seconds(lambda: create_run(new_run_id("r", "go"), {}, [{"config.yaml": "a: 1\n"}] * 2))
    cases, acknowledged = int(60 * scale), []
    for number in range(cases):
        acknowledged += _killed(launch, rng.uniform(0.1, 6) * one)
        one = _longer(one, number, acknowledged)
    found = {each.id: each for each in list_runs()}
    failures = [f"{run_id} is lost" for run_id in acknowledged if run_id not in found]
    failures += [
        f"{run_id} is {found[run_id].state}"
        for run_id in acknowledged
        if run_id in found and found[run_id].state != "succeeded"
    ]
    failures += [f"{each.id} has {each.jobs} jobs" for each in found.values() if each.jobs != 2]
    return cases, failures if acknowledged else ["nothing was acknowledged"]


def _seconds(action: Callable[[], object]) -> float:
    """How long an action takes here, so that kills meet every part of it."""
    began = time.monotonic()
    action()
    return time.monotonic() - began


def _longer(one: float, number: int, acknowledged: list[str]) -> float:
    """Twice the time after ten kills that met nothing finished: the machine is busier than when it was measured."""
    return one * 2 if not acknowledged and number % 10 == 9 else one


def _preps(work: Path, scale: float, rng: random.Random) -> tuple[int, list[str]]:
    from nemotron.data_prep import DataPrepConfig, run_data_prep

    work.mkdir()
    rows = [f'{{"text": "document {n} {"word " * (n % 50)}"}}' for n in range(3000)]
    (work / "rows.jsonl").write_text("\n".join(rows) + "\n")
    (work / "blend.json").write_text('{"datasets": [{"name": "rows", "path": "rows.jsonl"}]}')
    tokenizer = next(Path(entry) for entry in _tokenizers())

    def prepare(folder: str) -> None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        run_data_prep(
            DataPrepConfig(
                blend_path=work / "blend.json",
                output_dir=work / folder,
                tokenizer_model=str(tokenizer),
                num_shards=6,
            )
        )

    began = time.monotonic()
    _forked(lambda: prepare("whole"))
    length, expected = time.monotonic() - began, _digests(work / "whole")
    cases, failures = max(3, int(8 * scale)), [] if expected else ["the undisturbed run made no shards"]
    for number in range(cases):
        folder = f"killed-{number}"
        for _ in range(3):
            _killed(lambda _, folder=folder: prepare(folder), rng.uniform(0.1, 0.9) * length)
        _forked(lambda folder=folder: prepare(folder))
        if _digests(work / folder) != expected:
            failures.append(f"{folder}: other shards than an undisturbed run's")
    return cases * 3, failures


def _trainings(work: Path, scale: float, rng: random.Random) -> tuple[int, list[str]]:
    """A model on two ranks, whose checkpoints are written while it trains: what is there is whole, and the run goes on
    to the same bits."""
    # Loaded once, and not by each rank: most of a rank's time would be that.
    import torch._dynamo
    import torch.distributed.fsdp  # noqa: F401
    from shards import write_tiny_data
    from transformers import NemotronHForCausalLM, Trainer, TrainingArguments  # noqa: F401

    from nemotron_kit.errors import NemotronError
    from nemotron_kit.training import checkpoint

    work.mkdir()
    data = str(write_tiny_data(work))
    began = time.monotonic()
    ended = _ranks(work / "whole", data)
    length, expected = time.monotonic() - began, _weights(work / "whole")
    cases, failures = max(1, int(2 * scale)), [] if ended and expected else ["the undisturbed run made no model"]
    for number in range(cases):
        folder = work / f"killed-{number}"
        for _ in range(2):
            _ranks(folder, data, kill=(rng.randrange(2), rng.uniform(0.3, 1) * length, rng.choice((0, 0.05, 0.5))))
            for path in checkpoint.all_in(folder):
                try:
                    checkpoint.read(path, verify=True)
                except NemotronError as error:
                    failures.append(f"after a kill: {error.message}")
        if not _ranks(folder, data) or _weights(folder) != expected:
            failures.append(f"{folder}: other weights than an undisturbed run's")
    return cases * 2, failures


def _ranks(folder: Path, data: str, kill: tuple[int, float, float] | None = None) -> bool:
    """Train to the end, or until a rank is killed: `kill` is (which, after how many seconds, how much earlier than the
    other one). Whether both have ended well."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(2):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
        place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        child = os.fork()
        if child == 0:
            os.environ.update({key: str(value) for key, value in place.items()})
            code = 1
            try:
                if kill:
                    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
                _train(folder, data)
                code = 0
            except BaseException as error:  # noqa: BLE001 — it is the parent's to judge
                sys.__stderr__.write(f"{error!r}\n")
            os._exit(code)
        children.append(child)
    if kill:
        which, after, earlier = kill
        for victim, wait in ((children[which], after), (children[1 - which], earlier)):
            time.sleep(wait)
            os.kill(victim, signal.SIGKILL)
    return all(os.waitpid(child, 0)[1] == 0 for child in children)


def _train(folder: Path, data: str) -> None:
    from shards import MODEL

    from nemotron_kit.training import CheckpointConfig, LoggerConfig, PretrainConfig, SchedulerConfig, TrainConfig
    from nemotron_kit.training.engine import pretrain

    pretrain(
        PretrainConfig(
            recipe={"per_split_data_args_path": data},
            model=dict(MODEL),
            dataset={"seq_length": 32},
            train=TrainConfig(
                train_iters=12, global_batch_size=4, micro_batch_size=2, lr=0.01, parallelism={"fsdp_size": 2}
            ),
            scheduler=SchedulerConfig(lr_warmup_iters=1),
            checkpoint=CheckpointConfig(save=str(folder), save_interval=1, keep=2, asynchronous=True),
            logger=LoggerConfig(log_interval=6),
        )
    )


def _weights(folder: Path) -> dict[str, str]:
    found = sorted(folder.rglob("model.safetensors"))
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def _tokenizers() -> list[str]:
    import nemotron.recipes.nano3 as nano3

    return [f"{folder}/tokenizers/tiny" for folder in nano3.__path__]


def _forked(action: Callable[[], None]) -> None:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            action()
            code = 0
        except BaseException as error:  # noqa: BLE001 — it is the parent's to judge
            sys.__stderr__.write(f"{error!r}\n")
        os._exit(code)
    os.waitpid(child, 0)


def _digests(folder: Path) -> dict[str, str]:
    shards = sorted([*folder.rglob("*.bin"), *folder.rglob("*.idx")])
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in shards}
