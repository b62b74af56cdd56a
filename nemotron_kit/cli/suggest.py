"""Nearest names, as sentences of a hint."""

from __future__ import annotations

from collections.abc import Iterable

from nemotron_kit.errors import nearest


def near(word: str, known: Iterable[str]) -> str:
    """`Did you mean a, b?`, or `There is: a, b.`, or "" where there is nothing."""
    text = nearest(word, known)
    ended = text if not text or text.endswith("?") else f"{text}."
    return ended[:1].upper() + ended[1:]


def close(word: str, known: Iterable[str]) -> bool:
    """Whether `word` looks like a misspelling of one of `known`."""
    return nearest(word, known).startswith("did you mean")
