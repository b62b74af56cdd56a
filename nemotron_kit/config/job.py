"""From a job's frozen config to the typed object that its handler gets. The worker and in-process runs share this."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from nemotron_kit.config.convert import to_dataclass
from nemotron_kit.config.resolvers import register_resolvers
from nemotron_kit.errors import UserError

T = TypeVar("T")


def resolve(values: Mapping[str, Any]) -> dict[str, Any]:
    """Every interpolation resolved, ${art:…} and ${secret:…} included."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    register_resolvers()
    try:
        return OmegaConf.to_container(OmegaConf.create(dict(values)), resolve=True)  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        raise _worded(error) from error


def typed(values: Mapping[str, Any], cls: type[T]) -> T:
    """The handler's config: an instance of exactly `cls`, without the launcher's `run` section.

    Keys that are no fields can only have come from `+key=…`: composition has refused the others.
    """
    own = {key: value for key, value in values.items() if key != "run"}
    return to_dataclass(own, cls, extras=_Everything())


def _worded(error: Any) -> UserError:
    """The kit's own error where a resolver raised one, else OmegaConf's first line with its key."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, UserError):
            return cause
        cause = cause.__cause__ or cause.__context__
    key = getattr(error, "full_key", None) or "config"
    return UserError(f"{key}: {str(error).splitlines()[0]}")


class _Everything:
    def __contains__(self, _: object) -> bool:
        return True
