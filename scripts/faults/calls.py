"""Death, and each kind of error, at every call that changes files: a retry works, and nothing is half there."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import sharded_saves
from file_calls import Died, dying_at, failing_at, stepping_in

from nemotron_kit import files
from nemotron_kit.artifacts import Artifact
from nemotron_kit.artifacts.registry import open_registry
from nemotron_kit.errors import NemotronError
from nemotron_kit.home import new_run_id
from nemotron_kit.runs.folder import create_run
from nemotron_kit.runs.ledger import list_runs, open_run
from nemotron_kit.training import checkpoint

# EROFS, EMFILE and EXDEV instead of ENOSPC, in turn: a call that handles one handles the others.
ERRORS = (errno.ENOSPC, errno.EIO)
OTHERS = (errno.ENOSPC, errno.EROFS, errno.EMFILE, errno.EXDEV)


def run(work: Path, scale: float, seed: int) -> tuple[int, list[str]]:
    """(cases, what did not hold). Every call in turn, whatever `scale` and `seed`."""
    cases, failures = 0, []
    for operation in (_save, _alias, _launch, _checkpoint):
        for error in (None, *(ERRORS if scale < 2 else (*OTHERS, errno.EIO))):
            k, through = 0, False
            while not through and k < 400:
                k += 1
                cases += 1
                number = OTHERS[k % len(OTHERS)] if error == errno.ENOSPC and scale < 2 else error
                folder = work / f"{operation.__name__[1:]}-{error}-{k}"
                folder.mkdir()
                os.environ["NEMOTRON_HOME"] = str(folder / "home")
                act, check = operation(folder)
                what = f"{operation.__name__[1:]}, call {k}, {errno.errorcode[number] if number else 'death'}"
                try:
                    with stepping_in(dying_at(k) if number is None else failing_at(k, number)) as made:
                        act()
                    through = len(made) < k
                except (Died, NemotronError):
                    pass
                except OSError as found:  # the command line words these, where they name a file
                    if found.filename is None:
                        failures.append(f"{what}: {found!r} names no file")
                try:
                    act()
                    check()
                except (NemotronError, OSError, AssertionError) as found:
                    failures.append(f"{what}: then {found!r}")
    tried, found = _sharded_checkpoint(work, scale)
    return cases + tried, failures + found


def _sharded_checkpoint(work: Path, scale: float) -> tuple[int, list[str]]:
    """Either of two ranks dies, or gets an error, at each of its calls; the other goes on until it waits for it.
    Also where each writes in a thread, while training goes on."""
    cases, failures = 0, []
    first = work / "sharded"
    sharded_saves.save(first, 1)
    kinds = {"death": dying_at, "death after": partial(dying_at, after=True)}
    for number in OTHERS if scale >= 2 else ERRORS:
        kinds[errno.errorcode[number]] = partial(failing_at, error=number)
    times = (None, sharded_saves.EARLY, sharded_saves.LATE)
    for rank, when, (kind, faulty) in itertools.product(range(sharded_saves.RANKS), times, kinds.items()):
        k, through = 0, False
        while not through:
            k += 1
            cases += 1
            what = f"sharded checkpoint{f' ({when})' if when else ''}, rank {rank}, call {k}, {kind}"
            folder = work / f"sharded-{cases}"
            shutil.copytree(first, folder)
            at = {rank: faulty(k)}
            try:
                try:
                    made = sharded_saves.save(folder, 2, lambda number, at=at: at.get(number, _untouched), when)
                    through = made[rank] < k
                except (Died, NemotronError):
                    pass
                sharded_saves.check(folder, 1, 2)
                sharded_saves.save(folder, 2, when=when)
                sharded_saves.check(folder, 2)
            except (NemotronError, OSError, AssertionError) as error:
                failures.append(f"{what}: then {error!r}")
    return cases, failures


def _untouched(_: int, __: list[object], perform: Callable[[], object]) -> object:
    return perform()


Pair = tuple[Callable[[], object], Callable[[], None]]


def _save(folder: Path) -> Pair:
    (folder / "data").mkdir()
    (folder / "data/x").write_text("x")

    def check() -> None:
        registry = open_registry()
        assert registry.versions("Saved") == [0], registry.versions("Saved")
        registry.verify(registry.resolve("Saved:v0"), deep=True)

    return lambda: Artifact(path=folder / "data").save(name="Saved"), check


def _alias(folder: Path) -> Pair:
    for number in range(2):
        (folder / str(number)).mkdir()
        (folder / str(number) / "x").write_text(str(number))
        Artifact(path=folder / str(number)).save(name="Saved")
    open_registry().set_alias("Saved", "good", 0)

    def check() -> None:
        assert open_registry().aliases("Saved") == {"good": 1}

    return lambda: open_registry().set_alias("Saved", "good", 1), check


def _launch(folder: Path) -> Pair:
    ids: list[str] = []

    def launch() -> None:
        made = create_run(new_run_id("r", "go"), {"recipe": "r", "stage": "go"}, [{"config.yaml": "a: 1\n"}])
        for job in made.jobs():
            job.transition("running")
            job.finish(0)
        ids.append(made.id)

    def check() -> None:
        for found in list_runs():
            assert found.jobs == 1, found
            assert [job.config_path.read_text() for job in open_run(found.id).jobs()] == ["a: 1\n"]
        assert ids[-1] in {found.id for found in list_runs()}

    return launch, check


def _checkpoint(folder: Path) -> Pair:
    def fill(inside: Path) -> dict[str, object]:
        files.write_bytes(inside / "weights", b"w" * 100)
        return {}

    def save() -> None:
        for step in (1, 2, 3):
            checkpoint.write(folder / "c", step, fill)
            checkpoint.prune(folder / "c", 1)

    def check() -> None:
        found = checkpoint.latest(folder / "c")
        assert found is not None
        assert checkpoint.read(found, verify=True)["step"] == 3

    return save, check
