"""Hostile text through every door, executed on the real Slurm: each job sees it exactly, or it was refused before
anything was submitted; nothing else runs."""

# ruff: noqa: F811
from __future__ import annotations

import json
import string
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from nemotron_kit.errors import UserError
from nemotron_kit.execution.backends.base import backend_for
from nemotron_kit.plan.plan import Plan
from nemotron_kit.runs.folder import RunFolder, create_run
from nemotron_kit.runs.ids import new_run_id

from .slurm_world import World, until, world  # noqa: F401

CANARY = "canary"
HOSTILE = [
    "$(touch {0})",
    "`touch {0}`",
    "'; touch {0}; '",
    '"; touch {0}; "',
    "a\ntouch {0}\n",
    "\r\n#SBATCH --wrap='touch {0}'\n",
    "x' $(touch {0}) 'y",
    "${{IFS}}touch${{IFS}}{0}",
    "|| touch {0} &&",
    "-rf / --flag=$(touch {0})",
    "\\$(touch {0})\\",
    "\x1b]0;title\x07 $(touch {0})",
    "{{{{ 7*7 }}}} {{% raw %}} $(touch {0})",
    "*?[a-z]~ <(touch {0}) >{0}",
    "ünïcödé 漢字 🦆 \u202e \u2028 $(touch {0})",
    "",
    " leading and trailing ",
    "--help",
    "null",
    "1e3",
    "${{oc.env:HOME}}",
]
text = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\x00"), max_size=60)
pieces = st.lists(st.sampled_from([piece.format("CANARY") for piece in HOSTILE]) | text, min_size=1, max_size=4)
anything = pieces.map("".join)


def collected(strategy: st.SearchStrategy[str], count: int) -> list[str]:
    """`count` examples of a strategy, the same ones each time."""
    found: list[str] = []

    @settings(
        max_examples=count, derandomize=True, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck), deadline=None,
    )  # fmt: skip
    @given(strategy)
    def collect(value: str) -> None:
        found.append(value)

    collect()
    return list(dict.fromkeys(found))


def write_config(world: World, name: str, value: str) -> None:
    """A config file: JSON, which holds any text."""
    folder = world.folder / "config"
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps({"text": value.replace("${", "\\${")}))


def submit(world: World, plans: list[Plan]) -> RunFolder:
    run = create_run(plans[0].run_id, plans[0].to_dict(), [plan.files for plan in plans])
    backend_for(plans[0]).submit(run, plans)
    until(lambda: {job.state().state for job in run.jobs()} <= {"succeeded", "failed", "cancelled"}, 240)
    return run


def seen_by(run: RunFolder, number: int) -> dict[str, object]:
    job = run.job(number)
    assert job.state().state == "succeeded", (job.path / "logs" / "job.log").read_text()
    found: dict[str, object] = json.loads((job.path / "seen-0.json").read_text())
    return found


def no_canary(world: World, canary: Path) -> None:
    assert not canary.exists()
    assert list(world.folder.parent.rglob("CANARY*")) == [] and list(Path.home().glob("CANARY*")) == []


def test_text_in_configs_and_variables_arrives_exactly(world: World) -> None:
    canary = world.folder.parent / CANARY
    values = [piece.format(canary) for piece in HOSTILE] + collected(anything, 60) + ["x" * 100_000, "'\"$`\\\n" * 2000]
    with world.seen():
        run_id, plans = new_run_id("work", "look"), []
        for number, value in enumerate(values):
            write_config(world, f"c{number}", value)
            variable = json.dumps([f"HOSTILE={value}"])
            words = [f"config={world.folder}/config/c{number}.json", f"run.env.env_vars={_hydra(json.loads(variable))}"]
            plans.append(world.plan("look", *words, run_id=run_id, job=number))
        run = submit(world, plans)
    for number, value in enumerate(values):
        seen = seen_by(run, number)
        assert seen["text"] == value
        environment = seen["environment"]
        assert isinstance(environment, dict) and environment["HOSTILE"] == value
    no_canary(world, canary)


