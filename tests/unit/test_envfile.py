"""env.toml as editors, mistakes and strangers leave it."""

from pathlib import Path

import pytest

from nemotron_kit.cli import env as quick
from nemotron_kit.discovery import recipe_folders
from nemotron_kit.envfile import read_env_file
from nemotron_kit.errors import UserError
from nemotron_kit.plan.profiles import load_run_profile
from nemotron_kit.plan.tables import check_reserved_tables


@pytest.fixture
def env_toml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NEMOTRON_ENV_FILE", str(tmp_path / "env.toml"))
    return tmp_path / "env.toml"


@pytest.mark.parametrize("text", ["\ufeff[a]\nnodes = 2\n", "[a]\r\nnodes = 2\r\n"])
def test_an_editors_mark_and_line_ends_are_no_mistake(text: str, env_toml: Path) -> None:
    env_toml.write_bytes(text.encode())
    assert read_env_file().tables == quick.tables() == {"a": {"nodes": 2}}
    assert load_run_profile("a").nodes == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"x = " + b"[" * 5000 + b"]" * 5000, "env.toml: nested too deeply"),
        (b'[cli]\nrecipes = ["my', "env.toml: not valid TOML: Unterminated string"),
        (b"[a]\n[a]\n", "env.toml: not valid TOML: Cannot declare"),
        (b'a = "\xff"', "env.toml: not valid TOML: 'utf-8' codec"),
    ],
)
def test_what_is_no_toml_is_one_error(text: bytes, said: str, env_toml: Path) -> None:
    env_toml.write_bytes(text)
    with pytest.raises(UserError, match=said):
        read_env_file()
    assert quick.tables() == {}, "completion has nothing to say then"


def test_a_folder_that_may_not_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Is a directory"):
        read_env_file(tmp_path)


@pytest.mark.parametrize("recipes", ['"mine"', "[1, 2]", '[""]'])
def test_recipes_are_a_list_of_folders(recipes: str, env_toml: Path) -> None:
    env_toml.write_text(f"[cli]\nrecipes = {recipes}\n")
    with pytest.raises(UserError, match=r"\[cli\] recipes: expected a list of folders"):
        recipe_folders(read_env_file())


def test_a_misspelt_key_has_its_line(env_toml: Path) -> None:
    env_toml.write_text('\ufeff[wandb]\nprojct = "x"\n')
    with pytest.raises(UserError, match=r"env\.toml:2: \[wandb\] projct: no such key\.\nDid you mean project\?"):
        check_reserved_tables(read_env_file())
