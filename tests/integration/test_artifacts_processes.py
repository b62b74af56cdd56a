"""The registry under real processes: many writers of one name, and writers killed at any moment."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from nemotron_kit.artifacts.registry import LocalRegistry

from .. import project
from ..conftest import until
from ..project import environment

# Saves `count` artifacts of one name, each with its own content (or all with the same), one line of JSON for each.
WRITER = """
import json, sys, time
from pathlib import Path
from nemotron_kit.artifacts import Artifact, init
root, work, me, count, same, go = sys.argv[1:]
init(root=root)
Path(f"{work}-{me}-up").touch()
while not Path(go).exists():
    time.sleep(0.002)
for number in range(int(count)):
    folder = Path(work) / f"{me}-{number}"
    folder.mkdir(parents=True, exist_ok=True)
    text = f"content {number if same == 'same' else (me, number)}"
    (folder / "data").write_text(text)
    begun = time.monotonic()
    artifact = Artifact(path=folder, type="T")
    artifact.save(name="Shared")
    print(json.dumps([artifact._pin.version, text, time.monotonic() - begun]), flush=True)
"""


def start(tmp_path: Path, me: str, count: int, *, same: bool = False, go: Path | None = None) -> subprocess.Popen[str]:
    env = environment(tmp_path / "home", PYTHONFAULTHANDLER="1")
    words = [f"{tmp_path}/registry", f"{tmp_path}/work", me, str(count), "same" if same else "own", str(go or "/")]
    return project.start("python", "-c", WRITER, *words, env=env)


def saved(process: subprocess.Popen[str], timeout: float = 240) -> list[tuple[int, str, float]]:
    out, err = process.communicate(timeout=timeout)
    assert process.returncode == 0, err
    return [tuple(json.loads(line)) for line in out.splitlines()]


def test_eight_writers_of_one_name(tmp_path: Path) -> None:
    writers = [start(tmp_path, f"w{n}", 25, go=tmp_path / "go") for n in range(8)]
    until(lambda: len(list(tmp_path.glob("work-*-up"))) == 8)
    (tmp_path / "go").touch()
    done = [row for writer in writers for row in saved(writer)]
    registry = LocalRegistry(tmp_path / "registry")
    assert sorted(version for version, _, _ in done) == list(range(200))
    assert registry.versions("Shared") == list(range(200))
    assert registry.resolve("Shared").version == 199
    for version, text, _ in done:
        pin = registry.resolve(f"Shared:v{version}")
        assert (Path(pin.path) / "data").read_text() == text
    assert not list((tmp_path / "registry").rglob(".tmp-*"))
    slowest = sorted(seconds for _, _, seconds in done)[-2]
    print(f"200 saves by 8 writers, p99 {slowest:.2f} s")


def test_identical_content_saved_at_once_is_one_version(tmp_path: Path) -> None:
    writers = [start(tmp_path, f"w{n}", 10, same=True, go=tmp_path / "go") for n in range(4)]
    until(lambda: len(list(tmp_path.glob("work-*-up"))) == 4)
    (tmp_path / "go").touch()
    done = [row for writer in writers for row in saved(writer)]
    assert LocalRegistry(tmp_path / "registry").versions("Shared") == list(range(10))
    assert Counter(text for _, text, _ in done) == {f"content {n}": 4 for n in range(10)}
    assert len({(version, text) for version, text, _ in done}) == 10


def test_kill_9_at_random_points(tmp_path: Path) -> None:
    """50 writers, each killed at a random moment: what was acknowledged is there and verifies, and nothing blocks."""
    chance = random.Random(20261101)
    registry = LocalRegistry(tmp_path / "registry")
    acknowledged: dict[int, str] = {}
    alive = kills = 0
    while kills < 50:
        writer = start(tmp_path, f"k{kills}", 10_000)
        assert writer.stdout is not None
        first = writer.stdout.readline()  # it has started: from here on it is saving
        time.sleep(chance.random() * 0.06)  # the moment of the kill
        writer.send_signal(signal.SIGKILL)
        out, _ = writer.communicate(timeout=60)
        kills += 1
        lines = [line for line in (first + out).splitlines(keepends=True) if line.endswith("\n")]
        for version, text, _ in map(json.loads, lines):
            assert version not in acknowledged
            acknowledged[version] = text
        alive += bool(lines)
    assert alive >= 45
    versions = registry.versions("Shared")
    assert versions == list(range(len(versions)))
    assert acknowledged.keys() <= set(versions)
    for version in versions:
        pin = registry.resolve(f"Shared:v{version}")
        assert acknowledged.get(version, (Path(pin.path) / "data").read_text()) == (Path(pin.path) / "data").read_text()
    assert saved(start(tmp_path, "after", 1))[0][0] == len(versions)
    debris = list((tmp_path / "registry").rglob(".tmp-*"))
    assert len(registry.gc(lease_s=0)) == len(debris)
    assert not list((tmp_path / "registry").rglob(".tmp-*"))
    assert registry.versions("Shared") == list(range(len(versions) + 1))
    print(f"{kills} kills, {len(acknowledged)} acknowledged of {len(versions)} versions, {len(debris)} left-overs")


STEP = """
import sys
from pathlib import Path
from nemotron.kit import {cls}, print_step_complete
{body}
"""


def run_chain(tmp_path: Path, *steps: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    env = environment(tmp_path / "home")
    for number, step in enumerate(steps):
        (tmp_path / f"step{number}.py").write_text(step)
    chain = " | ".join(f"{sys.executable} step{n}.py" for n in range(len(steps)))
    command = ["bash", "-o", "pipefail", "-c", chain]
    return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120, check=check)


PREP = STEP.format(
    cls="PretrainBlendsArtifact",
    body="""
