"""From a job's frozen config to the typed object that its handler gets. The worker and in-process runs share this."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar

from nemotron_kit.config.bombs import MAX_IN_CONFIG, bounded_interpolations
from nemotron_kit.config.convert import Deferred, to_dataclass
from nemotron_kit.config.freeze import deferring, in_plain_words, restore, user_error, what_to_add
from nemotron_kit.config.resolvers import register_resolvers
from nemotron_kit.errors import UserError

T = TypeVar("T")
_LATER = re.compile(r"(?<!\\)\$\{(?:art|secret):")


def resolve(values: Mapping[str, Any], *, keep_secrets: bool = False) -> dict[str, Any]:
    """Every interpolation resolved; with `keep_secrets` the ${secret:…} stay as they are, for what is saved."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    register_resolvers()
    kept: list[str] = []
    with deferring(kept, ("secret",) if keep_secrets else ()), bounded_interpolations(total=MAX_IN_CONFIG):
        try:
            resolved: Any = OmegaConf.to_container(OmegaConf.create(dict(values)), resolve=True)
        except OmegaConfBaseException as error:
            raise _worded(error) from error
    return restore(resolved, kept) if keep_secrets else resolved  # type: ignore[no-any-return]


def typed(values: Mapping[str, Any], cls: type[T]) -> T:
    """The handler's config: an instance of exactly `cls`, without the launcher's `run` section.

    Keys that are no fields can only have come from `+key=…`: composition has refused the others.
    """
    own = {key: value for key, value in values.items() if key != "run"}
    return to_dataclass(own, cls, extras=_Everything())


def check(values: Mapping[str, Any], cls: type) -> list[str]:
    """Check a frozen config against `cls` before there is a job; returns the dotted fields that still have no value.

    What only the job resolves (`${art:…}`, `${secret:…}`) is taken to fit. Raises UserError for what can't fit.
    """
    missing: list[str] = []
    own = {key: _defer(value, key, missing) for key, value in values.items() if key != "run"}
    to_dataclass(own, cls, extras=_Everything())
    return missing


def _defer(value: Any, key: str, missing: list[str]) -> Any:
    if isinstance(value, dict):
        return {k: _defer(v, f"{key}.{k}", missing) for k, v in value.items()}
    if isinstance(value, list):
        return [_defer(v, f"{key}[{i}]", missing) for i, v in enumerate(value)]
    if isinstance(value, str) and value == "???":
        missing.append(key)
        return Deferred(value)
    return Deferred(value) if isinstance(value, str) and _LATER.search(value) else value


def _worded(error: Any) -> UserError:
    """The kit's own error where a resolver raised one, else OmegaConf's first line with its key."""
    if own := user_error(error):
        return own
    key = getattr(error, "full_key", None) or "config"
    return UserError(f"{key}: {in_plain_words(error)}", hint=what_to_add(str(error)))


class _Everything:
    def __contains__(self, _: object) -> bool:
        return True
