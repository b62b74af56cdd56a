"""Patches of YAML and OmegaConf: faster parsing, and limits on aliases, nesting and interpolations."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from nemotron_kit.config.convert import other_class_values
from nemotron_kit.errors import UserError

MAX_DEPTH = 64
# The most values that all aliases together may expand to: far above what a person writes.
MAX_NODES = 100_000
# The most interpolations that one value, and one config, may lead to: far above what a person writes.
MAX_INTERPOLATIONS, MAX_IN_CONFIG = 5_000, 50_000
MAX_TEXT = 4 << 20


def check_yaml_limits(path: Path, text: str, loader: Any) -> None:
    """Raise UserError, with the line, for YAML that is nested too deeply, has an alias inside of its anchor, or
    whose aliases expand to more than MAX_NODES values. What counts is what `loader` reads: libyaml and the Python
    parser take some characters for different things. Raises YAMLError for what it can't parse."""
    import yaml

    # Parsing twice would double the time of an ordinary config: only suspicious texts are checked.
    nested = max(text.count("[") + text.count("{"), text.count("- "))
    indented = f"\n{'  ' * (MAX_DEPTH + 1)}" in f"\n{text}"
    if "*" not in text and nested <= MAX_DEPTH and not indented:
        return
    containers: list[tuple[str | None, int]] = [(None, 0)]  # (anchor, values so far) of each that is open
    sizes: dict[str, int] = {}  # anchor → values, of those that are closed
    for event in yaml.parse(text, Loader=loader):
        anchor, values, wrong = getattr(event, "anchor", None), 0, None
        if isinstance(event, yaml.AliasEvent):
            if any(anchor == each for each, _ in containers):
                wrong = f"the alias *{anchor} is inside of the value that it refers to"
            anchor, values = None, sizes.get(anchor or "", 1)
        elif isinstance(event, yaml.ScalarEvent):
            values = 1 + len(event.value) // 100  # of a text of 1 MB each alias is written out, too
        elif isinstance(event, yaml.CollectionStartEvent):
            containers.append((anchor, 1))
            anchor = None
            if len(containers) > MAX_DEPTH + 1:
                wrong = f"nested deeper than {MAX_DEPTH} levels"
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, values = containers.pop()
        if anchor:
            sizes[anchor] = values
        outer, before = containers[-1]
        containers[-1] = (outer, before + values)
        if wrong is None and before + values > MAX_NODES:
            wrong = f"its aliases unfold to more than {MAX_NODES} values"
        if wrong:
            raise UserError(f"{path}:{event.start_mark.line + 1 if event.start_mark else 1}: {wrong}.")


@contextmanager
def _patched(*changes: tuple[Any, str, Any]) -> Iterator[None]:
    """Within the block attributes have other values: each change is (class or module, attribute, value)."""
    # `vars` and not getattr, which would give a static method as a function.
    before = [(owner, name, vars(owner).get(name)) for owner, name, _ in changes]
    for owner, name, value in changes:
        setattr(owner, name, value)
    try:
        yield
    finally:
        for owner, name, value in before:
            if value is None:
                delattr(owner, name)
            else:
                setattr(owner, name, value)


def bounded_interpolations(*, total: int | None = None) -> AbstractContextManager[None]:
    """Within the block a value whose interpolations multiply without bound (`${a}${a}`, line by line) raises UserError.

    OmegaConf resolves each reference anew. `total` limits the number of all interpolations in the block together.
    """
    import omegaconf

    container: Any = vars(omegaconf)["base"].Container
    resolve = container.resolve_parse_tree
    depth = this = every = 0

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal depth, this, every
        this = this + 1 if depth else 1
        every += 1
        if this > MAX_INTERPOLATIONS or (total is not None and every > total):
            raise UserError("the interpolations here multiply: they come to too many to be resolved.")
        depth += 1
        try:
            value = resolve(self, *args, **kwargs)
        finally:
            depth -= 1
        if isinstance(value, str) and len(value) > MAX_TEXT:
            location = self._get_full_key(kwargs.get("key"))
            raise UserError(f"{location}: an interpolation gives more than {MAX_TEXT >> 20} MiB of text.")
        return value

    return _patched((container, "resolve_parse_tree", counted))


