"""Every record file of a run, every key in it, a dozen kinds of value: whoever reads it ends and says one thing, never
a traceback, and other runs are shown as ever. Of one job, of a sweep on this machine, of one on a Slurm that is a
function here (before anybody has asked about it, after that, and when Slurm has forgotten it), of a pipeline and of its
first stage.

NEMOTRON_FUZZ=all tries every combination (an hour), NEMOTRON_FUZZ=2/4 the second quarter of them, with NEMOTRON_FUZZ_OF
those of some values, commands or files alone (`gone,torn`); without it, a part that is another one for each key.
NEMOTRON_FUZZ_REPORT=FILE lists what is wrong in FILE-….
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import gc
import importlib
import io
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from nemotron_kit.cli.main import run_app
from nemotron_kit.cli.tools import run as run_tool
from nemotron_kit.config.compose import Composed, PreparedCommand, compose_prepared
from nemotron_kit.errors import NemotronError
from nemotron_kit.polling import Pace

from ..damage import VALUES, changed, keys

RECIPE = """
import os
from dataclasses import dataclass, field
from pathlib import Path
from nemotron.kit import App, Artifact, log_metrics

@dataclass
class C:
    n: int = 1
    opts: dict = field(default_factory=dict)

def go(cfg: C):
    folder = Path(os.environ["NEMO_RUN_DIR"], "made")
    folder.mkdir()
    (folder / "x.txt").write_text(str(cfg.n))
    for step in (1, 2):
        log_metrics({"loss": 3.5 - step}, step=step)
    Artifact(path=folder).save(name=f"Made-{cfg.n}")

app = App("fuzzed")
app.command("go", C, go)
"""
# The pipeline has the name that the command has else: the runs that are fuzzed are called so.
PIPELINE = RECIPE.replace(
    'app.command("go", C, go)',
    """
from nemotron.kit import ArtifactInput

@dataclass
class Read:
    made: Path
    m: int = 2

def read(cfg: Read):
    print(cfg.made)

app.command("make", C, go, produces=["Made-1"])
app.command("read", Read, read, artifacts={"made": ArtifactInput("Made-1:latest", mappings={"path": "made"})})
app.pipeline("go", stages=["make", "read"])
""",
)
ENV = """
[cli]
recipes = ["fuzzed"]
[C]
executor = "slurm"
account = "research"
partition = "batch"
time = "00:10:00"
"""
# One job whose handler saves an artifact, one that was killed, two of them, two that Slurm had, and one whose artifact
# another one reads.
KINDS = {
    **{kind: ["n=3", "opts={a:1}"] for kind in ("one", "killed")},
    "sweep": ["-m", "n=1,2"],
    **{kind: ["-m", "n=1,2", "--batch", "C"] for kind in ("slurm", "ended", "forgotten")},
    "pipeline": ["make.opts={a:1}"],
}
SLURM = """
def slurm(arguments, known=True, **_):
    says = {
        "scontrol": "MaxArraySize = 1001\\nMaxJobCount = 10000\\n",
        "sinfo": "1:00:00\\n",
        "sbatch": "42\\n",
        "sacct": "42_0|COMPLETED|x|name|0:0|0:0\\n42_1|FAILED|x|name|3:0|3:0\\n",
    }
    return 0, says.get(arguments[0], "") if known else "", ""
