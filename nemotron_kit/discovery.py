"""Finds the command trees: our own recipes, installed packages (entry points), folders named in env.toml."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

from nemotron_kit import installed
from nemotron_kit.app import App, add_import_folders
from nemotron_kit.envfile import EnvFile, read_env_file
from nemotron_kit.errors import UserError, error_text
from nemotron_kit.home import expand_user
from nemotron_kit.ownership import untrusted_code_reason

ENTRY_POINTS = "nemotron_kit.recipes"
BUILT_IN = {"nano3": "nemotron.recipes.nano3"}


@dataclass(eq=False, repr=False)
class Tree:
    """The recipes by name; `broken` has those that failed to import, with the reason."""

    apps: dict[str, App] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)
    sources: list[Path] = field(default_factory=list)


_in_use: list[Tree] = []


def use(tree: Tree) -> None:
    """Set the tree that `tree_in_use` returns in this process, as App.run() does for its app."""
    _in_use[:] = [tree]


def tree_in_use() -> Tree:
    """The tree given to `use`, else every recipe that `discover` finds."""
    return _in_use[0] if _in_use else discover()


def discover(env: EnvFile | None = None, names: Collection[str] = ()) -> Tree:
    """Import every command tree. One that fails is listed as broken and does not affect the others.

    If all of `names` (the requested recipes) are built in, only those are imported: searching the installed packages
    takes longer than all the rest. The user's own folders are importable all the same, since a config of a built-in
    recipe may name a function of theirs (`env.verifiers.NAME._target_`). If none is, and all are found among the
    others, the built-in ones are not imported.
    """
    env = env if env is not None else read_env_file()
    asked, built_in = set(names), BUILT_IN.keys()
    if asked and asked <= built_in:
        tree = Tree()
        for name in asked:
            _add(tree, name, BUILT_IN[name])
        if not tree.broken:
            for folder in recipe_folders(env):
                _make_importable(folder)
            return tree
    if asked and not asked & built_in:
        tree = _search(env, ())
        if asked <= tree.apps.keys() and not tree.broken and not tree.apps.keys() & built_in:
            return tree
    return _search(env, BUILT_IN)


def _search(env: EnvFile, built_in: Collection[str]) -> Tree:
    """These built-in recipes, those of installed packages, and those in the user's folders."""
    tree = Tree()
    for name in built_in:
        _add(tree, name, BUILT_IN[name])
    for name, module in entry_points():
        _add(tree, name, module)
    for folder in recipe_folders(env):
        if problem := _make_importable(folder):
            tree.broken[folder.name] = problem
        else:
            _add(tree, folder.name, folder.name, folder)
    return tree


def entry_points() -> Iterator[tuple[str, str]]:
    """(name, "module" or "module:app") of every installed third-party recipe."""
    return installed.entry_points(ENTRY_POINTS)


def recipe_folders(env: EnvFile) -> list[Path]:
    """The folders named in `[cli] recipes` of env.toml, relative ones to the file's own folder."""
    named = env.table("cli").get("recipes", [])
    if not isinstance(named, list) or not all(isinstance(name, str) and name for name in named):
        raise UserError(f"{env.path}: [cli] recipes: expected a list of folders.", hint='Write recipes = ["FOLDER"].')
    return [(env.folder / expand_user(name)).absolute() for name in named]


def _make_importable(folder: Path) -> str | None:
    """Put the parent of a recipe's folder on the import path. Returns why that can't be done, None where it was."""
    if not folder.is_dir():
        return f"{folder} is no folder (named in env.toml, [cli] recipes)"
    if odd := {".", ":"} & set(folder.name):
        return f"{folder}: Python can't import a folder with a {odd.pop()!r} in its name: rename it"
    # Importing a folder runs its code, and its parent is then on the import path.
    if strange := untrusted_code_reason(folder):
        return f"{strange}, so {folder} (env.toml, [cli] recipes) is not imported"
    add_import_folders([str(folder.parent)])
    return None


def _add(tree: Tree, name: str, target: str, folder: Path | None = None) -> None:
    """Add the apps of a module, or the reason why there are none. `folder`: where the module must be."""
    module_name, _, attribute = target.partition(":")
    try:
        package = importlib.import_module(module_name)
        # A package's modules in which an App is usually defined.
        usual = ("app", "__main__", "cli") if hasattr(package, "__path__") else ()
        for each in (module_name, *(f"{module_name}.{child}" for child in usual)):
            if each != module_name and importlib.util.find_spec(each) is None:
                continue
            module = importlib.import_module(each)
            if folder is not None and not _is_in(module, folder):
                found = module.__file__ or "built into Python"
                tree.broken[name] = f"another module is called {module_name} ({found}): rename the folder {folder}"
                return
            apps = (
                [getattr(module, attribute)] if attribute else [v for v in vars(module).values() if isinstance(v, App)]
            )
            if apps:
                tree.sources.append(Path(str(module.__file__)))
                for app in apps:
                    if tree.apps.setdefault(app.name, app) is not app:
                        tree.broken[name] = (
                            f"a recipe called {app.name} exists already: rename that of {module.__file__}"
                        )
                return
        tree.broken[name] = f"{module_name} holds no nemotron.kit.App"
    # A third-party module may raise anything, including SystemExit; the other recipes must still work.
    except (Exception, SystemExit) as error:  # noqa: BLE001
        tree.broken[name] = error_text(error)


def _is_in(module: ModuleType, folder: Path) -> bool:
    """Whether a module is the package in this folder, or one below it."""
    found = [*getattr(module, "__path__", ()), os.path.dirname(module.__file__ or "")]  # noqa: PTH120
    return any(f"{os.path.realpath(each)}/".startswith(f"{os.path.realpath(folder)}/") for each in found)
