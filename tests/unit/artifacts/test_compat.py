"""What comes from the reference implementation still works: its registry's interface, its import paths."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

import pytest

from nemotron_kit import artifacts
from nemotron_kit.artifacts import ArtifactRegistry, manifest
from nemotron_kit.artifacts.reference import ArtifactChangedError, ArtifactNotFoundError
from nemotron_kit.errors import UserError

from .conftest import Maker


def test_publish_resolve_alias_get_list(tmp_path: Path, make: Maker) -> None:
    registry = ArtifactRegistry(backend="fsspec", root=tmp_path / "r")
    assert registry.get("my-dataset") is None
    folder = make.folder("data", a="1")
    version = registry.publish("my-dataset", folder, metadata={"rows": 3})
    assert (version.version, version.path, version.metadata) == (0, str(folder), {"rows": 3})
    other = make.folder("other", a="2")
    registry.publish("my-dataset", other)
    registry.alias("my-dataset", "prod", 0)
    assert registry.resolve("my-dataset") == registry.resolve("my-dataset", "latest") == other
    assert registry.resolve("my-dataset", 0) == registry.resolve("my-dataset", "prod") == folder
    entry = registry.get("my-dataset")
    assert entry is not None
    assert entry.aliases == {"latest": 1, "prod": 0}
    assert [v.version for v in entry.versions] == [0, 1]
    assert entry.latest_version() == entry.get_version(1)
    assert entry.get_version(7) is None
    assert registry.list() == ["my-dataset"]
    with pytest.raises(ArtifactNotFoundError):
        registry.resolve("my-dataset", 9)
    (folder / "a").write_text("changed")
    with pytest.raises(ArtifactChangedError):
        registry.resolve("my-dataset", "prod")


def test_a_published_folder_can_be_loaded(tmp_path: Path, make: Maker) -> None:
    ArtifactRegistry().publish("raw", make.folder("data", a="1"), metadata={"rows": 3})
    loaded = artifacts.Artifact.from_uri("art://raw")
    assert (loaded.path, loaded.metadata, loaded.uri) == (tmp_path / "made" / "data", {"rows": 3}, "art://raw:v0")


def test_wandb_registry_without_wandb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="not installed"):
        ArtifactRegistry(backend="wandb", wandb_project="p")


def test_import_paths_lend_the_very_objects() -> None:
    import nemotron.kit.artifact
    import nemotron.kit.run
    import nemotron.kit.trackers

    import nemotron_kit

    assert nemotron.kit.__all__ == sorted(nemotron_kit.__all__) and nemotron_kit.__version__
    for module in (nemotron_kit, nemotron.kit, nemotron.kit.artifact, nemotron.kit.run, nemotron.kit.trackers):
        for name in set(module.__all__) - {"cli"}:  # two packages, each callable as the function
            assert getattr(module, name) is getattr(nemotron_kit, name)
            assert name not in artifacts.__all__ or getattr(module, name) is getattr(artifacts, name)
        with pytest.raises(AttributeError, match="nothing"):
            module.nothing  # noqa: B018
    for name in artifacts.__all__:
        assert getattr(artifacts, name) is not None
    with pytest.raises(AttributeError, match="nothing"):
        artifacts.nothing  # type: ignore[attr-defined]  # noqa: B018


@pytest.mark.parametrize("package", ["", ".artifacts", ".data_prep", ".training"])
def test_the_packages_names_are_the_same_for_type_checkers_and_at_run_time(package: str) -> None:
    """Each name that a package looks up stands, with its home, among the imports that a type checker reads."""
    module = import_module(f"nemotron_kit{package}")
    tree = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))
    checked = next(node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in checked.body if isinstance(node, ast.ImportFrom)]
    names = [(alias.asname or alias.name, alias.name, str(node.module)) for node in imports for alias in node.names]
    names = [(name, there, home) for name, there, home in names if home.startswith("nemotron_kit.")]
    assert sorted(name for name, *_ in names) == sorted(module.__all__)
    assert set(module.__all__) <= set(dir(module))
    # A module that is imported takes its package's name of the same spelling. cli is callable as the function.
    assert {found.name for found in iter_modules(module.__path__)} & set(module.__all__) <= {"cli"}
    for name, there, home in names:
        assert name == "cli" or getattr(module, name) is getattr(import_module(home), there)


def test_importing_the_package_imports_nothing_else_and_cli_can_be_called(tmp_path: Path) -> None:
    program = """
import ast
import subprocess
import sys
from importlib import import_module
before = set(sys.modules)
import nemotron_kit
assert set(sys.modules) - before <= {"nemotron_kit", "__future__"}, set(sys.modules) - before
from nemotron_kit import cli, app
import nemotron.kit, nemotron_kit.cli.main
assert cli is nemotron_kit.cli and app.App is nemotron_kit.App
from dataclasses import make_dataclass
Config = make_dataclass("Config", [("a", int, 1)])
assert cli(Config, argv=["--a", "3"]) == nemotron.kit.cli(Config, argv=["a=3"]) == Config(3)
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path)


def test_large_content_is_hashed_in_threads_to_the_same_digest(
    tmp_path: Path, make: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make.folder("data", **{f"f{n}": str(n) * 1000 for n in range(20)})
    one = ArtifactRegistry(root=tmp_path / "one").publish("x", folder)
    monkeypatch.setattr(manifest, "_MANY_BYTES", 1)
    many = ArtifactRegistry(root=tmp_path / "many").publish("x", folder)
    assert one.digest == many.digest
