"""The value that a job gives its sweeper, and the error before the first job if it would give none."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from nemotron_kit.app import App, Command
from nemotron_kit.discovery import discover
from nemotron_kit.errors import NemotronError, UserError
from nemotron_kit.home import new_run_id
from nemotron_kit.runs.folder import create_run
from nemotron_kit.runs.job import JobFolder
from nemotron_kit.sweep.objective import (
    check_objective,
    check_program,
    check_returned,
    objective_facts,
    objective_problem,
    value_for,
)

pytestmark = pytest.mark.usefixtures("home")


@dataclass
class Config:
    lr: float = 0.1


class ModelArtifact:
    """As a recipe's handler returns one."""


def hydra(sweeper: str = "optuna", direction: Any = "minimize", **launcher: Any) -> Any:
    own = {"direction": direction} if sweeper == "optuna" else {}
    choices = {"hydra/sweeper": sweeper}
    return OmegaConf.create({"sweeper": own, "launcher": launcher, "runtime": {"choices": choices}})


def returns_none(config: Config) -> None: ...
def returns_artifact(config: Config) -> ModelArtifact: ...  # type: ignore[empty-body]
def returns_number(config: Config) -> float: ...  # type: ignore[empty-body]
def says_nothing(config):
    print(config)


def returns_unsaid(config):
    return config.lr


def within(config):
    def number() -> float:
        return 1.0

    return print(number()) if number() > 2 else None


def ends_early(config):
    if config:
        return
    print(lambda: 1)


def command(handler: Callable[..., Any] | str, **more: Any) -> Command:
    return App("demo").command("go", Config, handler, **more)


@pytest.mark.parametrize(
    ("handler", "returned"),
    [
        (returns_none, "nothing"),
        (returns_artifact, "an artifact"),
        (says_nothing, "nothing"),
        (ends_early, "nothing"),
        (returns_number, None),
        (returns_unsaid, None),
        (within, None),
        ("json:dumps", None),
        ("json:no_such_function", None),
    ],
)
def test_a_handler_that_returns_no_number_is_known_before_it_runs(handler: Any, returned: str | None) -> None:
    found = objective_problem(hydra(), command(handler), detached=False)
    assert found == (
        None
        if returned is None
        else f"hydra/sweeper=optuna needs a number from each trial, and the handler of demo go returns {returned}. "
        "Name a metric that it logs: hydra/launcher=nemo_run hydra.launcher.objective=METRIC; or in the recipe: "
        'command(…, objective="METRIC").'
    )
    for asks_nothing in (hydra("basic"), hydra(objective="loss")):
        assert objective_problem(asks_nothing, command(handler), detached=False) is None
    assert objective_problem(hydra(), command(handler, objective="loss"), detached=False) is None
    assert "a detached launch waits for none" in str(objective_problem(hydra(), command(handler), detached=True))


def test_the_check_raises_before_a_job(tmp_path: Path) -> None:
    composed: Any = type("Composed", (), {"config": OmegaConf.create({"run": {"mode": "local"}})})
    composed.hydra, composed.command = hydra(), command(returns_none)
    with pytest.raises(UserError, match="needs a number from each trial") as wrong:
        check_objective(composed)
    assert "hydra.launcher.objective=METRIC" in str(wrong.value.hint)


def test_nano3_names_its_objectives_and_imports_nothing_for_it() -> None:
    named = {each.stage: each.objective for each in discover().apps["nano3"].commands() if each.objective}
    assert named == {"pretrain": "valid_loss", "sft": "valid_loss", "rl": "val_reward"}
    (prep,) = [each for each in discover().apps["nano3"].commands() if each.stage == "data/prep/pretrain"]
    assert "returns an artifact" in str(objective_problem(hydra(), prep, detached=False))


@pytest.fixture
def job() -> JobFolder:
    rows = '{"step": 1, "loss": 3.0}\n{"step": 2, "loss": 2.0, "seconds": 7.0}\n{"step": 3, "loss": 2.5}\n'
    return create_run(new_run_id("demo", "go"), {"kind": "sweep"}, [{"metrics.jsonl": rows}]).job()


