"""Masks secrets in output and records: by the names of values, else by the values themselves; and the passwords of
addresses (`https://user:password@host`).

`mask` is for a text, `masked` for a JSON-like value, `masked_by_name` for one whose keys name its values,
`MaskedStream` for bytes that arrive in parts (a pipe, a descriptor), and `mask_logging` is called after logging was
configured. Whoever writes a log, a record or a message of a job calls one of them last, on the final text. Each
process that writes for a job first calls `note_secrets` with the names in the job's `secrets` and in its config's
`${secret:NAME}`; variables whose name marks them as secret need no note. Standard library alone, since it also runs
on nodes.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import cache, lru_cache
from typing import Any

MASK = "***"
# In a job's folder: the names, one a line, of the variables that its processes have used as secrets.
USED = "secrets.txt"
# Minimum length of a secret's value; shorter values occur in ordinary text.
LEAST = 8
# Minimum length of the value of a variable that the job uses as a secret.
LEAST_NOTED = 4

# `hf_token`, `WANDB_API_KEY`, `db.password`, the headers `X-Api-Key` and `Authorization`;
# not `total_tokens`, `tokenizer_model`, `use_cls_token`, `eos_token`.
_SECRET = re.compile(
    r"(?:^|[._-])(?:(?:api|access|secret|private)[_-]?key|secret|app_secret|passw(?:or)?d|passphrase|credentials?"
    r"|(?:proxy-)?authorization|(?:hf|hub|auth|access|api|bearer|github|gitlab|wandb|ngc|refresh)[_-]?token|pat)$"
    # A key that is `token` alone, and a variable by its capital letters.
    r"|(?:^|\.)token$|(?-i:_TOKEN)$",
    re.IGNORECASE,
)

# Keys that often hold something else in a config file: a special token, a pattern. Those are judged by their value.
_WEAK = r"(?i)(?:^|[._-])(?:token|pat)$"
_STRONG = r"(?i)(?:hf|hub|auth|access|api|bearer|github|gitlab|wandb|ngc|refresh)[_-]?token$"
_RANDOM = r"(?=.*\d)[A-Za-z0-9_+/=.~:-]{8,}"
_FILE_PATH = r"(?:/|~/|\./|\.\./)[^\s]*|[\w./-]+\.(?:json|pem|key|crt|txt|yaml|yml|toml|env)"
# Values for a service that asks for a key and accepts any.
_PLACEHOLDERS = frozenset(("", "???", MASK, "EMPTY", "empty", "none", "None", "null", "dummy", "changeme"))
# Values of what is on or off, such as HF_HUB_DISABLE_IMPLICIT_TOKEN.
_SWITCHES = frozenset(("0", "1", "true", "false", "yes", "no", "on", "off"))
_INTERPOLATION = r"\$\{[^{}]*\}"

# The password of `scheme://user:password@host`, or a token of a well-known form instead of the user; not a reference.
_IN_ADDRESS = (
    # `https:/` is what a path makes of an address. A fixed beginning is what a search is fast by.
    # github://owner:repository@commit has none.
    r"""(:/(?:/(?<!github://)|(?:(?<=https:/)|(?<=http:/)|(?<=s3:/)|(?<=gs:/))(?!/)))"""
    r"""(?:([^\s/?#:@'"<>`]{0,256}:)(?!\*\*\*@|\$\{[^{}]*\}@|\$[A-Z_][A-Z0-9_]*@|\d+[?#])[^\s/'"<>`]{1,512}(?=@)"""
    r"|(?:gh[pousr]_|github_pat_|glpat-|hf_)[\w-]{16,255}(?=@))"
)
# What may be the beginning of such an address, from its last `:/` to the end of a text.
_ADDRESS_BEGINS = rb""":/{1,2}[^\s/?#:@'"<>`]{0,256}(?::[^\s/'"<>`]{0,512})?\Z"""
# How many bytes in front of a `/` or `//` the pattern looks back at.
_SCHEME = len("github:")

_noted: set[str] = set()
# (the environment, the number of noted names, the values of the secrets in it)
_known: tuple[Mapping[Any, Any], int, tuple[str, ...]] | None = None


@cache
def is_secret_name(name: str) -> bool:
    """Whether the name of a config key or environment variable marks it as a secret."""
    return _SECRET.search(name) is not None


def note_secrets(names: Iterable[str]) -> None:
    """Mask the values of these environment variables from now on, whatever the variables' names."""
    _noted.update(names)


def note_used(name: str) -> None:
    """Record the variable of a resolved `${secret:NAME}`; in a job also for the process that writes its log."""
    known = name in _noted
    note_secrets([name])
    folder = os.environ.get("NEMO_RUN_DIR")
    if known or not folder or is_secret_name(name) or not os.path.isdir(folder):  # noqa: PTH112
        return
    try:
        file = os.open(os.path.join(folder, USED), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)  # noqa: PTH118
    except OSError as error:
        print(f"warning: {name} is not masked in what other programs write: {error}", file=sys.stderr)  # noqa: T201
        return
    with os.fdopen(file, "w") as names:
        names.write(f"{name}\n")


def note_used_in(folder: str) -> None:
    """Apply what any of the job's processes has recorded by `note_used` in its folder."""
    try:
        with open(os.path.join(folder, USED), encoding="utf-8", errors="replace") as file:  # noqa: PTH118, PTH123
            note_secrets(file.read().split("\n")[:-1])
    except FileNotFoundError:  # no secret was used
        return


def noted_secrets() -> frozenset[str]:
    """The noted names, to pass to another process that masks this one's output."""
    return frozenset(_noted)


def mask(text: str) -> str:
    """`text` with the values of all secrets known to this process masked, and the passwords in addresses."""
    values = _values()
    return without_passwords(_pattern(values).sub(MASK, text) if values else text)


def without_passwords(text: str) -> str:
    """`text` with the password of each `scheme://user:password@host` masked."""
    if ":/" not in text or "@" not in text:
        return text
    # Compiled on first use: it takes milliseconds, and most launches need none.
    return re.sub(_IN_ADDRESS, lambda found: f"{found[1]}{found[2] or ''}{MASK}", text)


def masked(value: Any) -> Any:
    """A JSON-like value with every text in it masked, keys included."""
    values = _values()
    pattern = _pattern(values) if values else None

    def walk(each: Any) -> Any:
        if isinstance(each, str):
            return without_passwords(pattern.sub(MASK, each) if pattern else each)
        if isinstance(each, Mapping):
            return {walk(key) if isinstance(key, str) else key: walk(item) for key, item in each.items()}
        return [walk(item) for item in each] if isinstance(each, list | tuple) else each

    return walk(value)


def masked_by_name(value: Any, key: str = "") -> Any:
    """A plain config, or other JSON-like value, in which each value that is a secret, by its key at any depth or by
    itself, is `***`."""
    secrets = {name for name in _keys(value, key) if is_secret_name(name)}
    return masked(_without(value, key, secrets) if secrets else value)


def _keys(value: Any, key: str) -> set[str]:
    """The dotted keys of a config's values; those of a list have the list's."""
    if isinstance(value, Mapping):
        return set().union(*(_keys(item, f"{key}.{name}" if key else str(name)) for name, item in value.items()))
    return set().union(*(_keys(item, key) for item in value)) if isinstance(value, list) else {key}


def _without(value: Any, key: str, secrets: Collection[str]) -> Any:
    if isinstance(value, Mapping):
        return {name: _without(item, f"{key}.{name}" if key else str(name), secrets) for name, item in value.items()}
    if isinstance(value, list):
        return [_without(item, key, secrets) for item in value]
    return MASK if key in secrets and is_literal(value) and not is_harmless(key, value) else value


def secret_in(text: str) -> str | None:
    """The name of an environment variable whose secret value occurs in `text`; None if there is none."""
    return next((name for name, value in _secrets() if any(form in text for form in _forms(value))), None)


class MaskedStream:
    """Masks bytes that arrive in parts, also a secret that spans two parts: a possible beginning of a secret is kept
    until the next part, or until `rest`. A complete line is never kept."""

    def __init__(self) -> None:
        self._held = b""
        self._written = b""  # the last bytes, with which an address may begin

    def feed(self, data: bytes) -> bytes:
        """The masked bytes that can be written now, from `data` and from the bytes kept before."""
        values = _values()
        data = self._held + data
        self._held, held = b"", 0
        if values:
            pattern, forms = _in_bytes(values)
            data = pattern.sub(MASK.encode(), data)
            held = _beginning(data, forms)
        text = self._written + data
        begin = text.rfind(b":/")
        if begin >= 0 and re.match(_ADDRESS_BEGINS, text[begin:]):
            held = max(held, len(data) - max(0, begin - len(self._written)))
        if held:
            self._held = data[-held:]
            data = data[:-held]
        return self._masked(data)

    def rest(self) -> bytes:
        """The masked bytes that were kept; called at the end of the stream."""
        held, self._held = self._held, b""
        return self._masked(held)

    def _masked(self, data: bytes) -> bytes:
        before = self._written
        shown = re.sub(_IN_ADDRESS.encode(), lambda at: at[1] + (at[2] or b"") + MASK.encode(), before + data)
        shown = shown[len(before) :]
        self._written = (before + shown)[-_SCHEME:]
        return shown


def mask_logging() -> None:
    """Mask the output of the current logging handlers. Call it after each configuration of logging; handlers that are
    masked already stay unchanged."""
    import logging

    loggers = [logging.getLogger(), *logging.Logger.manager.loggerDict.values()]
    for logger in loggers:
        for handler in getattr(logger, "handlers", ()):
            written = handler.format
            if getattr(written, "masks", False):
                continue

            def format_masked(record: logging.LogRecord, written: Any = written) -> str:
                return mask(written(record))

            format_masked.masks = True  # type: ignore[attr-defined]
            handler.format = format_masked


def is_literal(value: Any) -> bool:
    """Whether a value is given literally, and not as a reference; a scheme before a reference (`Bearer ${…}`) is no
    literal."""
    if value is None or isinstance(value, bool):
        return False
    text = str(value).strip().strip("'\"")
    rest = re.sub(_INTERPOLATION, "", text)
    if text in _PLACEHOLDERS or is_switch(text):
        return False
    return not ("${" in text and len(rest) < 8 and "${" not in rest)


def is_switch(text: str) -> bool:
    """Whether a text switches something on or off, and is no secret whatever its name."""
    return text.lower() in _SWITCHES


def is_path(text: str) -> bool:
    """Whether a text is the path of a file, and no secret whatever its name, as of GOOGLE_APPLICATION_CREDENTIALS."""
    return re.fullmatch(_FILE_PATH, text.strip("'\"")) is not None


def is_harmless(key: str, value: Any) -> bool:
    """Whether a value under a secret's name is no secret: a file's name, a special token, a number."""
    text = str(value)
    if isinstance(value, str) and is_path(text):
        return True
    weak = re.search(_WEAK, key) and not re.search(_STRONG, key)
    return bool(weak) and not re.fullmatch(_RANDOM, text)


def _secrets() -> Iterator[tuple[str, str]]:
    """(name, value) of the environment's secrets."""
    for name, raw in os.environ.items():
        noted, value = name in _noted, raw.strip()
        # The path of a file (GOOGLE_APPLICATION_CREDENTIALS) is no secret; the file's content is.
        if (noted or is_secret_name(name)) and len(value) >= (LEAST_NOTED if noted else LEAST) and not _is_file(value):
            yield name, value


def _values() -> tuple[str, ...]:
    global _known
    environment = getattr(os.environ, "_data", None) or dict(os.environ)
    if _known is None or _known[0] != environment or _known[1] != len(_noted):
        _known = dict(environment), len(_noted), tuple(value for _, value in _secrets())
    return _known[2]


@lru_cache(maxsize=64)
def _is_file(value: str) -> bool:
    return value.startswith(("/", "~/")) and len(value) < 4096 and os.path.exists(os.path.expanduser(value))  # noqa: PTH110, PTH111


@lru_cache(maxsize=64)
def _forms(value: str) -> tuple[str, ...]:
    """The forms in which a value can occur in a text: unchanged, quoted by Python or JSON, URL-encoded, and each of its
    lines if they are long."""
    import json
    from urllib.parse import quote

    lines = [line for line in value.splitlines() if len(line) >= 2 * LEAST] if "\n" in value else []
    forms = [value, repr(value)[1:-1], json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1], *lines]
    return tuple(dict.fromkeys([*forms, quote(value, safe="", errors="surrogateescape")]))


@lru_cache(maxsize=16)
def _pattern(values: tuple[str, ...]) -> re.Pattern[str]:
    forms = sorted({form for value in values for form in _forms(value) if form}, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, forms)) or r"(?!)")


@lru_cache(maxsize=16)
def _in_bytes(values: tuple[str, ...]) -> tuple[re.Pattern[bytes], tuple[bytes, ...]]:
    """(the pattern of the values, their forms), for bytes."""
    encoding = ("utf-8", "surrogateescape")
    forms = tuple({form.encode(*encoding) for value in values for form in _forms(value)})
    return re.compile(_pattern(values).pattern.encode(*encoding)), forms


def _beginning(data: bytes, values: tuple[bytes, ...]) -> int:
    """The number of bytes at the end of `data` that may be the beginning of a secret."""
    longest = 0
    for value in values:
        for length in range(min(len(value) - 1, len(data)), longest, -1):
            if data.endswith(value[:length]):
                longest = length
                break
    return longest
