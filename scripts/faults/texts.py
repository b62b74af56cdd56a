"""Hostile texts wherever a text is taken: they arrive unchanged, or are refused; none of them ever runs."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import subprocess
from pathlib import Path

from nemotron_kit.cli.main import nemotron

RECIPE = """
import json, os
from dataclasses import dataclass, field
from pathlib import Path
from nemotron.kit import App

@dataclass
class C:
    text: str = ""
    texts: dict[str, str] = field(default_factory=dict)

def go(cfg):
    Path("arrived.json").write_text(json.dumps([cfg.text, dict(cfg.texts)]))

app = App("r")
app.command("go", C, go)
"""
PROFILES = """
[cli]
recipes = ["r"]
[slurm]
executor = "slurm"
account = "a"
partition = "p"
[docker]
executor = "docker"
container_image = "image"
"""
PIECES = [
    "$(touch CANARY)", "`touch CANARY`", "; touch CANARY", "\n touch CANARY\n", "| touch CANARY", "&& touch CANARY",
    "' touch CANARY '", '" ; touch CANARY; "', "\\", "\\\\'", "'", '"', "$HOME", "${HOME}", "~", "*", "?", "[a]",
    "{a,b}",
    "\t", "\r", "\x1b[31m", "\x7f", "é", "日本", "\U0001f600", "\u202e", "\u2028", "%s", "%(x)s", "#", "!", "--", "-c",
    "=", ":", ",", "null", "true", "1e3", "0x10", "12:00:00", "on", "~x", "@", "EOF", "#SBATCH --x", "../..", " ", "  ",
]  # fmt: skip


def run(work: Path, scale: float, seed: int) -> tuple[int, list[str]]:
    """(cases, what did not hold)."""
    (work / "r").mkdir()
    (work / "r/__init__.py").write_text(RECIPE)
    (work / "env.toml").write_text(PROFILES)
    rng = random.Random(seed)
    failures: list[str] = []
    texts = [*PIECES, *("".join(rng.choices(PIECES, k=rng.randint(1, 6))) for _ in range(int(120 * scale)))]
    texts = [text.replace("CANARY", f"{work}/canary") for text in texts]
    cases = 0
    for number, text in enumerate(texts):
        for kind, arguments in (
            ("flag", ["r", "go", "--text", text]),
            ("override", ["r", "go", f"text={_quoted(text)}"]),
            ("key", ["r", "go", f"+texts={{{_quoted(text)}: a}}"]),
        ):
            if kind == "key" and number % 4:
                continue
            cases += 1
            failures += _check_run(kind, text, arguments)
        for profile in ("slurm", "docker"):
            if number % 5 == 0:
                cases += 1
                failures += _planned(profile, text)
        for kind, arguments in (
            ("name", ["artifacts", text]),
            ("run", ["runs", "show", text]),
            ("profile", ["r", "go", "--run", text, "--dry-run"]),
            ("job_name", ["r", "go", "--run", "slurm", f"--run.job_name={text}", "--dry-run"]),
        ):
            if number % 5 == 1:
                cases += 1
                failures += _refused(kind, text, arguments)
    if (work / "canary").exists():
        failures.append("a text was executed")
    return cases, failures


def _quoted(text: str) -> str:
    """A text in Hydra's quotes."""
    body = text.replace("\\'", "\\\\'").replace("'", "\\'")
    if body.endswith("\\") and not body.endswith("\\\\"):
        body += "\\"
    return f"'{body}'"


def _run(arguments: list[str]) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = nemotron(arguments)
    return code, out.getvalue(), err.getvalue()


def _check_run(kind: str, text: str, arguments: list[str]) -> list[str]:
    """A job in this process: its function gets the text, or the launch refuses it."""
    arrived = Path("arrived.json")
    arrived.unlink(missing_ok=True)
    code, _, err = _run(arguments)
    if "Traceback" in err or code not in (0, 2):
        return [f"{kind} {text!r}: exit {code}: {err.splitlines()[-1:]}"]
    if code == 2:
        return []
    got, texts = json.loads(arrived.read_text())
    # A flag is taken literally. An override is read by Hydra's grammar, which has escapes.
    if kind == "flag" and got != text:
        return [f"{kind} {text!r} arrived as {got!r}"]
    if kind == "key" and "\\" not in text and texts != {text: "a"}:
        return [f"{kind} {text!r} arrived as {texts!r}"]
    return []


def _planned(profile: str, text: str) -> list[str]:
    """A plan for another executor: the text is in the config only, never in a script or a command line."""
    code, out, err = _run(["r", "go", "--text", text, "--run", profile, "--dry-run", "--json"])
    if code == 2 and "Traceback" not in err:
        return []
    if code not in (0, 1) or "Traceback" in err:
        return [f"{profile} {text!r}: exit {code}: {err.splitlines()[-1:]}"]
    plan = json.loads(out)
    failures = []
    for name, script in plan.get("files", {}).items():
        if not name.endswith((".sh", ".sbatch")):
            continue
        if "touch" in script:
            failures.append(f"{profile}: {text!r} is in {name}")
        if subprocess.run(["bash", "-n"], input=script, text=True, check=False, env=dict(os.environ)).returncode:
            failures.append(f"{profile}: {name} is no script with {text!r}")
    if "touch" in json.dumps(plan.get("launch_command", [])):
        failures.append(f"{profile}: {text!r} is on the launch command")
    return failures


def _refused(kind: str, text: str, arguments: list[str]) -> list[str]:
    code, out, err = _run(arguments)
    shown = out + err
    if "Traceback" in shown or code not in (0, 1, 2, 3):
        return [f"{kind} {text!r}: exit {code}: {err.splitlines()[-1:]}"]
    if "\x1b[31m" in shown or "\x7f" in shown:
        return [f"{kind} {text!r}: control characters are printed as they are"]
    return []
