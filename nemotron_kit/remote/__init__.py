"""Another machine: ssh, the code that is sent there, and the agent that runs there. What a launch calls is loaded on
first use: most launches, and every dry-run, connect to none."""

from __future__ import annotations

from nemotron_kit.lazy import load_names

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nemotron_kit.remote.agent.operations import packed, pieces
    from nemotron_kit.remote.snapshot import provide_code, provide_package
    from nemotron_kit.remote.ssh import Transport, transport_for

_HOMES = {
    "agent.operations": "packed pieces",
    "snapshot": "provide_code provide_package",
    "ssh": "Transport transport_for",
}

__all__ = ["Transport", "packed", "pieces", "provide_code", "provide_package", "transport_for"]

__getattr__, __dir__ = load_names(__name__, __all__, _HOMES)
