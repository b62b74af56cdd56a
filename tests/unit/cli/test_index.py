"""The cached index: true or not used."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemotron_kit.app import App
from nemotron_kit.cli import tree
from nemotron_kit.cli.indexing import LiveIndex, summary
from nemotron_kit.cli.tree import cache_file, dump, read, stamp
from nemotron_kit.discovery import discover
from nemotron_kit.envfile import EnvFile
from nemotron_kit.errors import UserError

from ...conftest import examples

LEAF = {"name": "go", "path": ["r", "go"], "description": "Go", "aliases": [], "line": 0}
ROOT = {
    "name": "",
    "path": [],
    "description": "",
    "children": {"r": {"name": "r", "path": ["r"], "children": {"go": LEAF}}},
}
KEY = ["1", "é"]


def _write(folder: Path, source: Path, mode: int = 0o600) -> str:
    detail = {"fields": [{"name": "x", "help": "a\nb é"}], "artifacts": [], "configs": ["tiny"]}
    file = folder / "index.jsonl"
    file.write_text(dump(ROOT, {"lost": "why"}, [detail], [stamp(str(source))], KEY))
    file.chmod(mode)
    return str(file)


def test_what_was_written_is_read(tmp_path: Path) -> None:
    found = read(_write(tmp_path, tmp_path / "nowhere"), KEY)
    assert found is not None
    assert found.broken == {"lost": "why"}
    leaf = tree.find(found, ["r", "go"])
    assert leaf is not None
    assert found.detail(leaf)["fields"] == [{"name": "x", "help": "a\nb é"}]


def test_an_edit_of_env_toml_that_leaves_its_recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    env, recipes = tmp_path / "env.toml", ["mine"]
    monkeypatch.setenv("NEMOTRON_ENV_FILE", str(env))

    def edited(text: str, known: list[str] | None = recipes) -> bool:
        """Whether an index made before the edit is read after it, and then again without a look at env.toml."""
        env.write_text('[cli]\nrecipes = ["mine"]\n')
        file = tmp_path / "index.jsonl"
        file.write_text(dump(ROOT, {}, [{}], [stamp(str(env))], KEY, known))
        file.chmod(0o600)
        env.write_text(text)
        if read(str(file), KEY) is None:
            return False
        with monkeypatch.context() as patch:
            patch.setattr("nemotron_kit.envfile.read_env_file", lambda: 1 / 0)
            return read(str(file), KEY) is not None

    same = '[cli]\nrecipes = ["mine"]\n[cluster]\nexecutor = "slurm"\n'
    assert edited(same)
    assert not edited(same, None)  # it could not be read
    assert not edited('[cli]\nrecipes = ["mine", "more"]\n')
    assert not edited("[cluster]\n")
    assert not edited(f"{same}[")


def test_a_changed_source_or_key_ends_it(tmp_path: Path) -> None:
    source = tmp_path / "app.py"
    source.write_text("one")
    file = _write(tmp_path, source)
    assert read(file, KEY) is not None
    assert read(file, [*KEY, "more"]) is None
    os.utime(source, ns=(1, 1))
    assert read(file, KEY) is None
    file = _write(tmp_path, source)
    source.chmod(0o666)  # code that others may write is not imported
    assert read(file, KEY) is None
    file = _write(tmp_path, source)
    source.unlink()
    assert read(file, KEY) is None
    file = _write(tmp_path, source)
    source.write_text("here now")
    assert read(file, KEY) is None


def test_a_source_of_the_same_time_and_another_size_ends_it(tmp_path: Path) -> None:
    source = tmp_path / "app.py"
    source.write_text("one")
    file = _write(tmp_path, source)
    before = source.stat()
    source.write_text("three")
    os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert read(file, KEY) is None


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_file_that_others_may_write_is_not_believed(tmp_path: Path, mode: int) -> None:
    assert read(_write(tmp_path, tmp_path, mode), KEY) is None


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    link = tmp_path / "link.jsonl"
    link.symlink_to(_write(tmp_path, tmp_path))
    assert read(str(link), KEY) is None


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file away")
def test_another_users_file_is_not_believed(tmp_path: Path) -> None:
    file = _write(tmp_path, tmp_path)
    os.chown(file, 12345, -1)
    assert read(file, KEY) is None


@settings(max_examples=examples(150), deadline=None)
@given(st.data())
def test_damage_is_noticed(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("index")
    file = Path(_write(folder, Path("/nowhere")))
    whole = file.read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    damaged = data.draw(
        st.sampled_from([whole[:at], whole[:at] + b"\0" + whole[at + 1 :], whole[at:], b"\xff" + whole, b"[" * 9999])
    )
    file.write_bytes(damaged)
    found = read(str(file), KEY)
    if found is not None:  # only the list of sources can be hit unseen, and then still tells of a file that isn't there
        assert (found.root, found.broken) == (ROOT, {"lost": "why"})


def test_a_job_reads_and_writes_no_cache(home: Path) -> None:
    found = discover()
    assert "nano3" in LiveIndex(found.apps, found.broken).root["children"]
    assert not home.exists()


def test_the_built_in_recipes_are_left_out_only_where_all_that_is_asked_for_is_found_without_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.path", list(sys.path))
    for folder, app in (("found_alone", "found_alone"), ("of_another_name", "nano3")):
        (tmp_path / folder).mkdir()
        source = f"from nemotron.kit import App\napp = App({app!r}, description='')\n"
        (tmp_path / folder / "__init__.py").write_text(source)
    one = EnvFile(tmp_path / "env.toml", {"cli": {"recipes": ["found_alone"]}})
    assert set(discover(one, ["found_alone"]).apps) == {"found_alone"}
    assert list(discover(one, ["lost"]).apps)[::-1] == ["found_alone", "nano3"]
    both = EnvFile(tmp_path / "env.toml", {"cli": {"recipes": ["found_alone", "of_another_name"]}})
    found = discover(both, ["found_alone"])
    assert (
        found.apps["nano3"].package == "nemotron.recipes.nano3" and "exists already" in found.broken["of_another_name"]
    )


def test_each_home_and_env_file_has_its_own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEMOTRON_HOME", str(tmp_path))
    monkeypatch.delenv("NEMOTRON_ENV_FILE", raising=False)
    first = cache_file()
    monkeypatch.setenv("NEMOTRON_ENV_FILE", str(tmp_path / "env.toml"))
    assert cache_file() != first
    assert first.startswith(f"{tmp_path}/cache/index-")


def test_details_of_a_live_tree(index: LiveIndex) -> None:
    leaf = tree.find(index, ["nano3", "train"])
    assert leaf is not None
    detail = index.detail(leaf)
    assert detail["configs"] == ["default", "other", "tiny"]
    assert detail["groups"] == {"size": ["big", "small"]}
    assert detail["artifacts"] == [
        {"slot": "data", "default": "Blend-default:latest", "type": "", "mappings": {"path": "blend_path"}}
    ]
    assert {row["name"] for row in detail["fields"]} >= {"num_shards", "train.train_iters"}
    json.dumps([index.root, detail])


def test_the_handlers_doc_stands_in_for_a_description(index: LiveIndex) -> None:
    assert summary(index.commands["nano3", "pretrain"]) == "Does what it says."
    assert summary(index.commands["nano3", "data", "prep", "pretrain"]) == "Prepare"


def test_a_config_that_does_not_import_breaks_its_command_alone(index: LiveIndex) -> None:
    leaf = tree.find(index, ["nano3", "rl"])
    assert leaf is not None
    with pytest.raises(
        UserError, match="nano3 rl can't be used: ModuleNotFoundError: No module named 'no_such_module'"
    ):
        index.detail(leaf)


def test_a_recipe_named_like_a_command_of_ours_is_listed_as_broken() -> None:
    found = LiveIndex({"runs": App("runs")}, {})
    assert found.root["children"] == {}
    assert "a command of nemotron" in found.broken["runs"]
