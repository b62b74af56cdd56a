"""The document's steps 1 to 6: a recipe in a folder of the user's own."""

from __future__ import annotations

from .rows import row
from .world import World, my_recipe

DEFAULT = "nvidia/NVIDIA-Nemotron-Nano-9B-v2"


@row("Step 1: Define Config Dataclass/1")
def config_dataclass(world: World) -> None:
    """Its fields are the command's: with their defaults, as flags, and checked by type."""
    my_recipe(world)
    plan = world.run("nemotron myrecipe data prep run -c tiny --dry-run --json").json
    config = {key: value for key, value in plan["config"].items() if key != "run"}
    here = str(world.folder)
    assert config == {"blend_path": f"{here}/data_blend.json", "output_dir": f"{here}/output",
                      "tokenizer_model": DEFAULT, "num_shards": 4, "sample": 1000, "force": False}  # fmt: skip
    flags = world.run("nemotron myrecipe data prep run --num-shards 7 --sample 5 --force --dry-run --json").json
    assert {key: flags["config"][key] for key in ("num_shards", "sample", "force")} == {
        "num_shards": 7, "sample": 5, "force": True
    }  # fmt: skip
    wrong = world.run("nemotron myrecipe data prep run num_shards=many", code=2)
    assert "num_shards" in wrong.err and "expected int" in wrong.err and "'many'" in wrong.err
    assert not world.home.exists()


@row("Step 2: Create Data Prep Script/1")
def data_prep_script(world: World) -> None:
    """It registers MyRecipe-data and prints JSON for the next step. With `...` left in, it says so and saves none."""
    my_recipe(world)
    printed = world.run("python -m myrecipe data prep run").json
    assert printed["data_prep"]["name"] == "MyRecipe-data"
    record = world.registry.find("MyRecipe-data:v0")
    assert record.type == "PretrainBlendsArtifact" and record.path == str(world.folder / "output")
    assert record.document["total_tokens"] == 12 and record.document["source_datasets"] == ["file:///data"]
    unfinished = my_recipe(world.same_folder())
    text = unfinished.text("Step 2: Create Data Prep Script/1").replace("total_tokens=12", "total_tokens=...")
    unfinished.write("myrecipe/data_prep.py", text)
    refused = unfinished.run("python -m myrecipe data prep run", code=2)
    assert "total_tokens=Ellipsis: '...' is a placeholder." in refused.err
    assert unfinished.registry.names() == []


@row("Step 3: Create Training Script/1")
def training_script(world: World) -> None:
    """The artifact that it reads fills its config; what it saves descends from it. It also runs as a script."""
    my_recipe(world)
    world.run("python -m myrecipe data prep run")
    world.run("python -m myrecipe train steps=7")
    model = world.registry.find("MyRecipe-model:v0")
    assert (model.type, model.document["step"], model.document["loss"]) == ("ModelArtifact", 7, 1.5)
    assert world.parents("MyRecipe-model:v0") == ["MyRecipe-data:v0"]
    world.write("mine.yaml", "data_path: output\nsteps: 2\n")
    world.run("python -m myrecipe.train --config mine.yaml steps=9")
    assert world.registry.find("MyRecipe-model:latest").document["step"] == 9


@row("Step 4: Wire Up CLI/1")
def wire_up(world: World) -> None:
    """Both commands, with help and the artifact that one reads; a default.yaml of the other command is left to it."""
    my_recipe(world)
    page = world.run("python -m myrecipe --help").out
    assert "My training recipe" in page and "data prep run" in page and "train" in page
    assert "MyRecipe-data:latest" in world.run("nemotron myrecipe train --help").out
    plan = world.run("nemotron myrecipe train --dry-run --json").json
    assert plan["config"]["data_path"] == "${art:data,path}" and plan["references"] == {"data": "MyRecipe-data:latest"}
    assert "No artifact is called 'MyRecipe-data'" in plan["problems"][0]
    assert "nemotron myrecipe data prep run" in plan["problems"][0]
    assert "is the config of `myrecipe data prep run`" in plan["notes"][0]


@row("Step 5: Add Config Files/1")
def default_config(world: World) -> None:
    """Without -c, config/default.yaml; `${oc.env:PWD}` is where the command was typed."""
    my_recipe(world)
    world.run("nemotron myrecipe data prep run")
    config = world.config()
    assert config["num_shards"] == 128 and config["tokenizer_model"] == DEFAULT and config["sample"] is None
    assert config["blend_path"] == str(world.folder / "data_blend.json")


@row("Step 5: Add Config Files/2")
def tiny_config(world: World) -> None:
    """-c tiny is config/tiny.yaml over the dataclass's defaults, by name or by path, here or beside the script."""
    my_recipe(world)
    configs = []
    for given in ("tiny", "config/tiny.yaml", "myrecipe/config/tiny.yaml"):
        plan = world.run(f"nemotron myrecipe data prep run -c {given} --dry-run --json").json
        configs.append({key: value for key, value in plan["config"].items() if key != "run"})
    assert configs[0] == configs[1] == configs[2]
    assert (configs[0]["num_shards"], configs[0]["sample"], configs[0]["tokenizer_model"]) == (4, 1000, DEFAULT)


@row("Step 6: Run/1:1")
def run_it(world: World) -> None:
    """The line of the document, and the same job as `python -m myrecipe …`: equal configs, one version of the data."""
    my_recipe(world)
    said = world.run_line("Step 6: Run/1:1")
    assert said.json["data_prep"]["name"] == "MyRecipe-data" and "succeeded" in said.err
    assert (world.folder / "output" / "made.json").read_text() == (world.folder / "data_blend.json").read_text()
    first = world.config()
    world.run("python -m myrecipe data prep run -c tiny")
    assert world.config() == first
    assert len(world.runs()) == 2 and world.registry.versions("MyRecipe-data") == [0]
