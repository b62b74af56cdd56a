"""A job's pinned inputs: read back from its folder, checked against the registry and the files themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from nemotron_kit import files
from nemotron_kit.execution.jobspec import read_spec
from nemotron_kit.runs.job import JobFolder

if TYPE_CHECKING:
    from nemotron_kit.artifacts.pin import Pin


def verified_inputs(job: JobFolder) -> dict[str, Pin]:
    """The pins of a job by slot; what another run had not saved at launch is pinned now.

    Raises UserError when one's files are no longer what its version says.
    """
    from nemotron_kit.artifacts.pin import Pin
    from nemotron_kit.artifacts.registry import open_registry

    registry = open_registry()
    pins = {slot: Pin.from_dict(value) for slot, value in _inputs(job).items()}
    for pin in pins.values():
        registry.verify(pin)
    late = {slot: text for slot, text in read_spec(job.path).late.items() if slot not in pins}
    if late:
        pins |= {slot: registry.resolve(reference) for slot, reference in late.items()}
        record = {**job.artifacts(), "inputs": {slot: pin.to_dict() for slot, pin in pins.items()}}
        files.write_json(job.path / "artifacts.json", record)
    return pins


def _inputs(job: JobFolder) -> Mapping[str, dict[str, object]]:
    inputs = job.artifacts()["inputs"]
    return inputs if isinstance(inputs, Mapping) else {}
