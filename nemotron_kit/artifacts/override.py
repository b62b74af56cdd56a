"""What a person types after `--art.X`: a whole reference, or a part of one, relative to the input's default."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace

from nemotron_kit.artifacts.reference import LATEST, VERSION, Reference, is_path
from nemotron_kit.errors import UserError


def parse_override(
    text: str,
    default: str | Reference | None = None,
    *,
    aliases: Callable[[str], Collection[str]] | None = None,
) -> Reference:
    """`v10`, `10`, `:prod` and `@1f00` are relative to the default's name; anything with a name or a path stands alone.

    A bare word is an alias of the default's name if it has one of that name, else a name of its own. `aliases(name)`
    lists a name's aliases; left out, the local registry is asked.
    """
    base = Reference.parse(default) if isinstance(default, str) else default
    word = text.strip() if isinstance(text, str) else text
    if not isinstance(word, str) or is_path(word):
        return Reference.parse(text)
    version = VERSION.match(word)
    if version or word.startswith((":", "@")):
        return _relative(Reference.parse(f"x{word}" if not version else f"x:v{version[1]}"), base, text)
    if base is not None and base.name and not set(word) & set(":@/"):
        known = aliases or _local_aliases
        if word == LATEST or word in known(base.slug):
            return _relative(Reference.parse(f"x:{word}"), base, text)
    return Reference.parse(word)


def _relative(part: Reference, base: Reference | None, text: str) -> Reference:
    if base is None or not base.name:
        raise UserError(
            f"{text!r} names a version but no artifact.", hint=f"Write it whole, as in Name{part.selector}."
        )
    return replace(base, version=part.version, alias=part.alias, digest=part.digest, run=part.run)


def _local_aliases(name: str) -> Collection[str]:
    from nemotron_kit.artifacts.registry import open_registry

    return open_registry().aliases(name)
