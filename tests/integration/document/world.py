"""A folder of a user's own and a home of its own: what the document's lines are typed into."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from nemotron_kit.artifacts.registry import LocalRegistry, open_registry

from ... import warm
from .completions import complete
from .extract import Snippet

BIN = Path(sys.executable).parent
# What would reach into a test from the shell that it was started in.
_FOREIGN = ("NEMOTRON_", "NEMO_RUN", "WANDB_", "HYDRA_", "HF_", "COLUMNS", "FORCE_COLOR", "RANK", "WORLD_SIZE")

ENV_TOML = '[cli]\nrecipes = ["myrecipe"]\n'
BLEND = '{"datasets": [{"name": "mine", "path": "mine.jsonl"}]}\n'


def environment(home: Path) -> dict[str, str]:
    """A user's environment: this installation first on the PATH, an empty home, no network for the hub."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(_FOREIGN)}
    own = {"NEMOTRON_HOME": str(home), "HOME": str(home.parent), "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    return {**clean, **own, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TERM": "dumb"}


@dataclass(frozen=True)
class Result:
    """How a command line ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output as JSON: the whole of it, else its last line."""
        try:
            return json.loads(self.out)
        except ValueError:
            return json.loads(self.out.strip().splitlines()[-1])


@dataclass(frozen=True)
class World:
    """`snippets` are the document's, by id; lines run in `folder`, records go to `home`."""

    snippets: Mapping[str, Snippet]
    folder: Path
    home: Path

    def text(self, key: str) -> str:
        """A snippet, completed."""
        return complete(self.snippets[key])

    def write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    def place(self, key: str, name: str) -> Path:
        """Write a completed snippet to a file of the user's folder."""
        return self.write(name, self.text(key))

    def run(self, line: str, *, code: int | None = 0, stdin: str = "", forked: bool = True, **more: str) -> Result:
        """Run a shell line; `code` is what it must exit with, None for anything. Programs in it are `forked` from one
        that has loaded what they import (see tests/warm.py), where nobody times them."""
        shell = ["bash", "-c", line]
        env = {**environment(self.home), **more}
        if forked:
            env["PATH"] = f"{warm.programs()}{os.pathsep}{env['PATH']}"
        done = subprocess.run(shell, cwd=self.folder, env=env, input=stdin, capture_output=True, text=True, timeout=240)
        assert code is None or done.returncode == code, f"{line}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr, done.stderr
        return Result(done.returncode, done.stdout, done.stderr)

    def run_line(self, key: str, more: str = "", *, code: int | None = 0) -> Result:
        """Run one of the document's lines, completed; `more` is added to it."""
        return self.run(self.text(key) + more, code=code)

    def python(self, program: str) -> Result:
        """Run a Python program from a file."""
        path = self.write("program.py", program)
        return self.run(f"python {path.name}")

    # --- what was left

    @property
    def registry(self) -> LocalRegistry:
        return open_registry(self.home / "artifacts")

    def borrow(self, home: Path) -> None:
        """Know the artifacts of another home too: their files stay where they are."""
        shutil.copytree(home / "artifacts", self.home / "artifacts")

    def runs(self) -> list[Path]:
        """The job folders, oldest first."""
        return sorted((self.home / "runs").glob("*/jobs/*"))

    def config(self) -> dict[str, Any]:
        """The config that the newest job read."""
        loaded: dict[str, Any] = yaml.safe_load((self.runs()[-1] / "config.yaml").read_text(encoding="utf-8"))
        return loaded

    def inputs(self) -> dict[str, str]:
        """Slot → `Name:vN` of what the newest job was given."""
        pins = json.loads((self.runs()[-1] / "artifacts.json").read_text(encoding="utf-8"))["inputs"]
        return {slot: f"{pin['name']}:v{pin['version']}" for slot, pin in pins.items()}

    def parents(self, reference: str) -> list[str]:
        """The labels of what a registered version was made from."""
        return [pin.label for pin in self.registry.find(reference).inputs]

    def same_folder(self) -> World:
        """This folder with records of its own: for doing the same thing another way."""
        return World(self.snippets, self.folder, self.home.with_name("home2"))


def my_recipe(world: World) -> World:
    """The document's steps 1 to 5, each in the file that it names, and env.toml that names the folder."""
    world.write("myrecipe/__init__.py", "")
    world.place("Step 1: Define Config Dataclass/1", "myrecipe/config.py")
    world.place("Step 2: Create Data Prep Script/1", "myrecipe/data_prep.py")
    world.place("Step 3: Create Training Script/1", "myrecipe/train.py")
    world.place("Step 4: Wire Up CLI/1", "myrecipe/__main__.py")
    world.place("Step 5: Add Config Files/1", "myrecipe/config/default.yaml")
    world.place("Step 5: Add Config Files/2", "myrecipe/config/tiny.yaml")
    world.write("data_blend.json", BLEND)
    world.write("env.toml", ENV_TOML)
    return world


def save_artifact(world: World, kind: str, name: str, folder: str) -> Path:
    """A registered artifact with one file in it, saved by a program as a user would."""
    path = world.write(f"{folder}/blend.json", '{"train": null}\n').parent
    world.python(f'from nemotron.kit import {kind}\n\n{kind}(path="{folder}").save(name="{name}")\n')
    return path
