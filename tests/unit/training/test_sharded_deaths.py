from __future__ import annotations

import errno
from pathlib import Path

import pytest

from nemotron_kit.errors import NemotronError

from ... import sharded_saves
from ...file_calls import Died, Perform, Step, dying_at, failing_at

_NEVER = 10**6


WHEN = (None, sharded_saves.EARLY, sharded_saves.LATE)


def calls_of(folder: Path, when: str | None) -> list[int]:
    sharded_saves.save(folder, 1)
    return sharded_saves.save(folder, 2, lambda _: dying_at(_NEVER), when)


@pytest.mark.parametrize("when", WHEN)
@pytest.mark.parametrize("dead", range(sharded_saves.RANKS))
def test_a_rank_that_dies_at_any_call_leaves_the_checkpoint_before(tmp_path: Path, dead: int, when: str | None) -> None:
    """The other rank goes on until it waits for the one that is gone. Started again, they save the same step."""
    made = calls_of(tmp_path / "undisturbed", when)
    assert made[0] > 15 and made[1] > 3
    for k in range(1, made[dead] + 1):
        folder = tmp_path / str(k)
        sharded_saves.save(folder, 1)

        def faulty(rank: int, k: int = k) -> Step:
            return dying_at(k if rank == dead else _NEVER)

        with pytest.raises(Died):
            sharded_saves.save(folder, 2, faulty, when)
        sharded_saves.check(folder, 1, 2)
        sharded_saves.save(folder, 2)
        sharded_saves.check(folder, 2)


@pytest.mark.parametrize("when", WHEN)
@pytest.mark.parametrize("number", range(sharded_saves.RANKS))
def test_a_disk_that_refuses_any_call_of_a_rank_is_an_error_on_both(
    tmp_path: Path, number: int, when: str | None
) -> None:
    made = calls_of(tmp_path / "undisturbed", when)
    for k in range(1, made[number] + 1):
        folder = tmp_path / str(k)
        sharded_saves.save(folder, 1)
        try:
            sharded_saves.save(
                folder,
                2,
                lambda rank, k=k: failing_at(k if rank == number else _NEVER, errno.ENOSPC),  # type: ignore[misc]
                when,
            )
        except NemotronError as error:
            assert "the checkpoint can't be written" in error.message, (k, error)
        sharded_saves.check(folder, 1, 2)
        sharded_saves.save(folder, 2)
        sharded_saves.check(folder, 2)


@pytest.mark.parametrize("when", WHEN)
def test_whatever_goes_wrong_where_a_rank_writes_is_an_error_on_all(tmp_path: Path, when: str | None) -> None:
    """In a thread of its own an exception would vanish, and the checkpoint lack the rank's rows."""

    def faulty(rank: int) -> Step:
        def step(number: int, _: list[object], perform: Perform) -> object:
            if rank == 1 and number == 1:
                raise MemoryError("no room for a buffer")
            return perform()

        return step

    sharded_saves.save(tmp_path, 1)
    with pytest.raises(NemotronError, match="can't be written: MemoryError: no room for a buffer") as raised:
        sharded_saves.save(tmp_path, 2, faulty, when)
    assert "(process 1 of 2)" in raised.value.message, "rank 0 fails, too"
    sharded_saves.check(tmp_path, 1)
