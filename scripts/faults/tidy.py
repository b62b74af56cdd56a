"""Death at every call that changes files of what removes or relocates: given again, it ends as without it, and nothing
else is lost."""

from __future__ import annotations

from pathlib import Path

from removals import COMMANDS, kills


def run(work: Path, scale: float, seed: int) -> tuple[int, list[str]]:
    """(cases, what did not hold). With `scale` below 2, at every fourth call, beginning with the `seed`-th."""
    cases, failures = 0, []
    for number, name in enumerate(COMMANDS):
        folder = work / str(number)
        folder.mkdir()
        first, every = (1, 1) if scale >= 2 else (1 + seed % 4, 4)
        for what, wrong in kills(folder, name, first=first, every=every):
            cases += 1
            failures += [f"{what}: {wrong}"] if wrong else []
    return cases, failures
