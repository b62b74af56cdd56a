"""Freezes a composed config for a job: every interpolation is resolved but ${art:…} and ${secret:…}, which the job
resolves."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from typing import Any, TypeVar

from nemotron_kit.config.convert import Deferred, to_dataclass
from nemotron_kit.config.limits import MAX_IN_CONFIG, bounded_interpolations, faster_omegaconf
from nemotron_kit.config.resolvers import multiplying, register_resolvers, registered
from nemotron_kit.errors import UserError, causes
from nemotron_kit.files import map_leaves
from nemotron_kit.masking import is_secret_name
from nemotron_kit.quoting import expanded, omegaconf_escaped


@contextmanager
def environment(values: Mapping[str, str | None], expand: Collection[str] = ()) -> Iterator[None]:
    """Within the block, os.environ holds `values` too; a variable that is None there is not set. Those named in
    `expand` may refer to others, and to what they were themselves: `PATH=/opt/bin:$PATH`."""
    before = {name: os.environ.get(name) for name in values}
    for name, text in values.items():
        _set_variable(name, expanded(text, os.environ) if text is not None and name in expand else text)
    try:
        yield
    finally:
        for name, text in before.items():
            _set_variable(name, text)


def _set_variable(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value


_ART = re.compile(r"\$\{art:\s*([A-Za-z_]\w*)")
_SECRET = re.compile(r"(?<!\\)\$\{secret:\s*([A-Za-z_]\w*)\s*\}")
# What the resolvers take: any other text would be an error in the job.
_DEFERRED = {"art": re.compile(r"\$\{art:[^,]+(,[^,]+)?\}"), "secret": re.compile(r"\$\{secret:[A-Za-z_]\w*\}")}
_WRITTEN = {"art": "${art:SLOT} or ${art:SLOT,FIELD}", "secret": "${secret:NAME}, NAME an environment variable"}
_FOLDED = frozenset("\x85\u2028\u2029\ufeff\r")
_OC_ENV = re.compile(r"\$\{oc\.env:\s*['\"]?([A-Za-z_]\w*)")


class Unresolved:
    """A composed config without its types, for a config that is frozen more than once: in a typed one, a number could
    not be the placeholder of a secret."""

    def __init__(self, config: Any) -> None:
        from omegaconf import OmegaConf

        self.raw = OmegaConf.to_container(config, resolve=False)
        self.config = OmegaConf.create(self.raw)

    @classmethod
    def of(cls, config: Any) -> Unresolved:
        """`config`, a DictConfig or one of these already."""
        return config if isinstance(config, cls) else cls(config)


def freeze(config: Any, job_folder: str, *, pwd: str | None = None, keep: Collection[str] = ()) -> dict[str, Any]:
    """`config` as a plain mapping: interpolations and the launch's environment resolved, ${art:…} and ${secret:…} kept.
    `config` is a DictConfig, or one as Unresolved.

    ${oc.env:NEMO_RUN_DIR} is `job_folder`; ${oc.env:PWD} is `pwd` where the job runs elsewhere, in a copy of the code.
    ${oc.env:X} is kept for each X in `keep`. Raises UserError for an interpolation that can't be resolved,
    and for ${oc.env:X} where X is a secret by its name.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    kept: list[str] = []
    variables = {"NEMO_RUN_DIR": job_folder, **({"PWD": pwd} if pwd else {})}
    resolvers = {name: partial(_deferred, kept, name) for name in _DEFERRED}
    reading = registered({**resolvers, "oc.env": partial(_variable, kept, keep)})
    bounded = bounded_interpolations(total=MAX_IN_CONFIG)
    with reading, environment(variables), faster_omegaconf(), multiplying(), bounded:
        try:
            untyped = Unresolved.of(config).config
            OmegaConf.clear_cache(untyped)  # a resolver may read the environment
            values = OmegaConf.to_container(untyped, resolve=True, enum_to_str=True)
        except OmegaConfBaseException as error:
            raise _worded(error) from error
    return restore(values, kept)  # type: ignore[no-any-return]


