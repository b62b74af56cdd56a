"""Overrides in, one composed config out; and every mistake worded, with its place and the nearest name."""

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hydra.core.config_store import ConfigNode, ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf

from nemotron_kit.app import App, ArtifactInput
from nemotron_kit.config.compose import compose
from nemotron_kit.config.freeze import check, freeze
from nemotron_kit.config.limits import faster_omegaconf
from nemotron_kit.config.schema import contradictions
from nemotron_kit.discovery import Tree
from nemotron_kit.envfile import EnvFile
from nemotron_kit.errors import UserError


@dataclass
class Train:
    train_iters: int = 10
    lr: float = 1e-3


@dataclass
class Config:
    data_path: Path
    mode: Literal["fast", "slow"] = "fast"
    train: Train = field(default_factory=Train)
    recipe: dict[str, Any] = field(default_factory=dict)
    limit: int | None = None


@dataclass
class OtherConfig:
    blend: str = ""


@dataclass
class Branch:
    size: int = 1
    child: "Branch" = None  # type: ignore[assignment]


@dataclass
class Stem:
    top: Branch = field(default_factory=Branch)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    configs = tmp_path / "config"
    configs.mkdir()
    (configs / "default.yaml").write_text("train:\n  train_iters: 20\nrecipe: {_target_: a.b}\n")
    (configs / "small.yaml").write_text("defaults: [default, _self_]\ntrain:\n  lr: 0.5\n")
    (configs / "odd.yaml").write_text("train:\n  train_itres: 20\n")
    (configs / "wrong.yaml").write_text("data: Blend:v0\n")
    (configs / "typed.toml").write_text('[train]\ntrain_iters = "many"\n')
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "base.yaml").write_text("limit: 7\n")
    (tmp_path / "other" / "mine.yaml").write_text("defaults: [base]\ntrain: {train_iters: 3}\n")
    app = App("demo")
    inputs = {"data": ArtifactInput("Blend:latest", {"path": "data_path"})}
    app.command("train", Config, print, artifacts=inputs, config_dir=configs, aliases=("fit",))
    app.group("data").group("prep").command("run", OtherConfig, print, config_dir=configs)
    return Tree(apps={"demo": app})


def composed(tree: Tree, *words: str, stage: str = "train") -> Any:
    return compose(tree, ["recipe=demo", f"stage={stage}", *words], EnvFile()).config


def test_a_mistake_beside_a_block_that_is_inside_of_itself_is_an_error() -> None:
    app = App("demo")
    app.command("train", Stem, print)
    with pytest.raises(UserError, match=r"top\.sise: `demo train` has no such field[^$]*\nDid you mean size\?"):
        composed(Tree(apps={"demo": app}), "top.sise=2")
    assert contradictions(["top.size=2"], {"top": {"size": 2}}, Stem) == []


def test_the_file_stands_on_the_dataclass(tree: Tree) -> None:
    config = composed(tree)
    assert (config.train.train_iters, config.train.lr) == (20, 1e-3)
    assert config.recipe == {"_target_": "a.b"}


def test_a_file_stands_on_another_only_by_its_own_defaults(tree: Tree) -> None:
    config = composed(tree, "config=small")
    assert (config.train.train_iters, config.train.lr) == (20, 0.5)


def test_a_file_from_anywhere_with_its_own_siblings(tree: Tree, tmp_path: Path) -> None:
    config = composed(tree, f"config={tmp_path}/other/mine.yaml")
    assert (config.train.train_iters, config.limit) == (3, 7)
    assert config.recipe == {}


def test_an_alias_is_the_same_command(tree: Tree) -> None:
    assert composed(tree, stage="fit") == composed(tree, stage="train")


def test_a_mapped_field_is_the_artifact_until_something_sets_it(tree: Tree) -> None:
    raw = OmegaConf.to_container(composed(tree), resolve=False)
    assert raw["data_path"] == "${art:data,path}"
    assert raw["run"]["data"] == "Blend:latest"
    assert composed(tree, "data_path=/x").data_path == Path("/x")


def test_a_default_file_of_the_folders_other_command_is_passed_over(tree: Tree) -> None:
    result = compose(tree, ["recipe=demo", "stage=data/prep/run"], EnvFile())
    assert result.config.blend == ""
    assert "is the config of `demo train`" in result.notes[0]


def test_a_block_called_recipe_beside_the_group(tree: Tree) -> None:
    assert composed(tree, "recipe.new=1").recipe.new == 1


