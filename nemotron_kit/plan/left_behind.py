"""Paths of a job's config that nothing takes along to where it runs, found before anything is submitted."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator, Mapping
from typing import Any

from nemotron_kit.config.freeze import walk_strings
from nemotron_kit.errors import UserError
from nemotron_kit.plan.paths import Place, below
from nemotron_kit.plan.runconfig import RunConfig

# Folders that every machine and every image has of its own.
_SYSTEM = ("/usr", "/opt", "/etc", "/dev", "/proc", "/sys", "/bin", "/lib", "/var", "/run")


def check_paths(values: Mapping[str, Any], place: Place, settings: RunConfig) -> dict[str, str]:
    """Field → path of this machine that nothing takes along: over there it is only if it happens to be there too.

    `values` is the frozen config before it is moved. Raises UserError for a relative path that leads out of the code.
    """
    if settings.executor == "local":
        return {}
    mounted = [target for mount in settings.mounts or () for target in _mounted(mount, settings)]
    left: dict[str, str] = {}
    for key, text in walk_strings({key: value for key, value in values.items() if key != "run"}):
        if text.startswith("../") or text == "..":
            _check_relative(key, text, place)
        elif text.startswith("/") and "\n" not in text and _stays_behind(text, place, mounted, settings):
            left[key] = text
    return left


def _check_relative(key: str, text: str, place: Place) -> None:
    base = place.tree.inside if place.tree else "."
    if posixpath.normpath(posixpath.join(base, text)).startswith(".."):
        what = f"the code that is sent ({place.tree.root})" if place.tree else "the job's folder"
        raise UserError(
            f"{key}: {text} leads out of {what}, so there is no such path on {place.host}.",
            hint=f"Keep it inside, or give an absolute path on {place.host}.",
        )


def _stays_behind(text: str, place: Place, mounted: list[str], settings: RunConfig) -> bool:
    if place.move(text) != text or place.is_there(text) or any(below(text, folder) for folder in mounted):
        return False
    if not place.apart and not settings.container_image:
        return False  # the same files are there
    system = any(below(text, folder) for folder in _SYSTEM)
    return not system and text not in ("/", "/tmp") and os.path.exists(text)  # noqa: S108, PTH110 — any text


def _mounted(mount: str, settings: RunConfig) -> Iterator[str]:
    """Where a mount `HERE:THERE[:flags]` can be found by the job."""
    if mount.startswith("$"):
        return
    here, _, rest = mount.partition(":")
    yield rest.partition(":")[0] or here
    if not settings.container_image:
        yield here
