"""References: the words that name an artifact.

`[entity/project/]Name[:alias|:vN|@sha256-prefix]`, `Name@run:<run id>`, any of them after `art://`, or a path, which
starts with `/`, `./`, `../` or `~`. Without a version, `latest` is meant.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from nemotron_kit.artifacts.errors import NOT_A_REFERENCE
from nemotron_kit.errors import UserError

# A name becomes a folder, an alias a file: only these characters, and never `..`.
SLUG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
VERSION = re.compile(r"v?(0|[1-9][0-9]{0,8})\Z")
LATEST = "latest"

_LOOKS_LIKE_VERSION = re.compile(r"[vV]?[0-9]+\Z")
_DIGEST = re.compile(r"[0-9a-f]{4,64}\Z")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
# Megatron-Bridge's names for the checkpoints of the three stages.
_STAGES = frozenset({"pretrain", "sft", "rl"})


@dataclass(frozen=True)
class Reference:
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
        """Read a reference; anything that is none is a UserError that says what would be one."""
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


def check_slug(word: str, what: str) -> str:
    """`word` itself if it is a slug, else a UserError that says what a `what` may hold."""
    if not SLUG.match(word) or ".." in word:
        raise UserError(
            f"{word!r} is no {what}.",
            hint="Use letters, digits, '.', '_' and '-', at most 64, the first a letter or digit, and no '..'.",
        )
    return word


def check_alias(word: str) -> str:
    """`word` itself if it may be an alias: a slug that can't be taken for a version."""
    if _LOOKS_LIKE_VERSION.match(word):
        raise UserError(f"{word!r} is no alias: it reads as a version.", hint="Versions are written v0, v1, v2, …")
    return check_slug(word, "alias")


def registry_name(name: str) -> str:
    """The name that `save(name=…)` stores under: a slug, slashes as dashes; `pretrain` is `ModelArtifact-pretrain`."""
    if not isinstance(name, str) or ":" in name or "@" in name:
        raise UserError(
            f"{name!r} is no artifact name.",
            hint="Saving gives the version; write the name alone, as in MyRecipe-data.",
        )
    return check_slug(_parse_name(name, name).slug, "artifact name")


def _parse_name(body: str, text: str) -> Reference:
    if "@" in body:
        name, _, selector = body.partition("@")
        if selector.startswith("run:"):
            return _build(name, text, run=check_slug(selector.removeprefix("run:"), "run id"))
        return _build(name, text, digest=_digest(selector))
    name, colon, selector = body.partition(":")
    if not colon:
        return _build(name, text, alias=LATEST)
    version = VERSION.match(selector)
    if version:
        return _build(name, text, version=int(version[1]))
    return _build(name, text, alias=check_alias(selector))


def _digest(selector: str) -> str:
    digest = selector.removeprefix("sha256:").lower()
    if not _DIGEST.match(digest):
        raise UserError(
            f"{selector!r} is no digest.", hint="After '@' come 4 to 64 hex digits of the sha256, or run:ID."
        )
    return digest


def _build(
    name: str,
    text: str,
    *,
    version: int | None = None,
    alias: str | None = None,
    digest: str | None = None,
    run: str | None = None,
) -> Reference:
    parts = name.split("/")
    for part in parts:
        if not SLUG.match(part) or ".." in part:
            raise UserError(f"{text!r} is no artifact reference: {part!r} is no name.", hint=NOT_A_REFERENCE)
    entity = project = None
    if len(parts) == 3:
        entity, project, name = parts
    elif len(parts) > 1:
        name = check_slug("-".join(parts), "artifact name")
    elif name in _STAGES:
        name = f"ModelArtifact-{name}"
    return Reference(name, version, alias, digest, run, entity, project)
