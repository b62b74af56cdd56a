"""The value that a sweep's job gives its sweeper: a metric named by its command or launcher, else the returned
value."""

from __future__ import annotations

import ast
import inspect
import logging
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from nemotron_kit.app import Command
from nemotron_kit.config.compose import Composed
from nemotron_kit.errors import NemotronError, Problem, UserError, listed
from nemotron_kit.files import write_json
from nemotron_kit.runs.folder import RunFolder
from nemotron_kit.runs.job import JobFolder
from nemotron_kit.runs.metrics import measured

# The config keys of sweepers that optimize a value: Optuna's and similar ones, Nevergrad's, Ax's.
_LEARNING = ("direction", "optim", "ax_config")
_HINT = (
    "Name a metric that it logs: hydra/launcher=nemo_run hydra.launcher.objective=METRIC; "
    'or in the recipe: command(…, objective="METRIC").'
)
_PROGRAM_HINT = "Return a number from it, or name a metric that it logs: hydra.launcher.objective=METRIC."
_NO_NUMBERS = frozenset({"None", "str", "bytes", "bool", "Path"})


def sweeper_direction(hydra: Any) -> str | None:
    """The direction of a sweeper (`minimize`, `maximize`) in the config's node hydra; None for a sweeper that optimizes
    nothing, or several values."""
    found = hydra.sweeper.get("direction")
    name = getattr(found, "name", found)
    return name if isinstance(name, str) else None


def learns(hydra: Any) -> bool:
    """Whether the sweeper needs each job's value to choose the next ones."""
    return any(key in hydra.sweeper for key in _LEARNING)


def _directions(hydra: Any) -> int | None:
    """How many values Optuna's sweeper takes from each trial; None for other sweepers."""
    found = hydra.sweeper.get("direction")
    if found is None:
        return None
    return len(found) if _is_several(found) else 1


def quiet_alembic() -> None:
    """Leave out the INFO records of alembic, which Optuna imports: Hydra's logging prints every library's. With
    `hydra.verbose` they stay."""
    if logging.getLogger().getEffectiveLevel() > logging.DEBUG and not logging.getLogger("alembic").level:
        logging.getLogger("alembic").setLevel(logging.WARNING)


def objective_of(hydra: Any, command: Command | None = None) -> str | None:
    """The metric, or several with commas between them, whose last values a job gives the sweeper: from
    `hydra.launcher.objective`, else the command's; None: the returned value."""
    given = hydra.launcher.get("objective")
    return str(given) if given else command.objective if command else None


def objective_problem(hydra: Any, command: Command, *, detached: bool) -> Problem | None:
    """Why a sweeper that optimizes would get no value from the command's jobs; None if it may get one."""
    if not learns(hydra):
        return None
    if detached:
        what = f"{_sweeper(hydra)} needs the value of each trial, and a detached launch waits for none."
        return Problem(what, hint="Launch it with --run PROFILE, or without a profile.")
    if (objective := objective_of(hydra, command)) is not None:
        return _count_problem(hydra, objective)
    with suppress(OSError, SyntaxError, ValueError, ImportError, TypeError):
        if returns := _returns(_definition(command)):
            what = f"the handler of {command.full_name} returns {returns}"
            return Problem(f"{_sweeper(hydra)} needs a number from each trial, and {what}.", hint=_HINT)
    return None


def check_program(hydra: Any, task: Callable[..., Any]) -> None:
    """Raise UserError if a sweeper that optimizes would get no value from the jobs of a program's task function."""
    if not learns(hydra):
        return
    if (objective := objective_of(hydra)) is not None:
        if found := _count_problem(hydra, objective):
            raise UserError(found.message, hint=found.hint)
        return
    returns = None
    if not hasattr(task, "__wrapped__"):  # what a decorator's function returns can't be known
        with suppress(OSError, SyntaxError, ValueError, TypeError):
            source, name = inspect.getsourcefile(task), getattr(task, "__qualname__", "")
            returns = _returns(_defined(Path(source), name) if source else None)
    if returns is not None:
        raise UserError(
            f"{_sweeper(hydra)} needs a number from each trial, and {task.__name__} returns {returns}.",
            hint=_PROGRAM_HINT,
        )


def _count_problem(hydra: Any, objective: str) -> Problem | None:
    names, wanted = _names(objective), _directions(hydra)
    if wanted is None or wanted == len(names):
        return None
    return Problem(
        f"The objective {objective} has {_counted(len(names), 'metric')}, and hydra.sweeper.direction has "
        f"{_counted(wanted, 'direction')}.",
        hint=_direction_hint(len(names)),
    )


def _names(objective: str) -> list[str]:
    return [name.strip() for name in objective.split(",")]


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _direction_hint(count: int) -> str:
    ways = "minimize" if count == 1 else f"[{','.join(['minimize'] * count)}]"
    return f"One direction for each value: 'hydra.sweeper.direction={ways}', or maximize."


def _sweeper(hydra: Any) -> str:
    return f"hydra/sweeper={hydra.runtime.choices.get('hydra/sweeper')}"


def check_objective(composed: Composed) -> None:
    """Raise UserError if the sweeper would get no value from this job, before it begins."""
    detached = composed.config.run.mode == "batch" or bool(composed.hydra.launcher.get("detach"))
    found = objective_problem(composed.hydra, composed.command, detached=detached)
    if found is not None:
        raise UserError(found.message, hint=found.hint)