def test_overrides_and_paths_on_a_command_line(world: World) -> None:
    """Through the real command line, one process each: the text as a config value, quoted as Hydra wants it."""
    canary = world.folder.parent / CANARY
    for piece in HOSTILE[:6]:
        value = piece.format(canary)
        done = world.run("look", f"text={_hydra(value)}", "--run", "C")
        assert done.returncode == 0, done.stderr
        job = world.job(done.stderr)
        assert json.loads((job.path / "seen-0.json").read_text())["text"] == value
    no_canary(world, canary)


@pytest.mark.parametrize(
    "field", ["account", "partition", "qos", "constraint", "exclude", "gres", "mem", "time", "job_name"]
)
def test_hostile_text_in_a_header_is_refused(world: World, field: str) -> None:
    canary = world.folder.parent / CANARY
    with world.seen():
        for piece in HOSTILE[:11]:
            value = piece.format(canary)
            with pytest.raises(UserError):
                world.plan("look", f"run.env.{field}={_hydra(value)}")
    no_canary(world, canary)


@pytest.mark.parametrize(
    "extra",
    [
        {"srun_args": ["--x=$(touch {0})"]},
        {"srun_args": ["; touch {0}"]},
        {"comment": "x\ntouch {0} #"},
        {"additional_parameters": {"comment": "a\n$(touch {0})"}},
        {"additional_parameters": {"mail_user": "$(touch {0})"}},
        {"additional_parameters": {"x\ntouch {0}\n": "y"}},
    ],
    ids=lambda extra: "-".join(extra),
)
def test_hostile_text_in_what_only_nemo_run_knows_is_refused(world: World, extra: dict[str, object]) -> None:
    canary = world.folder.parent / CANARY
    words = json.loads(json.dumps(extra).replace("{0}", str(canary)))
    with world.seen(), pytest.raises(UserError):
        world.plan("look", f"run.env.extra={_hydra(words)}")
    no_canary(world, canary)


@pytest.mark.parametrize("image", ["$(touch {0})", "x; touch {0}", "a b", "x'", "img`touch {0}`"])
def test_a_hostile_image_or_mount_is_refused(world: World, image: str) -> None:
    canary = world.folder.parent / CANARY
    value = image.format(canary)
    with world.seen():
        with pytest.raises(UserError):
            world.plan("look", f"run.env.container_image={_hydra(value)}")
        with pytest.raises(UserError):
            world.plan("look", "run.env.container_image=img", f"run.env.mounts={_hydra([f'/a:/b{value}'])}")
    no_canary(world, canary)


def test_a_hostile_home_is_refused_or_harmless(world: World) -> None:
    canary = world.folder.parent / CANARY
    for name in ("a b", "$(touch CANARY)", "q'uote", "new\nline", "semi;colon"):
        home = world.folder.parent / name
        home.mkdir()
        done = world.run("look", "--batch", "C", NEMOTRON_HOME=str(home))
        assert done.returncode == 2, done.stderr
        assert "a batch script takes paths of" in done.stderr
        assert list(home.rglob("*.sh")) == []
    no_canary(world, canary)


def test_the_script_holds_nothing_of_the_users(world: World) -> None:
    with world.seen():
        plan = world.plan("look", "text=FINDME1", 'run.env.env_vars=["A=FINDME2"]')
    assert "FINDME" not in plan.files["sbatch.sh"]
    assert "FINDME1" in plan.files["config.yaml"] and "FINDME2" in plan.files["job.json"]


def _hydra(value: object) -> str:
    """A value in Hydra's override grammar: quoted text, lists and mappings of it."""
    if isinstance(value, list):
        return "[" + ",".join(map(_hydra, value)) + "]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{_hydra(key)}:{_hydra(item)}" for key, item in value.items()) + "}"
    text = str(value).replace("${", "\\${")
    if set(text) <= set(string.ascii_letters + string.digits + "_/-") and text and text != "null":
        return text
    # A backslash counts only before a quote: doubled there, and at the end.
    quoted, run = [], 0
    for character in text:
        if character == "\\":
            run += 1
            continue
        quoted.append("\\" * (run * 2 + 1 if character == "'" else run) + character)
        run = 0
    return "'" + "".join(quoted) + "\\" * (run * 2) + "'"
