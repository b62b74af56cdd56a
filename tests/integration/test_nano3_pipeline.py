"""nano3's pipeline from an empty home, with few steps: seven stages, one lineage, and nothing to do the second time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .document.world import World

STAGES = ["data/prep/pretrain", "pretrain", "data/prep/sft", "sft", "data/prep/rl", "rl", "eval"]
LINE = (
    "nemotron nano3 pipeline -c tiny --json"
    " data.prep.pretrain.sample=60 pretrain.train.train_iters=6 pretrain.train.eval_iters=1"
    " data.prep.sft.sample=200 sft.train.train_iters=3"
    " rl.grpo.max_num_steps=2 rl.grpo.num_prompts_per_step=4 rl.grpo.max_val_samples=8"
    " eval.limit=16"
)
# From the evaluation back to the raw text.
LINEAGE = {
    "EvalArtifact-tiny:v0": {"ModelArtifact-rl:v0", "SFTDataArtifact-tiny:v0", "SplitJsonlDataArtifact-rl:v0"},
    "ModelArtifact-rl:v0": {"ModelArtifact-sft:v0", "SplitJsonlDataArtifact-rl:v0"},
    "ModelArtifact-sft:v0": {"ModelArtifact-pretrain:v0", "SFTDataArtifact-tiny:v0"},
    "ModelArtifact-pretrain:v0": {"PretrainBlendsArtifact-tiny:v0"},
}


@pytest.mark.timeout(600)
def test_all_stages_from_nothing_and_none_again(tmp_path: Path) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    world = World({}, folder, tmp_path / "home")
    first = json.loads(world.run(LINE).out.splitlines()[-1])
    assert [(row["stage"], row["state"]) for row in first["stages"]] == [(stage, "succeeded") for stage in STAGES]
    again = json.loads(world.run(LINE).out.splitlines()[-1])
    assert [(row["stage"], row["state"]) for row in again["stages"]] == [(stage, "skipped") for stage in STAGES]
    assert {name: set(world.parents(name)) for name in LINEAGE} == LINEAGE
    # What is changed, and what stands on it, runs again.
    graph = json.loads(world.run(LINE.replace("max_num_steps=2", "max_num_steps=3") + " --dry-run").out)
    assert [row["decision"] for row in graph["stages"]] == ["skip"] * 5 + ["run"] * 2
    assert graph["stages"][5]["why"] == "grpo.max_num_steps 2 → 3"
