"""A log is followed by moving its bytes once, in bounded memory: on the login node and over ssh, whatever stands in it
and whatever becomes of it meanwhile."""

# ruff: noqa: F811
from __future__ import annotations

import filecmp
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from nemotron_kit.runs.folder import RunFolder
from nemotron_kit.runs.job import JobFolder
from nemotron_kit.runs.logs import TerminalSanitizer

from .follower import Cost, Follower, Meter
from .slurm_world import until
from .test_runs_ssh import Laptop, laptop  # noqa: F401

MB = 1_000_000
PROGRAM = r"""
import base64, os, sys, time
from dataclasses import dataclass
from pathlib import Path

KINDS = {
    "lines": lambda: base64.encodebytes(os.urandom(750_000)),
    "one line": lambda: base64.b64encode(os.urandom(750_000)),
    "junk": lambda: os.urandom(900_000) + b"\x1b[31mred\x1b]0;title\x07\x1b[2J\r\xc3\n" * 5_000,
}


@dataclass
class WorkConfig:
    megabytes: int = 1
    seconds: float = 0.0
    kind: str = "lines"
    cut: bool = False


def main(cfg: WorkConfig) -> None:
    for _ in range(cfg.megabytes):
        sys.stdout.buffer.write(KINDS[cfg.kind]())
        sys.stdout.flush()
        time.sleep(cfg.seconds / cfg.megabytes)
    if cfg.cut:
        while not Path(os.environ["NEMO_RUN_DIR"], "cut").exists():
            time.sleep(0.1)
        os.truncate(Path(os.environ["NEMO_RUN_DIR"], "logs", "job.log"), 0)
        print("after the cut", flush=True)
"""
PROFILES = """
[near]
executor = "slurm"
account = "research"
partition = "batch"
time = "00:05:00"

[ranks]
extends = "near"
tunnel = "ssh"
host = "nk-plain"
user = "root"
identity = {identity}
remote_job_dir = {root}
python = {python}
nproc_per_node = 8
"""


@dataclass
class Watch:
    """Jobs that print much, and processes that follow them, each over a wire of its own."""

    laptop: Laptop
    slurm: dict[str, str]
    meters: list[Meter] = field(default_factory=list)
    followers: list[Follower] = field(default_factory=list)

    def batch(self, *words: str, profile: str) -> JobFolder:
        _, said = self.laptop.run("far", "work", *words, "--batch", profile, **self.slurm)
        return RunFolder(self.laptop.home / "runs" / said.split(":")[0]).job()

    def follow(self, job: JobFolder, *words: str, **more: str) -> tuple[Follower, Meter]:
        door = "plain" if "nk-plain" in json.dumps(self._plan(job)) else "cluster"
        meter, place = Meter(self.laptop.sshd.port(door)), self.laptop.folder.parent / f"follower-{len(self.meters)}"
        place.mkdir(mode=0o700)  # a home of its own, so that it has a connection of its own
        (place / "runs").symlink_to(self.laptop.home / "runs")
        env = meter.config(place / "ssh-config", self.laptop.sshd.facts["config"], f"nk-{door}")
        env = {**self.laptop.env, **self.slurm, **env, **more, "NEMOTRON_HOME": str(place)}
        follower = Follower([*words, job.run_id], env, place, place / "shown")
        self.meters.append(meter)
        self.followers.append(follower)
        return follower, meter

    def log(self, job: JobFolder) -> Path:
        """The job's log, where it really is."""
        there = f"{self._plan(job)['place']['run']}/jobs/{job.number}"
        here = Path(there) if self._plan(job)["settings"].get("host") != "nk-cluster" else self.laptop.sshd.here(there)
        return here / "logs" / "job.log"

    def idle(self, job: JobFolder, *words: str) -> Cost:
        """What a follower costs that has nothing to show."""
        return self.follow(job, *words)[0].to_the_end()

    def _plan(self, job: JobFolder) -> dict[str, dict[str, str]]:
        return dict(RunFolder(job.path.parent.parent).plan())

    def end(self) -> None:
        for follower in self.followers:
            follower.end()
        for meter in self.meters:
            meter.close()
            meter.cut()  # ssh's master stays for ten minutes otherwise


@pytest.fixture
def watch(laptop: Laptop, slurm: Any, tmp_path: Path) -> Iterator[Watch]:
    values = {"identity": laptop.sshd.facts["identity"], "root": str(tmp_path / "root"), "python": sys.executable}
    with (laptop.folder / "env.toml").open("a") as file:
        file.write(PROFILES.format(**{name: json.dumps(value) for name, value in values.items()}))
    (laptop.folder / "far" / "work.py").write_text(PROGRAM)
    made = Watch(laptop, slurm.env)
    yield made
    made.end()