def keep_variables(frozen: dict[str, Any], config: Any, variables: Mapping[str, str]) -> dict[str, Any]:
    """`frozen`, what `freeze` made of `config`, with the values that came from a variable X replaced by ${oc.env:X}.

    `variables`: name → the value that it had. What a resolver has computed from one (`${parent:${oc.env:PWD}}`) stays
    as it is in `frozen`.
    """
    untyped = Unresolved.of(config)
    if not any(name in variables for _, text in walk_strings(untyped.raw) for name in _OC_ENV.findall(text)):
        return frozen
    known = {f"${{oc.env:{name}}}": omegaconf_escaped(value) for name, value in variables.items()}

    def chosen(kept: Any, value: Any) -> Any:
        if isinstance(kept, dict) and isinstance(value, dict) and kept.keys() == value.keys():
            return {key: chosen(kept[key], item) for key, item in value.items()}
        if isinstance(kept, list) and isinstance(value, list) and len(kept) == len(value):
            return [chosen(*pair) for pair in zip(kept, value, strict=True)]
        if not isinstance(kept, str):
            return value
        text = kept
        for reference, known_text in known.items():
            text = text.replace(reference, known_text)
        return kept if text == value else value

    try:
        return chosen(freeze(untyped, "", keep=variables), frozen)  # type: ignore[no-any-return]
    except UserError:  # a resolver that can't take the placeholder of a variable
        return frozen


def _deferred(kept: list[str], name: str, *arguments: Any) -> str:
    """The resolver of ${art:…} and ${secret:…} in a config that is frozen: a placeholder."""
    text = f"${{{name}:{','.join(map(str, arguments))}}}"
    if not _DEFERRED[name].fullmatch(text):
        raise UserError(f"{text}: that can't be resolved.", hint=f"It is {_WRITTEN[name]}.")
    return _placeholder(kept, text)


def _variable(kept: list[str], keep: Collection[str], name: str, *default: Any) -> Any:
    """The resolver of ${oc.env:X} in a config that is frozen: a placeholder for each X in `keep`. Raises UserError for
    a secret by its name, however that is written (quoted, composed)."""
    from omegaconf.resolvers import oc

    if is_secret_name(str(name)):
        raise UserError(
            f"{name} is a secret by its name; its value would be saved with the config.",
            hint=f"Write ${{secret:{name}}}: only the job itself reads it.",
        )
    return _placeholder(kept, f"${{oc.env:{name}}}") if name in keep else oc.env(name, *default)


def user_error(error: BaseException) -> UserError | None:
    """The UserError raised by a resolver, if one is the cause of an OmegaConf error; else None."""
    return next((each for each in causes(error) if isinstance(each, UserError)), None)


def omegaconf_message(error: Exception | str) -> str:
    """The first line of an OmegaConf error, without the name of the exception that it wraps."""
    line = (str(error).splitlines() or [type(error).__name__])[0]
    return re.sub(r"\A\w+ raised while resolving interpolation: ", "", line).strip('"')


def _worded(error: Any) -> UserError:
    """The error for an interpolation that OmegaConf can't resolve: its key, then what the resolver says about it, or
    OmegaConf's first line."""
    key = getattr(error, "full_key", None) or "config"
    if resolver_error := user_error(error):
        return UserError(f"{key}: {resolver_error.message}", hint=resolver_error.hint)
    hint = None
    if missing := re.search(r"Interpolation key 'run\.wandb(?:\.([a-z_]+))?' not found", str(error)):
        name = missing[1] or "project"
        option = f"--wandb.{name.replace('_', '-')}"
        hint = f'env.toml has no such key. Add to it:\n[wandb]\n{name} = "…"\nor give {option} VALUE.'
    return UserError(f"{key}: {omegaconf_message(error)}", hint=hint)


def launch_environment(config: Any) -> dict[str, str]:
    """The environment variables whose values at launch went into the config, by name."""
    raw = Unresolved.of(config).raw
    names = sorted({name for _, text in walk_strings(raw) for name in _OC_ENV.findall(text)})
    return {name: os.environ[name] for name in names if name in os.environ and not is_secret_name(name)}


def slots_used(config: Mapping[str, Any]) -> set[str]:
    """The artifact slots that ${art:slot} refers to anywhere in a plain config."""
    return {slot for _, text in walk_strings(config) for slot in _ART.findall(text)}


