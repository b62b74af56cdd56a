"""What is installed, as importlib.metadata says it: here, and on an import path of odd things."""

from __future__ import annotations

import sys
import zipfile
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from nemotron_kit import installed

from ..project import write_files

ENTRY_POINTS = "# text\n[o]\na = b\n[ours]\n one=mod:thing \n\n#[x]\ntwo = m.sub [extra]\n[p]\nc = d\n"
FILES = {
    "first/Some_Package.Name-1.5.dist-info/METADATA": "Name: Some_Package.Name\nversion:  1.5\n\nVersion: 9\n",
    "first/Some_Package.Name-1.5.dist-info/entry_points.txt": ENTRY_POINTS,
    "first/old.egg-info": "Metadata-Version: 1.0\nName: old\nVersion: 0.1\n",
    "first/folder.egg-info/PKG-INFO": "Name: folder\nVersion: 3\n",
    "first/folder.egg-info/entry_points.txt": "[ours]\nfour = folder\n",
    "first/module.py": "",
    "second/some_package_name-0.9.dist-info/METADATA": "Name: some-package-name\nVersion: 0.9\n",
    "second/some_package_name-0.9.dist-info/entry_points.txt": "[ours]\nshadowed = mod\n",
    "second/later-2.0.dist-info/METADATA": "Name: later\nVersion: 2.0\n",
}  # fmt: skip
NAMES = ["some-package-name", "Some.Package_Name", "later", "old", "folder", "module", "missing"]


def by_importlib(names: list[str], group: str) -> tuple[dict[str, str], list[tuple[str, str]]]:
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found, sorted((point.name, point.value) for point in metadata.entry_points(group=group))


def by_us(names: list[str], group: str) -> tuple[dict[str, str], list[tuple[str, str]]]:
    return installed.versions(names), sorted(installed.entry_points(group))


def test_this_environment() -> None:
    names = [distribution.metadata["Name"] for distribution in metadata.distributions()]
    assert len(names) > 20
    assert by_us(names, "console_scripts") == by_importlib(names, "console_scripts")
    assert by_us([], "pytest11") == by_importlib([], "pytest11") != ({}, [])


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    write_files(tmp_path, FILES)
    monkeypatch.chdir(tmp_path / "second")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "missing"), str(tmp_path / "first"), ""])
    return sys.path


def test_the_first_of_a_name_wins_however_it_is_written(path: list[str]) -> None:
    assert by_us(NAMES, "ours") == by_importlib(NAMES, "ours")
    assert by_us(NAMES, "ours")[0] == {
        "some-package-name": "1.5", "Some.Package_Name": "1.5", "later": "2.0", "old": "0.1", "folder": "3"
    }  # fmt: skip
    assert by_us(NAMES, "ours")[1] == [("four", "folder"), ("one", "mod:thing"), ("two", "m.sub [extra]")]


def test_zip_files_and_other_finders_are_asked(path: list[str], tmp_path: Path, monkeypatch: Any) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as zipped:
        zipped.writestr("inside-4.dist-info/METADATA", "Name: inside\nVersion: 4\n")
    path.append(str(tmp_path / "a.zip"))
    assert by_us(["inside", "old"], "ours") == by_importlib(["inside", "old"], "ours")
    assert installed.versions(["inside"]) == {"inside": "4"}
    path.pop()

    class Finder:
        @staticmethod
        def find_spec(*_: Any) -> None: ...
        @staticmethod
        def find_distributions(context: Any) -> Any:
            return [metadata.PathDistribution(tmp_path / "elsewhere" / "own-5.dist-info")] if context.name else []

    (tmp_path / "elsewhere/own-5.dist-info").mkdir(parents=True)
    (tmp_path / "elsewhere/own-5.dist-info/METADATA").write_text("Name: own\nVersion: 5\n")
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Finder])
    assert installed.versions(["own"]) == {"own": "5"}