@pytest.mark.parametrize("profile", ["near", "far"])
@pytest.mark.parametrize("kind", ["lines", "one line"])
def test_a_growing_log_is_moved_once_in_bounded_memory(watch: Watch, profile: str, kind: str) -> None:
    job = watch.batch("megabytes=50", "seconds=5", f"kind={kind}", profile=profile)
    following = {words: watch.follow(job, *words) for words in (("logs", "-f"), ("attach",))}
    costs = {words: follower.to_the_end() for words, (follower, _) in following.items()}
    size = watch.log(job).stat().st_size
    assert size >= 50 * MB
    for words, (follower, meter) in following.items():
        nothing = watch.idle(job, *words, *(("-n", "0") if words[0] == "logs" else ()))
        moved = meter.moved if profile == "far" else costs[words].read
        print(f"\n{profile}, {kind}, {words[0]}: {moved / size:.3f} of the log, {costs[words].peak / MB:.0f} MB")
        assert costs[words].code == 0, follower.said()
        assert filecmp.cmp(follower.out, watch.log(job), shallow=False)
        assert moved <= 1.1 * size
        assert costs[words].peak - nothing.peak <= 25 * MB


@pytest.mark.parametrize("profile", ["near", "far"])
def test_junk_and_escapes_are_moved_as_they_are_and_shown_harmless(watch: Watch, profile: str) -> None:
    job = watch.batch("megabytes=5", "kind=junk", profile=profile)
    raw, _ = watch.follow(job, "logs", "-f")
    shown, meter = watch.follow(job, "attach")
    assert raw.to_the_end().code == shown.to_the_end().code == 0, raw.said() + shown.said()
    log = watch.log(job).read_bytes()
    assert raw.out.read_bytes() == log
    assert shown.out.read_bytes() == TerminalSanitizer().feed(log, final=True).encode()
    assert b"\x1b" not in shown.out.read_bytes()
    plain, _ = watch.follow(job, "attach", "--all", PYTHONIOENCODING="ascii")
    assert plain.to_the_end().code == 0 and plain.out.read_bytes().isascii(), plain.said()
    assert profile == "near" or meter.moved <= 1.1 * len(log)


@pytest.mark.parametrize("profile", ["near", "far"])
def test_a_log_that_is_cut_is_followed_from_its_new_beginning(watch: Watch, profile: str) -> None:
    """As logrotate's copytruncate does it: the job goes on writing to the same file, and it is short again."""
    job = watch.batch("megabytes=5", "cut=true", profile=profile)
    following = [watch.follow(job, "logs", "-f"), watch.follow(job, "attach")]
    until(lambda: watch.log(job).exists() and watch.log(job).stat().st_size >= 5 * MB, 60)
    before = watch.log(job).read_bytes()
    until(lambda: all(follower.out.stat().st_size == len(before) for follower, _ in following), 60)
    (watch.log(job).parent.parent / "cut").touch()
    for follower, meter in following:
        assert follower.to_the_end().code == 0, follower.said()
        assert follower.out.read_bytes() == before + b"after the cut\n"
        assert profile == "near" or meter.moved <= 1.1 * len(before)


def test_what_a_killed_process_has_shown_is_not_shown_again(watch: Watch) -> None:
    """But for what it was showing at that moment, of a log that is long when somebody attaches."""
    job = watch.batch("megabytes=200", profile="near")
    watch.laptop.run("runs", "wait", job.run_id, **watch.slurm)
    first, _ = watch.follow(job, "attach")
    until(lambda: first.out.stat().st_size >= 5 * MB, 60)
    first.end()
    second, _ = watch.follow(job, "attach")
    assert second.to_the_end().code == 0, second.said()
    log, shown = watch.log(job).read_bytes(), [each.out.read_bytes() for each in (first, second)]
    assert log.startswith(shown[0]) and log.endswith(shown[1])
    assert len(log) <= len(shown[0]) + len(shown[1]) <= len(log) + 2 * MB
    print(f"\nkilled after {len(shown[0]) / MB:.0f} MB; {sum(map(len, shown)) - len(log)} bytes were shown twice")


def test_a_connection_that_is_cut_costs_little(watch: Watch) -> None:
    job = watch.batch("megabytes=20", "seconds=4", profile="far")
    following = [watch.follow(job, "logs", "-f"), watch.follow(job, "attach")]
    for megabytes in (2, 8, 14):
        for follower, meter in following:
            until(lambda shown=follower.out: shown.stat().st_size >= megabytes * MB, 60)  # noqa: B023
            meter.cut()
    for follower, meter in following:
        assert follower.to_the_end().code == 0, follower.said()
        assert "unreachable, still trying" in follower.said()
        assert filecmp.cmp(follower.out, watch.log(job), shallow=False)
        assert meter.moved <= 1.1 * watch.log(job).stat().st_size


def test_the_ranks_lines_are_moved_once(watch: Watch) -> None:
    """Each is in a log of the rank's own too, which is not what is shown."""
    job = watch.batch("megabytes=3", profile="ranks")
    following = [watch.follow(job, "logs", "-f"), watch.follow(job, "attach")]
    for follower, meter in following:
        assert follower.to_the_end().code == 0, follower.said()
        assert filecmp.cmp(follower.out, watch.log(job), shallow=False)
        assert meter.moved <= 1.1 * watch.log(job).stat().st_size
    text = watch.log(job).read_text()
    for rank in range(8):
        own = (watch.log(job).parent / f"rank-{rank}.log").read_text().splitlines()
        assert [line.partition("] ")[2] for line in text.splitlines() if line.startswith(f"[rank {rank}] ")] == own