"""
SCRIPT = f"""
import sys
{SLURM}
from nemotron_kit.remote.agent import slurm_commands
slurm_commands.run = slurm
from nemotron_kit.cli.main import nemotron
sys.exit(nemotron())
"""
# Where the runs lie as they were launched, in the home's folder.
KEPT = "kept"
RUN, OTHER = "20261124-171204-fuzzed-go-1f03a7", "20261124-171205-fuzzed-go-2f03a7"
COMMANDS = {
    "list": ["list"],
    "json": ["list", "--json"],
    "filtered": ["list", "--state", "succeeded", "--json"],
    "show": ["show", RUN],
    "show --json": ["show", RUN, "--json"],
    "diff": ["diff", f"{RUN}/0", f"{OTHER}/0"],
    "logs": ["logs", RUN],
    "follow": ["logs", "-f", RUN],
    "follow job": ["logs", "-f", f"{RUN}/0"],
    "show job": ["show", f"{RUN}/0"],
    "wait job": ["wait", f"{RUN}/0", "--patience", "0"],
    "wait": ["wait", RUN, "--patience", "0"],
    "resume": ["resume", RUN],
    "resume job": ["resume", f"{RUN}/0"],
    "cancel": ["cancel", RUN, "--grace", "0"],
    "attach": ["attach", f"{RUN}/0"],
    "rm": ["rm", RUN],
    "tag": ["tag", RUN, "seen"],
    "shell": ["shell", f"{RUN}/0", "--", "true"],
    "rerun": ["rerun", RUN, "--dry-run"],
    "plot": ["plot", RUN],
    "table": ["show", RUN, "--csv"],
    "columns": ["list", "--columns", "loss", "--sort", "loss", "--csv"],
    "after": [],
    "again": [],
}
# What the recipe's own line reads: the pipeline compares its stages with the records of all earlier ones.
LINES = {"again": ["go", *KINDS["pipeline"], "--dry-run"], "after": ["go", "--after", RUN, "--dry-run"]}
SLOW = ("rerun", *LINES)
# They read of a run what was measured.
MEASURED = ("plot", "table", "columns")


@pytest.fixture(scope="module", autouse=True)
def environment() -> Iterator[None]:
    """Commands that resume a job do so in this process, which is no job's afterwards."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


def remembered(compose: Callable[..., Composed]) -> Callable[..., Composed]:
    """Composing, which no record of a run has a part in but by what is composed, done once for each of that."""
    known: dict[Any, Composed] = {}

    def composed(prepared: PreparedCommand, config_dir: str | None = None) -> Composed:
        key = (prepared.command.path, *prepared.overrides, config_dir)
        if key not in known:
            known[key] = compose(prepared, config_dir)
        found = known[key]
        config, hydra = copy.deepcopy((found.config, found.hydra))
        lists = {"overrides": list(found.overrides), "notes": list(found.notes)}
        return dataclasses.replace(found, config=config, hydra=hydra, **lists)

    return composed