def _returns(definition: ast.FunctionDef | None) -> str | None:
    """What a function returns if its source shows that it is no number; None if that can't be known: nothing is
    imported, since a recipe's handler may import PyTorch."""
    if definition is None:
        return None
    if definition.returns is not None:
        name = ast.unparse(definition.returns).strip("'\"").rpartition(".")[2]
        if name in _NO_NUMBERS:
            return "nothing" if name == "None" else f"a {name}"
        return "an artifact" if name.endswith("Artifact") else None
    if any(isinstance(node, ast.Yield | ast.YieldFrom) for node in ast.walk(definition)):
        return None
    returned = [
        node.value for node in _own_nodes(definition) if isinstance(node, ast.Return) and node.value is not None
    ]
    is_nothing = all(isinstance(value, ast.Constant) and value.value is None for value in returned)
    return "nothing" if is_nothing else None


def _definition(command: Command) -> ast.FunctionDef | None:
    """The handler's `def` in its module's source; None if it is not defined there by itself."""
    if isinstance(command.handler, str):
        file, name = command.handler_file(), command.handler.rpartition(":")[2]
    else:
        handler = inspect.unwrap(command.handler)
        source = inspect.getsourcefile(handler)
        file, name = Path(source) if source else None, getattr(handler, "__qualname__", "")
    found = _defined(file, name) if file is not None else None
    return None if found is None or (found.decorator_list and found.returns is None) else found


def _defined(file: Path, name: str) -> ast.FunctionDef | None:
    """The only function of this name that the file defines outside of others."""
    tree = ast.parse(file.read_bytes())
    found = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name]
    return found[0] if len(found) == 1 else None


def _own_nodes(definition: ast.AST) -> list[ast.AST]:
    """The nodes of a function without those of functions inside it."""
    found: list[ast.AST] = []
    for child in ast.iter_child_nodes(definition):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef):
            found += [child, *_own_nodes(child)]
    return found


def record_objective(run: RunFolder, hydra: Any, command: Command | None = None) -> None:
    """Put the sweeper's direction and the jobs' objective into the plan of a sweep that is under way."""
    facts = objective_facts(hydra, command)
    plan = run.plan()
    if any(plan.get(key) != value for key, value in facts.items()):
        write_json(run.path / "plan.json", {**plan, **facts})


def objective_facts(hydra: Any, command: Command | None = None) -> dict[str, str]:
    """`direction` and `objective` as a sweep's plan has them."""
    found = {"direction": sweeper_direction(hydra), "objective": objective_of(hydra, command)}
    return {key: value for key, value in found.items() if value is not None}


def value_for(hydra: Any, job: JobFolder, objective: str | None, returned: Any) -> Any:
    """The value that a job gives its sweeper: the last value of its objective (a list for several, `loss,seconds`),
    else `returned`. Raises NemotronError if the sweeper, or `hydra.launcher.objective`, needs a value that the job
    lacks."""
    asked = learns(hydra)
    if objective is None:
        if asked and not _is_number(returned):
            what = "nothing" if returned is None else f"no number but a value of type {type(returned).__name__}"
            text = f"Job {job.number} returned {what}; {_sweeper(hydra)} needs a number from each trial."
            raise NemotronError(text, hint=_HINT)
        _check_number(hydra, job, returned)
        return returned
    names, found = _names(objective), measured(job.path)
    missing = [name for name in names if name not in found]
    if missing and (asked or hydra.launcher.get("objective")):
        raise NemotronError(
            f"Job {job.number} logged no metric {missing[0]!r}, which is the sweep's objective.",
            hint=f"It logged {listed([*found])}." if found else "It logged none.",
        )
    values = [found[name].last for name in names if name in found]
    if asked and not missing and _is_nan(values):
        bad = next(name for name in names if _is_nan(found[name].last))
        raise NemotronError(
            f"Job {job.number}'s last {bad} is NaN; {_sweeper(hydra)} needs a number from each trial.",
            hint="Its setting max_failure_rate is the share of trials that may fail.",
        )
    return returned if missing else values if len(values) > 1 else values[0]


def check_returned(hydra: Any, job: JobFolder, returned: Any) -> None:
    """Raise NemotronError if a program's job returned nothing, NaN, or too few or many numbers to a sweeper that
    optimizes. Other values are between the two."""
    if learns(hydra) and returned is None:
        text = f"Job {job.number} returned nothing; {_sweeper(hydra)} needs a number from each trial."
        raise NemotronError(text, hint=_PROGRAM_HINT)
    _check_number(hydra, job, returned)


def _check_number(hydra: Any, job: JobFolder, returned: Any) -> None:
    """Raise NemotronError for too few or many numbers, with which Optuna's sweeper goes on to its last trial, and then
    has none to choose from; and for NaN, at which it stops the whole study."""
    if not _is_number(returned):
        return
    wanted, is_list = _directions(hydra), _is_several(returned)
    count = len(returned) if is_list else 1
    if wanted is not None and (count != wanted or is_list != (wanted > 1)):
        what = f"a {type(returned).__name__} of {_counted(count, 'value')}" if is_list else "one value"
        raise NemotronError(
            f"Job {job.number} returned {what}, and hydra.sweeper.direction has {_counted(wanted, 'direction')}.",
            hint=_direction_hint(count) if count != wanted else "Return the value itself.",
        )
    if learns(hydra) and _is_nan(returned):
        raise NemotronError(f"Job {job.number} returned NaN; {_sweeper(hydra)} needs a number from each trial.")


def _is_several(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _is_nan(value: Any) -> bool:
    """Whether a number, or one of several, is NaN."""
    if _is_several(value):
        return any(map(_is_nan, value))
    return math.isnan(float(value))


def _is_number(value: Any) -> bool:
    if _is_several(value):
        return bool(value) and all(map(_is_number, value))
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True
