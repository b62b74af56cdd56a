"""The document's lines that train nano3: on real shards, for a few steps."""

from __future__ import annotations

from typing import Any

from .rows import row
from .world import World


@row("Examples/1:1", prepared=True)
def config_by_path(world: World) -> None:
    """A path that stands beside the command's script; the config is that of -c tiny, the model is registered."""
    by_path = world.run_line("Examples/1:1", " --dry-run --json").json
    by_name = world.run("nemotron nano3 pretrain -c tiny train.train_iters=3 train.eval_iters=1 --dry-run --json").json
    assert _own(by_path) == _own(by_name) and by_path["config"]["train"]["train_iters"] == 3
    world.run_line("Examples/1:1")
    model = world.registry.find("ModelArtifact-pretrain:v0")
    assert model.document["step"] == 3 and world.parents("ModelArtifact-pretrain:v0") == [
        "PretrainBlendsArtifact-tiny:v0"
    ]
    metrics = (world.runs()[-1] / "metrics.jsonl").read_text()
    assert '"valid_loss"' in metrics


@row("Examples/1:4")
def dry_run_on_a_cluster(world: World) -> None:
    """The profile of the document: the job composes, and what stands in its way is listed, on this machine too."""
    world.place("NeMo-Run Integration/2", "env.toml")
    page = world.run_line("Examples/1:4").out
    assert "profile MY-CLUSTER (slurm)" in page
    problems = page.partition("\nProblems\n")[2]
    assert "No artifact is called 'PretrainBlendsArtifact-default'" in problems
    assert "Make it with: nemotron nano3 data prep pretrain" in problems
    plan = world.run_line("Examples/1:4", " --json").json
    assert (plan["executor"], plan["settings"]["nodes"], plan["settings"]["account"]) == ("slurm", 2, "my-account")
    assert not world.home.exists()


@row("Examples/1:5", prepared=True)
def other_artifact(world: World) -> None:
    """`nano3 train` is pretrain; it reads the artifact that --art.data names."""
    world.python(_SAVE_AS_V2)
    big = world.run(world.snippets["Examples/1:5"].text.removeprefix("uv run "), code=2)
    assert "31.6 B parameters" in big.err and "try -c tiny" in big.err
    world.run_line("Examples/1:5")
    assert world.inputs() == {"data": "PretrainBlendsArtifact-v2:v0"}
    assert world.parents("ModelArtifact-pretrain:v0") == ["PretrainBlendsArtifact-v2:v0"]


@row("Examples/1:6", prepared=True)
def override(world: World) -> None:
    """The value is in the plan, as a number, and nothing else changes; on the default config too."""
    changed = world.run_line("Examples/1:6").json
    plain = world.run("nemotron nano3 pretrain -c tiny --dry-run --json").json
    assert changed["config"]["train"] == {**plain["config"]["train"], "train_iters": 5000}
    assert not changed["problems"]
    default = world.run("nemotron nano3 pretrain train.train_iters=5000 --dry-run --json").json
    assert default["config"]["train"]["train_iters"] == 5000


@row("Direct Torchrun/1:1", prepared=True)
def torchrun(world: World) -> None:
    """Two ranks train one model: one version in the registry, from the data of the config."""
    world.run_line("Direct Torchrun/1:1")
    assert world.registry.versions("ModelArtifact-pretrain") == [0]
    model = world.registry.find("ModelArtifact-pretrain:v0")
    assert model.document["step"] == 3 and model.document["metadata"]["tokens"] == 3 * 8 * 128
    assert world.parents("ModelArtifact-pretrain:v0") == ["PretrainBlendsArtifact-tiny:v0"]


_SAVE_AS_V2 = """\
from nemotron.kit import PretrainBlendsArtifact

data = PretrainBlendsArtifact.from_uri("art://PretrainBlendsArtifact-tiny")
data.save(name="PretrainBlendsArtifact-v2")
"""


def _own(plan: dict[str, Any]) -> dict[str, Any]:
    """A plan's config without the folder of its run."""
    folder = plan["job_folder"]
    return {key: str(value).replace(folder, "") for key, value in plan["config"].items()}
