"""Jobs in containers of a real Docker engine: what is seen of them, how they end, and what is left behind."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from nemotron_kit.errors import Unreachable
from nemotron_kit.executors.base import executor_for
from nemotron_kit.launch.queue import load_plan
from nemotron_kit.runs.folder import RunFolder
from nemotron_kit.spec.plan import stored_plan

from ..project import files_with
from .docker_world import containers, tool, world  # noqa: F401
from .slurm_world import World, interrupt, until

NO_ENGINE = {"DOCKER_HOST": "unix:///nowhere/docker.sock"}


def test_an_attached_job_is_seen_whole_and_leaves_no_container(world: World) -> None:  # noqa: F811
    done = world.run("speak", "lines=200", "--run", "C")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [*(f"line {n} of rank -" for n in range(200)), "last words"]
    job = world.job(done.stderr)
    assert job.state().state == "succeeded"
    assert until(lambda: containers(world, job.run_id) == [], 10)


def test_a_failed_job_gives_its_exit_code(world: World) -> None:  # noqa: F811
    done = world.run("speak", "code=3", "--run", "C")
    assert done.returncode == 1
    assert "failed: exit code 3" in done.stderr
    assert world.job(done.stderr).state().state == "failed"


def test_the_job_runs_what_was_just_edited_as_whoever_launched_it(world: World) -> None:  # noqa: F811
    source = world.folder / "work.py"
    source.write_text(source.read_text().replace("last words", "edited words"))
    done = world.run("look", "text=a b", "--run", "C")
    assert done.returncode == 0, done.stderr
    job = world.job(done.stderr)
    seen = json.loads((job.path / "seen-0.json").read_text())
    assert seen["text"] == "a b" and seen["cwd"] == str(job.path / "code")
    assert "edited words" in (job.path / "code" / "work.py").read_text()
    assert seen["environment"]["NEMOTRON_HOME"] == str(world.home)
    assert {path.stat().st_uid for path in job.path.rglob("*")} == {os.getuid()}
    assert not world.folder.joinpath("__pycache__").exists()


def test_a_projects_modules_replace_none_that_jobs_need(world: World) -> None:  # noqa: F811
    """Neither here nor in the image, which has no Hydra: a hydra.py there is none, either."""
    recipe = world.folder / "mine"
    recipe.mkdir()
    (world.folder / "work.py").rename(recipe / "__main__.py")
    (recipe / "__init__.py").touch()
    env = world.folder / "env.toml"
    env.write_text(f'[cli]\nrecipes = ["./mine"]\n{env.read_text()}')
    for name in ("types", "json", "sitecustomize", "usercustomize", "numpy", "hydra", "omegaconf", "yaml"):
        (world.folder / f"{name}.py").write_text(f"import os\nos.write(2, b'HOSTILE {name}\\n')\n")
    for profile in ("here", "C"):
        done = tool(world, "work", "speak", "--run", profile)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[:3] == [f"line {n} of rank -" for n in range(3)]
        assert "HOSTILE" not in done.stdout + done.stderr


def test_batch_returns_at_once_and_cancel_stops_the_container(world: World) -> None:  # noqa: F811
    job = world.batch("deaf", "sleep=300")
    assert containers(world, job.run_id) == [f"nk-{job.run_id}-0"]
    assert world.wait(job, "running") == "running"
    listed = json.loads(tool(world, "runs", "--json").stdout)
    assert "running" in json.dumps(listed)
    inside = tool(world, "runs", "shell", job.run_id, "--", "cat", "/proc/1/cmdline")
    assert "docker-init" in inside.stdout, inside.stderr
    done = tool(world, "runs", "cancel", job.run_id)
    assert done.returncode == 0, done.stderr
    assert job.state().state == "cancelled"
    assert until(lambda: containers(world, job.run_id) == [], 15)


def test_a_job_that_is_cancelled_is_told_and_can_save(world: World) -> None:  # noqa: F811
    job = world.batch("step", "steps=600")
    until(lambda: b"from step 0" in job.log_path().read_bytes() if job.log_path().exists() else False)
    done = tool(world, "runs", "cancel", job.run_id)
    assert done.returncode == 0, done.stderr
    assert job.state().state == "cancelled"
    assert "told ['SIGTERM']" in job.log_path().read_text()
    assert int((job.path / "saved").read_text()) > 0


def test_a_container_that_somebody_stops_ends_with_its_checkpoint(world: World) -> None:  # noqa: F811
    job = world.batch("step", "steps=40", "run.env.retries=2")
    until(lambda: b"from step 0" in job.log_path().read_bytes() if job.log_path().exists() else False)
    world.slurm.run("docker", "stop", *containers(world, job.run_id))
    tool(world, "runs", "wait", job.run_id)
    assert (job.state().state, job.state().code) == ("preempted", 75)
    assert f"nothing starts it again: nemotron runs resume {job.run_id}" in str(job.state().error)
    assert "from step 0" not in (again := tool(world, "runs", "resume", job.run_id)).stdout and again.returncode == 0
    tool(world, "runs", "wait", job.run_id)
    assert job.state().state == "succeeded" and job.log_path().read_text().count("from step") == 2
    job = world.batch("stumble", "steps=2", "run.env.retries=2")
    tool(world, "runs", "wait", job.run_id)
    assert (job.state().state, job.state().code) == ("failed", 7)


def test_a_repository_is_fetched_and_mounted(world: World, tmp_path: Path) -> None:  # noqa: F811
    tool_folder = tmp_path / "tool"
    tool_folder.mkdir()
    (tool_folder / "text").write_text("of the repository")
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@example.com", "-C", str(tool_folder)]
    for words in (["init", "-q", "-b", "main"], ["add", "text"], ["commit", "-q", "-m", "one"]):
        subprocess.run([*git, *words], check=True)
    job = world.batch("deaf", "sleep=300", f"run.env.mounts=['${{auto_mount:git+file://{tool_folder}@main,/opt/it}}']")
    assert world.wait(job, "running") == "running"
    inside = tool(world, "runs", "shell", job.run_id, "--", "cat", "/opt/it/text")
    assert inside.stdout == "of the repository", inside.stderr
    assert tool(world, "runs", "cancel", job.run_id).returncode == 0
    assert "a repository" in tool(world, "profiles", "clean", "C", "--unused", "0s").stdout
    # It says how the cancelled one would go on, too.
    again = world.job(tool(world, "runs", "rerun", job.run_id).stderr.replace(job.run_id, ""))
    assert world.wait(again, "running") == "running"
    inside = tool(world, "runs", "shell", again.run_id, "--", "cat", "/opt/it/text")
    assert inside.stdout == "of the repository", "it was fetched again"
    assert tool(world, "runs", "cancel", again.run_id).returncode == 0


def test_ctrl_c_leaves_the_job_alone_and_attach_goes_on(world: World) -> None:  # noqa: F811
    process = world.start("python", "work.py", "speak", "lines=30", "sleep=0.2", "--run", "C")
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline().startswith("line 0")
    assert interrupt(process) <= 2.0
    assert process.returncode == 130
    before = process.stdout.read()
    run = world.only_run()
    after = tool(world, "runs", "attach", run.id)
    assert after.returncode == 0, after.stderr
    expected = [*(f"line {n} of rank -" for n in range(30)), "last words"]
    assert ("line 0 of rank -\n" + before + after.stdout).splitlines() == expected


def test_ctrl_c_cancels_where_the_profile_says_so(world: World) -> None:  # noqa: F811
    process = world.start("python", "work.py", "deaf", "sleep=60", "--run", "undo")
    assert process.stdout is not None
    assert process.stdout.readline().startswith("sleeping")
    interrupt(process)
    assert process.returncode == 130
    assert world.only_run().job().state().state == "cancelled"


def test_a_container_that_is_killed_has_failed(world: World) -> None:  # noqa: F811
    job = world.batch("deaf", "sleep=300")
    assert world.wait(job, "running") == "running"
    world.slurm.run("docker", "kill", f"nk-{job.run_id}-0")
    until(lambda: containers(world, job.run_id) == [], 10)
    done = tool(world, "runs", "wait", job.run_id)
    assert done.returncode == 1, done.stderr
    assert job.state().state == "failed" and "left no record" in str(job.state().error)


def test_submitting_again_starts_nothing(world: World) -> None:  # noqa: F811
    job = world.batch("deaf", "sleep=300")
    run = RunFolder(job.path.parent.parent)
    first = world.slurm.run("docker", "inspect", "--format={{.Id}}", f"nk-{run.id}-0")
    with world.seen():
        plan = load_plan(run, job)
        executor_for(plan.settings).submit(run, [plan])
        # Also where the job's own record does not say yet that it runs.
        for state in (job.path / "state").iterdir():
            if "running" in state.read_text():
                state.unlink()
        executor_for(plan.settings).submit(run, [plan])
    assert containers(world, run.id) == [f"nk-{run.id}-0"]
    assert world.slurm.run("docker", "inspect", "--format={{.Id}}", f"nk-{run.id}-0") == first


def test_a_job_dir_and_a_registry_elsewhere(world: World, tmp_path: Path) -> None:  # noqa: F811
    (tmp_path / "remote").mkdir()
    done = world.run("look", "--run", "apart")
    assert done.returncode == 0, done.stderr
    there = tmp_path / "remote" / "runs" / world.only_run().id / "jobs" / "0"
    seen = json.loads((there / "seen-0.json").read_text())
    assert seen["environment"]["NEMOTRON_HOME"] == str(tmp_path / "remote")
    assert world.only_run().state() == "succeeded"
    assert str(tmp_path / "remote" / "registry") in (there / "env.toml").read_text()


def test_an_image_that_is_not_there(world: World) -> None:  # noqa: F811
    done = world.run("speak", "--batch", "absent")
    assert done.returncode == 2
    assert "localhost:1/nowhere/nothing:1 is not on this machine, and can't be pulled" in done.stderr
    assert "Traceback" not in done.stderr
    assert world.only_run().state() == "failed"


def test_an_image_without_the_profiles_python(world: World) -> None:  # noqa: F811
    done = world.run("speak", "--run", "nopython")
    assert done.returncode == 1
    assert "Docker did not start the container (exit code 127)" in done.stderr and "/nowhere/python" in done.stderr
    assert world.only_run().state() == "failed"
    assert containers(world, world.only_run().id) == []


def test_an_engine_that_is_down(world: World) -> None:  # noqa: F811
    done = world.run("speak", "--batch", "C", **NO_ENGINE)
    assert done.returncode == 3
    assert "engine does not answer" in done.stderr and "DOCKER_HOST" in done.stderr
    job = world.batch("deaf", "sleep=300")
    assert world.wait(job, "running") == "running"
    run = RunFolder(job.path.parent.parent)
    with world.seen(**NO_ENGINE), pytest.raises(Unreachable):
        executor_for(stored_plan(run).settings).observe(run, [job])
    assert tool(world, "runs", "cancel", run.id, **NO_ENGINE).returncode == 3
    assert job.state().state == "running"


def test_a_secret_reaches_the_job_and_no_file(world: World) -> None:  # noqa: F811
    secret, other = "tok-5e0f1a2b3c", "tok-not-for-the-job"
    job = world.batch("speak", "sleep=1", profile="secret", WORK_TOKEN=secret, OTHER_TOKEN=other)
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            assert secret.encode() not in line.read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
    assert world.wait(job) == "succeeded"
    assert files_with(secret, world.home) == files_with(other, world.home) == []
    job = world.batch("look", profile="secret", WORK_TOKEN=secret, OTHER_TOKEN=other)
    assert world.wait(job) == "succeeded"
    seen = json.loads((job.path / "seen-0.json").read_text())["environment"]
    assert seen["WORK_TOKEN"] == secret and "OTHER_TOKEN" not in seen


def test_dry_run_shows_the_words_and_starts_nothing(world: World) -> None:  # noqa: F811
    token = {"WORK_TOKEN": "value-of-it"}
    shown = world.run("speak", "--batch", "secret", "--dry-run", "--json", **NO_ENGINE, **token)
    plan = json.loads(shown.stdout)
    words = plan["container"]["words"]
    assert words[:2] == ["docker", "run"] and "--env=WORK_TOKEN" in words
    assert words[-1] == plan["job_folder"] and "value-of-it" not in shown.stdout
    assert plan["problems"] == [] and not (world.home / "runs").exists()
