"""Jobs on the real Slurm, attached and detached: what is seen of them, and the exit code."""

# ruff: noqa: F811
from __future__ import annotations

import json
import platform
import re
import signal
import sys
import time
from pathlib import Path

import pytest

from nemotron_kit.runs.folder import RunFolder

from ..project import files_with
from .slurm_world import World, interrupt, until, world  # noqa: F401


def test_an_attached_job_is_seen_from_its_first_line_to_its_last(world: World) -> None:
    done = world.run("speak", "lines=200", "--run", "C")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [*(f"line {n} of rank -" for n in range(200)), "last words"]
    assert "succeeded in" in done.stderr
    assert world.job(done.stderr).state().state == "succeeded"


def test_a_failed_job_gives_its_exit_code(world: World) -> None:
    done = world.run("speak", "code=3", "--run", "C")
    assert done.returncode == 1
    assert "failed: exit code 3" in done.stderr
    record = world.job(done.stderr).exit_record()
    assert record is not None and record["state"] == "failed"


def test_every_rank_of_two_nodes_is_seen(world: World) -> None:
    done = world.run("speak", "lines=50", "--run", "two")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    for rank in range(4):
        own = [line.removeprefix(f"[rank {rank}] ") for line in lines if line.startswith(f"[rank {rank}] ")]
        assert own == [*(f"line {n} of rank {rank}" for n in range(50)), "last words"]
    job = world.job(done.stderr)
    assert (job.path / "logs" / "rank-3.log").read_text().count("\n") == 51


def test_torchrun_meets_across_nodes_two_jobs_at_once(world: World) -> None:
    jobs = [world.batch("allreduce", "sleep=8", profile="two") for _ in range(2)]
    assert [world.wait(job, timeout=90) for job in jobs] == ["succeeded", "succeeded"]
    spans = [(job.state().started, job.state().finished) for job in jobs]
    assert spans[1][0] < spans[0][1], "they did not run at the same time"
    for job in jobs:
        logs = "".join(path.read_text() for path in (job.path / "logs").glob("rank-*.log"))
        assert sorted(re.findall(r"rank (\d) of 4: sum 6", logs)) == ["0", "1", "2", "3"]


def test_a_command_that_is_one_process_takes_one_node(world: World) -> None:
    job = world.batch("alone", profile="two")
    assert world.wait(job) == "succeeded"
    assert (job.path / "logs" / "job.log").read_text().startswith("line 0 of rank -\n")
    assert job.state().facts["scheduler"]["nodes"] == 1


def test_batch_returns_at_once_with_the_commands(world: World) -> None:
    done = world.run("speak", "sleep=3", "--batch", "C")
    assert done.returncode == 0 and done.stdout == ""
    run_id = world.only_run().id
    for command in ("show", "attach", "cancel"):
        assert f"nemotron runs {command} {run_id}" in done.stderr
    job = world.only_run().job()
    assert job.state().state in ("pending", "running")
    assert world.wait(job) == "succeeded"
    assert [entry["versions"]["python"] for entry in job.history() if "versions" in entry] == [
        platform.python_version()
    ]


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_and_term_leave_the_job_alone(world: World, sent: signal.Signals, code: int) -> None:
    process = world.start("python", "work.py", "speak", "lines=15", "sleep=0.2", "--run", "C")
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline().startswith("line 0")
    assert interrupt(process, sent) <= 2.0
    assert process.returncode == code
    said = process.stderr.read()
    run = world.only_run()
    assert f"nemotron runs attach {run.id}" in said and f"nemotron runs cancel {run.id}" in said
    assert world.wait(run.job()) == "succeeded"


def test_ctrl_c_cancels_where_the_profile_says_so(world: World) -> None:
    process = world.start("python", "work.py", "deaf", "sleep=60", "--run", "undo")
    assert process.stdout is not None
    assert process.stdout.readline().startswith("sleeping")
    interrupt(process)
    assert process.returncode == 130
    assert world.only_run().job().state().state == "cancelled"
    assert until(lambda: world.queue("-t", "running", f"-j{world.slurm_ids(world.only_run())[0]}") == [], 20)