@contextmanager
def faster_omegaconf() -> Iterator[None]:
    """Within the block OmegaConf, and so Hydra, parses YAML with libyaml, caches parsed interpolations, and does not
    copy the whole ConfigStore with each repository of sources; a plugin's settings become a config on first use, an
    override like `stage=pretrain` needs no parser, a defaults list without interpolations no map for them, and a merge
    resolves no text that only contains an interpolation. Includes `hydra_reading_fixes`."""
    import omegaconf
    from hydra._internal import defaults_list
    from hydra.core.config_store import ConfigStore
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import Override, OverrideType, ValueType

    utils, base, node = vars(omegaconf)["_utils"], vars(omegaconf)["base"], vars(omegaconf)["Node"]
    parse_rule, choices_of = OverridesParser.parse_rule, vars(defaults_list)["_create_interpolation_map"]
    dereference, parse = node._maybe_dereference_node, _cached(base.parse)
    loader = with_libyaml(yaml_loader())

    def parse_override(self: Any, text: str, name: str) -> Any:
        found = _PLAIN.fullmatch(text) if name == "override" else None
        if found is None or found[2].lower() in _NOT_TEXT:
            return parse_rule(self, text, name)
        return Override(OverrideType.CHANGE, found[1], ValueType.ELEMENT, found[2], input_line=text)

    def block_of(self: Any, throw_on_resolution_failure: bool = False, memo: Any = None) -> Any:
        value = self._value() if memo is None and not throw_on_resolution_failure else None
        if isinstance(value, str) and not (value[:2] == "${" and value[-1:] == "}"):
            return self  # an interpolation among other characters never leads to a block
        return dereference(self, throw_on_resolution_failure, memo)

    def choices_in(overrides: Any, defaults: Any, self_added: Any) -> Any:
        named = any(each.is_interpolation() for each in defaults)
        return choices_of(overrides, defaults, self_added) if named else None

    with (
        hydra_reading_fixes(),
        bounded_interpolations(),
        _patched(
            (utils, "get_yaml_loader", lambda: loader),
            (utils, "parse", parse),
            (base, "parse", parse),
            (node, "_maybe_dereference_node", block_of),
            (ConfigStore, "__deepcopy__", lambda self, memo: self),  # what is loaded from it is a copy already
            (ConfigStore, "store", _storing(ConfigStore.store)),
            (OverridesParser, "parse_rule", parse_override),
            (defaults_list, "_create_interpolation_map", choices_in),
        ),
    ):
        yield


# A key of names and a value that is a name: a text in Hydra's grammar, unless it is one of _NOT_TEXT.
_PLAIN = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)=([A-Za-z_]\w*)", re.ASCII)
_NOT_TEXT = frozenset(("true", "false", "null", "nan", "inf"))


@functools.cache
def _cached(function: Any) -> Any:
    """`function` with its latest results cached: parse trees, which nobody changes."""
    return function if hasattr(function, "cache_info") else functools.lru_cache(maxsize=1024)(function)


@functools.cache
def _storing(store: Any) -> Any:
    """ConfigStore.store, which makes a config of a dataclass, or of an object of one, only when it is loaded: plugins
    store a dozen, and a composition uses two of them."""
    import omegaconf
    from hydra.core.config_store import ConfigNode

    class Unmade(ConfigNode):  # type: ignore[misc]
        def __getattr__(self, name: str) -> Any:  # until `node` is there
            if name != "node":
                raise AttributeError(name)
            self.node = omegaconf.OmegaConf.structured(self.__dict__.pop("unmade"))
            return self.node

        def __reduce_ex__(self, protocol: object) -> Any:  # a copy, or what a launcher pickles, is a ConfigNode
            return ConfigNode, (self.name, self.node, self.group, self.package, self.provider)

    def store_deferred(
        self: Any, name: str, node: Any, group: str | None = None, package: str | None = None, provider: Any = None
    ) -> None:
        made = not isinstance(node, type) and not dataclasses.is_dataclass(node)
        store(self, name=name, node=node if made else {}, group=group, package=package, provider=provider)
        if made:
            return
        group_node = self.repo
        for part in group.split("/") if group else ():
            group_node = group_node[part]
        entry = group_node[name if name.endswith(".yaml") else f"{name}.yaml"]
        entry.__class__ = Unmade
        del entry.node
        entry.unmade = node

    return store_deferred


