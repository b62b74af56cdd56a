"""References, which name an artifact, and pins, which record the version that a reference resolved to."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any

from nemotron_kit.errors import DamagedRecordError as DamagedRecordError  # a public name of this package, too
from nemotron_kit.errors import UserError
from nemotron_kit.lazy import Value
from nemotron_kit.masking import secret_in

NOT_A_REFERENCE = (
    "Write Name, Name:v3, Name:alias, Name@<sha256 prefix>, Name@run:<run id>, entity/project/Name:v3, "
    "or a path that starts with '/', './', '../' or '~'."
)


class ArtifactNotFoundError(UserError):
    """Nothing is registered under `name`."""

    def __init__(self, name: str, message: str | None = None, *, hint: str | None = None) -> None:
        super().__init__(message or f"No artifact is called {name!r}.", hint=hint)
        self.name = name


class ArtifactVersionNotFoundError(ArtifactNotFoundError):
    """`name` is registered, but has no such version, alias, digest or run."""

    def __init__(self, name: str, version: str | int, message: str | None = None, *, hint: str | None = None) -> None:
        super().__init__(name, message or f"{name} has no {version}.", hint=hint)
        self.version = version


class ArtifactChangedError(UserError):
    """A version's files are no longer those that were saved."""


# A name becomes a folder, an alias a file: only these characters, and never `..`.
SLUG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
VERSION = re.compile(r"v?(0|[1-9][0-9]{0,8})\Z")
LATEST = "latest"

_LOOKS_LIKE_VERSION = re.compile(r"[vV]?[0-9]+\Z")
_DIGEST = re.compile(r"[0-9a-f]{4,64}\Z")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
# Megatron-Bridge's names for the checkpoints of the three stages.
_STAGES = frozenset({"pretrain", "sft", "rl"})


@dataclass(frozen=True, eq=False, repr=False)
class Reference(Value):
    """One parsed reference. `str()` gives its canonical text, and `Reference.parse(str(ref)) == ref`.

    Exactly one of `version`, `alias`, `digest` and `run` is set for a name, none for a `path`.
    """

    name: str = ""
    version: int | None = None
    alias: str | None = None
    digest: str | None = None
    run: str | None = None
    entity: str | None = None
    project: str | None = None
    path: str | None = None

    def __post_init__(self) -> None:
        if self.path is None and self.version is None and not (self.alias or self.digest or self.run):
            object.__setattr__(self, "alias", LATEST)

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Parse a reference. Raises UserError, with the valid forms, for any other text."""
        if not isinstance(text, str):
            raise UserError(f"{text!r} is no artifact reference.", hint=NOT_A_REFERENCE)
        if _CONTROL.search(text):
            raise UserError(f"{text!r} is no artifact reference: it holds a control character.", hint=NOT_A_REFERENCE)
        body = text.removeprefix("art://")
        if is_path(body):
            return cls(path=body)
        if "://" in body:
            raise UserError(f"{text!r}: an artifact is named, or is a folder on this machine.", hint=NOT_A_REFERENCE)
        return _parse_name(body.strip(), text)

    @property
    def slug(self) -> str:
        """The name's folder in a local registry: slashes become dashes (`nano3/pretrain/model`)."""
        return "-".join(part for part in (self.entity, self.project, self.name) if part)

    @property
    def selector(self) -> str:
        """The part after the name, with its mark: `:v3`, `:latest`, `@1f00`, `@run:ID`; "" for a path."""
        if self.path is not None:
            return ""
        if self.run is not None:
            return f"@run:{self.run}"
        if self.digest is not None:
            return f"@{self.digest}"
        return f":v{self.version}" if self.version is not None else f":{self.alias}"

    def __str__(self) -> str:
        if self.path is not None:
            return self.path
        prefix = f"{self.entity}/{self.project}/" if self.entity else ""
        return f"{prefix}{self.name}{self.selector}"


def is_path(text: str) -> bool:
    """Whether a reference is a path rather than a name."""
    return text.startswith(("/", "./", "../", "~")) or text in {".", ".."}


def check_slug(text: str, what: str) -> str:
    """Return `text` if it is a valid slug. Raises UserError otherwise; `what` is the kind of name in its message."""
    if not SLUG.match(text) or ".." in text:
        raise UserError(
            f"{text!r} is no {what}.",
            hint="Use letters, digits, '.', '_' and '-', at most 64, the first a letter or digit, and no '..'.",
        )
    return text


def check_alias(text: str) -> str:
    """`text` itself if it is a valid alias: a slug that can't be read as a version."""
    if _LOOKS_LIKE_VERSION.match(text):
        raise UserError(f"{text!r} is no alias: it reads as a version.", hint="Versions are written v0, v1, v2, …")
    return check_slug(text, "alias")


