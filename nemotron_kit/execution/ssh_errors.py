"""Why ssh did not get through, and what to do about it."""

from __future__ import annotations

from typing import Protocol

from nemotron_kit.errors import NemotronError, Unreachable
from nemotron_kit.runs.logs import neutralise


class NotSent(Unreachable):
    """Nobody answered, and the operation had not been asked for: it is known not to have happened."""


class Destination(Protocol):
    host: str
    user: str | None
    python: str

    @property
    def place(self) -> str: ...


_SSH_FAILED = 255
_NO_COMMAND = 127
# The first of these that ssh's words hold says what happened; {place} and {login} are filled in.
_KEY = "No password, key or data went to it."
_REASONS: tuple[tuple[str, str, str], ...] = (
    ("REVOKED HOST KEY", "{place} shows a host key that is revoked: refused. " + _KEY, "Ask those who run it."),
    (
        "HOST IDENTIFICATION HAS CHANGED",
        "{place} shows another host key than the one known here: refused. " + _KEY,
        "Somebody may be listening in. Only if its key was really changed: ssh-keygen -R {host}, then {login}",
    ),
    (
        "Host key verification failed",
        "{place} shows a host key that is not known here: refused. " + _KEY,
        "Compare its fingerprint and accept it on your terminal: {login}",
    ),
    ("Permission denied", "{place} lets nobody in without a password or a second factor.", "Open the way: {login}"),
    ("Too many authentication failures", "{place} refused each key that was offered.", "Name one: identity = …"),
    ("Could not resolve hostname", "{host}: there is no such host.", "Check host in the profile, and your network."),
    ("timed out", "{place} does not answer.", "Is this machine on the right network? Otherwise try again later."),
    ("Connection refused", "{place}: nothing listens there.", "Check host in the profile; {host} may be down."),
)


def not_reached(to: Destination, code: int | None, stderr: str) -> NemotronError:
    """The error for an ssh that ended with `code` before the agent was ready (None: it had to be ended)."""
    words = neutralise(" ".join(line.strip() for line in stderr.splitlines() if line.strip())[-600:])
    if code is None:
        return NotSent(f"{to.place} does not answer.", hint=words or "Its login may be very slow. Try again.")
    if code == _NO_COMMAND:
        return NemotronError(f"{to.place}: there is no {to.python} there.", hint="Name it in the profile: python = …")
    if code != _SSH_FAILED:
        return NemotronError(f"{to.place}: {to.python} ended with exit code {code}.", hint=words or None)
    fill = {"place": to.place, "host": to.host, "login": _login(to)}
    for sign, what, hint in _REASONS:
        if sign.lower() in stderr.lower():
            return NotSent(what.format(**fill), hint=hint.format(**fill))
    return NotSent(f"{to.place} can't be reached.", hint=words or None)


def _login(to: Destination) -> str:
    return f"nemotron profiles login {_profile_of(to) or 'NAME'}"


def _profile_of(to: Destination) -> str | None:
    """The profile that leads there: an error is worth reading env.toml once more."""
    from nemotron_kit.plan.profiles import list_run_profiles, load_run_profile

    try:
        for name in list_run_profiles():
            config = load_run_profile(name)
            if (config.tunnel, config.host, config.user) == ("ssh", to.host, to.user):
                return name
    except NemotronError:
        return None  # a broken env.toml is not what went wrong here
    return None
