"""env.toml as editors, mistakes and strangers leave it."""

import json
import os
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from nemotron.recipes.nano3.stage_script import beside

from nemotron_kit import envfile
from nemotron_kit.app import add_import_folders, shadows_library
from nemotron_kit.artifacts import ModelArtifact
from nemotron_kit.artifacts.registry import local_root
from nemotron_kit.cli import tree as quick
from nemotron_kit.config.config_files import find_config_file
from nemotron_kit.discovery import discover, recipe_folders
from nemotron_kit.envfile import EnvFile, check_reserved_tables, read_env_file
from nemotron_kit.errors import UserError
from nemotron_kit.executors.base import executor_for
from nemotron_kit.files import write_json
from nemotron_kit.home import nemotron_home
from nemotron_kit.remote.agent.inspect import python_facts
from nemotron_kit.spec.profiles import load_run_profile
from nemotron_kit.spec.runconfig import RunConfig

ROOT = pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file away")


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


def test_a_file_is_parsed_once_for_each_of_its_states(env_toml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    monkeypatch.setattr(envfile, "read_regular", lambda path: read.append(path) or path.read_bytes())
    env_toml.write_text("[a]\nnodes = 1\n")
    for nodes in (2, 3):  # of equal length, within a tick of the clock
        env_toml.write_text(f"[a]\nnodes = {nodes}\n")
        assert read_env_file().tables == {"a": {"nodes": nodes}}
    os.utime(env_toml, (1e9, 1e9))
    read.clear()
    read_env_file().tables["a"]["nodes"] = 9  # nobody changes what others read
    assert [read_env_file().tables for _ in range(4)] == [{"a": {"nodes": 3}}] * 4
    assert read == [env_toml]


def test_a_file_above_that_no_project_holds_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NEMOTRON_ENV_FILE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "env.toml").write_text("[a]\nnodes = 2\n")
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    with pytest.raises(UserError, match=r"There is no env\.toml in") as caught:
        load_run_profile("a")
    assert f"{tmp_path}/env.toml is not read from here" in (caught.value.hint or "")
    (tmp_path / ".git").mkdir()
    assert load_run_profile("a").nodes == 2 and envfile.unread_env_file() == ""


def test_a_folder_that_may_not_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Is a directory"):
        read_env_file(tmp_path)


@pytest.mark.parametrize("recipes", ['"mine"', "[1, 2]", '[""]'])
def test_recipes_are_a_list_of_folders(recipes: str, env_toml: Path) -> None:
    env_toml.write_text(f"[cli]\nrecipes = {recipes}\n")
    with pytest.raises(UserError, match=r"\[cli\] recipes: expected a list of folders"):
        recipe_folders(read_env_file())


def test_recipes_whose_names_are_taken_are_listed_as_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    folders = {
        "a/mine_of_two": "first",
        "b/mine_of_two": "second",
        "c/own_nano3": "nano3",
        "c/json": "js",
        "my.rec": "r",
    }
    for name, app in folders.items():
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "__init__.py").write_text(f"from nemotron_kit import App\napp = App({app!r})\n")
    found = discover(EnvFile(tmp_path / "env.toml", {"cli": {"recipes": list(folders)}}))
    assert found.apps["nano3"].children and {"first"} == found.apps.keys() & {"first", "second", "js"}
    assert f"rename the folder {tmp_path / 'b/mine_of_two'}" in found.broken["mine_of_two"]
    assert "another module is called json" in found.broken["json"]
    assert "can't import a folder with a '.' in its name" in found.broken["my.rec"]
    assert "a recipe called nano3 exists already" in found.broken["own_nano3"]


def test_a_recipe_whose_app_is_in_a_package_below_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "has_app_below/app").mkdir(parents=True)
    (tmp_path / "has_app_below/__init__.py").touch()
    (tmp_path / "has_app_below/app/__init__.py").write_text("from nemotron_kit import App\napp = App('below')\n")
    found = discover(EnvFile(tmp_path / "env.toml", {"cli": {"recipes": ["has_app_below"]}}))
    assert "below" in found.apps and not found.broken


def test_a_misspelt_key_has_its_line(env_toml: Path) -> None:
    env_toml.write_text('\ufeff[wandb]\nprojct = "x"\n')
    with pytest.raises(UserError, match=r"env\.toml:2: \[wandb\] projct: no such key\.\nDid you mean project\?"):
        check_reserved_tables(read_env_file())


def test_a_file_that_everybody_may_write_is_refused_whole(env_toml: Path) -> None:
    env_toml.write_text("[a]\nnodes = 2\n")
    env_toml.chmod(0o666)
    with pytest.raises(UserError, match=r"env\.toml can be written by everybody, and it decides what is run"):
        read_env_file()
    assert quick.tables() == {}
    env_toml.chmod(0o664)  # a team's
    assert read_env_file().tables == quick.tables() == {"a": {"nodes": 2}}