def test_the_script_that_runs_is_the_one_that_the_dry_run_shows(world: World) -> None:
    shown = json.loads(world.run("speak", "--batch", "C", "--dry-run", "--json").stdout)
    assert not (world.home / "runs").exists()
    job = world.batch("speak")
    ran = (job.path / "sbatch.sh").read_text()

    def common(text: str, run_id: str) -> str:
        return re.sub(r"nk-[0-9a-f]{12}", "nk-INTENT", text.replace(run_id, "RUN"))

    assert common(ran, job.run_id) == common(shown["files"]["sbatch.sh"], shown["run_id"])
    assert world.wait(job) == "succeeded"
    spooled = job.path.parent.parent / "slurm"
    assert [path.name for path in spooled.glob("again-*")] == []
    assert "set -evx" in ran and "nemotron_kit.worker" in ran


def test_the_job_runs_what_was_just_edited(world: World) -> None:
    source = world.folder / "work.py"
    source.write_text(source.read_text().replace("last words", "edited words"))
    done = world.run("speak", "--run", "C")
    assert "edited words" in done.stdout
    job = world.batch("speak", "lines=1", "sleep=2")
    source.write_text(source.read_text().replace("edited words", "later words"))
    assert world.wait(job) == "succeeded"
    assert "edited words" in (job.path / "logs" / "job.log").read_text()


def test_a_secret_reaches_the_job_and_no_file(world: World) -> None:
    secret, other = "tok-5e0f1a2b3c", "tok-not-for-the-job"
    job = world.batch("speak", profile="secret", WORK_TOKEN=secret, OTHER_TOKEN=other)
    assert world.wait(job) == "succeeded"
    assert files_with(secret, world.home) == files_with(other, world.home) == []
    job = world.batch("look", profile="secret", WORK_TOKEN=secret, OTHER_TOKEN=other)
    assert world.wait(job) == "succeeded"
    seen = json.loads((job.path / "seen-0.json").read_text())["environment"]
    assert seen["WORK_TOKEN"] == secret and "OTHER_TOKEN" not in seen
    for mode in ("show", "-o"):
        shown = world.slurm.run(
            "scontrol", "show", "job", world.slurm_ids(RunFolder(job.path.parent.parent))[0], mode, check=False
        )
        assert secret not in shown


def test_a_secret_that_is_not_set_is_said_before_anything_is_written(world: World) -> None:
    done = world.run("speak", "--batch", "secret")
    assert done.returncode == 2
    assert "WORK_TOKEN is not set" in done.stderr
    assert not (world.home / "runs").exists()


def test_what_slurm_refuses_is_a_failed_run_and_says_why(world: World) -> None:
    done = world.run("speak", "--batch", "C", "--run.account", "nobody")
    assert done.returncode == 2
    assert "Invalid account" in done.stderr
    assert world.only_run().job().state().state == "failed"


def test_a_job_of_less_than_a_second_is_seen_whole(world: World) -> None:
    for _ in range(3):
        began = time.monotonic()
        done = world.run("speak", "lines=2", "--run", "C")
        assert done.stdout == "line 0 of rank -\nline 1 of rank -\nlast words\n", time.monotonic() - began


PREP = """
import sys
from nemotron_kit.data_prep import DataPrepConfig, run_data_prep
run_data_prep(DataPrepConfig(
    blend_path=sys.argv[1], output_dir=sys.argv[2], num_workers=1, num_shards=6, tokenizer_model=sys.argv[3],
))
"""


def test_data_prep_on_two_nodes_shares_the_shards_and_makes_the_same_bytes(world: World) -> None:
    pytest.importorskip("tokenizers", reason="the data extra is not installed")
    rows = "".join(json.dumps({"text": f"text number {n} " * (n % 50)}) + "\n" for n in range(2_000))
    (world.folder / "a.jsonl").write_text(rows)
    (world.folder / "blend.json").write_text('{"datasets": [{"name": "a", "path": "a.jsonl"}]}')
    tokenizer = Path(__file__).parents[2] / "recipes" / "nano3" / "tokenizers" / "tiny"
    made = {}
    for name, launcher in {"one": [], "four": ["srun", "-A", "research", "-N2", "-n4"]}.items():
        words = [*launcher, sys.executable, "-c", PREP, "blend.json", name, str(tokenizer)]
        done = world(*words)
        assert done.stderr.count("data prep: read 1 files") == 1
        made[name] = {
            str(p.relative_to(world.folder / name)): p.read_bytes()
            for p in (world.folder / name).glob("*/shard_*.[bi]*")
        }
    assert "2 shards of 8 by rank 0 of 4" in done.stderr
    assert len(made["one"]) > 6
    assert made["four"] == made["one"]
    assert not list((world.folder / "four").glob(".ranks-*"))