def hydra_reading_fixes() -> AbstractContextManager[None]:
    """Within the block, files that Hydra itself reads have no sexagesimal numbers either; a path may be a number;
    `block.key=value` or `block={key: value}` fills an optional block that is null, or a new entry of a dict; and what
    chooses another dataclass of a union than the default's takes the place of the default (see `note_union`)."""
    import omegaconf

    utils, containers = vars(omegaconf)["_utils"], vars(omegaconf)["basecontainer"].BaseContainer
    update, merge_maps, loader = omegaconf.OmegaConf.update, containers._map_merge, yaml_loader()
    path_node: Any = omegaconf.PathNode
    to_path = path_node._validate_and_convert_impl

    def to_path_of_number(self: Any, value: Any) -> Path:
        path: Path = to_path(self, str(value) if type(value) in (int, float) else value)
        return path

    def choose_and_merge(dest: Any, src: Any) -> None:
        if _union_of(dest) and not (src._is_none() or src._is_missing() or src._is_interpolation()):
            given: Any = omegaconf.OmegaConf.to_container(src, resolve=False)
            _choose_class(dest, given)
        merge_maps(dest, src)

    def fill_and_update(cfg: Any, key: str, value: Any = None, *, merge: bool = True, force_add: bool = False) -> None:
        _fill(cfg, utils.split_key(key), value, merge=merge)
        if merge:
            update(cfg, key, value, merge=True, force_add=force_add)
            return
        # A file or a dataclass that was loaded for this composition: it need not be copied.
        with omegaconf.flag_override(cfg, "no_deepcopy_set_nodes", True):
            update(cfg, key, value, merge=False, force_add=force_add)

    return _patched(
        (utils, "get_yaml_loader", lambda: loader),
        (omegaconf.OmegaConf, "update", staticmethod(fill_and_update)),
        (containers, "_map_merge", staticmethod(choose_and_merge)),
        (path_node, "_validate_and_convert_impl", to_path_of_number),
    )


# The blocks that are one of several dataclasses by default, by a flag of their nodes: (the default's values, its class,
# the union). A flag is copied with the node, and a process without this table ignores it.
_unions: dict[str, tuple[dict[str, Any], type, Any]] = {}
_UNION = "nemotron_union:"


def note_union(node: Any, where: str, made: type, annotation: Any) -> None:
    """Note that a block has the values of its default, a `made`, one dataclass of the union `annotation`: a merge with
    keys that only another of them has drops these values. `where` is the field's name, which tells it from others."""
    from omegaconf import OmegaConf

    values: Any = OmegaConf.to_container(node, resolve=False)
    _unions[f"{_UNION}{where}"] = values, made, annotation
    node._set_flag(f"{_UNION}{where}", True)


def _union_of(node: Any) -> tuple[dict[str, Any], type, Any] | None:
    flags = node._metadata.flags
    return next((_unions.get(flag) for flag in flags if flag.startswith(_UNION)), None) if flags else None


def _choose_class(node: Any, given: Mapping[str, Any]) -> None:
    """Drop the default's values from a block that `note_union` has noted, if `given` chooses another class."""
    from omegaconf import OmegaConf, flag_override

    union = _union_of(node)
    if union is None or node._is_none() or node._is_missing() or node._is_interpolation():
        return
    default, made, annotation = union
    now: Any = OmegaConf.to_container(node, resolve=False)
    kept = other_class_values(default, now, given, made, annotation)
    if kept is not None:
        with flag_override(node, ["readonly", "struct"], [False, False]):
            for key in now.keys() - kept.keys():
                del node[key]
        for flag in [each for each in node._metadata.flags if each.startswith(_UNION)]:
            node._set_flag(flag, None)  # what is in the block now was given


