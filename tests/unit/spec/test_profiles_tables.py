"""The reserved tables of env.toml."""

from __future__ import annotations

from pathlib import Path

import pytest

from nemotron_kit.envfile import NoEnvFile, check_reserved_tables, read_env_file
from nemotron_kit.errors import UserError
from nemotron_kit.spec.profiles import load_run_profile, load_wandb_config
from nemotron_kit.spec.runconfig import ProfileError


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "env.toml"
    path.write_text(text)
    return path


def test_all_four(tmp_path: Path) -> None:
    text = '[wandb]\nproject = "p"\n[artifacts]\nbackend = "file"\nmode = "group"\nhash_limit = 1\nroot = "x"\n'
    text += '[cache]\ngit_dir = "g"\n'
    check_reserved_tables(read_env_file(write(tmp_path, text + '[cli]\ntheme = "nord"\nrecipes = ["r"]\n[C]\nx = 1\n')))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[wandb]\nproject = "p"\nentitty = "e"\n', "env.toml:3: [wandb] entitty: no such key.\nDid you mean entity?"),
        ("[wandb]\nproject = 3\n", "env.toml:2: [wandb] project: expected text, got 3 (int)"),
        ('[artifacts]\nbackend = "s3"\n', "'s3' is none of file, wandb"),
        ("[artifacts]\nhash_limit = true\n", "expected bytes, as a number or text, got True (bool)"),
        ('[cli]\nrecipes = "x"\n', "expected a list of texts, got 'x' (str)"),
        ("cli = 3\n", "[cli] must be a table"),
    ],
)
def test_wrong(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        check_reserved_tables(read_env_file(write(tmp_path, text)))
    assert message in str(caught.value)


def test_wandb_config(tmp_path: Path) -> None:
    config = load_wandb_config(
        write(tmp_path, '[wandb]\nproject = "p"\nentity = "e"\nname = "n"\ntags = ["a"]\nnotes = "x"\n')
    )
    assert config is not None
    assert (config.project, config.entity, config.run_name, list(config.tags), config.notes) == (
        "p",
        "e",
        "n",
        ["a"],
        "x",
    )
    assert config.enabled
    assert load_wandb_config(write(tmp_path, "[C]\nnodes = 1\n")) is None
    off = load_wandb_config(write(tmp_path, "[wandb]\nenabled = false\n"))
    assert off is not None and not off.enabled
    with pytest.raises(UserError, match="project is missing"):
        load_wandb_config(write(tmp_path, '[wandb]\nentity = "e"\n'))
    with pytest.raises(UserError, match="run_name, which means the same"):
        load_wandb_config(write(tmp_path, '[wandb]\nproject = "p"\nname = "a"\nrun_name = "b"\n'))
    with pytest.raises(UserError, match=r"env\.toml:2: \[wandb\] tags: expected a list of texts"):
        load_wandb_config(write(tmp_path, '[wandb]\ntags = "a"\n'))


def test_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("NEMOTRON_ENV_FILE", raising=False)
    assert load_wandb_config() is None


def test_tags_are_a_tuple_as_in_the_reference(tmp_path: Path) -> None:
    found = load_wandb_config(write(tmp_path, '[wandb]\nproject = "p"\ntags = ["a", "b"]\n'))
    assert found is not None and found.tags == ("a", "b")
    found = load_wandb_config(write(tmp_path, '[wandb]\nproject = "p"\n'))
    assert found is not None and found.tags == ()


def test_a_profile_that_is_not_there_is_spelled_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a reader of the document has to add before `--run MY-CLUSTER` works."""
    lines = '[MY-CLUSTER]\nexecutor = "slurm"\naccount = "…"\npartition = "…"'
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("NEMOTRON_ENV_FILE", raising=False)
    monkeypatch.chdir(tmp_path)
    for text in (None, '[wandb]\nproject = "p"\n'):
        if text:
            write(tmp_path, text)
        with pytest.raises((NoEnvFile, ProfileError)) as error:
            load_run_profile("MY-CLUSTER")
        assert lines in str(error.value)
    with pytest.raises(ProfileError, match=r'\["two words"\]'):
        load_run_profile("two words")