def registry_name(name: str) -> str:
    """The name that `save(name=…)` stores under: a slug, slashes as dashes; `pretrain` is `ModelArtifact-pretrain`."""
    if not isinstance(name, str) or ":" in name or "@" in name:
        raise UserError(
            f"{name!r} is no artifact name.",
            hint="Write the name without a version, as in MyRecipe-data: saving assigns the version.",
        )
    return check_public(check_slug(_parse_name(name, name).slug, "artifact name"), "artifact name")


def check_public(text: str, what: str) -> str:
    """Return `text`, which the registry will show to all of its readers. Raises UserError if a secret is in it."""
    if variable := secret_in(text):
        raise UserError(
            f"This {what} holds the value of {variable}, a secret by its name.",
            hint="Every reader of the registry sees it: choose another.",
        )
    return text


def _parse_name(body: str, text: str) -> Reference:
    """The reference in `body`, which is no path; `text` is all that was given, for messages."""
    selected: dict[str, Any]
    if "@" in body:
        name, _, selector = body.partition("@")
        if selector.startswith("run:"):
            selected = {"run": check_slug(selector.removeprefix("run:"), "run id")}
        else:
            selected = {"digest": selector.removeprefix("sha256:").lower()}
            if not _DIGEST.match(selected["digest"]):
                raise UserError(
                    f"{selector!r} is no digest.", hint="After '@' come 4 to 64 hex digits of the sha256, or run:ID."
                )
    else:
        name, colon, selector = body.partition(":")
        if version := VERSION.match(selector):
            selected = {"version": int(version[1])}
        else:
            selected = {"alias": check_alias(selector) if colon else LATEST}
    parts = name.split("/")
    for part in parts:
        if not SLUG.match(part) or ".." in part:
            raise UserError(f"{text!r} is no artifact reference: {part!r} is no name.", hint=NOT_A_REFERENCE)
    if len(parts) == 3:
        return Reference(entity=parts[0], project=parts[1], name=parts[2], **selected)
    if len(parts) > 1:
        name = check_slug("-".join(parts), "artifact name")
    elif name in _STAGES:
        name = f"ModelArtifact-{name}"
    return Reference(name, **selected)


def parse_override(
    text: str,
    default: str | Reference | None = None,
    *,
    aliases: Callable[[str], Collection[str]] = lambda _: (),
) -> Reference:
    """Parse a reference relative to a default: `v10`, `10`, `:prod` and `@1f00` apply to the default's name; a
    reference with a name, or a path, is complete.

    A text without a mark is an alias of the default's name if it has such an alias, else the name of an artifact.
    `aliases(name)` returns a name's aliases. Raises UserError.
    """
    base = Reference.parse(default) if isinstance(default, str) else default
    stripped = text.strip() if isinstance(text, str) else text
    if not isinstance(stripped, str) or is_path(stripped):
        return Reference.parse(text)
    version = VERSION.match(stripped)
    if version or stripped.startswith((":", "@")):
        return _relative(Reference.parse(f"x{stripped}" if not version else f"x:v{version[1]}"), base, text)
    bare = not set(stripped) & set(":@/")
    if bare and base is not None and base.name and (stripped == LATEST or stripped in aliases(base.slug)):
        return _relative(Reference.parse(f"x:{stripped}"), base, text)
    return Reference.parse(stripped)


def _relative(part: Reference, base: Reference | None, text: str) -> Reference:
    if base is None or not base.name:
        raise UserError(f"{text!r} has a version but no name.", hint=f"Write the name, too, as in Name{part.selector}.")
    return replace(base, version=part.version, alias=part.alias, digest=part.digest, run=part.run)


@dataclass(frozen=True, eq=False, repr=False)
class Pin(Value):
    """`name:vN` with digest and registry; for a plain path, `version` and `digest` are None and `registry` is ""."""

    name: str
    version: int | None
    digest: str | None
    type: str
    path: str
    registry: str = ""

    @property
    def label(self) -> str:
        """`Name:v3`, or the path of something that is not registered."""
        return self.path if self.version is None else f"{self.name}:v{self.version}"

    @property
    def uri(self) -> str:
        """The reference to this pin for a later step: `art://Name:v3`, or `art://` and the path."""
        return f"art://{self.label}"

    def __fspath__(self) -> str:
        return self.path

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON data."""
        return dict(vars(self))

    @classmethod
    def from_dict(cls, data: Any) -> Pin:
        """The pin that `to_dict` wrote; DamagedRecordError for anything else."""
        if not isinstance(data, dict):
            raise DamagedRecordError(f"Not a pin: {data!r}.")
        texts = {key: data.get(key, "") for key in ("name", "type", "path", "registry")}
        for key, value in texts.items():
            if not isinstance(value, str):
                raise DamagedRecordError(f"Not a pin: {key} is {value!r}.")
        version, digest = data.get("version"), data.get("digest")
        is_version = version is None or (type(version) is int and version >= 0)
        if not texts["path"] or not is_version or not isinstance(digest, str | None):
            raise DamagedRecordError(f"Not a pin: {data!r}.")
        return cls(version=version, digest=digest, **texts)
