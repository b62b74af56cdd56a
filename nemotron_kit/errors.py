"""Errors that a person at a prompt sees: what was wrong, where, and what would be right. Exit codes ride on them."""

from __future__ import annotations

from collections.abc import Iterable


class NemotronError(Exception):
    """Something failed. `hint` is the next step to take; the command line prints both and exits with `exit_code`."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message


class UserError(NemotronError):
    """The command, a config or an input was wrong; nothing was started."""

    exit_code = 2


class Unreachable(NemotronError):
    """A machine, a scheduler or a service did not answer; the state of the job is not known."""

    exit_code = 3


class Cancelled(NemotronError):
    """The job was cancelled."""

    exit_code = 4


class Note(str):
    """Among the problems that a check lists: what it could not judge. A plan shows it as a note; it stops nothing."""

    __slots__ = ()


def nearest(word: str, known: Iterable[str], *, count: int = 3) -> str:
    """`did you mean a, b?` for a misspelt word, or the list of what there is, or nothing when there is nothing."""
    import difflib  # a millisecond, which no command without a mistake should pay

    names = sorted(set(known))
    close = difflib.get_close_matches(word, names, n=count, cutoff=0.6)
    if close:
        return f"did you mean {', '.join(close)}?"
    if not names:
        return ""
    shown = ", ".join(names[:12])
    return f"there is: {shown}" + (f" and {len(names) - 12} more" if len(names) > 12 else "")


def sentence(text: str) -> str:
    """What `nearest` says, or the like, as a sentence: its first letter in upper case, and an end. "" stays."""
    return text[:1].upper() + text[1:] + ("" if text[-1:] in ("", ".", "?", "!", "…") else ".")
