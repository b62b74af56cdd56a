"""The kit as it travels to another machine."""

from __future__ import annotations

import io
import subprocess
import zipfile
from pathlib import Path

import pytest

from nemotron_kit.spec.package import MAIN, package_hash, package_roots, package_zip


def test_the_zip_depends_on_content_alone() -> None:
    assert package_zip() == package_zip()
    assert package_hash() == package_hash()
    assert len(package_hash()) == 32


def test_it_holds_the_packages_and_no_debris() -> None:
    names = zipfile.ZipFile(io.BytesIO(package_zip())).namelist()
    assert len(names) == len(set(names))
    for wanted in (
        "__main__.py",
        "nemotron_kit/worker/__main__.py",
        "nemotron_kit/conf/config.yaml",
        "nemotron/kit/__init__.py",
        "nemotron/recipes/nano3/__init__.py",
        "hydra_plugins/nemotron_kit_launcher/__init__.py",
    ):
        assert wanted in names
    assert not [name for name in names if "__pycache__" in name or name.endswith(".pyc") or "/toplevel/" in name]
    assert all(root.exists() for root, _ in package_roots())


def test_an_older_python_than_it_needs_is_told_so_before_anything_is_imported() -> None:
    old = "import sys; sys.version_info = (3, 9, 2)\n"
    done = subprocess.run(["python3", "-I", "-c", old + MAIN.decode()], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "the job needs 3.11 or newer" in done.stderr and "Traceback" not in done.stderr


def test_python_runs_its_folder_as_the_worker(tmp_path: Path) -> None:
    zipfile.ZipFile(io.BytesIO(package_zip())).extractall(tmp_path)
    done = subprocess.run(["python3", "-I", tmp_path], capture_output=True, text=True, check=False)
    if "No module named" in done.stderr:
        pytest.skip(f"python3 here lacks what the worker needs: {done.stderr.strip()[-80:]}")
    assert (done.returncode, done.stderr.startswith("usage:")) == (2, True)
