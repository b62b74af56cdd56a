"""How long `nemotron --help` takes, as multiples of `python -c pass` in the same clean venv.

    python scripts/bench/startup.py [--rounds 31] [--venv DIR]

Builds the wheel, installs it (with what a plain install brings, no extras) in a fresh venv, and times whole processes
in turn, so that a busy moment falls on all of them. Goal: every page at most 3.5×, with a tree of 40 commands of 60
fields each beside nano3. Making the index anew, which happens once after a change, is printed on its own, also without
that tree. `--venv` reuses one.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

ROOT = Path(__file__).parents[2]
GOAL = 3.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--venv", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        binaries = (options.venv or _install(folder)) / "bin"
        env = {**os.environ, "NEMOTRON_HOME": str(folder / "home"), "NEMOTRON_ENV_FILE": str(_big_tree(folder))}
        bench(binaries, env, folder, options.rounds)


def bench(binaries: Path, env: dict[str, str], folder: Path, rounds: int) -> None:
    """Time every page `rounds` times, interleaved, and print the medians of times and of the rounds' ratios."""
    nemotron = str(binaries / "nemotron")
    pages = ["--help", "nano3 --help", "nano3 data prep --help", "nano3 pretrain --help", "--version"]
    pages += ["big --help", "big group3 --help", "big group3 command7 --help", "__complete bash nemotron"]
    commands = {"python -c pass": [str(binaries / "python"), "-c", "pass"]}
    commands |= {f"nemotron {page}": [nemotron, *page.split()] for page in pages}
    small = {**env, "NEMOTRON_ENV_FILE": str(_empty(folder))}
    taken: dict[str, list[float]] = {name: [] for name in [*commands, *REBUILDS]}
    _timed(commands["nemotron --help"], env)
    for _ in range(rounds):
        for name, command in commands.items():
            taken[name].append(_timed(command, env))
        for name, where in zip(REBUILDS, (small, env), strict=True):
            shutil.rmtree(folder / "home")
            taken[name].append(_timed(commands["nemotron --help"], where))
    for name, seconds in taken.items():
        # Each round against a `pass` of the same round: a machine that gets busy half-way shifts both.
        ratio = statistics.median(one / base for one, base in zip(seconds, taken["python -c pass"], strict=True))
        verdict = "" if name in ("python -c pass", *REBUILDS) else "ok" if ratio <= GOAL else f"over {GOAL}×"
        print(f"{name:42} {statistics.median(seconds) * 1e3:7.1f} ms {ratio:6.2f}×  {verdict}")


REBUILDS = ("(index made anew, nano3 alone)", "(index made anew, 41 commands)")


def _timed(command: list[str], env: dict[str, str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, env=env, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def _install(folder: Path) -> Path:
    """A venv that holds the wheel of this checkout."""
    print("building the wheel and a clean venv …", file=sys.stderr)
    venv.create(folder / "venv", with_pip=True)
    pip = [str(folder / "venv" / "bin" / "python"), "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", str(folder / "dist"), str(ROOT)], check=True)
    (wheel,) = (folder / "dist").glob("*.whl")
    subprocess.run([*pip, "install", str(wheel)], check=True)
    return folder / "venv"


def _empty(folder: Path) -> Path:
    """An empty env.toml."""
    file = folder / "empty.toml"
    file.touch()
    return file


def _big_tree(folder: Path) -> Path:
    """An env.toml that names a recipe of 40 commands of 60 fields each."""
    recipe = folder / "bigrecipe"
    recipe.mkdir()
    fields = "\n".join(
        f"    field_number_{n}: int = field(default={n}, metadata={{'help': 'What field {n} sets, in a line of text'}})"
        for n in range(60)
    )
    classes = "\n\n".join(f"@dataclass\nclass Config{n}:\n{fields}" for n in range(40))
    (recipe / "configs.py").write_text(f"from dataclasses import dataclass, field\n\n{classes}\n")
    (recipe / "__init__.py").write_text(
        "from nemotron.kit import App\nfrom bigrecipe import configs\napp = App('big', description='Big')\n"
        "for n in range(40):\n"
        "    app.group(f'group{n // 8}', description=f'Group {n // 8}').command(\n"
        "        f'command{n % 8}', getattr(configs, f'Config{n}'), lambda cfg: None, description=f'Command {n}')\n"
    )
    env_file = folder / "env.toml"
    env_file.write_text('[cli]\nrecipes = ["bigrecipe"]\n')
    return env_file


if __name__ == "__main__":
    main()
