"""Jobs in a container of the real Apptainer, on the real Slurm: see scripts/apptainer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nemotron_kit.runs.folder import RunFolder

from .docker_world import tool
from .slurm_world import World, log, made_world, until

TOKEN = "of-the-launch"  # noqa: S105 — of no service
# What the image of the tests has not: programs, and this environment's Python.
HERE = ("/usr", sys.prefix, os.path.realpath(sys.base_prefix), str(Path(__file__).resolve().parents[2]))


@pytest.fixture(scope="module")
def world(slurm: Any, apptainer: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Profiles whose jobs run in `image.sif`, which says IMAGE_SAYS=image and WORK_TOKEN=image."""
    place = tmp_path_factory.mktemp("apptainer")
    root = place / "root"
    for name in ("usr", "etc", "proc", "sys", "dev", "tmp", "var/tmp", "root", "home", ".singularity.d/env"):
        (root / name).mkdir(parents=True)
    for name in ("bin", "lib", "lib64", "sbin"):
        (root / name).symlink_to(f"usr/{name}")
    variables = root / ".singularity.d" / "env" / "90-environment.sh"
    variables.write_text("#!/bin/sh\nexport IMAGE_SAYS=image WORK_TOKEN=image\n")
    variables.chmod(0o755)
    image = place / "image.sif"
    build = [str(apptainer), "build", "--force", str(image), str(root)]
    subprocess.run(build, check=True, capture_output=True, timeout=60)
    with made_world(slurm, place) as made:
        made.env["PATH"] = f"{apptainer.parent}:{os.environ['PATH']}"
        mounts = json.dumps([*HERE, f"{place}/root:/seen:ro"])
        with (made.folder / "env.toml").open("a") as file:
            file.write(
                f'\n[A]\nextends = "C"\ncontainer_runtime = "apptainer"\ncontainer_image = "{image}"\n'
                f'python = "{sys.executable}"\nmounts = {mounts}\nsecrets = ["WORK_TOKEN"]\n'
                f'env_vars = ["MINE=m y"]\n\n[A2]\nextends = "A"\nnodes = 2\nnproc_per_node = 2\n'
                f'\n[gone]\nextends = "A"\ncontainer_image = "{place}/gone.sif"\n'
            )
        yield made


def test_jobs_in_the_container(world: World) -> None:
    """What a job sees, its exit code, a signal, two nodes; and an image that is not there."""
    looks, fails, steps, gone = (
        world.batch(*words, profile=profile, WORK_TOKEN=TOKEN, PYTHONPATH="/nowhere")
        for words, profile in (
            (("look", "text=abc"), "A"),
            (("speak", "code=42", "lines=1"), "A"),
            (("step", "steps=900"), "A"),
            (("speak",), "gone"),
        )
    )
    until(lambda: "from step" in log(steps), 60)
    line = ("sh", "-c", "echo $APPTAINER_CONTAINER $(pwd)")
    inside = tool(world, "runs", "shell", steps.run_id, "--", *line).stdout.split()
    assert inside[0].endswith("/image.sif") and inside[1] == str(steps.path)
    checked = tool(world, "profiles", "check", "A", "--node", "--json", WORK_TOKEN=TOKEN)
    found = {finding["what"]: finding for finding in json.loads(checked.stdout)}
    assert checked.returncode == 0 and "omegaconf" in found["python of image"]["detail"], checked.stdout
    world.slurm.run("scancel", "--signal=USR1", *world.slurm_ids(RunFolder(steps.path.parent.parent)))

    assert world.wait(looks) == "succeeded"
    seen = json.loads((looks.path / "seen-0.json").read_text())
    env = seen["environment"]
    assert env["APPTAINER_CONTAINER"].endswith("/image.sif") and env["IMAGE_SAYS"] == "image"
    assert (env["WORK_TOKEN"], env["MINE"]) == (TOKEN, "m y"), "the launch's, not the image's"
    assert env.get("PYTHONPATH") != "/nowhere"
    assert (env["TMPDIR"], env["PYTHONNOUSERSITE"]) == ("/tmp", "1")
    assert (seen["text"], seen["cwd"]) == ("abc", str(looks.path / "code"))
    assert TOKEN not in "".join(path.read_text() for path in (looks.path.parents[1] / "slurm").glob("*.*"))

    assert world.wait(fails) == "failed"
    assert json.loads((fails.path / "exit.json").read_text())["code"] == 42
    until(lambda: "told ['SIGUSR1']" in log(steps), 60)
    until(lambda: any(entry["state"] == "preempted" for entry in steps.history()), 30)
    said = until(lambda: text if "gone.sif" in (text := tool(world, "runs", "show", gone.run_id).stdout) else "", 60)
    assert "before the job began" in said and "failed" in said


def test_two_nodes_compute_together_in_containers(world: World) -> None:
    done = world.run("allreduce", "--run", "A2", WORK_TOKEN=TOKEN)
    assert done.returncode == 0, done.stderr
    assert "of 4: sum 6" in log(world.job(done.stderr))
