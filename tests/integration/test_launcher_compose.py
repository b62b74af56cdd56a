"""Sweeps are composed faster than Hydra does it: the configs have to be the same, to the last flag."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf

from nemotron_kit.sweep.compose_jobs import SweepComposer, install

from ..project import write_files

FILES = {
    "config.yaml": "defaults: [base, model: small, opt@train.opt: adam, extra: null, _self_]\n"
    "name: ${model.name}-${train.opt.name}\nseed: 1\nlist: [1, 2, {a: b}]\nopen: {}\n",
    "model/small.yaml": "name: small\nlayers: 2\nhidden: {size: 8}\n",
    "model/big.yaml": "defaults: [small, _self_]\nname: big\nlayers: 20\n",
    "opt/adam.yaml": "name: adam\nlr: 0.1\nbetas: [0.9, 0.95]\n",
    "opt/sgd.yaml": "name: sgd\nlr: 1.0\n",
    "extra/more.yaml": "# @package _global_\nseed: 7\nopen: {x: 1}\n",
    "extra/hydra.yaml": "# @package hydra\njob: {env_set: {A: b}}\n",
}


@dataclass
class Train:
    steps: int = 10
    rate: float | None = None
    opt: dict[str, Any] = field(default_factory=dict)


@dataclass
class Base:
    name: str = "?"
    seed: int = 0
    train: Train = field(default_factory=Train)
    list: Any = None
    open: Any = None
    model: Any = None


WORDS = [
    *("model=small", "model=big", "opt@train.opt=sgd", "extra=more", "+extra=hydra", "extra=hydra", "~extra"),
    *("seed=3", "train.steps=20", "train.rate=1e-3", "train.rate=null", "train.opt.lr=5", "model.hidden.size=16"),
    *("+open.y=2", "++open.z={a: 1, b: [x, y]}", "list=[4, 5]", "list.0=9", "~model.layers", "~train.opt.betas"),
    *("name='a b=c,d'", "+new='${seed}'", "hydra.job.name=other", "+hydra.job.env_set.B=c", "hydra.job.chdir=true"),
    *("hydra.job.env_copy=[HOME]", "hydra.verbose=true", "hydra.sweep.subdir='${seed}_${hydra.job.num}'"),
    *("hydra.job.config.override_dirname.item_sep=+", "hydra/job_logging=disabled", "hydra.runtime.cwd=/x"),
    *("train={steps: 3}", "model={name: own}", "seed=text", "nonsense=1", "model=none", "train.steps=1,2", "=", "a b"),
]


@pytest.fixture
def hydra(tmp_path: Path) -> Iterator[Hydra]:
    write_files(tmp_path, FILES)
    GlobalHydra.instance().clear()
    ConfigStore.instance().store("base", Base)
    yield Hydra.create_main_hydra2("app", create_config_search_path(str(tmp_path)))
    GlobalHydra.instance().clear()


def described(config: Any) -> Any:
    """A config with its types and flags, all the way down."""
    meta = config._metadata
    shown: list[Any] = [meta.ref_type, meta.object_type, meta.optional, dict(config._metadata.flags or {})]
    if isinstance(config, DictConfig) and not (config._is_none() or config._is_missing() or config._is_interpolation()):
        return [*shown, meta.element_type, {key: described(config._get_node(key)) for key in config}]
    if isinstance(config, ListConfig) and not (config._is_none() or config._is_missing()):
        return [*shown, [described(config._get_node(i)) for i in range(len(config))]]
    return [*shown, config._value()]


def outcome(load: Any, master: Any, words: list[str]) -> Any:
    try:
        config = load(master, words)
    except Exception as error:
        return type(error), str(error)
    return described(config), OmegaConf.to_yaml(config)


def once(load: Any) -> Any:
    """Hydra's own `load`, which composes for a tenth of a second, once for the same master and words: it is asked by
    itself, and wherever the quick one leaves the words to it."""
    known: dict[Any, Any] = {}

    def loaded(master: Any, words: list[str]) -> Any:
        key = (id(master), *words)
        if key not in known:
            try:
                known[key] = load(master, list(words))
            except Exception as error:
                known[key] = error
        if isinstance(known[key], Exception):
            raise known[key]
        return known[key]

    return loaded


def test_every_sweep_config_is_hydras_own(hydra: Hydra, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    loader = hydra.config_loader
    monkeypatch.setattr(loader, "load_sweep_config", once(loader.load_sweep_config))
    quick = SweepComposer(loader)
    chosen = random.Random(7)
    seen = 0
    for fixed in ([], ["hydra/job_logging=disabled", "+hydra.job.env_set.C=d"]):
        master = hydra.compose_config("config", fixed, run_mode=RunMode.MULTIRUN, with_log_configuration=False)
        lists = [[word] for word in WORDS]
        lists += [chosen.sample(WORDS, chosen.randint(2, 5)) for _ in range(40)]
        for words in lists:
            theirs = outcome(loader.load_sweep_config, master, words)
            assert outcome(quick, master, words) == theirs, words
            assert outcome(quick, master, words) == theirs, words  # nothing of the first is left in the second
            seen += isinstance(theirs[1], str) and "hydra:" in theirs[1]
    assert seen > 80  # of which this many are configs, the others errors


def test_groups_are_also_those_of_the_primary_configs_search_path(hydra: Hydra, tmp_path: Path) -> None:
    (tmp_path / "more" / "added").mkdir(parents=True)
    (tmp_path / "more" / "added" / "one.yaml").write_text("value: 1\n")
    (tmp_path / "searching.yaml").write_text(f"hydra: {{searchpath: ['file://{tmp_path}/more']}}\n")
    loader = hydra.config_loader
    master = hydra.compose_config("searching", [], run_mode=RunMode.MULTIRUN, with_log_configuration=False)
    quick = SweepComposer(loader)
    for words in (["+added=one"], ["+added=two"], ["+added@here=one"]):
        assert outcome(quick, master, words) == outcome(loader.load_sweep_config, master, words)
    assert quick(master, ["+added=one"]).added == {"value": 1}


def test_values_that_are_drawn_at_composition_are_the_masters(hydra: Hydra) -> None:
    OmegaConf.register_new_resolver("draw", lambda: random.random(), use_cache=True, replace=True)
    master = hydra.compose_config("config", [], run_mode=RunMode.MULTIRUN, with_log_configuration=False)
    drawn = OmegaConf.create({"a": "${draw:}"})
    drawn._set_parent(master)
    quick = SweepComposer(hydra.config_loader)
    first, second = (quick(master, ["+drawn='${draw:}'"]).drawn for _ in range(2))
    assert first != second  # each job draws, as with Hydra's own: the master had not drawn
    master._metadata.resolver_cache["draw"] = {(): 0.5}
    assert quick(master, ["+drawn='${draw:}'"]).drawn == quick(master, ["seed=2", "+drawn='${draw:}'"]).drawn


def test_only_a_known_loader_is_changed(hydra: Hydra) -> None:
    class Other:
        def load_sweep_config(self) -> None: ...

    other = Other()
    install(other)
    assert "load_sweep_config" not in vars(other)
    install(hydra.config_loader)
    assert isinstance(vars(hydra.config_loader)["load_sweep_config"], SweepComposer)
