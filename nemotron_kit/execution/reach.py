"""How a launch reaches the machine where jobs run: in this process, or over ssh. The operations are target.agent's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Protocol

from nemotron_kit.home import nemotron_home


class Reach(Protocol):
    """The way to one machine."""

    @property
    def root(self) -> str:
        """The folder there, absolute, below which the kit's runs/ stands."""

    def call(self, op: str, payload: bytes = b"", **args: Any) -> tuple[Any, bytes]:
        """Do an operation of `target.agent.OPS` there; its result (JSON data) and bytes.

        Raises what the operation raised (UserError, NemotronError, …), and Unreachable when the machine did not answer:
        whether the operation took place is then not known.
        """


class Here:
    """This machine: the operation runs in this process."""

    def __init__(self, root: str | None = None) -> None:
        self._root = root

    @property
    def root(self) -> str:
        return self._root or str(nemotron_home())

    def call(self, op: str, payload: bytes = b"", **args: Any) -> tuple[Any, bytes]:
        from nemotron_kit.target.agent import perform

        result, data = perform(op, payload, args)
        # As JSON carries it: what works here works over there.
        return json.loads(json.dumps(result)), data


def reach_for(settings: Mapping[str, Any]) -> Reach:
    """The way to the machine that a profile's settings name: `tunnel = "ssh"`, else this one. Connects to nothing."""
    if settings.get("tunnel") == "ssh":
        from nemotron_kit.execution.ssh import ssh_from

        return ssh_from(settings)
    return Here(settings.get("remote_job_dir"))
