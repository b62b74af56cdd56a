"""A real W&B run, offline, in a process of its own: what `wandb sync` would send."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ..project import environment, run

SCRIPT = """
import json, sys, time
from collections.abc import Iterator
from pathlib import Path
from nemotron_kit.artifacts import *
start = time.monotonic()
init_wandb_if_configured(job_type="train", tags=["nano3"])
add_wandb_tags(["nano3", "pretrain"])
tracker = get_lineage_tracker()
for folder in ("m", "d"): Path(folder).mkdir()
data = PretrainBlendsArtifact(path=Path("d"), source_datasets=[InputDatasetInfo(uri="hf://a/b")])
data.save(name="D")
PretrainBlendsArtifact.from_uri("art://D")
model = ModelArtifact(path=Path("m"), step=3, loss=0.5)
model.save(name="M")
ModelArtifact.from_uri("art://M")  # nothing is saved after it
import wandb
run = wandb.run
print(json.dumps({"active": tracker.is_active(), "id": run.id, "offline": run.offline, "tags": list(run.tags),
    "uri": model.uri, "run_id": model.tracking.run_id, "project": run.project, "dir": run.dir}))
try:
    tracker.use_artifact("e/p/M:v0", "model")
except Exception as error:
    print(type(error).__name__, error, file=sys.stderr)
finish_wandb(exit_code=0)
print("seconds", time.monotonic() - start, file=sys.stderr)
"""


@pytest.mark.parametrize("unreachable", [False, True])
def test_a_real_offline_run(tmp_path: Path, unreachable: bool, home: Path) -> None:
    pytest.importorskip("wandb")
    job = tmp_path / "runs" / "R" / "jobs" / "0"
    job.mkdir(parents=True)
    env = environment(home, WANDB_PROJECT="p", NEMO_RUN_DIR=str(job), NEMOTRON_RUN_ID="R")
    if unreachable:
        env |= {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "0" * 40}
    done = run("python", "-c", SCRIPT, cwd=tmp_path, env=env)
    seen = json.loads(done.stdout.splitlines()[-1])
    assert (seen["active"], seen["offline"], seen["uri"], seen["project"]) == (True, True, "art://M:v0", "p")
    assert sorted(seen["tags"]) == ["nano3", "pretrain"]
    assert seen["run_id"] == seen["id"] == "R-0"
    assert seen["dir"].startswith(str(job))
    assert "this W&B run is offline" in done.stderr
    records = list(job.glob("wandb/offline-run-*/*.wandb"))
    assert len(records) == 1
    assert b"metadata.json" in records[0].read_bytes()
    logged = list(_logged(records[0].read_bytes()))
    # (name, type, whether the run read it): the arrows that `wandb sync` draws.
    assert [(each.name, each.type, each.use_after_commit) for each in logged] == [
        ("a-b", "dataset", True),
        ("D", "PretrainBlendsArtifact", False),
        ("D", "PretrainBlendsArtifact", True),
        ("M", "ModelArtifact", False),
        ("M", "ModelArtifact", True),
    ]
    assert json.loads(logged[-2].metadata)["inputs"] == ["art://D:v0"]


def _logged(data: bytes) -> Iterator[Any]:
    """The artifacts in a .wandb file: records in leveldb's log format, behind seven bytes."""
    from wandb.proto import wandb_internal_pb2

    at, whole = 7, b""
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        whole = (whole if kind in (3, 4) else b"") + data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            if record.HasField("artifact"):
                yield record.artifact
