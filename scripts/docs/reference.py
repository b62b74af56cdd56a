"""The pages of the reference, made from the code."""

from __future__ import annotations


def pages() -> dict[str, str]:
    """Name → Markdown."""
    return {}