def secrets_used(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(dotted key, name) of every ${secret:NAME} in a plain config."""
    return [(key, name) for key, text in walk_strings(config) for name in _SECRET.findall(text)]


def flat(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """The (dotted key, value) pairs of a nested config; a list or an empty block is a value."""
    for key, value in values.items():
        name = f"{above}.{key}" if above else str(key)
        if isinstance(value, Mapping) and value:
            yield from flat(value, name)
        else:
            yield name, value


def leaves(value: Any, key: str = "") -> list[tuple[str, Any]]:
    """(dotted key, value) of every value in a plain config that holds no others: `a.b`, `a.c[0]`. An empty block or
    list is one as well."""
    if isinstance(value, Mapping) and value:
        items = [(f"{key}.{name}" if key else str(name), item) for name, item in value.items()]
    elif isinstance(value, list) and value:
        items = [(f"{key}[{index}]", item) for index, item in enumerate(value)]
    else:
        return [(key, value)]
    return [leaf for dotted, item in items for leaf in leaves(item, dotted)]


def walk_strings(value: Any) -> list[tuple[str, str]]:
    """(dotted key, text) of every string in a plain config."""
    return [(key, text) for key, text in leaves(value) if isinstance(text, str)]


def _placeholder(kept: list[str], text: str) -> str:
    """A text that stands for an interpolation until `restore`; appends the interpolation to `kept`."""
    kept.append(text)
    return f"\x00{len(kept) - 1}\x00"


def restore(value: Any, kept: list[str]) -> Any:
    """A resolved config with its deferred interpolations written out again, ready to be saved."""

    def written(each: Any) -> Any:
        if not isinstance(each, str):
            return str(each) if hasattr(each, "__fspath__") else each
        if "${" not in each and "\x00" not in each:
            return each
        # What is left of `${` came from an escape or from the environment: it must not be read as an interpolation.
        return re.sub("\x00(\\d+)\x00", lambda m: kept[int(m[1])], omegaconf_escaped(each))

    return map_leaves(value, written)


def to_yaml(values: Mapping[str, Any]) -> str:
    """A plain mapping as YAML that every safe loader reads."""
    import yaml

    text: str = yaml.dump(
        dict(values), Dumper=_dumper(), default_flow_style=False, allow_unicode=True, sort_keys=False, width=10**6
    )
    return text


@cache
def _dumper() -> Any:
    import yaml
    from omegaconf._utils import get_omega_conf_dumper

    # OmegaConf's dumper quotes what would be read as a number; line ends that YAML folds have to be escaped, too.
    theirs: Any = get_omega_conf_dumper()
    plain = theirs.yaml_representers[str]

    # libyaml's emitter, where there is one, takes a quarter of the time.
    class Dumper(getattr(yaml, "CDumper", yaml.Dumper)):  # type: ignore[misc]
        pass

    Dumper.yaml_representers = dict(theirs.yaml_representers)
    Dumper.add_representer(
        str,
        lambda dumper, text: (
            dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"')
            if not _FOLDED.isdisjoint(text)
            else plain(dumper, text)
        ),
    )
    return Dumper


T = TypeVar("T")
_LATER = re.compile(r"(?<!\\)\$\{(?:art|secret):")


def resolve(values: Mapping[str, Any], *, keep_secrets: bool = False) -> dict[str, Any]:
    """Every interpolation resolved; with `keep_secrets` the ${secret:…} stay as they are, for what is saved."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    register_resolvers()
    kept: list[str] = []
    reading = registered({"secret": partial(_deferred, kept, "secret")} if keep_secrets else {})
    with reading, multiplying(), bounded_interpolations(total=MAX_IN_CONFIG):
        try:
            resolved: Any = OmegaConf.to_container(OmegaConf.create(dict(values)), resolve=True)
        except OmegaConfBaseException as error:
            raise user_error(error) or _worded(error) from error
    return restore(resolved, kept) if keep_secrets else resolved  # type: ignore[no-any-return]


def typed(values: Mapping[str, Any], cls: type[T]) -> T:
    """The handler's config: an instance of exactly `cls`, without the launcher's `run` section.

    Keys that are no fields can only have come from `+key=…`: composition has refused the others.
    """
    config = {key: value for key, value in values.items() if key != "run"}
    return to_dataclass(config, cls, extras=_Everything())


def check(values: Mapping[str, Any], cls: type) -> list[str]:
    """Check a frozen config against `cls` before there is a job; returns the dotted fields that still have no value.

    Values that only the job resolves (`${art:…}`, `${secret:…}`) are accepted for every type. Raises UserError for a
    value of a wrong type.
    """
    missing: list[str] = []
    config = {key: _defer(value, key, missing) for key, value in values.items() if key != "run"}
    to_dataclass(config, cls, extras=_Everything())
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


class _Everything:
    def __contains__(self, _: object) -> bool:
        return True
