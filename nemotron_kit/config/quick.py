"""OmegaConf made quick (YAML through libyaml, each text's interpolations taken apart once: a tenth of a dry-run), and
made to take what people mean: 12:00:00 is no number, and an optional block that is null can be filled."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from nemotron_kit.config.bombs import bounded_interpolations


@contextmanager
def quick_omegaconf() -> Iterator[None]:
    """Within the block OmegaConf, and so Hydra, does what it does anyway, only sooner, and `understanding`."""
    import omegaconf

    utils, base = vars(omegaconf)["_utils"], vars(omegaconf)["base"]
    loader, parse = utils.get_yaml_loader, base.parse
    utils.get_yaml_loader = lambda: with_libyaml(loader())
    utils.parse = base.parse = functools.cache(parse)
    try:
        with understanding(), bounded_interpolations():
            yield
    finally:
        utils.get_yaml_loader, utils.parse, base.parse = loader, parse, parse


@contextmanager
def understanding() -> Iterator[None]:
    """Within the block, files that Hydra itself reads have no sexagesimal numbers either, and `block.key=value` or
    `block={key: value}` fills an optional block that is null."""
    import omegaconf

    utils = vars(omegaconf)["_utils"]
    loader, update = utils.get_yaml_loader, omegaconf.OmegaConf.update

    def filling(cfg: Any, key: str, value: Any = None, *, merge: bool = True, force_add: bool = False) -> None:
        _fill(cfg, utils.split_key(key), merge and isinstance(value, Mapping))
        update(cfg, key, value, merge=merge, force_add=force_add)

    utils.get_yaml_loader = lambda: plain_times(loader())
    omegaconf.OmegaConf.update = staticmethod(filling)  # type: ignore[method-assign]
    try:
        yield
    finally:
        utils.get_yaml_loader, omegaconf.OmegaConf.update = loader, staticmethod(update)  # type: ignore[method-assign]


def _fill(node: Any, parts: list[str], last_too: bool) -> None:
    """Give every null block on the way to a key its type's defaults."""
    from omegaconf import DictConfig
    from omegaconf._utils import is_dict_annotation, is_structured_config

    for part in parts if last_too else parts[:-1]:
        if not isinstance(node, DictConfig) or node._is_missing() or node._is_interpolation():
            return
        node = node._get_node(part, validate_access=False)
        if not (isinstance(node, DictConfig) and node._is_none()):
            continue
        kind = node._metadata.ref_type
        if not (is_structured_config(kind) or is_dict_annotation(kind) or kind is dict):
            return
        node._set_value(kind if is_structured_config(kind) else {})
        open_dicts(node)


def open_dicts(node: Any) -> None:
    """Open the blocks typed as a dict for new keys, below a block whose own keys are fixed."""
    from omegaconf import DictConfig
    from omegaconf._utils import is_structured_config

    def structured(each: Any) -> bool:
        return is_structured_config(each._metadata.ref_type) or is_structured_config(each._metadata.object_type)

    if not structured(node):
        node._set_flag("struct", False)
        return
    for key in list(node):
        child = node._get_node(key)
        if not isinstance(child, DictConfig) or child._is_none() or child._is_missing():
            continue
        if structured(child) or not child._is_interpolation():
            open_dicts(child)


def plain_times(loader: Any) -> Any:
    """The same YAML loader without YAML 1.1's numbers to the base of sixty: 12:00:00 is what it says, not 43200."""

    class Loader(loader):  # type: ignore[misc]
        pass

    Loader.yaml_implicit_resolvers = {
        first: [
            (tag, re.compile(f"(?!.*:)(?:{regexp.pattern})", regexp.flags) if tag in _NUMBERS else regexp)
            for tag, regexp in resolvers
        ]
        for first, resolvers in loader.yaml_implicit_resolvers.items()
    }
    return Loader


_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


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
