"""What scripts call: no override is dropped, and every mistake is one clear error."""

import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from nemotron_kit.errors import UserError
from nemotron_kit.train_script import (
    ConfigManager,
    apply_hydra_overrides,
    cli,
    init_wandb_from_env,
    load_omegaconf_yaml,
    omegaconf_to_dataclass,
    parse_config_and_overrides,
)


@dataclass
class Inner:
    iters: int = 1


@dataclass
class Config:
    out: Path
    shards: int = 8
    sample: int | None = None
    force: bool = False
    name: str = ""
    train: Inner = field(default_factory=Inner)


def test_a_config_without_overrides_needs_no_hydra(default: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a job's script runs there is what jobs need, and that is not the launcher's Hydra."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "hydra"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "hydra", None)
    config = apply_hydra_overrides(load_omegaconf_yaml(default), [])
    assert omegaconf_to_dataclass(config, Config).out


@pytest.fixture
def default(tmp_path: Path) -> Path:
    folder = tmp_path / "config"
    folder.mkdir()
    (folder / "default.yaml").write_text("out: /o\nrun: {data: X}\n")
    (folder / "tiny.yaml").write_text("defaults: [default]\nshards: 2\n")
    return folder / "default.yaml"


def load(default: Path, *argv: str, twice: bool = False) -> Config:
    path, overrides = parse_config_and_overrides(default, argv)
    config = load_omegaconf_yaml(path)
    if twice:
        config = apply_hydra_overrides(config, overrides)
    return omegaconf_to_dataclass(config, Config)


def test_a_flags_value_may_be_a_negative_number(default: Path) -> None:
    assert load(default, "--shards", "-4", "--out", "-.5x").shards == -4
    with pytest.raises(UserError, match="'-x' is neither an option nor an override"):
        load(default, "--shards", "-x")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(alphabet=st.one_of(st.sampled_from("'\"\\ \n,[]{}=a1"), st.characters(exclude_categories=["Cs"]))))
@example("a\\\n")
@example("\\'\\")
def test_a_flags_text_arrives_exactly(default: Path, text: str) -> None:
    assume(text not in ("null", "none") and not text.startswith(("[", "{")) and "${" not in text)
    assert load(default, f"--name={text}").name == text


@pytest.mark.parametrize("twice", [False, True])
@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([], Config(Path("/o"))),
        (["shards=64"], Config(Path("/o"), shards=64)),
        (["--config", "config/tiny.yaml", "train.iters=5"], Config(Path("/o"), shards=2, train=Inner(5))),
        (["-c", "tiny", "--force"], Config(Path("/o"), shards=2, force=True)),
        (["--no-force", "--shards", "3", "--name=--x"], Config(Path("/o"), shards=3, name="--x")),
        (["--config-file=config/tiny.yaml", "sample=null"], Config(Path("/o"), shards=2)),
        (["+train.iters=7"], Config(Path("/o"), train=Inner(7))),
    ],
)
def test_command_lines(default: Path, argv: list[str], expected: Config, twice: bool) -> None:
    assert load(default, *argv, twice=twice) == expected


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["shrads=1"], "shrads: no such field"),
        (["shards=x"], "shards: expected int, got 'x'"),
        (["--config", "nope.yaml"], "nope.yaml: no such config file"),
        (["--config"], "--config needs a file"),
        (["stray"], "'stray' is neither an option nor an override"),
        (["shards=1,2"], "several values need a sweep"),
        (["~nothing"], "the config has no nothing"),
        (["+word=abc", "~word.b"], "~word.b: the config has no word.b"),
        (["+list=[1,2]", "list.x=3"], "list.x=3: invalid literal"),
        (["hf_token=abc"], "a secret must not be given on a command line"),
        (["a=[1"], "Hydra's grammar can't read"),
    ],
)
def test_mistakes(default: Path, argv: list[str], text: str) -> None:
    with pytest.raises(UserError) as caught:
        load(default, *argv)
    assert text in str(caught.value)


def test_an_added_key_becomes_an_attribute(default: Path) -> None:
    assert load(default, "+train.extra=5").train.extra == 5  # type: ignore[attr-defined]
    assert load(default, "+more.deep.key=5").more == {"deep": {"key": 5}}  # type: ignore[attr-defined]


@given(text=st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=50))
def test_a_flags_value_arrives_exactly(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    default = tmp_path_factory.getbasetemp() / "flag.yaml"
    default.write_text("out: /o\n")
    if "${" in text or text in ("null", "...") or text[:1] in "[{":
        return
    assert load(default, f"--name={text}").name == text


def test_cli_gives_a_typed_config(default: Path) -> None:
    config = cli(Config, config_file=str(default.with_name("tiny.yaml")), argv=["shards=5"])
    assert config == Config(Path("/o"), shards=5)
    assert ConfigManager(Inner).load(["iters=4"]) == Inner(4)


@pytest.mark.parametrize("name", ["missing.yaml", "config.ini"])
def test_cli_refuses_a_file_it_cannot_read(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.ini").write_text("x")
    with pytest.raises(UserError, match=name):
        cli(Config, config_file=str(tmp_path / name), argv=[])


def test_the_default_may_be_given_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("out: here\n")
    path, overrides = parse_config_and_overrides(default_config=tmp_path / "c.yaml", argv=["shards=3"])
    assert (path, overrides) == (tmp_path / "c.yaml", ["shards=3"])


def test_no_project_no_tracking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    assert init_wandb_from_env() is None
