"""The document's snippets on building a command line, artifacts as inputs, profiles and scripts."""

from __future__ import annotations

import json

import yaml

from .rows import row
from .world import BLEND, ENV_TOML, World, my_recipe, save_artifact


@row("Basic Structure/1")
def basic_structure(world: World) -> None:
    """Groups, a command, and its dataclass's fields, in the help at every level."""
    _myrecipe(world, "Basic Structure/1")
    assert "My training recipe" in world.run("nemotron --help").out
    assert "data prep stage1" in world.run("nemotron myrecipe --help").out
    page = world.run("nemotron myrecipe data prep stage1 --help").out
    assert "--blend-path path" in page and "--output-dir path" in page and "[128]" in page
    missing = world.run("nemotron myrecipe data prep stage1", code=2)
    assert "blend_path has no value" in missing.err and "output_dir has no value" in missing.err


@row("Basic Structure/2:1")
def fields_as_flags(world: World) -> None:
    """With values the command runs; as printed, with `...`, it is refused, and nothing is written."""
    _myrecipe(world, "Basic Structure/1")
    printed = world.snippets["Basic Structure/2:1"].text.removeprefix("uv run ")
    refused = world.run(printed, code=2)
    assert "blend_path: '...' is a placeholder." in refused.err
    assert not world.home.exists() and not (world.folder / "...").exists()
    world.run_line("Basic Structure/2:1")
    config = world.config()
    assert (config["blend_path"], config["output_dir"], config["num_shards"]) == ("blend.json", "out", 128)


@row("Command Registration/1")
def command_registration(world: World) -> None:
    """The handler gets the typed config here; a job of its own process runs the script with --config."""
    script = world.place("Command Registration/1", "myrecipe/cli.py")
    world.write("myrecipe/__init__.py", "")
    world.write("env.toml", ENV_TOML + '\n[here]\nexecutor = "local"\n')
    assert "Run training" in world.run("nemotron myrecipe --help").out
    assert "called with a config: lr=0.5" in world.run("nemotron myrecipe train lr=0.5").out
    world.run("nemotron myrecipe train --batch here lr=0.25")
    world.run("nemotron runs wait latest")
    assert "called as a script: lr=0.25" in world.run("nemotron runs logs latest").out
    assert world.config()["run"]["recipe"] == {"name": "myrecipe/train", "script": str(script)}


@row("Nested Groups/1")
def nested_groups(world: World) -> None:
    """Three commands two groups down, each with its own config and handler."""
    world.place("Nested Groups/1", "nano3/__main__.py")
    page = world.run("python -m nano3 --help").out
    for name, size in (("pretrain", 1), ("sft", 2), ("rl", 3)):
        assert f"data prep {name}" in page
        assert f"{name}: {size}\n" in world.run(f"python -m nano3 data prep {name}").out
    assert "Did you mean sft?" in world.run("python -m nano3 data prep stf", code=2).err


@row("Nested Groups/2:1")
def nano3_data_prep(world: World) -> None:
    _published_blend_is_refused(world, "Nested Groups/2:1")


@row("Nested Groups/2:2")
def nano3_data_prep_sft(world: World) -> None:
    """Without a network what is published is refused in a line; `-c tiny` makes packed rows of chats."""
    _hub_is_refused(world, "Nested Groups/2:2")
    made = world.run_line("Nested Groups/2:2", " -c tiny sample=40").json
    assert made["data"]["name"] == "SFTDataArtifact-tiny"
    assert (world.registry.find("SFTDataArtifact-tiny:v0").path or "").endswith("/splits")


@row("Nested Groups/2:3")
def nano3_data_prep_rl(world: World) -> None:
    """The same for RL's rows."""
    _hub_is_refused(world, "Nested Groups/2:3")
    made = world.run_line("Nested Groups/2:3", " -c tiny sample=40").json
    assert made["data"]["name"] == "SplitJsonlDataArtifact-rl"
    assert world.registry.find("SplitJsonlDataArtifact-rl:v0").path.endswith("/manifest.json")


@row("ArtifactInput/1")
def artifact_input(world: World) -> None:
    """Each input fills its field with the latest version's path, or with what --art names; the run records both."""
    _myrecipe(world, "ArtifactInput/1")
    old = save_artifact(world, "PretrainBlendsArtifact", "PretrainBlendsArtifact-default", "old")
    world.write("new/more.txt", "more")
    new = save_artifact(world, "PretrainBlendsArtifact", "PretrainBlendsArtifact-default", "new")
    model = save_artifact(world, "ModelArtifact", "ModelArtifact-pretrain", "weights")
    assert world.run("nemotron myrecipe train").json == {"data": str(new), "model": str(model)}
    assert world.inputs() == {"data": "PretrainBlendsArtifact-default:v1", "model": "ModelArtifact-pretrain:v0"}
    for given in ("v0", "0", "PretrainBlendsArtifact-default:v0", "./old"):
        assert world.run(f"nemotron myrecipe train --art.data {given}").json["data"] == str(old)
    absent = world.run("nemotron myrecipe train --art.data Absent:v3", code=2)
    assert "No artifact is called 'Absent'" in absent.err and "PretrainBlendsArtifact-default" in absent.err


