"""What following a log costs: bytes moved for each byte of it, and memory, of whole processes.

    scripts/cluster up slurm ssh; eval "$(scripts/cluster env)"; python scripts/bench/logs.py [--megabytes 100 1000]

Real Slurm jobs print that much while `nemotron runs logs -f` and `nemotron runs attach` follow them: on the login node,
where what is moved is what the follower reads, and through ssh, where a relay in front of sshd counts. One job's log is
a single line. The peer is NeMo-Run's iterator over its tunnel, to a file of 20 MB that grows by a tenth at each
of ten polls; ours then follows a job that prints as much in ten seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from _pairs import load

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from tests.cluster.follower import Follower, Meter  # noqa: E402 — they count as the tests do

MB = 1_000_000
APP = """
import base64, os, sys, time
from dataclasses import dataclass
from nemotron.kit import App


@dataclass
class Config:
    megabytes: int = 100
    seconds: float = 0.0
    one_line: bool = False


def main(cfg: Config) -> None:
    encode = base64.b64encode if cfg.one_line else base64.encodebytes
    for _ in range(cfg.megabytes):
        sys.stdout.buffer.write(encode(os.urandom(750_000)))
        sys.stdout.flush()
        time.sleep(cfg.seconds / cfg.megabytes)


app = App("bench")
app.command("speak", "bench:Config", "bench:main")
"""
NEMO_RUN = """
import os, sys, types
from pathlib import Path
from nemo_run.core.tunnel.client import SSHTunnel
from nemo_run.run.torchx_backend.schedulers.slurm import TunnelLogIterator
from torchx.schedulers.api import DescribeAppResponse
from torchx.specs import AppState

user, host, port, identity, path = sys.argv[1:]
log, tenth, polls = Path(path) / "log.out", os.urandom(1_000_000).hex(), 0


def describe(_):
    global polls
    polls += 1
    with log.open("a") as file:
        print(tenth, file=file)
    return DescribeAppResponse(state=AppState.SUCCEEDED if polls == 10 else AppState.RUNNING)


tunnel = SSHTunnel(host=host, user=user, port=int(port), identity=identity, job_dir=path)
tunnel.connect()
scheduler = types.SimpleNamespace(tunnel=tunnel, describe=describe)
for _ in TunnelLogIterator("1", f"{path}/here.out", path, scheduler):
    pass
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, nargs="*", default=[100, 1000])
    options = parser.parse_args()
    status = subprocess.run([ROOT / "scripts/cluster", "status", "--json"], capture_output=True, text=True, check=False)
    ssh = json.loads(status.stdout)["parts"]["ssh"]
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        project(folder, ssh)
        for profile in ("here", "ssh"):
            for megabytes in options.megabytes:
                follow(folder, ssh, profile, f"megabytes={megabytes}")
            follow(folder, ssh, profile, f"megabytes={max(options.megabytes)}", "one_line=true")
        follow(folder, ssh, "ssh", "megabytes=20", "seconds=10")
        peer(folder, ssh)


def project(folder: Path, ssh: dict[str, Any]) -> None:
    """A recipe, and a profile for each way; jobs through ssh have another folder on the same nodes."""
    (folder / "bench").mkdir()
    (folder / "bench" / "__init__.py").write_text(APP)
    slurm = {"executor": "slurm", "account": "research", "partition": "batch", "time": "00:30:00"}
    far = {"tunnel": "ssh", "host": "nk-plain", "user": ssh["user"], "identity": ssh["identity"]}
    far |= {"remote_job_dir": str(folder / "far"), "python": sys.executable}
    tables = {"cli": {"recipes": ["bench"]}, "here": slurm, "ssh": slurm | far}
    lines = [
        (f"[{name}]", *(f"{key} = {json.dumps(to)}" for key, to in table.items())) for name, table in tables.items()
    ]
    (folder / "env.toml").write_text("\n".join(line for table in lines for line in table) + "\n")


def follow(folder: Path, ssh: dict[str, Any], profile: str, *arguments: str) -> None:
    env = {**os.environ, "NEMOTRON_HOME": str(folder / "home"), "NEMOTRON_SSH_CONFIG": ssh["config"]}
    command = [sys.executable, "-c", "from nemotron_kit.cli.main import console; console()"]
    begun = subprocess.run(
        [*command, "bench", "speak", *arguments, "--batch", profile],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
    )
    run_id = begun.stderr.split(":")[0]
    for follower in (["logs", "-f"], ["attach"]):
        meter = Meter(ssh["hosts"]["plain"]["port"])
        shown = Path(tempfile.mkdtemp(dir=folder)) / "shown"
        env |= meter.config(shown.with_name("ssh-config"), ssh["config"], "nk-plain")
        cost = Follower([*follower, run_id], env, folder, shown).to_the_end()
        moved, size = meter.moved if profile == "ssh" else cost.read, shown.stat().st_size
        if cost.code != 0 or not size:
            raise SystemExit(f"{run_id}: exit code {cost.code}\n{shown.with_suffix('.err').read_text()}")
        what = f"{profile}, {' '.join(arguments)}, {' '.join(follower)}"
        print(f"{what}: moved {moved / size:.3f}x the log (goal 1.1x), peak {cost.peak / MB:.0f} MB   {load()}")
        meter.close()
        shutil.rmtree(shown.parent)
    (folder / "home" / "runs").rename(folder / "old")
    shutil.rmtree(folder / "old")
    shutil.rmtree(folder / "far" / "runs", ignore_errors=True)


def peer(folder: Path, ssh: dict[str, Any]) -> None:
    meter, directory = Meter(ssh["hosts"]["plain"]["port"]), folder / "peer"
    directory.mkdir()
    arguments = [ssh["user"], "127.0.0.1", str(meter.port), ssh["identity"], str(directory)]
    done = subprocess.run([sys.executable, "-c", NEMO_RUN, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"NeMo-Run: exit code {done.returncode}\n{done.stderr[-2000:]}")
    moved, size = meter.moved, (directory / "log.out").stat().st_size
    print(f"NeMo-Run, ssh, 20 MB in ten polls: moved {moved / size:.3f}x the log   {load()}")


if __name__ == "__main__":
    main()
