"""A pipeline as a chain on the real Slurm: held back there, ended by a failure, decided on where a stage starts."""

# ruff: noqa: F811
from __future__ import annotations

import json

import pytest

from nemotron_kit.artifacts.registry import open_registry
from nemotron_kit.runs.folder import RunFolder
from nemotron_kit.runs.ledger import list_runs

from ..integration.test_nano3_pipeline import LINE, LINEAGE, STAGES
from ..integration.test_pipeline import APP
from .docker_world import tool
from .slurm_world import World, world  # noqa: F401

PROFILE = """
[chain]
extends = "C"
time = "00:05:00"

[chain.resources.prep]
partition = "preempt"
time = "00:03:00"
"""


@pytest.mark.timeout(300)
def test_a_chain_of_three(world: World) -> None:
    named = 'produces=["Trio-numbers-{config}"]'
    prepared = APP.replace(named, f'{named}, resources="prep"')
    assert prepared != APP
    (world.folder / "trio.py").write_text(f"{prepared}\nif __name__ == '__main__':\n    app.run()\n")
    (world.folder / "trio_numbers.py").write_text("def numbers(n):\n    return list(range(n + 1))\n")
    with (world.folder / "env.toml").open("a") as file:
        file.write(PROFILE)

    def pipeline(*words: str) -> RunFolder:
        world.forked("python", "trio.py", "pipeline", "--batch", "chain", *words)
        return RunFolder(world.home / "runs" / list_runs(stage="pipeline", root=world.home / "runs")[0].id)

    def ended(run: RunFolder) -> list[str]:
        tool(world, "runs", "wait", run.id)
        shown = json.loads(tool(world, "runs", "show", run.id, "--json").stdout)
        return [row["state"] for row in shown["stages"]]

    failed = pipeline("sum.fail=true")
    made, summed, said = (run for record in failed.stages() if (run := failed.stage_run(record)))
    assert ended(failed) == ["succeeded", "failed", "cancelled"]
    assert [made.plan()["settings"]["partition"], summed.plan()["settings"]["partition"]] == ["preempt", "batch"]
    assert said.plan()["dependency"] and said.plan()["after"] == [summed.id]
    # The same line without the mistake goes on at the failed stage, and what nothing has changed of is found again.
    assert ended(pipeline()) == ["skipped", "succeeded", "succeeded"]
    assert ended(pipeline("--force", "data.make-it")) == ["succeeded", "skipped", "skipped"]


@pytest.mark.timeout(420)
def test_nano3_from_raw_text_to_the_evaluation(world: World) -> None:
    with (world.folder / "env.toml").open("a") as file:
        file.write(PROFILE)
    words = [word for word in LINE.split()[1:] if word != "--json"]
    done = tool(world, *words, "--batch", "chain", timeout=120)
    assert done.returncode == 0, done.stderr
    run = list_runs(stage="pipeline", root=world.home / "runs")[0].id
    tool(world, "runs", "wait", run, timeout=360)
    shown = json.loads(tool(world, "runs", "show", run, "--json").stdout)
    assert [(row["stage"], row["state"]) for row in shown["stages"]] == [(stage, "succeeded") for stage in STAGES], (
        shown
    )
    partitions = {
        row["stage"]: RunFolder(world.home / "runs" / row["run"]).plan()["settings"]["partition"]
        for row in shown["stages"]
    }
    assert partitions == {stage: "preempt" if "prep" in stage else "batch" for stage in STAGES}
    registry = open_registry(world.home / "artifacts")
    assert {name: {pin.label for pin in registry.find(name).inputs} for name in LINEAGE} == LINEAGE
