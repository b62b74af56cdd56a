"""OmegaConf made quick: YAML through libyaml, and each text's interpolations taken apart once. A tenth of a dry-run."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def quick_omegaconf() -> Iterator[None]:
    """Within the block OmegaConf, and so Hydra, does what it does anyway, only sooner."""
    import omegaconf

    utils, base = vars(omegaconf)["_utils"], vars(omegaconf)["base"]
    loader, parse = utils.get_yaml_loader, base.parse
    utils.get_yaml_loader = lambda: with_libyaml(loader())
    utils.parse = base.parse = functools.cache(parse)
    try:
        yield
    finally:
        utils.get_yaml_loader, utils.parse, base.parse = loader, parse, parse


def with_libyaml(loader: Any) -> Any:
    """The same loader over libyaml's parser, which takes a twentieth of the time; `loader` where there is none."""
    import yaml

    if not yaml.__with_libyaml__:
        return loader
    parser: Any = vars(yaml.cyaml)["CParser"]
    if issubclass(loader, parser):
        return loader

    def start(self: Any, stream: Any) -> None:
        parser.__init__(self, stream)
        yaml.constructor.SafeConstructor.__init__(self)
        yaml.resolver.Resolver.__init__(self)

    return type("Loader", (parser, loader), {"__init__": start})
