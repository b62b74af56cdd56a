"""Steps in at the calls that change files: an error, a death, or what somebody else does meanwhile. tests and
scripts/faults use it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest.mock import patch

CALLS = ("fsync", "replace", "rename", "link", "unlink", "mkdir", "rmdir", "chmod", "open", "write")
_WRITES = os.O_WRONLY | os.O_RDWR

Perform = Callable[[], object]
# (which call it is, from 1 on; its first arguments that are paths; what does it)
Step = Callable[[int, list[object], Perform], object]


class Died(BaseException):
    """The process is gone: no later call does anything, clean-up included."""


@contextmanager
def stepping_in(step: Step) -> Iterator[list[str]]:
    """Within the block `step` stands in for each call that changes files; what it does itself goes through. Yields the
    names of the calls made."""
    made: list[str] = []
    inside = False

    def wrap(name: str) -> Callable[..., object]:
        real = getattr(os, name)

        def call(*args: object, **kwargs: object) -> object:
            nonlocal inside
            flags = args[1] if len(args) > 1 else kwargs.get("flags", 0)
            if inside or (name == "open" and not (isinstance(flags, int) and flags & _WRITES)):
                return real(*args, **kwargs)
            made.append(name)
            inside = True
            try:
                return step(
                    len(made), [arg for arg in args[:1] if not isinstance(arg, int)], lambda: real(*args, **kwargs)
                )
            finally:
                inside = False

        return call

    patches = [patch.object(os, name, wrap(name)) for name in CALLS]
    for one in patches:
        one.start()
    try:
        yield made
    finally:
        for one in patches:
            one.stop()


def dying_at(k: int, *, after: bool = False) -> Step:
    """Death at the k-th call, before it does its work or right after."""

    def step(number: int, _: list[object], perform: Perform) -> object:
        if number == k and after:
            perform()
        if number >= k:
            raise Died
        return perform()

    return step


def failing_at(k: int, error: int) -> Step:
    """The k-th call fails with an error of the system's."""

    def step(number: int, paths: list[object], perform: Perform) -> object:
        if number == k:
            raise OSError(error, os.strerror(error), *paths)
        return perform()

    return step


def acting_at(k: int, act: Callable[[], object]) -> Step:
    """Before the k-th call somebody else acts."""

    def step(number: int, _: list[object], perform: Perform) -> object:
        if number == k:
            act()
        return perform()

    return step
