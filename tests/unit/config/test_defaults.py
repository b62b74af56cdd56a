"""Groups that lie beside a job file: named in its defaults list, chosen anew on the command line."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from nemotron_kit.app import App
from nemotron_kit.config.compose import compose, refuse_deleted_fields, refuse_group_choices
from nemotron_kit.discovery import Tree
from nemotron_kit.envfile import EnvFile
from nemotron_kit.errors import UserError
from nemotron_kit.train_script import (
    apply_hydra_overrides,
    load_omegaconf_yaml,
    omegaconf_to_dataclass,
    parse_config_and_overrides,
)

from ...project import write_files


@dataclass
class Optimizer:
    name: str = "none"
    lr: float = 1e-3
    betas: list[float] = field(default_factory=list)


@dataclass
class Config:
    optimizer: Optimizer = field(default_factory=Optimizer)
    second: Optimizer = field(default_factory=Optimizer)
    limit: int = 0
    rates: dict[str, float] = field(default_factory=lambda: {"warm": 0.1})
    parts: dict[str, Optimizer] = field(default_factory=lambda: {"lr": Optimizer()})


FILES = {
    "config/named.yaml": "defaults: [{optimizer: adam}, _self_]\nlimit: 1\n",
    "config/optimizer/adam.yaml": "name: adam\nbetas: [0.9]\n",
    "config/optimizer/sgd.toml": 'name = "sgd"\n',
    "config/optimizer/fast.json": '{"defaults": ["adam", "_self_"], "lr": 7}',
    "config/optimizer/all.yaml": "# everything at once\n# @package _global_\nlimit: 9\n",
    "config/optimizer/tuned/best.yaml": "name: best\n",
    "config/rates/slow.yaml": "cold: 0.5\n",
    "other/base.yaml": "defaults: [{optimizer: sgd}]\n",
    "other/mine.yaml": "defaults: [base, {optimizer@second: sgd}, _self_]\nsecond: {lr: 5}\n",
    "other/listed.toml": 'defaults = ["optimizer/sgd"]\n',
    "other/optimizer/sgd.yaml": "name: other\n",
    "other/odd.yaml": "defaults: [{optimizer: wrong}]\n",
    "other/optimizer/wrong.yaml": "lr: 1\nnmae: x\n",
    "other/gone.yaml": "defaults: [{optimizer: nothing}]\n",
    "other/lost.yaml": "defaults: [{deployment: generic}]\n",
    "other/taken.yaml": "defaults: [{config: x}]\n",
    "other/empty.yaml": "defaults: [{'': x}]\n",
    "other/up.yaml": "defaults: [{../optimizer: sgd}]\n",
    "other/out.yaml": "defaults: [../../etc/passwd]\n",
    "other/here.yaml": "defaults: [./base]\n",
    "other/number.yaml": "defaults: [3]\n",
    "other/two.yaml": "defaults: [{a: b, c: d}]\n",
    "other/bse.yaml": "defaults: [bsae]\n",
    "other/round.yaml": "defaults: [trip]\n",
    "other/trip.yaml": "defaults: [round]\n",
    "other/packed.yaml": "defaults: [plain@second, _self_]\n",
    "other/plain.yaml": "lr: 6\n",
    "other/100.yaml": "limit: 100\n",
    "other/null.yaml": "limit: 101\n",
    "other/a b=c,d.yaml": "limit: 102\n",
    "config/1e3.yaml": "limit: 103\n",
    "other/over.yaml": "defaults: [base, override optimizer: sgd]\n",
}


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tree:
    write_files(tmp_path, FILES)
    monkeypatch.chdir(tmp_path)
    app = App("demo")
    app.command("train", Config, print, config_dir=tmp_path / "config")
    return Tree(apps={"demo": app})


def composed(tree: Tree, *words: str) -> Any:
    config = compose(tree, ["recipe=demo", "stage=train", *words], EnvFile()).config
    return {key: value for key, value in OmegaConf.to_container(config).items() if key != "run"}  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("words", "optimizer", "limit"),
    [
        (["config=named"], ("adam", 1e-3, [0.9]), 1),
        (["config=named", "optimizer=sgd"], ("sgd", 1e-3, []), 1),
        (["config=named", "optimizer=fast", "optimizer.lr=8"], ("adam", 8.0, [0.9]), 1),
        (["config=named", "optimizer=all"], ("none", 1e-3, []), 1),  # _self_ comes last
        (["config=named", "optimizer=tuned/best"], ("best", 1e-3, []), 1),
        (["config=other/base.yaml"], ("other", 1e-3, []), 0),
        (["config=other/mine.yaml"], ("other", 1e-3, []), 0),
        (["config=other/here.yaml"], ("other", 1e-3, []), 0),
        (["config=other/listed.toml"], ("other", 1e-3, []), 0),
    ],
)
def test_a_group_beside_the_file(words: list[str], optimizer: tuple[Any, ...], limit: int, tree: Tree) -> None:
    values = composed(tree, *words)
    assert (tuple(values["optimizer"].values()), values["limit"]) == (optimizer, limit)
    assert values["second"]["name"] == ("other" if "mine" in words[0] else "none")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["config=other/odd.yaml"], r"optimizer\.nmae: .*no such field .*optimizer/wrong\.yaml:2"),
        (
            ["config=other/gone.yaml"],
            r"gone\.yaml:\d+: defaults: there is no config 'optimizer/nothing'\.\nThere is: .*adam",
        ),
        (["config=named", "optimizer=nothing"], r"^optimizer=nothing: there is no config .*\nThere is: adam"),
        (
            ["hydra/job_logging=nothing"],
            r"^hydra/job_logging=nothing: there is no .*\nThere is: default, disabled",
        ),
        (["config=other/lost.yaml"], r"lost\.yaml:1: defaults: there is no config 'deployment/generic'.\n.*no folder"),
        (["config=other/taken.yaml"], r"taken\.yaml: defaults: a group can't be called 'config'"),
        (["config=other/empty.yaml"], r"empty\.yaml: defaults: '' is no group"),
        (["config=other/up.yaml"], r"up\.yaml: defaults: '\.\./optimizer' is no group"),
        (["config=other/out.yaml"], r"out\.yaml: defaults: '\.\./\.\./etc/passwd' is no group"),
        (["config=other/number.yaml"], r"number\.yaml: defaults: 3 is no entry"),
        (["config=other/two.yaml"], r"two\.yaml: defaults: .*'c': 'd'. is no entry"),
        (["config=other/bse.yaml"], r"bse\.yaml: defaults: there is no config 'bsae' beside it\.\nDid you mean base"),
        (["config=other/round.yaml"], r"form a circle"),
        (["config=other/over.yaml"], r"can't override the choice of another file.\nChoose .*\(optimizer=…\)"),
    ],
)
def test_what_is_wrong_with_a_group(words: list[str], said: str, tree: Tree) -> None:
    with pytest.raises(UserError, match=said):
        composed(tree, *words)


@pytest.mark.parametrize(
    ("words", "optimizer", "limit"),
    [
        (["optimizer=sgd"], ("sgd", 1e-3, []), 0),
        (["+optimizer=sgd"], ("sgd", 1e-3, []), 0),
        (["optimizer=fast", "+optimizer=fast", "optimizer=sgd"], ("sgd", 1e-3, []), 0),  # the last wins
        (["optimizer=2e3"], ("number", 1e-3, []), 0),
        (["optimizer=fast", "optimizer.betas=[1]"], ("adam", 7.0, [1.0]), 0),
        (["optimizer=tuned/best"], ("best", 1e-3, []), 0),
        (["optimizer=all"], ("none", 1e-3, []), 9),
        (["experiment=one"], ("sgd", 0.5, []), 3),
        (["config=1e3", "optimizer=sgd"], ("sgd", 1e-3, []), 103),
        (["config=1e3", "optimizer={name: mine}"], ("mine", 1e-3, []), 103),
        (["config=other/base.yaml", "optimizer=sgd"], ("other", 1e-3, []), 0),  # the group that its file names
    ],
)
def test_a_group_in_the_config_folder_needs_no_defaults_entry(
    words: list[str], optimizer: tuple[Any, ...], limit: int, tree: Tree, tmp_path: Path
) -> None:
    (tmp_path / "config" / "experiment").mkdir()
    (tmp_path / "config" / "experiment" / "one.yaml").write_text(
        "# @package _global_\noptimizer: {name: sgd, lr: 0.5}\nlimit: 3\n"
    )
    (tmp_path / "config" / "optimizer" / "2e3.yaml").write_text("name: number\n")
    values = composed(tree, *words)
    assert (tuple(values["optimizer"].values()), values["limit"]) == (optimizer, limit)


def test_a_recorded_config_takes_values_and_no_group(tree: Tree) -> None:
    command = tree.apps["demo"].commands()[0]
    refuse_group_choices(command, ["optimizer.lr=1", "optimizer={lr: 1}", "limit=3"])
    with pytest.raises(UserError, match=r"optimizer=sgd chooses a config file.*\nSet its values \(optimizer\.KEY"):
        refuse_group_choices(command, ["limit=3", "optimizer=sgd"])


def test_what_no_group_holds_is_named(tree: Tree, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"argument 'optimizer=sgd,fast'.*\nAdd -m") as wrong:
        composed(tree, "optimizer=sgd,fast")
    assert "+" not in str(wrong.value)
    with pytest.raises(UserError, match=r"optimizer=sdg: optimizer has no option 'sdg'\.\nDid you mean sgd"):
        composed(tree, "optimizer=sdg")
    with pytest.raises(UserError, match=r"optimizer: chosen twice.*\n.* optimizer=…, without a \+"):
        composed(tree, "config=other/base.yaml", "+optimizer=sgd")
    (tmp_path / "config" / "run").mkdir()
    (tmp_path / "config" / "run" / "one.yaml").write_text("a: 1\n")
    with pytest.raises(UserError, match=r"^run: expected a block"):  # the launcher's section is no group
        composed(tree, "run=one")
    (tmp_path / "config" / "limit").mkdir()
    (tmp_path / "config" / "limit" / "low.yaml").write_text("a: 1\n")
    assert composed(tree, "limit=4")["limit"] == 4  # a number's field is no block


def test_a_typed_dict_is_a_block_that_a_group_fills(tree: Tree) -> None:
    assert composed(tree, "rates=slow")["rates"] == {"warm": 0.1, "cold": 0.5}


def test_a_broken_command_of_the_recipe_is_no_matter_of_another(tree: Tree) -> None:
    tree.apps["demo"].command("broken", "nowhere_at_all.config:Config", "nowhere_at_all.train:main")
    assert composed(tree, "limit=4", "optimizer=sgd")["limit"] == 4


def test_a_field_can_not_be_deleted(tree: Tree) -> None:
    for override in ("~optimizer", "~optimizer.lr", "~limit=0"):
        with pytest.raises(UserError, match=rf"{override}: [a-z.]+ is a field of demo train"):
            composed(tree, override)
    assert composed(tree, "config=named", "~optimizer")["optimizer"]["name"] == "none"  # the choice of a group
    assert composed(tree, "~parts.lr")["parts"] == {}  # an entry of a dict, whose values have a field of that name
    with pytest.raises(UserError, match="is a field of demo train"):  # of a recorded config, too, which has no groups
        refuse_deleted_fields(next(iter(tree.apps["demo"].commands())), ["limit=1", "~optimizer"])


def test_a_folder_of_another_commands_configs_is_no_group(tree: Tree, tmp_path: Path) -> None:
    tree.apps["demo"].command("other", Config, print, config_dir=tmp_path / "config" / "optimizer")
    with pytest.raises(UserError, match="optimizer"):
        composed(tree, "optimizer=sgd")


def test_a_sibling_may_have_a_package(tree: Tree) -> None:
    assert composed(tree, "config=other/packed.yaml")["second"]["lr"] == 6


@pytest.mark.parametrize(
    ("value", "limit"),
    [("other/100.yaml", 100), ("other/null.yaml", 101), ("'other/a b=c,d.yaml'", 102), ("'1e3'", 103), ("1e3", 103)],
)
def test_a_name_that_hydra_would_read_as_something_else(value: str, limit: int, tree: Tree) -> None:
    assert composed(tree, f"config={value}")["limit"] == limit


def test_a_link_in_a_group_that_leads_back(tree: Tree, tmp_path: Path) -> None:
    (tmp_path / "config" / "optimizer" / "again").symlink_to(tmp_path / "config")
    assert composed(tree, "config=named")["optimizer"]["name"] == "adam"


def test_a_script_chooses_from_the_same_groups(tree: Tree, tmp_path: Path) -> None:
    words = ["--config", "config/named.yaml", "optimizer=fast", "optimizer.lr=8", "limit=3"]
    path, overrides = parse_config_and_overrides(tmp_path / "config" / "default.yaml", words)
    config = apply_hydra_overrides(load_omegaconf_yaml(path), overrides)
    assert omegaconf_to_dataclass(config, Config) == Config(Optimizer("adam", 8.0, [0.9]), Optimizer(), 3)
    launched = composed(tree, "config=named", *overrides)
    assert launched == OmegaConf.to_container(OmegaConf.structured(omegaconf_to_dataclass(config, Config)))


def test_a_script_chooses_what_its_file_does_not_name(tree: Tree, tmp_path: Path) -> None:
    (tmp_path / "config" / "hydra_too.yaml").write_text("limit: 5\nhydra: {job: {name: x}}\n")
    for words in (["optimizer=sgd"], ["+optimizer@second=fast", "limit=4"], ["optimizer=all"], ["optimizer={lr: 5}"]):
        path, overrides = parse_config_and_overrides("config/hydra_too.yaml", words)
        config = omegaconf_to_dataclass(apply_hydra_overrides(load_omegaconf_yaml(path), overrides), Config)
        assert OmegaConf.to_container(OmegaConf.structured(config)) == composed(tree, "config=hydra_too", *words)
    path, _ = parse_config_and_overrides("other/round.yaml", [])
    with pytest.raises(UserError, match=r"round\.yaml: its defaults lists form a circle"):
        load_omegaconf_yaml(path)


def test_a_word_that_a_script_cant_read(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("limit: 1\n")
    path, _ = parse_config_and_overrides(tmp_path / "c.yaml", ["name=ü"])
    with pytest.raises(UserError, match="name=ü: Hydra's grammar can't read the value"):
        load_omegaconf_yaml(path)
