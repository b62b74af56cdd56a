"""kill -9 at any moment: every resume works, and the end is bit for bit that of a run nobody disturbed."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from nemotron_kit.training import checkpoint

from ..shards import MODEL as TINY

REPOSITORY = Path(__file__).resolve().parents[2]

STEPS = 8
# Something random in every step.
MODEL = {**TINY, "attention_dropout": 0.1, "vocab_size": 64}


def test_final_weights_are_the_same_after_any_kills(tmp_path: Path) -> None:
    """A dozen runs, each killed again and again until it is done; more with NEMOTRON_KILLS."""
    kills = int(os.environ.get("NEMOTRON_KILLS", "12"))
    env = {**os.environ, "NEMOTRON_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", __name__, str(tmp_path), str(kills)]
    run = subprocess.run(command, cwd=REPOSITORY, env=env, capture_output=True, text=True, timeout=280, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    report = json.loads(run.stdout.splitlines()[-1])
    assert report["kills"] >= kills
    assert set(report["ends"]) == {report["clean"]}
    assert report["most_redone"] <= 2  # the save interval


def test_a_kill_at_any_system_call_of_a_save(tmp_path: Path) -> None:
    """strace ends the process at its k-th call of a kind that changes files, for every k until it gets through."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed: no kill at every system call")
    script = tmp_path / "save.py"
    script.write_text(_SAVE)
    killed = 0
    for call in ("write", "fsync", "mkdir", "rename", "unlink", "unlinkat", "rmdir"):  # strace counts each by itself
        for k in range(1, 50):
            folder = tmp_path / f"{call}{k}"
            checkpoint.write(folder, 1, _fill)
            strace = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"inject={call}:signal=KILL:when={k}"]
            command = [*strace, sys.executable, "-S", str(script), str(folder)]
            run = subprocess.run(command, check=False, env=_path_env())
            found = checkpoint.latest(folder)
            assert found is not None
            assert checkpoint.read(found, verify=True)["step"] in (1, 2)
            checkpoint.write(folder, 2, _fill)  # a retry is never in the way of itself
            assert checkpoint.read(checkpoint.latest(folder), verify=True)["step"] == 2
            if run.returncode == 0:
                break
            killed += 1
    assert killed >= 12, "hardly anything was killed"


_SAVE = """
import sys
from pathlib import Path
from nemotron_kit.training import checkpoint
def fill(folder):
    (folder / "weights").write_bytes(b"w" * 100)
    return {}
checkpoint.write(Path(sys.argv[1]), 2, fill)
checkpoint.prune(Path(sys.argv[1]), 1)
"""


def _fill(folder: Path) -> dict:
    (folder / "weights").write_bytes(b"w" * 100)
    return {}


def _path_env() -> dict[str, str]:
    """This interpreter's modules for one that is started without site (-S), so that it makes few calls of its own."""
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "PYTHONDONTWRITEBYTECODE": "1",
    }


# What follows runs in a process of its own, which imports torch once and forks a child for every sitting of a run.


def _main(folder: Path, kills: int) -> None:
    import torch
    import transformers

    torch.set_num_threads(1)
    assert transformers.NemotronHForCausalLM and transformers.Trainer
    gc.freeze()
    _write_data(folder / "data")
    rng = random.Random(7)
    began = time.monotonic()
    assert _sit(folder, "clean", kill_after=None) == 0
    length = time.monotonic() - began
    report = {"clean": _digest(folder, "clean"), "ends": [], "kills": 0, "most_redone": 0}
    while report["kills"] < kills:
        name = f"run{len(report['ends'])}"
        for _ in range(100):
            before = _last_logged(folder, name)
            if _sit(folder, name, kill_after=rng.uniform(0.2, 1.0) * length) == 0:
                break
            report["kills"] += 1
            redone = _last_logged(folder, name) - _last_saved(folder, name)
            report["most_redone"] = max(report["most_redone"], redone if before is not None else 0)
        report["ends"].append(_digest(folder, name))
    print(json.dumps(report))


def _sit(folder: Path, name: str, kill_after: float | None) -> int:
    child = os.fork()
    if child == 0:
        _train(folder, name)
        os._exit(0)
    if kill_after is not None:
        deadline = time.monotonic() + kill_after
        while time.monotonic() < deadline:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.002)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _train(folder: Path, name: str) -> None:
    from nemotron_kit.training import (
        CheckpointConfig,
        LoggerConfig,
        PretrainConfig,
        SchedulerConfig,
        TrainConfig,
        pretrain,
    )

    sys.stderr = (folder / f"{name}.log").open("a")
    pretrain(
        PretrainConfig(
            recipe={"per_split_data_args_path": str(folder / "data/blend.json")},
            model=dict(MODEL),
            dataset={"seq_length": 32},
            train=TrainConfig(train_iters=STEPS, global_batch_size=4, micro_batch_size=2, lr=0.01),
            scheduler=SchedulerConfig(lr_warmup_iters=2),
            checkpoint=CheckpointConfig(save=str(folder / name), save_interval=2),
            logger=LoggerConfig(log_interval=1),
        )
    )


def _write_data(folder: Path) -> None:
    import struct

    folder.mkdir()
    tokens = np.random.default_rng(0).integers(0, 64, 3000).astype(np.uint16)
    (folder / "a.bin").write_bytes(tokens.tobytes())
    header = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, 8, 1, 2)
    (folder / "a.idx").write_bytes(header + struct.pack("<iqqq", 3000, 0, 0, 1))
    (folder / "blend.json").write_text(json.dumps({"train": ["1", "a"], "valid": ["1", "a"]}))


def _digest(folder: Path, name: str) -> str:
    files = sorted((folder / name / f"model-{STEPS:08d}").iterdir())
    moments = folder / name / f"step-{STEPS:08d}/optimizer.safetensors"
    return hashlib.sha256(b"".join(path.read_bytes() for path in [*files, moments])).hexdigest()


def _last_logged(folder: Path, name: str) -> int:
    path = folder / name / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    return max((json.loads(line)["step"] for line in lines if line.endswith("}")), default=0)


def _last_saved(folder: Path, name: str) -> int:
    return max((int(path.name[5:]) for path in (folder / name).glob("step-*")), default=0)


if __name__ == "__main__":
    _main(Path(sys.argv[1]), int(sys.argv[2]))