Path("out").mkdir(); Path("out/shard").write_text("tokens")
print("preparing …")
artifact = PretrainBlendsArtifact(path=Path("out"), total_tokens=6)
artifact.save(name="Piped-data")
print_step_complete(data=artifact)
""",
)
TRAIN = STEP.format(
    cls="ModelArtifact, PretrainBlendsArtifact",
    body="""
data = PretrainBlendsArtifact.load()
Path("ckpt").mkdir(); Path("ckpt/weights").write_text(str(data.total_tokens))
model = ModelArtifact(path=Path("ckpt"), step=data.total_tokens, loss=1.5)
model.save(name="Piped-model")
print_step_complete(model=model)
""",
)


def test_two_steps_in_a_pipe(tmp_path: Path) -> None:
    done = run_chain(tmp_path, PREP, TRAIN)
    printed = json.loads(done.stdout)["model"]
    assert (printed["name"], printed["version"], printed["path"]) == ("Piped-model", 0, str(tmp_path / "ckpt"))
    assert "art://Piped-model:v0" in done.stderr
    record = LocalRegistry(tmp_path / "home" / "artifacts").find("Piped-model")
    assert [pin.label for pin in record.inputs] == ["Piped-data:v0"]
    assert record.metadata["step"] == 6


def test_a_step_whose_reader_is_gone_has_saved_all_the_same(tmp_path: Path) -> None:
    until_it_is = "import select\nout = select.poll()\nout.register(1, 0)\nout.poll()\n"  # its reader's end is closed
    silent = PREP.replace('print("preparing …")', "")
    done = run_chain(tmp_path, until_it_is + silent, "pass")
    assert "The reader of the JSON" in done.stderr
    assert "Traceback" not in done.stderr
    assert LocalRegistry(tmp_path / "home" / "artifacts").versions("Piped-data") == [0]


def test_a_pipe_from_a_step_that_failed_says_so(tmp_path: Path) -> None:
    done = run_chain(tmp_path, "raise SystemExit(3)", TRAIN, check=False)
    assert done.returncode != 0
    assert "Standard input holds no artifacts: it is empty." in done.stderr


@pytest.mark.parametrize("module", ["nemotron_kit.artifacts.registry", "nemotron_kit.artifacts.pipe"])
def test_what_a_launch_imports_is_light(module: str, tmp_path: Path) -> None:
    heavy = ("torch", "pydantic", "rich", "wandb", "numpy", "yaml", "omegaconf")
    code = (
        f"import sys, {module}, nemotron.kit.artifact, nemotron.kit.trackers\n"
        f"from nemotron_kit.artifacts import open_registry\nopen_registry().names()\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    env = {**os.environ, "NEMOTRON_HOME": str(tmp_path / "none")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stdout.strip() == "[]"
    assert not (tmp_path / "none").exists()


def test_on_a_terminal_people_get_a_panel_and_no_json(tmp_path: Path) -> None:
    (tmp_path / "step.py").write_text(PREP.replace('print("preparing …")', ""))
    env = {**os.environ, "NEMOTRON_HOME": str(tmp_path / "home"), "TERM": "xterm", "COLUMNS": "200"}
    ours, theirs = os.openpty()
    process = subprocess.Popen([sys.executable, "step.py"], cwd=tmp_path, env=env, stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = b""
    try:
        while chunk := os.read(ours, 65536):
            shown += chunk
    except OSError:  # how Linux says that the other side is closed
        pass
    os.close(ours)
    assert process.wait(timeout=60) == 0
    text = shown.decode()
    assert "art://Piped-data:v0" in text
    assert "╭" in text
    assert '"path"' not in text
