"""Every record file of a run, every key in it, eleven kinds of value: whoever reads it says one thing, never a
traceback. Of one job, of a sweep on this machine and of one on a Slurm that is a function here.

NEMOTRON_FUZZ=all tries every combination (half an hour), NEMOTRON_FUZZ=2/4 the second quarter of them; without it, a
part that is another one for each key.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nemotron_kit.cli.tools import run as run_tool
from nemotron_kit.errors import NemotronError

RECIPE = """
import os
from dataclasses import dataclass, field
from pathlib import Path
from nemotron.kit import App, Artifact

@dataclass
class C:
    n: int = 1
    opts: dict = field(default_factory=dict)

def go(cfg: C):
    folder = Path(os.environ["NEMO_RUN_DIR"], "made")
    folder.mkdir()
    (folder / "x.txt").write_text(str(cfg.n))
    Artifact(path=folder).save(name=f"Made-{cfg.n}")

app = App("fuzzed")
app.command("go", C, go)
"""
ENV = """
[cli]
recipes = ["fuzzed"]
[C]
executor = "slurm"
account = "research"
partition = "batch"
time = "00:10:00"
"""
# One job whose handler saves an artifact, two of them, and two that Slurm had.
KINDS = {"one": ["n=3", "opts={a:1}"], "sweep": ["-m", "n=1,2"], "slurm": ["-m", "n=1,2", "--batch", "C"]}
SLURM = """
def slurm(arguments, **_):
    says = {
        "scontrol": "MaxArraySize = 1001\\nMaxJobCount = 10000\\n",
        "sinfo": "1:00:00\\n",
        "sbatch": "42\\n",
        "sacct": "42_0|COMPLETED|x|name|0:0|0:0\\n42_1|FAILED|x|name|3:0|3:0\\n",
    }
    return 0, says.get(arguments[0], ""), ""
"""
SCRIPT = f"""
import sys
{SLURM}
from nemotron_kit.remote.agent import slurm_commands
slurm_commands.run = slurm
from nemotron_kit.cli.main import nemotron
sys.exit(nemotron())
"""
RUN, OTHER = "20261124-171204-fuzzed-go-1f03a7", "20261124-171205-fuzzed-go-2f03a7"
VALUES: dict[str, Any] = {
    "null": None,
    "true": True,
    "minus": -1,
    "huge": 10**400,
    "nan": float("nan"),
    "1e300": 1e300,
    "empty": "",
    "escape": "\x1b[31mred\x1b[0m\n\x00",
    "year": "9999-12-31T23:59:59.999999+00:00",
    "list": [["x"]],
    "object": {"a": {"b": []}},
}
COMMANDS = {
    "list": ["list"],
    "json": ["list", "--json"],
    "filtered": ["list", "--state", "succeeded", "--json"],
    "show": ["show", RUN],
    "show --json": ["show", RUN, "--json"],
    "diff": ["diff", f"{RUN}/0", f"{OTHER}/0"],
    "logs": ["logs", RUN],
    "follow": ["logs", "-f", RUN],
    "show job": ["show", f"{RUN}/0"],
    "wait job": ["wait", f"{RUN}/0", "--patience", "0"],
    "wait": ["wait", RUN, "--patience", "0"],
    "resume": ["resume", RUN],
    "resume job": ["resume", f"{RUN}/0"],
    "cancel": ["cancel", RUN, "--grace", "0"],
    "attach": ["attach", f"{RUN}/0"],
    "rm": ["rm", RUN],
    "rerun": ["rerun", RUN, "--dry-run"],
}
# Composing takes a third of a second.
SLOW = ("rerun",)
CHANGING = ("rm", "cancel", "resume", "resume job")


@pytest.fixture(scope="module", params=KINDS)
def home(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home with two runs that were really launched, in a folder with their recipe."""
    if request.param == "slurm":
        pytest.importorskip("nemo_run", reason="the nemo-run extra is not installed")
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "fuzzed").mkdir()
    (folder / "fuzzed" / "__init__.py").write_text(RECIPE)
    (folder / "env.toml").write_text(ENV)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEMOTRON_HOME", str(folder / "home"))
        for name in ("NEMOTRON_ENV_FILE", "HYDRA_FULL_ERROR", "WANDB_PROJECT"):
            patch.delenv(name, raising=False)
        patch.setattr("nemotron_kit.launch.attach.PATIENCE", 0.0)  # how long a state that is not known is waited for
        patch.chdir(folder)
        patch.setattr("nemotron_kit.executors.base.Executor.pace", (0.001, 0.3))
        known: dict[str, Any] = {}
        exec(SLURM, known)  # noqa: S102 — the text above, which the launch below runs, too
        patch.setattr("nemotron_kit.remote.agent.slurm_commands.run", known["slurm"])
        subprocess.run(
            [sys.executable, "-P", "-c", SCRIPT, "fuzzed", "go", *KINDS[request.param]], check=True, capture_output=True
        )
        (made,) = (folder / "home" / "runs").glob("2*")
        for run_id in (RUN, OTHER):
            shutil.copytree(made, folder / run_id)
            for path in [*(folder / run_id).rglob("*.json"), *(folder / run_id).rglob("*.yaml")]:
                path.write_text(path.read_text().replace(made.name, run_id))
        shutil.rmtree(made)
        patch.syspath_prepend(str(folder))
        yield folder