def test_run_env_takes_any_key(tree: Tree) -> None:
    assert composed(tree, "run.env.nodes=4").run.env == {"nodes": 4}


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["train.train_itres=1"], "train.train_itres: `demo train` has no such field"),
        (["train_iters=1"], "Did you mean train.train_iters?"),
        (["data=Blend:v0"], "Did you mean --art.data Blend:v0?"),
        (["limit=1", "gpus=8"], "Did you mean --run.gpus_per_node=8?"),
        (["nodes=4"], "Did you mean --run.nodes=4?"),
        (["data=Blend\\:v0"], "Did you mean --art.data Blend:v0?"),
        (["config=wrong"], "Did you mean run.data?"),
        (["hydra.job.nmae=x"], "hydra.job.nmae: Hydra's config has no such field (given on the command line).\n"
         "Did you mean name"),
        (["hydra.launcher.via=kit"], "via is a setting of nemotron_kit's launcher: add hydra/launcher=nemo_run."),
        (["hydra/launcher=nemo_run", "hydra.launcher.profil=x"], "Did you mean profile?"),
        (["config=odd"], "odd.yaml:2"),
        (["config=typed"], "train.train_iters: expected int, got 'many'"),
        (["config=smal"], "Did you mean small?"),
        (["config=./nope.yaml"], "-c ./nope.yaml: no such config file."),
        (["train.train_iters=x"], "train.train_iters: expected int, got 'x' (given in train.train_iters=x)"),
        (["limit=1,2"], "Ambiguous value for argument 'limit=1,2'"),
        (["hf_token=abc", ], "a secret must not be given on a command line"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("oc_cause", ["0", "1"])  # with 1, OmegaConf makes an error its own cause
def test_mistakes_are_worded(
    tree: Tree, words: list[str], text: str, oc_cause: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OC_CAUSE", oc_cause)
    with pytest.raises(UserError) as caught:
        composed(tree, *words)
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("recipe", "stage", "text"),
    [
        ("dmeo", "train", "Did you mean demo?"),
        ("demo", "trian", "Did you mean train?"),
        ("demo", "", "No stage was given"),
    ],
)
def test_unknown_commands(tree: Tree, recipe: str, stage: str, text: str) -> None:
    with pytest.raises(UserError, match=text.replace("?", r"\?")):
        compose(tree, [f"recipe={recipe}", *([f"stage={stage}"] if stage else [])], EnvFile())


def test_what_omegaconf_cannot_check_is_checked_before_a_job_starts(tree: Tree) -> None:
    frozen = freeze(composed(tree, "mode=wild"), "/job")
    with pytest.raises(UserError, match="mode: expected one of 'fast', 'slow', got 'wild'"):
        check(frozen, Config)


def test_env_toml_fills_run_wandb(tree: Tree) -> None:
    env = EnvFile(None, {"wandb": {"project": "p", "name": "n"}})
    config = compose(tree, ["recipe=demo", "stage=train"], env).config
    assert config.run.wandb == {"project": "p", "run_name": "n"}


@pytest.mark.parametrize(
    "override",
    [
        *("recipe=nano3", "train.lr=fast", "a._b.c1=X_9", "stage=data", "x=True", "x=null", "x=NaN", "x=inf", "x=Null"),
        *(
            "x=1",
            "x=1e3",
            "x=_",
            "x=",
            "x='a'",
            "x=a b",
            "x=a/b",
            "x=a-b",
            "x=a,b",
            "x=tr\u00fce",
            "+x=a",
            "~x",
            "a.1=b",
        ),
        *("hydra/launcher=basic", "x@y=a", "a.b=nullx", "a=FALSE", "x=int(1)", "$x=a", "a..b=c"),
    ],
)
def test_a_plain_override_means_what_hydra_reads(override: str) -> None:
    def read() -> str:  # as text, since NaN is not equal to itself
        try:
            return repr(OverridesParser.create().parse_override(override))
        except HydraException as error:
            return str(error)

    expected = read()
    with faster_omegaconf():
        assert read() == expected


def test_a_plugins_settings_become_a_config_when_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass
    class Settings:
        number: int = 3

    store = ConfigStore.instance()
    monkeypatch.setattr(store, "repo", {})
    with faster_omegaconf():
        store.store(group="some/group", name="it", node=Settings, package="here", provider="them")
    assert "unmade" in vars(store.repo["some"]["group"]["it.yaml"])
    copied = copy.deepcopy(store.repo)["some"]["group"]["it.yaml"]
    for node in (store.load("some/group/it.yaml"), store.repo["some"]["group"]["it.yaml"], copied):
        assert OmegaConf.get_type(node.node) is Settings
        assert node.node.number == 3
        assert (node.name, node.group, node.package, node.provider) == ("it.yaml", "some/group", "here", "them")
    assert type(copied) is ConfigNode
