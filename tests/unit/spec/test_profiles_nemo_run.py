"""build_executor: NeMo-Run's own classes, constructed; and what is said where they can't be."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemotron_kit.errors import UserError
from nemotron_kit.executors.nemo_run import MissingExtra, build_executor
from nemotron_kit.spec.runconfig import ProfileError, RunConfig


@pytest.fixture(scope="module")
def run() -> Any:
    return pytest.importorskip("nemo_run", reason="the nemo-run extra is not installed")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (RunConfig(executor="slurm", extra={"additional_parameters": {"nodelist": "n1"}}, nodelist="n2"), "nodelist"),
        (RunConfig(executor="slurm", extra={"comment": "x"}, comment="y"), "^comment: extra sets the same"),
        (RunConfig(executor="slurm", extra={"signal": "USR2@9"}, signal_lead=9), "^signal_lead: extra sets the same"),
        (
            RunConfig(executor="slurm", extra={"additional_parameters": {"mail-user": "a"}}, mail_user="b"),
            "^mail_user: extra.additional_parameters sets the same",
        ),
        (RunConfig(executor="slurm", extra={"srun_args": 5}), "extra.srun_args: expected a list of texts, got 5"),
        (RunConfig(executor="slurm", extra={"container_env": "X"}), "extra.container_env: expected a list of texts"),
        (RunConfig(executor="slurm", extra={"additional_parameters": "x"}), "parameters: expected a table, got 'x'"),
        (RunConfig(executor="slurm", account="a", partition="p", tunnel="ssh"), "tunnel 'ssh' needs host and user"),
        (RunConfig(executor="slurm", account="a", partition="p", tunnel="ssh", host="h"), "needs user"),
        (RunConfig(executor="docker"), "executor 'docker' needs container_image"),
        (RunConfig(executor="docker", container_image="i", extra={"netwrk": "x"}), "extra: .*netwrk"),
        (RunConfig(executor="local", packager="pattern", nodes=0), "nodes: must be at least 1"),
        (RunConfig(executor="slurm", account="a\nb", partition="p"), "control character"),
        (RunConfig(executor="slurm", account="a", partition="p", packager="pattern"), "needs packager_include_pattern"),
        (
            RunConfig(executor="lepton", container_image="i", nemo_run_dir="/n", mounts=["/a"]),
            "lepton takes PATH:MOUNT",
        ),
        (RunConfig(executor="dgxcloud"), "needs base_url and app_id and app_secret and project_name"),
        (RunConfig(executor="skypilot", gpus="A100:x"), "expected NAME or NAME:COUNT"),
    ],
)
def test_what_is_missing_or_wrong(run: Any, config: RunConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        build_executor(config)
    assert isinstance(caught.value, UserError)


def test_local(run: Any) -> None:
    executor = build_executor(RunConfig(nproc_per_node=2, env_vars=["A=1", "B=x y"], retries=3), {"A": "2"})
    assert isinstance(executor, run.LocalExecutor)
    assert (executor.ntasks_per_node, executor.retries, executor.launcher) == (2, 3, None)
    assert executor.env_vars == {"A": "2", "B": "x y"}


def test_slurm_on_the_login_node(run: Any) -> None:
    config = RunConfig(
        executor="slurm",
        account="acct",
        partition="p",
        batch_partition="b",
        nodes=2,
        ntasks_per_node=8,
        gpus_per_node=8,
        time="01:00:00",
        mem="0",
        exclusive=True,
        container_image="img",
        mounts=["/lustre:/lustre"],
        array="0-3%2",
        setup="module load cuda\nulimit -n 4096",
        startup_commands=["echo start"],
    )
    executor = build_executor(config, {"A": "x y", "http_proxy": "http://p"})
    assert isinstance(executor, run.SlurmExecutor) and isinstance(executor.tunnel, run.LocalTunnel)
    assert (executor.account, executor.partition, executor.nodes, executor.ntasks_per_node) == ("acct", "p", 2, 8)
    assert (executor.time, executor.mem, executor.exclusive, executor.array) == ("01:00:00", "0", True, "0-3%2")
    assert (executor.container_image, executor.container_mounts) == ("img", ["/lustre:/lustre"])
    assert executor.env_vars == {"A": "'x y'"}
    assert executor.setup_lines == "export http_proxy=http://p\necho start\nmodule load cuda\nulimit -n 4096"
    assert type(executor.packager) is run.Packager, "the kit carries the code itself"
    config.detach = True
    assert build_executor(config).partition == "b"


def test_slurm_through_ssh(run: Any) -> None:
    config = RunConfig(
        executor="slurm", account="a", partition="p", tunnel="ssh", host="h", user="u", identity="~/.ssh/k"
    )
    tunnel = build_executor(config).tunnel
    assert isinstance(tunnel, run.SSHTunnel) and tunnel.session is None
    assert (tunnel.host, tunnel.user, tunnel.identity) == ("h", "u", str(Path("~/.ssh/k").expanduser()))
    config.remote_job_dir = "/scratch/u/jobs"
    assert build_executor(config).tunnel.job_dir == "/scratch/u/jobs"


def test_docker(run: Any) -> None:
    config = RunConfig(
        executor="docker", container_image="img", gpus_per_node=2, runtime="nvidia", shm_size="8g", ipc_mode="host"
    )
    executor = build_executor(config, {"A": "$(x)"})
    assert isinstance(executor, run.DockerExecutor)
    assert (executor.container_image, executor.num_gpus, executor.runtime, executor.shm_size) == (
        "img",
        2,
        "nvidia",
        "8g",
    )
    assert executor.env_vars == {"A": "$(x)"}, "Docker gets values, not a script"
    assert build_executor(RunConfig(executor="docker", container_image="img", nproc_per_node=2)).num_gpus is None
    assert (
        build_executor(RunConfig(executor="docker", container_image="i", extra={"network": "host"})).network == "host"
    )


def test_lepton(run: Any) -> None:
    config = RunConfig(
        executor="lepton", container_image="i", nemo_run_dir="/n", mounts=["/a:/b"], node_group="g", setup="x"
    )
    executor = build_executor(config)
    assert isinstance(executor, run.LeptonExecutor)
    assert executor.mounts == [{"path": "/a", "mount_path": "/b"}]
    assert (executor.node_group, executor.pre_launch_commands) == ("g", ["x"])


def test_dgxcloud(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    config = RunConfig(
        executor="dgxcloud",
        base_url="https://x",
        app_id="id",
        app_secret="${secret:DGX_SECRET}",  # noqa: S106 — a reference
        project_name="p",
        container_image="i",
        nemo_run_dir="/ws/nemo",
        pvcs=["claim:/ws", {"claimName": "c2", "path": "/d"}],
    )
    monkeypatch.delenv("DGX_SECRET", raising=False)
    with pytest.raises(ProfileError, match="kube_apiserver_url"):
        build_executor(config)
    config.extra = {"kube_apiserver_url": "https://k"}
    with pytest.raises(ProfileError, match="DGX_SECRET is not set"):
        build_executor(config)
    monkeypatch.setenv("DGX_SECRET", "hush")
    executor = build_executor(config)
    assert isinstance(executor, run.DGXCloudExecutor)
    assert (executor.client_id, executor.client_secret, executor.pvc_nemo_run_dir) == ("id", "hush", "/ws/nemo")
    assert [claim["path"] for claim in executor.pvcs] == ["/ws", "/d"]
    config.pvcs = ["no-path"]
    with pytest.raises(ProfileError, match="expected CLAIM:/PATH"):
        build_executor(config)


KUBECONFIG = """
apiVersion: v1
kind: Config
current-context: c
clusters: [{name: c, cluster: {server: "https://127.0.0.1:1"}}]
users: [{name: u, user: {token: t}}]
contexts: [{name: c, context: {cluster: c, user: u}}]
"""


def test_kubeflow(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("kubernetes")
    (tmp_path / "config").write_text(KUBECONFIG)
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "config"))
    executor = build_executor(RunConfig(executor="kubeflow", container_image="i", nodes=2), {"A": "$(x)"})
    assert isinstance(executor, run.KubeflowExecutor)
    assert (executor.image, executor.num_nodes, executor.env_vars) == ("i", 2, {})
    assert executor.env_list == [{"name": "A", "value": "$(x)"}]


def test_skypilot_says_what_is_missing(run: Any) -> None:
    try:
        import sky  # noqa: F401
    except ImportError:
        with pytest.raises(MissingExtra, match="Skypilot is not installed"):
            build_executor(RunConfig(executor="skypilot", gpus="A100:8"))
        return
    executor = build_executor(RunConfig(executor="skypilot", gpus="A100:8", nodes=2))
    assert (executor.gpus, executor.gpus_per_node, executor.num_nodes) == ("A100", 8, 2)


def test_packagers(run: Any) -> None:
    def packager(**fields: Any) -> Any:
        return build_executor(RunConfig(executor="slurm", account="a", partition="p", **fields)).packager

    git = packager(
        packager="git", subpath="src", include_submodules=False, packager_include_pattern=["*.json", "*.txt"]
    )
    assert isinstance(git, run.GitArchivePackager) and (git.subpath, git.include_submodules) == ("src", False)
    assert len(git.include_pattern) == len(git.include_pattern_relative_path) == 2
    pattern = packager(packager="pattern", packager_include_pattern=["src"])
    assert isinstance(pattern, run.PatternPackager) and len(pattern.relative_path) == 1
    hybrid = packager(packager="hybrid", packager_include_pattern=["src"])
    assert isinstance(hybrid, run.HybridPackager) and set(hybrid.sub_packagers) == {"git", "pattern"}
    assert type(packager(packager="none")) is run.Packager


VALUES = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=40)


@given(VALUES | st.sampled_from(["$(touch x)", "`x`", "a; touch x", "two words", "'", '"', "\\", "$HOME", "a\nb", "*"]))
def test_a_shell_sees_exactly_the_value(run: Any, value: str) -> None:
    config = RunConfig(executor="slurm", account="a", partition="p")
    executor = build_executor(config, {"A": value, "lower": value})
    assert shlex.split(f"export A={executor.env_vars['A']}") == ["export", f"A={value}"]
    assert shlex.split(executor.setup_lines) == ["export", f"lower={value}"]


def test_without_nemo_run(tmp_path: Path) -> None:
    """In a process where `import nemo_run` fails."""
    code = (
        "import sys\nsys.modules['nemo_run'] = None\n"
        "from nemotron_kit.executors.nemo_run import build_executor\n"
        "from nemotron_kit.spec.runconfig import RunConfig\n"
        "try:\n    build_executor(RunConfig())\nexcept ImportError as error:\n    print(error, error.exit_code)\n"
    )
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=tmp_path).stdout
    assert "pip install 'nemotron-kit[nemo-run]'" in out and out.strip().endswith(" 2")


HOSTILE = [
    "$(touch canary)",
    "`touch canary`",
    "x; touch canary",
    "two  words",
    "'",
    '"',
    "\\",
    "$HOME",
    "a\nb",
    "*",
    "",
]


@pytest.mark.parametrize("value", HOSTILE)
def test_the_script_that_nemo_run_renders_sets_exactly_the_value(run: Any, tmp_path: Path, value: str) -> None:
    """The script is really run, with stand-ins for the two Slurm commands in it."""
    from nemo_run.core.execution.slurm import SlurmBatchRequest

    config = RunConfig(executor="slurm", account="a", partition="p", nodes=2, setup="export FROM_SETUP=1", mem="0")
    executor = build_executor(config, {"GIVEN": value, "given": value})
    executor.assign("exp", str(tmp_path), "task", "task")
    request = SlurmBatchRequest(
        launch_cmd=["sbatch"],
        jobs=["task"],
        command_groups=[["env", "-0"]],
        executor=executor,
        max_retries=0,
        extra_env={},
        launcher=executor.get_launcher(),
    )
    script = tmp_path / "job.sh"
    script.write_text(request.materialize())
    assert "#SBATCH --account=a" in script.read_text() and "#SBATCH --nodes=2" in script.read_text()
    (tmp_path / "bin").mkdir()
    for name, text in {"srun": f"env -0 > {tmp_path}/seen", "scontrol": "echo n1"}.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o700)
    environment = {"PATH": f"{tmp_path}/bin:/usr/bin:/bin", "HOME": str(tmp_path)}
    subprocess.run(["bash", str(script)], check=True, cwd=tmp_path, env=environment, capture_output=True)
    seen = dict(entry.split("=", 1) for entry in (tmp_path / "seen").read_text().split("\0") if "=" in entry)
    assert (seen["GIVEN"], seen["given"], seen["FROM_SETUP"]) == (value, value, "1")
    assert not (tmp_path / "canary").exists()