def test_the_value_is_the_last_of_the_objective_else_what_was_returned(job: JobFolder) -> None:
    assert value_for(hydra(), job, "loss", None) == 2.5
    assert value_for(hydra(direction=TWO), job, "loss, seconds", None) == [2.5, 7.0]
    assert value_for(hydra(), job, None, 4) == 4
    assert value_for(hydra(direction=TWO), job, None, (1.0, 2)) == (1.0, 2)
    assert value_for(hydra("basic"), job, None, None) is None
    # A grid over a command that logged nothing this time is no failure; one that was asked for on the line is.
    assert value_for(hydra("basic"), job, "valid_loss", "made") == "made"
    for asks in (hydra(), hydra("basic", objective="valid_loss")):
        with pytest.raises(NemotronError, match="Job 0 logged no metric 'valid_loss'") as wrong:
            value_for(asks, job, "valid_loss", None)
        assert wrong.value.hint == "It logged loss, seconds."
    (job.path / "metrics.jsonl").write_text('{"loss": 1.0, "other": "NaN"}\n')
    for metric, returned in (("other", None), ("loss,other", None), (None, math.nan), (None, [1.0, math.nan])):
        several = isinstance(returned, list) or metric == "loss,other"
        with pytest.raises(NemotronError, match=r"Job 0.* NaN; .*needs a number from each trial"):
            value_for(hydra(direction=TWO if several else "minimize"), job, metric, returned)
    assert math.isnan(value_for(hydra("basic"), job, "other", None))
    check_returned(hydra(), job, "text")  # a plain program's value is its own, but for nothing, NaN and a wrong count
    check_returned(hydra("basic"), job, None)
    with pytest.raises(NemotronError, match="Job 0 returned NaN"):
        check_returned(hydra(direction=TWO), job, [0.0, math.nan])
    with pytest.raises(NemotronError, match="Job 0 returned nothing; hydra/sweeper=optuna needs a number"):
        check_returned(hydra(), job, None)
    for nothing in (None, "text", object(), []):
        with pytest.raises(NemotronError, match=r"Job 0 returned no.*needs a number from each trial"):
            value_for(hydra(), job, None, nothing)


TWO = ["minimize", "maximize"]


def test_as_many_values_as_the_sweeper_has_directions(job: JobFolder) -> None:
    """Optuna's sweeper would run all of its trials and then have none to choose from."""
    for direction, returned, what in (
        ("minimize", (1.0, 2.0), "a tuple of 2 values, and hydra.sweeper.direction has 1 direction."),
        (TWO, 1.0, "one value, and hydra.sweeper.direction has 2 directions."),
        (TWO, [1, 2, 3], "a list of 3 values, and hydra.sweeper.direction has 2 directions."),
        (["minimize"], [1.0], "a list of 1 value, and hydra.sweeper.direction has 1 direction."),
    ):
        for asks in (lambda *of: value_for(*of[:2], None, of[2]), check_returned):
            with pytest.raises(NemotronError, match=f"Job 0 returned {what}"):
                asks(hydra(direction=direction), job, returned)
    for direction, named in (("minimize", "loss,seconds"), (TWO, "loss"), (["minimize"], "loss,seconds")):
        asks_too = hydra(direction=direction, objective=named)
        found = objective_problem(asks_too, command(returns_none), detached=False)
        assert found is not None and found.message.startswith(f"The objective {named} has ")
        with pytest.raises(UserError, match=r"and hydra\.sweeper\.direction has"):
            check_program(asks_too, returns_number)
    assert objective_problem(hydra(direction=TWO), command(returns_none, objective="a,b"), detached=False) is None
    with pytest.raises(TypeError, match=r'demo go: objective is .* several as "loss,seconds"'):
        command(returns_none, objective=("loss", "seconds"))


def test_a_program_that_returns_no_number_is_known_before_its_first_job() -> None:
    @functools.wraps(returns_none)
    def decorated(config: Config) -> float:
        return config.lr

    for task in (returns_none, says_nothing, ends_early):
        with pytest.raises(UserError, match=f"and {task.__name__} returns nothing") as wrong:
            check_program(hydra(), task)
        assert "hydra.launcher.objective=METRIC" in str(wrong.value.hint)
        check_program(hydra("basic"), task)
        check_program(hydra(objective="loss"), task)
    for task in (returns_number, returns_unsaid, decorated, functools.partial(returns_none), print):
        check_program(hydra(), task)


def test_what_a_sweep_records() -> None:
    assert objective_facts(hydra(), command(returns_none, objective="loss")) == {
        "direction": "minimize",
        "objective": "loss",
    }
    assert objective_facts(hydra(objective="acc"), command(returns_none, objective="loss"))["objective"] == "acc"
    assert objective_facts(hydra("basic"), command(returns_none)) == {}
