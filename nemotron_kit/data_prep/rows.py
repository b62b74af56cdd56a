"""What is counted while a shard's rows are read, and what happens to a row that can't be used."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from nemotron_kit.data_prep.sizes import show_size
from nemotron_kit.errors import UserError

# One document, and one line of a file, in bytes; a larger one is a bad row. Nothing more of a source is held in memory.
DEFAULT_MAX_DOC_SIZE = 64 << 20
DEFAULT_MAX_BAD_ROWS = 1000
NAMED = 5
ERROR, SKIP = "error", "skip"
TEXT_FIELD = "Set text_field to the one with text."
LARGER = "Set max_doc_size higher if this is meant, or on_bad_row=skip to leave it out."


@dataclass
class Rows:
    """The rows of one shard: how many were read, were empty, and could not be used.

    `refuse` raises what is wrong with a row, or with `skip` counts it; `bad_rows` names the first of them.
    """

    max_size: int = DEFAULT_MAX_DOC_SIZE
    skip: bool = False
    limit: int | None = DEFAULT_MAX_BAD_ROWS
    rows: int = 0
    empty: int = 0
    bad: int = 0
    bad_rows: list[str] = field(default_factory=list)

    def refuse(self, make: Callable[..., UserError], *words: Any) -> None:
        """Raise the error that `make(*words)` is, or count it. It is made only where it is raised or named: a line's
        number takes a look at the file."""
        if not self.skip:
            raise make(*words)
        self.bad += 1
        if len(self.bad_rows) < NAMED:
            self.bad_rows.append(make(*words).message)
        check_bad_rows(self.bad, self.bad_rows, self.limit)

    def too_large(self, what: str) -> UserError:
        """The error for a row of more than `max_size` bytes."""
        return UserError(f"{what} of more than {show_size(self.max_size)} (max_doc_size).", hint=LARGER)


def check_bad_rows(count: int, named: list[str], limit: int | None) -> None:
    """Raise UserError when more rows were bad than may be."""
    if limit is not None and count > limit:
        raise UserError(
            f"More than {limit} bad rows (max_bad_rows). The first: " + "; ".join(named),
            hint="Is text_field right? Set max_bad_rows higher, or to null for no limit, if the source is like that.",
        )
