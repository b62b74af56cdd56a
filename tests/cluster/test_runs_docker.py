"""`nemotron runs …` about jobs in containers of the real engine."""

from __future__ import annotations

import json
import time

from nemotron_kit.runs.folder import RunFolder

from .docker_world import tool, world  # noqa: F401
from .slurm_world import World, until


def test_a_container_is_seen_entered_followed_and_stopped(world: World) -> None:  # noqa: F811
    job = world.batch("speak", "lines=60", "sleep=0.5")
    until(lambda: job.state().state == "running" or None, 40)
    found = json.loads(tool(world, "runs", "show", job.run_id, "--json").stdout)
    assert (found["state"], found["executor"]) == ("running", "docker")
    assert "running" in tool(world, "runs").stdout
    said = tool(world, "runs", "shell", job.run_id, "--", "sh", "-c", 'pwd; echo "$1"', "sh", "a 'b' $c")
    assert said.stdout.splitlines() == [str(job.path), "a 'b' $c"], said.stderr
    gone = tool(world, "runs", "show", job.run_id, DOCKER_HOST="unix:///nowhere")
    time.sleep(3)  # for so long everybody hears what was said last
    gone = tool(world, "runs", "show", job.run_id, DOCKER_HOST="unix:///nowhere")
    assert gone.returncode == 3 and "unreachable" in gone.stdout and "last known  running" in gone.stdout
    assert "cancelled" in tool(world, "runs", "cancel", job.run_id).stdout
    attached = tool(world, "runs", "attach", job.run_id)
    assert attached.returncode == 4 and attached.stdout.startswith("line 0 of rank -\nline 1 of rank -\n")
    assert tool(world, "runs", "logs", job.run_id).stdout == attached.stdout
    assert "there is nothing to enter" in tool(world, "runs", "shell", job.run_id).stderr
    assert tool(world, "runs", "rm", job.run_id).returncode == 0 and not job.path.exists()


def test_a_rerun_in_a_container(world: World) -> None:  # noqa: F811
    first = world.batch("speak", "lines=1")
    assert world.wait(first) == "succeeded"
    done = tool(world, "runs", "rerun", first.run_id, "lines=2", "--run", "C")
    assert done.returncode == 0 and done.stdout.count("line") == 2, done.stderr
    again = world.job(done.stderr)
    assert RunFolder(again.path.parent.parent).plan()["rerun_of"] == first.run_id
    found = json.loads(tool(world, "runs", "diff", first.run_id, again.run_id, "--json").stdout)["differences"]
    assert found.pop("launch") == {"mode": {"a": "batch", "b": "run"}}
    assert found == {"config": {"lines": {"a": 1, "b": 2}}}
