"""Errors for the user: what was wrong, where, and what would be right, with an exit code.

Paths, names and values in a message may contain any character: `printable` makes terminal control characters visible.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence

# Colour sequences are removed; other escape sequences and control characters are made visible.
_COLOUR = r"\x1b\[[0-9;:]*m"
_CONTROL = r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]"


def printable(text: str) -> str:
    """`text` with characters that control a terminal (escapes, bidirectional overrides) made visible; colours are
    removed."""
    if text.replace("\n", "").isprintable():
        return text
    import re  # which a help page has no use for

    return re.sub(_CONTROL, lambda match: _visible(ord(match[0])), re.sub(_COLOUR, "", text))


def _visible(code: int) -> str:
    if code < 0x20:
        return f"^{chr(code + 0x40)}"
    return "^?" if code == 0x7F else f"\\u{code:04x}" if code > 0xFF else f"\\x{code:02x}"


def text_of(value: object) -> str:
    """str() of an object of other people's code, which may fail, or give text that no UTF-8 file can hold."""
    try:
        return str(value).encode("utf-8", "backslashreplace").decode("utf-8")
    except Exception:  # noqa: BLE001
        return "<its str() failed>"


def error_text(error: BaseException) -> str:
    """`TypeName: text` of an exception of other people's code."""
    return f"{type(error).__name__}: {text_of(error)}"


def causes(error: BaseException) -> Iterator[BaseException]:
    """The error, then what caused it, down to the first cause. A circle ends: with OC_CAUSE=1, or under a debugger,
    OmegaConf makes an error its own cause."""
    seen: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and not any(current is each for each in seen):
        yield current
        seen.append(current)
        current = current.__cause__ or current.__context__


def full_trace(error: BaseException) -> str:
    """The error's traceback if HYDRA_FULL_ERROR=1 asks for it, else ""; it stands above the error."""
    if os.environ.get("HYDRA_FULL_ERROR") != "1" or not (error.__traceback__ or error.__cause__):
        return ""
    import traceback

    return "".join(traceback.format_exception(error))


# The exit codes of `nemotron`, and of a job. A job in the launching process may choose another one, 1 to 255.
EXIT_CODES = {
    0: "done",
    1: "the job failed",
    2: "the command, a config or an input was wrong; nothing was started",
    3: "a machine or scheduler did not answer; the state of the job is not known",
    4: "cancelled",
    70: "a process of the job ended itself because no step had ended for train.hang_minutes; the job failed",
    75: "preempted: a signal stopped the job after a checkpoint; `nemotron runs resume ID` continues from there",
    130: "interrupted with Ctrl-C",
    143: "SIGTERM ended the launch, and the job with it",
}


class NemotronError(Exception):
    """An operation failed. `hint` is the next step to take; the command line prints both and exits with `exit_code`."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(printable(message))
        self.message = printable(message)
        self.hint = printable(hint) if hint else hint

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message


class UserError(NemotronError):
    """The command, a config or an input was wrong; nothing was started."""

    exit_code = 2


class DamagedRecordError(UserError):
    """A record (version, alias, metadata.json, …) is truncated or was changed by hand."""


class Unreachable(NemotronError):
    """A machine, a scheduler or a service did not answer; the state of the job is not known."""

    exit_code = 3


class NotSent(Unreachable):
    """The connection failed before the operation was sent: it has not been carried out."""


class Cancelled(NemotronError):
    """The job was cancelled."""

    exit_code = 4


class Note(str):
    """A remark in a plan, or in a check's list of problems, that stops no launch. `field` is the profile's key that it
    is about; "" for none."""

    field: str

    def __new__(cls, text: str, *, field: str = "") -> Note:
        made = super().__new__(cls, text)
        made.field = field
        return made


class Problem(str):
    """A reason why a job can't run; its text is `field: message hint`. `field` is the key of the config or profile,
    `slot` the artifact input, `hint` the remedy; "" for none."""

    message: str
    field: str
    slot: str
    hint: str

    def __new__(cls, message: str, *, field: str = "", slot: str = "", hint: str | None = "") -> Problem:
        about = slot or field
        made = super().__new__(cls, f"{f'{about}: ' if about else ''}{message}{f' {hint}' if hint else ''}")
        made.message, made.field, made.slot, made.hint = message, field, slot, hint or ""
        return made


def closest(name: str, known: Iterable[str], *, count: int = 3) -> list[str]:
    """The names of `known` that are similar to `name`, the most similar one first. Capital and small letters are
    equal where `name` itself is not similar to any: `LR` is a slip for `lr`."""
    import difflib  # takes a millisecond, which only a command with a mistake should pay

    names = sorted(set(known))
    close = difflib.get_close_matches(name, names, n=count, cutoff=0.6)
    if close:
        return close
    small = {each.lower(): each for each in names}
    return [small[each] for each in difflib.get_close_matches(name.lower(), small, n=count, cutoff=0.6)]


def nearest(name: str, known: Iterable[str]) -> str:
    """`did you mean a, b?` if names of `known` are similar to `name`, else `there is: a, b`; "" if `known` is empty."""
    names = sorted(set(known))
    if not names:
        return ""
    if close := closest(name, names):
        return f"did you mean {', '.join(close)}?"
    return f"there is: {listed(names)}"


def near(name: str, known: Iterable[str]) -> str:
    """What `nearest` finds, as a sentence."""
    return sentence(nearest(name, known))


def listed(names: Sequence[str], most: int = 12) -> str:
    """`a, b, c`, of more than `most` names `a, …, l and 3 more`: a job may log thousands of metrics."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def sentence(text: str) -> str:
    """`text`, such as that of `nearest`, as a sentence: with a capital first letter and a full stop. "" stays ""."""
    return text[:1].upper() + text[1:] + ("" if text[-1:] in ("", ".", "?", "!", "…") else ".")
