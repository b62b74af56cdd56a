"""Hostile text in what reaches a script's header, srun's line or a path: refused before anything is submitted, and
nothing of it runs. What reaches jobs is in test_any_text."""

# ruff: noqa: F811
from __future__ import annotations

import json
from pathlib import Path

import pytest

from nemotron_kit.errors import UserError

from .slurm_world import World, hydra, world  # noqa: F401

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


def no_canary(world: World, canary: Path) -> None:
    assert not canary.exists()
    assert list(world.folder.parent.rglob("CANARY*")) == [] and list(Path.home().glob("CANARY*")) == []


def test_overrides_on_a_command_line(world: World) -> None:
    """Through the real command line: quoted as Hydra wants it, and as it is behind a flag."""
    canary = world.folder.parent / CANARY
    value = "".join(piece.format(canary) for piece in HOSTILE)
    plain = value.replace("${", "$")  # behind a flag, too, `${` begins a reference
    for words, text in ([f"text={hydra(value)}"], value), (["--text", plain], plain):
        done = world.run("look", *words, "--run", "C")
        assert done.returncode == 0, done.stderr
        job = world.job(done.stderr)
        assert json.loads((job.path / "seen-0.json").read_text())["text"] == text
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
                world.plan("look", f"run.env.{field}={hydra(value)}")
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
        world.plan("look", f"run.env.extra={hydra(words)}")
    no_canary(world, canary)


@pytest.mark.parametrize("image", ["$(touch {0})", "x; touch {0}", "a b", "x'", "img`touch {0}`"])
def test_a_hostile_image_or_mount_is_refused(world: World, image: str) -> None:
    canary = world.folder.parent / CANARY
    value = image.format(canary)
    with world.seen():
        with pytest.raises(UserError):
            world.plan("look", f"run.env.container_image={hydra(value)}")
        with pytest.raises(UserError):
            world.plan("look", "run.env.container_image=img", f"run.env.mounts={hydra([f'/a:/b{value}'])}")
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