@ROOT
def test_another_users_file_is_refused_whole(env_toml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    env_toml.write_text("[a]\nnodes = 2\n")
    os.chown(env_toml, 12345, -1)
    with pytest.raises(UserError, match=r"env\.toml belongs to another user \(uid 12345\)"):
        read_env_file()
    assert quick.tables() == {}
    monkeypatch.setenv("SUDO_UID", "12345")  # the one who called sudo
    assert read_env_file().tables == {"a": {"nodes": 2}}
    monkeypatch.delenv("SUDO_UID")
    monkeypatch.setenv("NEMO_RUN_DIR", str(env_toml.parent))  # a job's own, on a cloud's volume
    assert read_env_file().tables == {"a": {"nodes": 2}}


@ROOT
def test_a_link_of_another_user_is_refused(env_toml: Path) -> None:
    (env_toml.parent / "mine.toml").write_text("")
    env_toml.symlink_to("mine.toml")
    assert read_env_file().tables == {}
    os.lchown(env_toml, 12345, -1)
    with pytest.raises(UserError, match="belongs to another user"):
        read_env_file()


@pytest.mark.parametrize("place", ["mine", "mine/inner", "mine/inner/part.py", "."])
@pytest.mark.parametrize("how", ["written", pytest.param("owned", marks=ROOT)])
def test_recipes_that_others_decide_about_are_not_imported(place: str, how: str, tmp_path: Path) -> None:
    folder = tmp_path / "project" / "mine"
    (folder / "inner").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('imported')\n")
    (folder / "inner" / "part.py").touch()
    if how == "written":
        (folder.parent / place).chmod(0o777)
    else:
        os.chown(folder.parent / place, 12345, -1)
    env = EnvFile(folder.parent / "env.toml", {"cli": {"recipes": ["mine"]}})
    said = "can be written by everybody" if how == "written" else "belongs to another user"
    assert said in discover(env).broken["mine"]
    before = list(sys.path)
    assert list(discover(env, names=["nano3"]).apps) == ["nano3"] and sys.path == before


def test_a_built_in_recipe_finds_functions_of_the_users_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`nano3 rl` with env.verifiers.x._target_=mine.rewards.x; the folder itself is not imported for that."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "mine_of_test").mkdir()
    (tmp_path / "mine_of_test" / "__init__.py").write_text("raise RuntimeError('imported')\n")
    env = EnvFile(tmp_path / "env.toml", {"cli": {"recipes": ["mine_of_test"]}})
    assert list(discover(env, names=["nano3"]).apps) == ["nano3"]
    assert find_spec("mine_of_test") is not None


def test_a_module_beside_recipes_does_not_replace_the_standard_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    add_import_folders([str(tmp_path), "/other/lib/python3.11/site-packages", str(tmp_path)])
    library = [at for at, entry in enumerate(sys.path) if entry == str(Path(json.__file__).parents[1])]
    installed = [at for at, entry in enumerate(sys.path) if entry.endswith("site-packages")]
    assert library[0] < sys.path.index(str(tmp_path)) < installed[0]
    assert sys.path[-1] == "/other/lib/python3.11/site-packages"
    assert sys.path.count(str(tmp_path)) == 1
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "yaml.py").write_text("")
    add_import_folders([str(tmp_path / "own")])
    assert (
        sys.path[-1] == str(tmp_path / "own") and shadows_library(sys.path[-1]) and not shadows_library(str(tmp_path))
    )
    (tmp_path / "sitecustomize.py").write_text("")
    assert shadows_library(str(tmp_path)), "Python would run it when it starts"


@pytest.mark.parametrize("home", ["", "relative"])
def test_a_home_that_is_no_folder_is_an_error(home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", home)
    monkeypatch.delenv("NEMOTRON_HOME", raising=False)
    monkeypatch.delenv("NEMOTRON_ENV_FILE", raising=False)
    monkeypatch.chdir(tmp_path)
    for each in (nemotron_home, quick.home):
        with pytest.raises(UserError, match=r"HOME is .*no folder's path"):
            each()
    assert read_env_file().path is None
    assert quick.find_env_file() is None
    monkeypatch.setenv("NEMOTRON_HOME", "/somewhere")
    assert str(nemotron_home()) == quick.home() == "/somewhere"
    (tmp_path / "file").touch()
    monkeypatch.setenv("NEMOTRON_HOME", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"file, the folder for runs and artifacts, is not a folder"):
        nemotron_home()
    monkeypatch.setenv("NEMOTRON_HOME", str(tmp_path / "${x}"))
    with pytest.raises(UserError, match=r"\$\{x\}, the folder for runs and artifacts, has \$\{ in its name"):
        nemotron_home()


def test_a_path_of_an_unknown_user_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = "~no-such-user/x"
    for name, read in (("NEMOTRON_HOME", nemotron_home), ("NEMOTRON_ENV_FILE", read_env_file)):
        with monkeypatch.context() as patch, pytest.raises(UserError, match="~no-such-user is no user's home folder"):
            patch.setenv(name, path)
            read()
    for given in (
        lambda: local_root(path),
        lambda: ModelArtifact(path=path),
        lambda: find_config_file(path, None, "c"),
        lambda: beside(tmp_path, Path(path)),
        lambda: python_facts(python=path),
    ):
        with pytest.raises(UserError, match="~no-such-user is no user's home folder"):
            given()
    with pytest.raises(UserError, match="~no-such-user is no user's home folder"):
        recipe_folders(EnvFile(tmp_path / "env.toml", {"cli": {"recipes": [path]}}))


def test_a_folder_whose_name_is_no_text_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is recorded of a job names its folders, and records are JSON."""
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/b\xffd")
    os.mkdir(odd)  # noqa: PTH102
    monkeypatch.setenv("NEMOTRON_HOME", f"{odd}/home")
    with pytest.raises(UserError, match=r"The folder for runs and artifacts, b'.*/b\\xffd/home', has a name"):
        nemotron_home()
    monkeypatch.setenv("NEMOTRON_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(odd)
    with pytest.raises(UserError, match=r"The working folder, b'.*/b\\xffd', has a name that is not UTF-8 text"):
        executor_for(RunConfig()).paths("run", 0)
    with pytest.raises(OSError, match=r"udcffd.* is not UTF-8 text, so no record can hold it: .*x.json"):
        write_json(tmp_path / "x.json", {"path": odd})
    assert not (tmp_path / "x.json").exists()