@pytest.fixture(scope="module", params=KINDS)
def home(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home with two runs that were really launched, in a folder with their recipe."""
    if "--batch" in KINDS[request.param]:
        pytest.importorskip("nemo_run", reason="the nemo-run extra is not installed")
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "fuzzed").mkdir()
    (folder / "fuzzed" / "__init__.py").write_text(PIPELINE if request.param == "pipeline" else RECIPE)
    (folder / "env.toml").write_text(ENV)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEMOTRON_HOME", str(folder / "home"))
        for name in ("NEMOTRON_ENV_FILE", "HYDRA_FULL_ERROR", "WANDB_PROJECT"):
            patch.delenv(name, raising=False)
        patch.setattr("nemotron_kit.launch.status.PATIENCE", 0.0)  # how long a state that is not known is waited for
        patch.chdir(folder)
        patch.setattr("nemotron_kit.executors.base.Executor.pace", (0.001, 0.3))
        known: dict[str, Any] = {}
        exec(SLURM, known)  # noqa: S102 — the text above, which the launch below runs, too
        patch.setattr("nemotron_kit.remote.agent.slurm_commands.run", known["slurm"])
        for module in ("config.compose", "sweep.compose_jobs"):
            patch.setattr(f"nemotron_kit.{module}.compose_prepared", remembered(compose_prepared))
        patch.setattr("os.execvp", Mock(side_effect=OSError(0, "stays")))  # else this process would be the shell
        subprocess.run(
            [sys.executable, "-P", "-c", SCRIPT, "fuzzed", "go", *KINDS[request.param]], check=True, capture_output=True
        )
        made, *stages = sorted((folder / "home" / "runs").glob("2*"), key=lambda run: "-go-" not in run.name)
        run_tool("runs", ["tag", made.name, "fuzzed"])
        if request.param in ("ended", "forgotten"):
            run_tool("runs", ["show", made.name])
        if request.param == "killed":  # and what did its worker's work had outlived the worker
            job = made / "jobs" / "0"
            (job / "exit.json").unlink()
            child = json.loads(max((job / "state").glob("*.json")).read_text())["process"]
            (job / "child.json").write_text(json.dumps(child))
            end = {"code": 1, "finished_at": "2026-11-24T17:12:09.000000+00:00"}
            (job / "child-end.json").write_text(json.dumps({**child, **end}))
        if request.param == "forgotten":
            patch.setattr("nemotron_kit.remote.agent.slurm_status._LAG_SECONDS", 0.0)
            (made / "jobs" / "1" / "exit.json").unlink()
            patch.setattr("nemotron_kit.remote.agent.slurm_commands.run", partial(known["slurm"], known=False))
        for run_id in (RUN, OTHER):
            shutil.copytree(made, folder / KEPT / run_id)
        for stage in stages:
            shutil.copytree(stage, folder / KEPT / stage.name)
        for run in (folder / KEPT).iterdir():
            new = OTHER if run.name == OTHER else RUN
            for path in [*run.rglob("*.json"), *run.rglob("*.yaml")]:
                path.write_text(path.read_text().replace(made.name, new))
        shutil.rmtree(made)
        patch.syspath_prepend(str(folder))
        yield folder
        sys.modules.pop("fuzzed", None)


def document(name: str, text: str) -> Any:
    """What a record holds; of a file of rows, their list."""
    return [json.loads(line) for line in text.splitlines()] if name.endswith(".jsonl") else json.loads(text)


def damaged(name: str, text: str, at: tuple[str | int, ...], kind: str) -> str:
    """The record with that damage."""
    if kind == "torn":
        return text[: len(text) // 2]
    value = changed(document(name, text), at, kind)
    if name.endswith(".jsonl") and at:
        return "".join(json.dumps(row) + "\n" for row in value)
    return json.dumps(value)


def records(kept: Path) -> list[str]:
    """The JSON files of the run, and of its first job, with its metrics; of a pipeline also those of its first stage's
    run."""
    run = kept / RUN
    stage = [str(path.relative_to(kept)) for path in kept.glob("*-make-*/**/*.json")]
    found = {str(path.relative_to(kept)) for path in run.rglob("*.json")}
    found |= {f"{RUN}/jobs/0/{name}" for name in (".hydra/overrides.yaml", "metrics.jsonl")}
    return sorted(name for name in [*found, *stage] if f"{RUN}/jobs/1/" not in name and (kept / name).exists())


def never(*_: object) -> None:
    raise TimeoutError("does not end")


def looking() -> Callable[[Pace], None]:
    """In place of `Pace.wait`: whoever looks for longer than a back end's answer is good for, whatever the machine's
    load, looks for ever."""
    left = itertools.count(200, -1)

    def wait(pace: Pace) -> None:
        if next(left) < 0:
            never()
        time.sleep(min(pace.seconds(), 0.02))

    return wait


class Copy:
    """The runs as they were launched, in the home's folder: what a command or a damage has changed is put back."""

    def __init__(self, kept: Path, root: Path) -> None:
        self._kept, self._root = str(kept), str(root)
        names = [(str(path.relative_to(kept)), path.is_dir()) for path in sorted(kept.rglob("*"))]
        self._folders = [name for name, is_folder in names if is_folder]
        self._stamps: dict[str, object] = {name: None for name, is_folder in names if not is_folder}

    def restore(self) -> None:
        # Paths are text here: this is done once a case.
        known, cut = {*self._folders, *self._stamps}, len(self._root) + 1
        for folder, folders, names in os.walk(self._root):
            for path in (f"{folder}/{name}" for name in (*folders, *names)):
                if path[cut:] not in known:
                    shutil.rmtree(path) if os.path.isdir(path) else os.unlink(path)  # noqa: PTH108, PTH112
        for name in self._folders:
            os.makedirs(f"{self._root}/{name}", exist_ok=True)  # noqa: PTH103
        for name, stamp in self._stamps.items():
            if stamp is None or stamp != self._stamp(name):
                shutil.copy2(f"{self._kept}/{name}", f"{self._root}/{name}")
                self._stamps[name] = self._stamp(name)

    def _stamp(self, name: str) -> object:
        with contextlib.suppress(FileNotFoundError):
            status = os.stat(f"{self._root}/{name}")  # noqa: PTH116
            return status.st_ino, status.st_mtime_ns, status.st_ctime_ns
        return None


def said(command: str) -> tuple[str | None, str]:
    """What is wrong with how a command took it: a traceback, or that it does not end (None if nothing is); and what it
    wrote."""

    before = signal.signal(signal.SIGALRM, never)
    signal.setitimer(signal.ITIMER_REAL, 30)
    written = io.BytesIO()
    out = io.TextIOWrapper(written, encoding="utf-8", write_through=True)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out), pytest.MonkeyPatch.context() as patch:
            patch.setattr(Pace, "wait", looking())
            if command in LINES:
                run_app(importlib.import_module("fuzzed").app, LINES[command])
            else:
                run_tool("runs", COMMANDS[command])
    except NemotronError as error:
        out.write(f"{error.message} {error.hint}")
    except Exception as error:
        return "".join(traceback.format_exception(error)[-3:]), ""
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        gc.enable()
    return "a raw escape" if b"\x1b" in written.getvalue() else None, written.getvalue().decode()