@row("Artifact Resolution in Config/1")
def artifact_in_config(world: World) -> None:
    """`run.data` names the artifact, `${art:data,path}` is its folder: pinned in the plan, resolved in the job."""
    world.place("Artifact Resolution in Config/1", "config.yaml")
    world.write("myrecipe/__init__.py", "")
    world.write("myrecipe/app.py", _PRINTS_RECIPE)
    world.write("env.toml", ENV_TOML)
    folder = save_artifact(world, "PretrainBlendsArtifact", "PretrainBlendsArtifact-default", "data")
    for command in ("nano3 pretrain", "myrecipe show"):
        plan = world.run(f"nemotron {command} -c config.yaml --dry-run --json").json
        assert (
            plan["inputs"]["data"]["name"] == "PretrainBlendsArtifact-default"
            and plan["inputs"]["data"]["version"] == 0
        )
        assert plan["config"]["recipe"]["per_split_data_args_path"] == "${art:data,path}/blend.json"
    assert f"{folder}/blend.json\n" in world.run("nemotron myrecipe show -c config.yaml").out
    resolved = yaml.safe_load((world.runs()[-1] / "resolved.yaml").read_text())
    assert resolved["recipe"]["per_split_data_args_path"] == f"{folder}/blend.json"


@row("Local Execution/1:1")
def local_nemotron(world: World) -> None:
    _published_blend_is_refused(world, "Local Execution/1:1")


@row("Local Execution/1:2")
def local_script(world: World) -> None:
    """The script of step 2, started by itself: config file found here, JSON printed, artifact registered."""
    _script(world)
    assert world.run_line("Local Execution/1:2").json["data_prep"]["name"] == "MyRecipe-data"
    assert world.registry.find("MyRecipe-data:v0").path == str(world.folder / "prepared")


@row("Local Execution/1:3")
def local_script_overrides(world: World) -> None:
    """The override reaches the config although the document's script never applies it; a wrong one is refused."""
    _script(world)
    program = (world.folder / "data_prep.py").read_text().replace("# Process", "#").replace(
        "    cfg.output_dir.mkdir", "    print(f'shards: {cfg.num_shards}')\n    cfg.output_dir.mkdir"
    )  # fmt: skip
    world.write("data_prep.py", program)
    assert "shards: 8\n" in world.run_line("Local Execution/1:2").out
    assert "shards: 64\n" in world.run_line("Local Execution/1:3").out
    wrong = world.run("python data_prep.py --config config.yaml num_shard=64", code=2)
    assert "num_shard: no such field" in wrong.err and "num_shards" in wrong.err


@row("NeMo-Run Integration/2")
def profile(world: World) -> None:
    """The profile, listed and read with its types; a launch to it can be planned."""
    world.place("NeMo-Run Integration/2", "env.toml")
    rows = world.run("nemotron profiles show MY-CLUSTER --json").json["fields"]
    expected = {"executor": "slurm", "account": "my-account", "partition": "batch", "nodes": 2, "gpus_per_node": 8}
    assert {each["field"]: each["value"] for each in rows if each["from"].startswith("env.toml")} == expected
    read = world.python(
        "import json\nfrom dataclasses import asdict\nfrom nemotron.kit.run import load_run_profile\n\n"
        "print(json.dumps(asdict(load_run_profile('MY-CLUSTER'))))\n"
    ).json
    assert {key: read[key] for key in expected} == expected
    assert json.dumps(read["time"]) == '"04:00:00"'


_PRINTS_RECIPE = """\
from dataclasses import dataclass, field
from typing import Any
from nemotron.kit import App

@dataclass
class Config:
    recipe: dict[str, Any] = field(default_factory=dict)

def main(cfg: Config) -> None:
    print(cfg.recipe["per_split_data_args_path"])

app = App("myrecipe")
app.command("show", Config, main)
"""


def _myrecipe(world: World, key: str) -> None:
    """A snippet that makes an app, as the recipe that env.toml names."""
    world.write("myrecipe/__init__.py", "")
    world.place(key, "myrecipe/__main__.py")
    world.write("blend.json", BLEND)
    world.write("env.toml", ENV_TOML)


def _script(world: World) -> None:
    """Step 2's script beside the recipe's folder, and a config.yaml for it."""
    my_recipe(world)
    world.place("Step 2: Create Data Prep Script/1", "data_prep.py")
    world.write("config.yaml", "blend_path: data_blend.json\noutput_dir: prepared\nnum_shards: 8\n")


def _hub_is_refused(world: World, key: str) -> None:
    refused = world.run_line(key, code=2)
    assert "HF_HUB_OFFLINE is set; try -c tiny" in refused.err
    assert not world.runs()


def _published_blend_is_refused(world: World, key: str) -> None:
    """Without -c the whole published blend is meant, which no machine without a network can have: told in seconds."""
    refused = world.run_line(key, code=2)
    assert "T tokens" in refused.err and "TB" in refused.err and "try -c tiny" in refused.err
    assert not world.home.exists()
    plan = world.run_line(key, " --dry-run --json").json
    assert plan["config_name"] == "default" and "try -c tiny" in "".join(plan["problems"])