def keys(value: Any, above: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Where something stands in a document, outermost first; () is the document itself."""
    yield above
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from keys(item, (*above, key))


def changed(value: Any, at: tuple[str | int, ...], new: Any) -> Any:
    """The document with another value at that place."""
    if not at:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[at[0]] = changed(copy[at[0]], at[1:], new)
    return copy


def records(run: Path) -> list[str]:
    """The JSON files of a run, and of its first job."""
    found = {str(path.relative_to(run)) for path in run.rglob("*.json")} | {"jobs/0/.hydra/overrides.yaml"}
    return sorted(name for name in found if not name.startswith("jobs/1/") and (run / name).exists())


def said(line: list[str]) -> str | None:
    """What is wrong with how a command took it: a traceback, or that it does not end. None if nothing is."""

    def late(*_: object) -> None:
        raise TimeoutError("does not end")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, 5)
    written = io.BytesIO()
    out = io.TextIOWrapper(written, encoding="utf-8", write_through=True)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            run_tool("runs", line)
    except NemotronError as error:
        out.write(f"{error.message} {error.hint}")
    except Exception as error:
        return "".join(traceback.format_exception(error)[-3:])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    return "a raw escape" if b"\x1b" in written.getvalue() else None


def tried(home: Path, everything: bool) -> Iterator[tuple[str, tuple[str | int, ...], str, str]]:
    """(file, place, kind of value, command): all of them, or for each place and command one kind, in turn."""
    dice, share = random.Random(1), 0.04 if (home / RUN / "jobs" / "1").exists() else 0.5
    for name in records(home / RUN):
        document = json.loads((home / RUN / name).read_text())
        for at in keys(document):
            if len(at) > 1 and at[0] in ("files", "environment", "sys_path") and not everything:
                continue
            for command in COMMANDS:
                if everything:
                    yield from ((name, at, kind, command) for kind in VALUES)
                elif dice.random() < (0.04 if command in SLOW else share):
                    yield name, at, dice.choice(list(VALUES)), command


def chosen(home: Path, said: str | None) -> Iterator[tuple[str, tuple[str | int, ...], str, str]]:
    """Those, or a part of them."""
    every = tried(home, said is not None)
    if said in (None, "all"):
        return every
    part, of = map(int, str(said).split("/"))
    return itertools.islice(every, part - 1, None, of)


def test_no_record_gives_a_traceback(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = home / "home" / "runs"
    wrong: list[str] = []
    count = 0
    whole, folders = False, list(sys.path)
    for name, at, kind, command in chosen(home, os.environ.get("NEMOTRON_FUZZ")):
        if not whole:
            shutil.rmtree(root, ignore_errors=True)
            for run_id in (RUN, OTHER):
                shutil.copytree(home / run_id, root / run_id)
        file = root / RUN / name
        before = file.read_bytes()
        file.write_text(json.dumps(changed(json.loads(before), at, VALUES[kind])))
        count += 1
        monkeypatch.chdir(home)
        sys.path[:] = folders
        if (fault := said(COMMANDS[command])) is not None:
            wrong.append(f"{name} {'.'.join(map(str, at))} = {kind}: {command}: {fault}")
        # Whoever looks at what is elsewhere writes down what he sees.
        whole = command not in CHANGING and not (root / RUN / "slurm").exists() and file.write_bytes(before) > 0
    assert count > 20
    if path := os.environ.get("NEMOTRON_FUZZ_REPORT"):
        Path(f"{path}-{home.name}").write_text("\n\n".join(wrong))
    assert not wrong, f"{len(wrong)} of {count}:\n" + "\n\n".join(wrong[:5])
