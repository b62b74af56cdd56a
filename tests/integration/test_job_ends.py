"""How a job of this machine ends, and that its record, its command's exit code and whoever waits for it agree: signals
to the launch and to its processes, terminals that go, codes that a process can't have, disks that are full."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nemotron_kit.runs.folder import RunFolder
from nemotron_kit.runs.job import JobFolder

from ..conftest import until
from ..project import Project

RECIPE = """\
import os, signal, sys, time
from dataclasses import dataclass
from pathlib import Path
from nemotron.kit import App, ArtifactInput

@dataclass
class Config:
    code: str = "0"
    steps: int = 6000
    hold: int = 0

def end(cfg: Config):
    return eval(cfg.code)

def tries(cfg: Config):
    # Each try of rank 1 ends with the next code; 137 by a signal. Rank 0 waits for it.
    code = int(cfg.code.split()[int(os.environ["TORCHELASTIC_RESTART_COUNT"])])
    if os.environ["RANK"] == "0":
        time.sleep(60 if code else 0)
        return 0
    with (Path(os.environ["NEMO_RUN_DIR"]) / "tries").open("a") as file:
        file.write("x")
    if code == 137:
        os.kill(os.getpid(), signal.SIGKILL)
    return code

def steps(cfg: Config):
    told = []
    signal.signal(signal.SIGTERM, lambda *_: told.append(1))
    kept = Path(os.environ["NEMO_RUN_DIR"]) / ("kept-" + os.environ.get("RANK", "0"))
    at = int(kept.read_text()) if kept.exists() else 0
    print("from step", at, flush=True)
    go = kept.with_name("go")
    while at < cfg.steps and not told:
        if at == cfg.hold > 0 and not go.exists():  # as long as the test looks on
            time.sleep(0.05)
            continue
        at += 1
        kept.write_text(str(at))
        print("step", at, flush=True)
        time.sleep(0.05)
    return 75 if told else 0

def leaves(cfg: Config):
    import atexit, threading, types
    sys.modules[cfg.code] = types.ModuleType(cfg.code)  # what is loaded makes no difference
    leaves.kept = open("kept", "w")
    leaves.kept.write("unflushed")
    atexit.register(lambda: Path("atexit").touch())
    threading.Thread(target=lambda: (time.sleep(0.3), Path("thread").touch())).start()

def deaf(cfg: Config):
    print("deaf", flush=True)
    time.sleep(300)

app = App("ends")
app.command("end", Config, end)
app.command("read", Config, end, artifacts={"data": ArtifactInput("A:latest", {"path": "code"})})
app.command("steps", Config, steps)
app.command("tries", Config, tries)
app.command("deaf", Config, deaf)
app.command("leaves", Config, leaves)
app.command("script", Config, deaf, script_path=Path(__file__).with_name("script.py"))
"""
SCRIPT = """\
import sys, time
from pathlib import Path

