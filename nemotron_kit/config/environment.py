"""Environment variables for a while: set, and put back afterwards."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
from collections.abc import Collection, Iterator, Mapping

# `$NAME` and `${NAME}`, as a shell has them, but nothing else that a shell would do; `\$NAME` is the text.
_REFERENCE = re.compile(
    r"(?P<escape>\\)?\$(?:(?P<plain>[A-Za-z_][A-Za-z0-9_]*)|\{(?P<braced>[A-Za-z_][A-Za-z0-9_]*)\})"
)


@contextlib.contextmanager
def environment(values: Mapping[str, str], expand: Collection[str] = ()) -> Iterator[None]:
    """Within the block, os.environ holds `values` too. Those named in `expand` may refer to others, and to what they
    were themselves: `PATH=/opt/bin:$PATH`."""
    before = {name: os.environ.get(name) for name in values}
    for name, text in values.items():
        os.environ[name] = expanded(text, os.environ) if name in expand else text
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def refers(text: str) -> bool:
    """Whether a variable's value refers to another variable."""
    return _REFERENCE.search(text) is not None


def expanded(text: str, variables: Mapping[str, str]) -> str:
    """`text` with each `$NAME` replaced by that variable, by nothing where there is none."""
    return _REFERENCE.sub(
        lambda m: m[0][1:] if m["escape"] else variables.get(m["plain"] or m["braced"], ""),
        text,
    )


def quoted(text: str) -> str:
    """`text` as a word of a shell script, where references, and nothing else, mean what they do in a shell."""
    words, end = [], 0
    for match in _REFERENCE.finditer(text):
        if match.start() > end:
            words.append(shlex.quote(text[end : match.start()]))
        words.append(shlex.quote(match[0][1:]) if match["escape"] else f'"{match[0]}"')
        end = match.end()
    return "".join([*words, shlex.quote(text[end:]) if text[end:] or not words else ""])
