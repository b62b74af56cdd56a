"""Every field of a profile, on every executor: it changes what is planned, or the plan says that it has no effect."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nemotron_kit.app import App
from nemotron_kit.config.compose import Composed, compose
from nemotron_kit.discovery import Tree
from nemotron_kit.envfile import EnvFile
from nemotron_kit.errors import UserError
from nemotron_kit.executors.base import executor_class, executor_for
from nemotron_kit.launch.plan import RAY_FIELDS, build_plan
from nemotron_kit.spec.plan import Plan
from nemotron_kit.spec.profiles import effective_profile
from nemotron_kit.spec.resources import label_of
from nemotron_kit.spec.runconfig import EXECUTORS, FIELDS, ProfileError, RunConfig, check_value

# One value for each field that is neither its default nor what ENOUGH gives.
VALUES: dict[str, Any] = {
    "nproc_per_node": 2, "nodes": 2, "python": "/usr/bin/python3", "workdir": "/tmp", "startup_commands": ["true"],
    "setup": "true", "env_vars": ["A=b"], "secrets": ["HOME"], "packager": "none", "subpath": "sub",
    "packager_include_pattern": ["*.py"], "include_submodules": False, "allow_dirty": True,
    "container_image": "image:1", "mounts": ["/a:/b:c"], "runtime": "nvidia", "ipc_mode": "host", "shm_size": "1g",
    "account": "acc", "partition": "part", "run_partition": "rp", "batch_partition": "bp", "time": "01:00:00",
    "job_name": "mine", "ntasks_per_node": 3, "gpus_per_node": 2, "gpu_memory": "80GB", "mem": "10G", "exclusive": True,
    "cpus_per_task": 3, "cpus_per_gpu": 3, "gpus_per_task": 1, "mem_per_gpu": "1G", "mem_per_cpu": "1G", "qos": "q",
    "constraint": "c", "exclude": "n1", "gres": "gpu:1", "array": "0-1", "tunnel": "ssh", "host": "h", "user": "u",
    "identity": "~/.ssh/x", "remote_job_dir": "/tmp/elsewhere", "artifacts_root": "/tmp/artifacts", "cloud": "aws",
    "gpus": "A100:2", "cluster_name": "cn", "base_url": "https://b", "app_id": "id", "app_secret": "${secret:HOME}",
    "project_name": "pn", "pvcs": ["claim:/x"], "resource_shape": "rs", "node_group": "ng", "nemo_run_dir": "/nr",
    "ray_working_dir": "/w", "ray_mode": "job", "dry_run": True, "detach": True, "cancel_on_interrupt": True,
    "modules": ["cuda/12.4"], "conda": "env", "container_runtime": "apptainer", "chain": 3,
    "nodelist": "n[1-3]", "reservation": "res", "segment": 2, "comment": "of mine, (a)", "mail_user": "me@example.com",
    "mail_type": "END,fail", "signal_lead": 120,
    "retries": 2, "max_segments": 2, "max_parallel": 2, "extra": {"additional": 1},
}  # fmt: skip
# What each executor needs to be planned at all.
ENOUGH: dict[str, dict[str, Any]] = {
    "local": {},
    "docker": {"container_image": "image:0"},
    "slurm": {"account": "a", "partition": "p"},
    "skypilot": {},
    "dgxcloud": {
        "base_url": "https://x", "app_id": "a", "app_secret": "-", "project_name": "p", "container_image": "image:0",
        "nemo_run_dir": "/x", "extra": {"kube_apiserver_url": "https://k"},
    },
    "lepton": {"container_image": "image:0", "nemo_run_dir": "/x"},
    "kubeflow": {"container_image": "image:0"},
}  # fmt: skip
# Read when the job runs or ends, of a sweep only, or by a command's own check: no part of a single job's plan.
WHEN_IT_RUNS = {
    "gpu_memory",
    "cancel_on_interrupt",
    "max_parallel",
    "dry_run",
    "allow_dirty",
    "include_submodules",
    "identity",
}
WHERE_IT_COUNTS: dict[str, dict[str, Any]] = {
    "mounts": {"container_image": "image:0"},
    "container_runtime": {"container_image": "/image.sqfs"},
    "segment": {"nodes": 4},
    "packager_include_pattern": {"packager": "pattern"},
    "host": {"tunnel": "ssh", "user": "u", "remote_job_dir": "/r"},
    "user": {"tunnel": "ssh", "host": "h", "remote_job_dir": "/r"},
    "identity": {"tunnel": "ssh", "host": "h", "user": "v", "remote_job_dir": "/r"},
}
SNAPSHOT = {"packager_include_pattern"}  # the settings that travel with the plan say which files are packed


@dataclass
class Config:
    n: int = 1


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[App, Composed, Composed]]:
    folder = tmp_path_factory.mktemp("effects")
    (folder / "sub").mkdir()
    subprocess.run(["git", "init", "-q", str(folder)], check=True)
    app = App("demo")
    app.command("go", Config, "json:dumps")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("NEMOTRON_HOME", str(folder / "home"))
        words = ["recipe=demo", "stage=go", "run.profile=C"]
        run, batch = (compose(Tree(apps={"demo": app}), [*words, f"run.mode={m}"], EnvFile()) for m in ("run", "batch"))
        yield app, run, batch


def planned(world: tuple[App, Composed, Composed], executor: str, mode: str = "run", **fields: Any) -> Plan:
    app, run, batch = world
    settings = RunConfig(executor=executor, **{**ENOUGH[executor], **fields})
    composed = run if mode == "run" else batch
    return build_plan(composed, app, run_id="20260101-000000-demo-go-abcdef", argv=[], connect=False, recorded=settings)


def seen(plan: Plan) -> dict[str, Any]:
    return {key: value for key, value in plan.to_dict().items() if key != "settings"}


def test_every_field_and_executor_is_here() -> None:
    assert {*VALUES, "executor", "extends"} == set(FIELDS)
    assert set(ENOUGH) == set(EXECUTORS)
    for name, value in VALUES.items():
        check_value(name, value, name)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_what_is_not_read_is_named(world: tuple[App, Composed, Composed], executor: str) -> None:
    unread = sorted(set(VALUES) - executor_class(executor).reads - set(ENOUGH[executor]) - set(RAY_FIELDS))
    notes = "\n".join(planned(world, executor, **{name: VALUES[name] for name in unread}).notes)
    assert f"{', '.join(unread)}: no effect on a job with executor {executor!r}." in notes


@pytest.mark.parametrize("executor", ["local", "docker", "slurm"])
def test_what_is_read_changes_the_plan(world: tuple[App, Composed, Composed], executor: str) -> None:
    plain = {mode: seen(planned(world, executor, mode)) for mode in ("run", "batch")}
    without = []
    for name in sorted(executor_class(executor).reads - WHEN_IT_RUNS - SNAPSHOT - {"executor"}):
        mode = "batch" if name in ("batch_partition", "python") else "run"
        more = WHERE_IT_COUNTS.get(name, {}) if executor == "slurm" else {}
        try:
            base = seen(planned(world, executor, mode, **more)) if more else plain[mode]
            if seen(planned(world, executor, mode, **more, **{name: VALUES[name]})) == base:
                without.append(name)
        except UserError as error:
            assert name in str(error) or (name, "host") == ("tunnel", "host") or name == "tunnel", error
    assert without == []


@pytest.mark.parametrize("executor", ["skypilot", "dgxcloud", "lepton", "kubeflow"])
def test_what_a_cloud_reads_reaches_nemo_run(executor: str) -> None:
    """The services' packages are not here: what NeMo-Run's executor is called with is looked at instead."""

    def called(**fields: Any) -> Any:
        calls: list[Mapping[str, Any]] = []

        class Recorder:
            def __getattr__(self, name: str) -> Any:
                return lambda **given: calls.append({name: repr(given)}) or SimpleNamespace(name=name)

        config = RunConfig(executor=executor, **{**ENOUGH[executor], **fields})
        env = dict(entry.split("=", 1) for entry in config.env_vars or ())
        executor_for(config).nemo_run(Recorder(), env)
        return calls

    # The worker, the code and the profile's secrets are the kit's own business in a cloud, as everywhere.
    ours = {"executor", "python", "workdir", "secrets", "artifacts_root", "tunnel", "retries", "packager", "detach"}
    base = called()
    names = executor_class(executor).reads - WHEN_IT_RUNS - SNAPSHOT - ours
    values = {**VALUES, "mounts": ["/a:/b:node-nfs"], "extra": {**ENOUGH[executor].get("extra", {}), "x": 1}}
    assert [name for name in sorted(names) if called(**{name: values[name]}) == base and name != "subpath"] == []


def test_fields_that_depend_on_another_one(world: tuple[App, Composed, Composed]) -> None:
    plan = planned(world, "slurm", host="h", mounts=["/a:/b"], packager_include_pattern=["*.py"])
    assert [note for note in plan.notes if "no effect" in note] == [
        "packager_include_pattern: no effect with packager 'worktree', only with pattern and hybrid.",
        'host: no effect without tunnel = "ssh".',
        "mounts: no effect without container_image: a job on Slurm sees the node's folders.",
    ]
    assert "python: no effect on a job in this process" in planned(world, "local", python="/usr/bin/python3").notes[0]


def test_rays_fields_count_for_a_command_on_ray(world: tuple[App, Composed, Composed]) -> None:
    app, *_ = world
    given = {"ray_mode": "job", "ray_working_dir": "/w"}
    note = "ray_mode, ray_working_dir: no effect: demo go runs on no Ray cluster."
    assert [n for n in planned(world, "slurm", **given).notes if "ray_" in n] == [note]
    if not app.children.get("spread"):
        app.command("spread", Config, "json:dumps", ray={"n": 1})  # type: ignore[dict-item]

    def on_ray(executor: str, n: int = 1, **fields: Any) -> Plan:
        words = ["recipe=demo", "stage=spread", "run.profile=C", "run.mode=run", f"n={n}"]
        composed = compose(Tree(apps={"demo": app}), words, EnvFile())
        settings = RunConfig(executor=executor, **{**ENOUGH[executor], **fields})
        run_id = "20260101-000000-demo-spread-abcdef"
        return build_plan(composed, app, run_id=run_id, argv=[], connect=False, recorded=settings)

    plan = on_ray("slurm", nodes=2, gpus_per_node=8, **given)
    job = json.loads(plan.files["job.json"])
    assert (job["ray"], job["ray_working_dir"], job["torchrun"], job["nproc_per_node"]) == (True, "/w", False, 1)
    assert "--nodes=2" in plan.files["sbatch.sh"] and "--gpus-per-node=8" in plan.files["sbatch.sh"]
    assert plan.notes[0].startswith("Ray: a cluster for this job, 2 nodes") and "no effect" not in "".join(plan.notes)
    assert "ray" not in json.loads(on_ray("slurm", n=2, nodes=2).files["job.json"])
    assert on_ray("local").launch == "ray" and on_ray("local", n=2).launch == "in-process"
    (problem,) = on_ray("slurm", ray_mode="cluster").problems
    assert str(problem).startswith("ray_mode=cluster: a job's Ray cluster ends with the job")
    assert "2 nodes is started on Slurm only" in str(on_ray("kubeflow", nodes=2).problems[-1])


def test_a_config_files_defaults_are_for_whoever_can_use_them(world: tuple[App, Composed, Composed]) -> None:
    app, *_ = world
    words = ["recipe=demo", "stage=go", "+run.env.mem=3G"]
    composed = compose(Tree(apps={"demo": app}), words, EnvFile())
    plan = build_plan(composed, app, run_id="20260101-000000-demo-go-abcdef", argv=[], connect=False)
    assert "mem: no effect on a job with executor 'local'." in plan.notes
    composed.overrides[:] = words[:2]  # as if the file had said so
    plan = build_plan(composed, app, run_id="20260101-000000-demo-go-abcdef", argv=[], connect=False)
    assert plan.notes == ()


def test_the_jobs_name(world: tuple[App, Composed, Composed]) -> None:
    assert "#SBATCH --job-name=nk-" in planned(world, "slurm").files["sbatch.sh"]
    script = planned(world, "slurm", job_name="my.exp-1").files["sbatch.sh"]
    assert next(line for line in script.splitlines() if "--job-name" in line).endswith("-my.exp-1")
    assert label_of(RunConfig(job_name="nemo-run"), "demo", "data/prep") == "demo-data/prep"


def test_detach_is_what_batch_is(world: tuple[App, Composed, Composed]) -> None:
    plan = planned(world, "slurm", detach=True, run_partition="rp", batch_partition="bp")
    assert plan.mode == plan.config["run"]["mode"] == "batch"
    assert "--partition=bp" in plan.files["sbatch.sh"]
    assert "detach is set in the profile: the job is submitted" in plan.notes[0]


@pytest.mark.parametrize(
    ("field", "value"),
    [("time", "1h"), ("time", "4 hours"), ("mem", "64 GB"), ("mem_per_gpu", "lots"), ("partition", "a b"),
     ("gres", ";"), ("constraint", "$(x)"), ("exclude", "n1 n2"), ("array", "1..3"),
     ("nodelist", "n1;n2"), ("reservation", "a b"), ("comment", "`x`"), ("comment", "it's"), ("mail_user", "$(x)"),
     ("mail_type", "SOMETIMES"), ("mail_type", "END FAIL")],
)  # fmt: skip
def test_what_sbatch_would_refuse_is_refused_in_the_profile(tmp_path: Path, field: str, value: str) -> None:
    (tmp_path / "env.toml").write_text(f'[C]\nexecutor = "slurm"\n{field} = "{value}"\n')
    with pytest.raises(ProfileError, match=rf"env\.toml:3: \[C\] {field}: .* is no value that sbatch"):
        effective_profile("C", config_path=tmp_path / "env.toml")
    with pytest.raises(ProfileError, match=f"run.env.{field}: .* is no value that sbatch"):
        effective_profile(None, command_line={field: value})
