"""What goes over the wire: a log once, code once, and little for a look that finds nothing new."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nemotron_kit.remote.ssh import transport_for
from nemotron_kit.spec.runconfig import RunConfig

from ..follower import CHUNK, Meter

SIZE = 20_000_000


@pytest.fixture
def meter(server: Any) -> Iterator[Meter]:
    made = Meter(server.port)
    yield made
    made.close()


@pytest.fixture
def there(client: Any, server: Any, meter: Meter) -> Any:
    client.writes(server)
    config = (client.folder / "config").read_text().replace(f"Port {server.port}", f"Port {meter.port}")
    (client.folder / "config").write_text(config)
    (client.folder / "known").write_text(server.knows().replace(str(server.port), str(meter.port)))
    return transport_for(RunConfig(**client.profile(server)))


def job_with_log(folder: Path, data: bytes) -> Path:
    job = folder / "runs" / "20261124-171204-r-s-1f03a7" / "jobs" / "0"
    (job / "logs").mkdir(parents=True)
    (job / "logs" / "job.log").write_bytes(data)
    return job


def test_following_a_log_moves_its_bytes_once(there: Any, meter: Meter, tmp_path: Path) -> None:
    data = os.urandom(SIZE)
    job = job_with_log(tmp_path, data)
    there.call("ping")
    began, seen = meter.moved, bytearray()
    while True:
        pieces, new = there.call("read_logs", job=str(job), offsets={"job": len(seen)}, limit=CHUNK)
        if not pieces:
            break
        seen += new
    assert bytes(seen) == data
    assert meter.moved - began <= 1.1 * SIZE


def test_a_look_that_finds_nothing_new_costs_little(there: Any, meter: Meter, tmp_path: Path) -> None:
    job = job_with_log(tmp_path, b"x" * 1000)
    there.call("ping")
    began = meter.moved
    for _ in range(100):
        there.call("read_logs", job=str(job), offsets={"job": 1000}, limit=CHUNK)
    assert (meter.moved - began) / 100 < 1000


def test_the_kit_goes_over_the_wire_once(there: Any, meter: Meter) -> None:
    there.call("ping")
    first = meter.moved
    there.close()
    there.call("ping")
    assert meter.moved - first < first / 4