print("begun", flush=True)
while not Path("go on").exists(): time.sleep(0.02)
print("ended", flush=True)
sys.exit(9)
"""
ENV = """\
[cli]
recipes = ["ends"]
[two]
executor = "local"
nproc_per_node = 2
[here]
executor = "local"
"""


FILES = {"ends/__init__.py": RECIPE, "ends/script.py": SCRIPT, "env.toml": ENV}


class World(Project):
    """Lines of `nemotron`, whose two streams are one."""

    def start(self, *words: str, **how: Any) -> subprocess.Popen[str]:
        return super().start("nemotron", *words, **{"stderr": subprocess.STDOUT, **how})

    def said(self, *words: str, code: int = 0) -> str:
        return self("nemotron", *words, code=code, stderr=subprocess.STDOUT).stdout

    @property
    def job(self) -> JobFolder:
        return RunFolder(self.newest).job(0)

    def logged(self, launch: subprocess.Popen[str], text: str, times: int = 1) -> bool:
        """Whether the newest job has printed `text`, by each process. A launch that has ended is not waited for."""
        assert launch.poll() is None, launch.communicate()[0]
        log = self.job.log_path() if self.runs() else None
        return log is not None and log.exists() and log.read_text().count(f"{text}\n") >= times


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path, FILES)
    yield made
    for run in made.runs():
        if RunFolder(run).state() in ("running", "pending"):
            made.start("runs", "cancel", run.name, "--grace", "1").wait(30)


@pytest.mark.parametrize(
    ("number", "code", "state"), [(signal.SIGTERM, 75, "preempted"), (signal.SIGINT, 130, "cancelled")]
)
@pytest.mark.parametrize("where", [(), ("--run", "two")], ids=["in this process", "under torchrun"])
def test_a_signal_to_the_launch_ends_its_job(
    world: World, where: tuple[str, ...], number: signal.Signals, code: int, state: str
) -> None:
    launch = world.start("ends", "steps", *where)
    until(lambda: world.logged(launch, "step 2", 2 if where else 1))
    launch.send_signal(number)
    said, _ = launch.communicate(timeout=60)
    assert (world.job.state().state, launch.returncode) == (state, code), said
    assert state in world.said("runs", "wait", "latest", code={"preempted": 75, "cancelled": 4}[state])


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGKILL])
def test_a_launch_that_is_gone_leaves_its_ranks_running_and_on_record(world: World, number: signal.Signals) -> None:
    launch = world.start("ends", "steps", "--run", "two", start_new_session=True)
    until(lambda: world.logged(launch, "step 2"))
    os.killpg(launch.pid, number)
    launch.wait(60)
    assert "running" in world.said("runs", "show", "latest")
    if number == signal.SIGKILL:  # its worker is killed, too: that the ranks run is still known, and they can be ended
        os.kill(world.job.state().facts["process"]["pid"], number)
        until(lambda: "still run" in str(world.job.state().error))
        assert world.job.state().state == "running"
    assert "cancelled" in world.said("runs", "cancel", "latest")
    assert world.job.state().state == "cancelled"


def test_what_outlives_its_worker_says_how_the_job_ended(world: World) -> None:
    """As torchrun does, above its ranks."""
    world.said("ends", "script", "--batch", "here")
    until(lambda: world.job.log_path().exists() and "begun" in world.job.log_path().read_text())
    os.kill(world.job.state().facts["process"]["pid"], signal.SIGKILL)
    (world.folder / "go on").touch()
    said = world.said("runs", "wait", "latest", code=1)
    assert "failed (exit code 9): exit code 9; its worker had been killed" in said
    assert world.job.log_path().read_text().endswith("ended\n")


def test_what_has_stopped_goes_on_under_the_same_record(world: World) -> None:
    """In this process, then below a worker; cancelled and preempted alike. A rerun starts anew, and says so."""
    launch = world.start("ends", "steps", "steps=20", "hold=5")
    until(lambda: world.logged(launch, "step 2"))
    assert "cancelled" in world.said("runs", "cancel", "latest")
    said, _ = launch.communicate(timeout=60)
    job = world.job
    assert launch.returncode == 4 and job.state().state == "cancelled", said
    again = world.start("runs", "resume", job.run_id)
    until(lambda: world.logged(again, "from step 0") and job.log_path().read_text().count("from step") == 2)
    again.terminate()
    said, _ = again.communicate(timeout=60)
    assert again.returncode == 75 and "from step 0" not in said and job.state().state == "preempted", said
    assert "preempted" in world.said("runs", "attach", job.run_id, code=75)  # nobody waits for what will not come
    assert "from step" in world.said("runs", "logs", "-f", job.run_id)
    assert f"{job.run_id} preempted" in world.said("ends", "end", "--after", job.run_id, code=2)
    assert f"to continue {job.run_id}, which is preempted" in world.said("runs", "rerun", job.run_id, "steps=1")
    (job.path / "go").touch()
    said = world.said("runs", "resume", job.run_id)
    assert "another attempt" in said and "succeeded" in said
    log = job.log_path().read_text()
    assert log.count("from step") == 3 and log.count("from step 0") == 1
    assert [log.count(f"\nstep {step}\n") for step in range(1, 21)] == [1] * 20
    ends = [entry["state"] for entry in job.history() if entry["state"] not in ("pending", "running")]
    assert ends == ["cancelled", "preempted"] and job.state().state == "succeeded"
    assert "has succeeded" in world.said("runs", "resume", job.run_id, code=2)


def test_the_ranks_of_a_run_go_on(world: World) -> None:
    """As it was launched: detached, and torchrun."""
    world.said("ends", "steps", "steps=15", "hold=5", "--batch", "two")
    until(lambda: world.job.log_path().exists() and world.job.log_path().read_text().count("step 2\n") == 2)
    world.said("runs", "cancel", "latest")
    assert world.job.state().state == "cancelled"
    (world.job.path / "go").touch()
    assert "nemotron runs attach" in world.said("runs", "resume", "latest")
    world.said("runs", "wait", "latest")
    assert world.job.log_path().read_text().count("from step 0") == 2
    assert "step 15" in world.said("runs", "logs", "latest")


@pytest.mark.parametrize(
    ("codes", "tries", "state"),
    [("137 9 0", 3, "succeeded"), ("9 9 9 0", 3, "failed"), ("9 75 0", 2, "preempted"), ("2 0", 1, "failed")],
)
def test_ranks_start_again_inside_the_job(world: World, codes: str, tries: int, state: str) -> None:
    """As often as retries says; but not once they have saved and stopped (75), or for a mistake (2)."""
    world("nemotron", "ends", "tries", f"code='{codes}'", "--run", "two", "--run.retries", "2", code=None)
    assert world.job.state().state == state
    assert (world.job.path / "tries").read_text() == "x" * tries
    assert world.job.log_path().read_text().count("all ranks start again from their last checkpoint") == tries - 1


def test_a_failure_is_never_exit_code_0(world: World) -> None:
    assert "failed: " in world.said("ends", "end", "code='256'", code=1)
    assert (world.job.state().state, world.job.state().code) == ("failed", 1)


def test_a_terminal_that_is_gone_costs_no_job(world: World) -> None:
    """SIGHUP, and every write to the terminal fails from then on, as after an ssh line that drops."""
    ours, theirs = os.openpty()
    streams: dict[str, Any] = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
    launch = world.start("ends", "steps", "steps=20", "hold=5", start_new_session=True, **streams)
    os.close(theirs)
    until(lambda: world.logged(launch, "step 2"))
    os.close(ours)
    os.kill(launch.pid, signal.SIGHUP)
    (world.job.path / "go").touch()
    assert launch.wait(60) == 0
    assert world.job.state().state == "succeeded" and "step 20" in world.job.log_path().read_text()


@pytest.mark.parametrize("code", [0, 3])
def test_a_disk_that_is_full_under_the_output_does_not_change_how_a_job_ended(world: World, code: int) -> None:
    with open("/dev/full", "w") as full:  # noqa: PTH123
        launch = world.start(
            "ends", "end", f"code=\"[print('x'), {code}][-1]\"", "--json", stdout=full, stderr=subprocess.DEVNULL
        )
        assert launch.wait(60) == code
    assert (world.job.state().state, world.job.state().code) == ("failed" if code else "succeeded", code)
    assert world.job.log_path().read_text().startswith("x\n")


@pytest.mark.parametrize("module", ["nemo_run", "other"])
def test_a_job_in_the_launching_process_ends_as_every_python_program(world: World, module: str) -> None:
    world.said("ends", "leaves", f"code={module}")
    assert (world.folder / "kept").read_text() == "unflushed"
    assert (world.folder / "atexit").exists() and (world.folder / "thread").exists()


def test_a_log_that_cannot_be_opened_is_one_error_on_record(world: World) -> None:
    said = world.said("ends", "end", "hydra.job_logging.handlers.file.filename=/dev/null/x.log", code=1)
    assert "/dev/null/x.log: Not a directory" in said and "Traceback" not in said
    assert world.job.state().state == "failed" and "/dev/null/x.log" in str(world.job.state().error)


@pytest.mark.parametrize("launcher", [(), ("hydra/launcher=nemo_run",)], ids=["basic", "nemo_run"])
def test_a_sweep_that_is_refused_leaves_nothing(world: World, launcher: tuple[str, ...]) -> None:
    assert "No artifact is called 'A'" in world.said("ends", "read", "-m", "--art.data", "A:v0,B:v0", *launcher, code=2)
    assert not list((world.home / "runs").glob("2*"))