def neighbour(listed: str) -> str | None:
    """What `runs list --json` says of the run that nobody has touched."""
    with contextlib.suppress(ValueError):
        return next((row["state"] for row in json.loads(listed[listed.index("[") :]) if row["id"] == OTHER), None)
    return None


def tried(home: Path, everything: bool) -> Iterator[tuple[str, tuple[str | int, ...], str, str]]:
    """(file, place, kind of value, command): all of them, or for each place and command one kind, in turn."""
    kept = home / KEPT
    dice, piped = random.Random(1), (kept / RUN / "stages").exists()
    share = 0.02 if piped or (kept / RUN / "slurm").exists() else 0.04 if (kept / RUN / "jobs" / "1").exists() else 0.35
    alive = (kept / RUN / "jobs" / "0" / "exit.json").exists() or piped or share < 0.1
    if not alive:  # another attempt of what was killed takes a second
        share = 0.08
    for name in records(kept):
        for at in keys(document(name, (kept / name).read_text())):
            if len(at) > 1 and at[0] in ("files", "environment", "sys_path") and not everything:
                continue
            kinds = [kind for kind in VALUES if kind != ("gone" if not at else "torn")]
            for command in COMMANDS:
                if command in (("rerun", "after") if piped else ("again",)):
                    continue
                if command in MEASURED and Path(name).name not in ("metrics.jsonl", "exit.json"):
                    continue
                if everything:
                    yield from ((name, at, kind, command) for kind in kinds)
                elif dice.random() < (0.04 if command in SLOW else share) and (alive or "resume" not in command):
                    yield name, at, dice.choice(kinds), command


def chosen(home: Path, said: str | None) -> Iterator[tuple[str, tuple[str | int, ...], str, str]]:
    """Those, or a part of them."""
    only = os.environ.get("NEMOTRON_FUZZ_OF", "").split(",")
    every = (
        each for each in tried(home, said is not None) if only == [""] or {Path(each[0]).name, *each[2:]} & set(only)
    )
    if said in (None, "all"):
        return every
    part, of = map(int, str(said).split("/"))
    return itertools.islice(every, part - 1, None, of)


def test_no_record_gives_a_traceback(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = home / "home" / "runs"
    wrong: list[str] = []
    count = 0
    folders, copied = list(sys.path), Copy(home / KEPT, root)
    copied.restore()
    stands = neighbour(said("json")[1])
    assert stands
    for name, at, kind, command in chosen(home, os.environ.get("NEMOTRON_FUZZ")):
        copied.restore()
        file = root / name
        file.write_text(damaged(name, file.read_text(), at, kind))
        count += 1
        monkeypatch.chdir(home)
        sys.path[:] = folders
        fault, output = said(command)
        own = name.startswith(RUN)  # a stage's run is the other pipeline's, too
        if own and command == "json" and not fault and (now := neighbour(output)) != stands:
            fault = f"{OTHER} is {now}, and was {stands}"
        if fault is not None:
            wrong.append(f"{name} {'.'.join(map(str, at))} = {kind}: {command}: {fault}")
    assert count > 20
    if path := os.environ.get("NEMOTRON_FUZZ_REPORT"):
        Path(f"{path}-{home.name}").write_text("\n\n".join([f"{len(wrong)} of {count}", *wrong]))
    assert not wrong, f"{len(wrong)} of {count}:\n" + "\n\n".join(wrong[:5])