def _fill(node: Any, parts: list[str], value: Any, *, merge: bool) -> None:
    """Give every null block on the way to a key its type's defaults, and every new entry of an open `dict[str, T]` too,
    where T is a dataclass, a dict or a list; so too the key's own block, if `value` will be merged into it. Raises
    UserError for an index past the end of a list."""
    from omegaconf import DictConfig, ListConfig, flag_override
    from omegaconf._utils import _resolve_optional, is_dict_annotation, is_list_annotation, is_structured_config

    for depth, part in enumerate(parts):
        if not isinstance(node, DictConfig | ListConfig) or node._is_missing() or node._is_interpolation():
            return
        if isinstance(node, ListConfig):
            name = ".".join(parts[:depth])
            if not part.isdigit():
                raise UserError(f"{name} is a list: {part!r} is no index of it.", hint=f"The first is {name}.0.")
            if int(part) >= len(node):
                first = f"The first is {name}.0. " if len(node) else ""
                raise UserError(
                    f"{name} has {len(node)} item{'s' * (len(node) != 1)}: there is no {name}.{part}.",
                    hint=f"{first}To add one, give the whole list: {name}=[…]",
                )
        if isinstance(node, DictConfig) and _union_of(node):
            given = value
            for name in reversed(parts[depth:]):
                given = {name: given}
            _choose_class(node, given)
        last = depth == len(parts) - 1
        if last and not (merge and isinstance(value, Mapping | list)):
            return
        if isinstance(node, ListConfig):
            node = node._get_node(int(part))
        else:
            above, node = node, node._get_node(part, validate_access=False)
            element = _resolve_optional(above._metadata.element_type)[1]
            if node is None and not above._get_flag("struct"):
                is_list = is_list_annotation(element)
                empty = element if is_structured_config(element) else [] if is_list else {}
                known = is_list or is_structured_config(element) or is_dict_annotation(element)
                if known and not (last and is_list is isinstance(value, Mapping)):
                    with flag_override(above, "readonly", False):
                        above[part] = empty
                    node = above._get_node(part)
        if not (isinstance(node, DictConfig) and node._is_none()):
            continue
        kind = node._metadata.ref_type
        if not (is_structured_config(kind) or is_dict_annotation(kind) or kind is dict):
            return
        node._set_value(kind if is_structured_config(kind) else {})
        open_dicts(node)


def open_dicts(node: Any) -> None:
    """Open the blocks typed as a dict for new keys, below a block whose keys are fixed."""
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


@functools.cache
def yaml_loader() -> Any:
    """OmegaConf's safe loader: 1e-3 is a number, a duplicate key is an error; but without YAML 1.1's sexagesimal
    numbers: 12:00:00 is a text, not 43200. Made once, since OmegaConf makes a class of it at each call."""
    from omegaconf._utils import get_yaml_loader

    class Loader(get_yaml_loader()):  # type: ignore[misc]
        pass

    # The first that matches decides, and of what these resolve only a sexagesimal number has a colon.
    text = ("tag:yaml.org,2002:str", re.compile(".*:"))
    found = Loader.yaml_implicit_resolvers
    Loader.yaml_implicit_resolvers = {first: [text, *resolvers] for first, resolvers in found.items()}
    return Loader


@functools.cache
def with_libyaml(loader: Any) -> Any:
    """The same loader over libyaml's parser, about 20 times as fast; `loader` itself where libyaml is missing."""
    import yaml

    if not yaml.__with_libyaml__:
        return loader
    parser: Any = vars(yaml.cyaml)["CParser"]

    def start(self: Any, stream: Any) -> None:
        parser.__init__(self, stream)
        yaml.constructor.SafeConstructor.__init__(self)
        yaml.resolver.Resolver.__init__(self)

    return type("Loader", (parser, loader), {"__init__": start})
