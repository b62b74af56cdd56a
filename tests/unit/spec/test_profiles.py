"""env.toml to RunConfig: extends, aliases, types, and errors that name file, line and what would be right."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nemotron_kit.errors import UserError
from nemotron_kit.spec.profiles import effective_profile, list_run_profiles, load_run_profile, read_profile
from nemotron_kit.spec.runconfig import FIELDS, ProfileError, RunConfig, env_dict, resolve_partition

DOCUMENT = """\
# the user's own example
[wandb]
project = "nemotron"

[base-slurm]
executor = "slurm"
account = "my-account"
partition = "gpu"
time = "04:00:00"

[MY-CLUSTER]
extends = "base-slurm"
nodes = 4
ntasks_per_node = 8
gpus_per_node = 8
mem = "0"
exclusive = true
mounts = ["/lustre:/lustre"]

[MY-CLUSTER-large]
extends = "MY-CLUSTER"
nodes = 16
time = 08:00:00
"""

CONTRACT = """
executor nproc_per_node nodes container_image mounts account partition run_partition batch_partition time
job_name ntasks_per_node gpus_per_node mem exclusive cpus_per_task cpus_per_gpu gpus_per_task mem_per_gpu
mem_per_cpu qos constraint exclude gres array tunnel host user identity remote_job_dir runtime ipc_mode
shm_size cloud gpus cluster_name setup base_url app_id app_secret project_name pvcs resource_shape node_group
nemo_run_dir ray_working_dir ray_mode env_vars dry_run detach extends startup_commands workdir packager
packager_include_pattern subpath include_submodules artifacts_root python secrets cancel_on_interrupt retries
max_segments max_parallel
"""


@pytest.fixture
def env(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("NEMOTRON_ENV_FILE", raising=False)
    path = tmp_path / "env.toml"
    path.write_text(DOCUMENT)
    return path


def refused(path: Path, text: str, name: str = "C") -> str:
    path.write_text(text)
    with pytest.raises(ProfileError) as caught:
        load_run_profile(name)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_every_field_of_the_contract() -> None:
    assert set(CONTRACT.split()) <= set(FIELDS)
    given = {"executor": "local", "time": "04:00:00", "job_name": "nemo-run", "tunnel": "local"}
    assert dataclasses.asdict(RunConfig()) == {**dict.fromkeys(FIELDS), **given}


def test_a_chain_of_extends(env: Path) -> None:
    assert load_run_profile("MY-CLUSTER-large") == RunConfig(
        executor="slurm",
        account="my-account",
        partition="gpu",
        nodes=16,
        time="08:00:00",
        ntasks_per_node=8,
        gpus_per_node=8,
        mem="0",
        exclusive=True,
        mounts=["/lustre:/lustre"],
    )
    assert list_run_profiles() == ["MY-CLUSTER", "MY-CLUSTER-large", "base-slurm"]
    profile = read_profile("MY-CLUSTER-large")
    assert profile.chain == ("MY-CLUSTER-large", "MY-CLUSTER", "base-slurm")
    assert profile.origins["nodes"] == "env.toml:22"
    assert profile.origins["mem"] == "env.toml:16 [MY-CLUSTER]"
    assert profile.origins["account"] == "env.toml:7 [base-slurm]"
    assert "job_name" not in profile.origins


def test_a_path_of_its_own(env: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.toml"
    other.write_text('[X]\nexecutor = "local"\n')
    assert load_run_profile("X", other) == load_run_profile("X", str(other)) == RunConfig()
    assert list_run_profiles(other) == ["X"]


def test_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("NEMOTRON_ENV_FILE", raising=False)
    assert list_run_profiles() == []
    for wrong in (lambda: load_run_profile("C"), lambda: load_run_profile("C", tmp_path / "x.toml")):
        with pytest.raises(FileNotFoundError) as caught:
            wrong()
        assert isinstance(caught.value, UserError) and caught.value.exit_code == 2
    monkeypatch.setenv("NEMOTRON_ENV_FILE", str(tmp_path / "gone.toml"))
    with pytest.raises(FileNotFoundError, match=r"gone\.toml"):
        load_run_profile("C")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("MY-CLUSTR", "no profile 'MY-CLUSTR'.\nDid you mean MY-CLUSTER, MY-CLUSTER-large"),
        ("wandb", "[wandb] is no profile: that table is reserved"),
        ("title", "title is a single value, no profile"),
    ],
)
def test_not_a_profile(env: Path, name: str, message: str) -> None:
    env.write_text('title = "x"\n' + DOCUMENT)
    with pytest.raises(ValueError) as caught:
        load_run_profile(name)
    assert message in str(caught.value) and str(env) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[C]\nextends = "D"\n[D]\nextends = "C"\n', "env.toml:4: [D] extends: the profiles form a circle: C → D → C"),
        ('[C]\nextends = "C"\n', "env.toml:2: [C] extends: the profiles form a circle: C → C"),
        (
            '[C]\n\nextends = "Base"\n[base]\n',
            "env.toml:3: [C] extends: there is no profile 'Base'.\nDid you mean base?",
        ),
        ('[C]\nextends = "wandb"\n', "[wandb] is no profile"),
        ("[C]\nextends = 3\n", "expected the name of a profile, got 3"),
        (
            "[C]\n# a comment\nnodess = 2\n",
            "env.toml:3: [C] nodess: no such field.\nDid you mean nodes, nodelist, modules?",
        ),
        ('[C]\n"odd key" = 2\n', "env.toml:2: [C] odd key: no such field"),
        ("[C]\ngpus-per-node = 2\n", "Did you mean gpus_per_node?"),
        ("[C.sub]\nx = 1\n", "env.toml:1: [C] sub: no such field"),
        ('C = {nodes = "2"}\n', "env.toml:1: [C] nodes: expected a whole number, got '2' (str)"),
        ("C.nodes = true\n", "env.toml:1: [C] nodes: expected a whole number, got True (bool)"),
        (
            '[C]\nsetup = """\nnodes = 2\n"""\nmounts = [\n  "a",\n]\nnodes = 0\n',
            "env.toml:8: [C] nodes: must be at least 1",
        ),
        ("[C]\nmem = 0\n", 'env.toml:2: [C] mem: expected text, got 0 (int).\nQuote it: "0".'),
        ('[C]\nexclusive = "yes"\n', "expected true or false, got 'yes' (str)"),
        ('[C]\nmounts = "/a:/a"\n', "expected a list of texts, got '/a:/a' (str).\nWrite a list: [\"/a:/a\"]."),
        ("[C]\nmounts = [1]\n", "expected a list of texts, got [1] (list)"),
        ('[C]\nexecutor = "slrum"\n', "'slrum' is none of local, docker, slurm"),
        ('[C]\ncontainer = "a"\ncontainer_image = "b"\n', "the same field as container"),
        ('[C]\naccount = "a\\n#SBATCH --wrap=x"\n', "holds a control character"),
        ('[C]\npartition = ""\n', "is empty"),
        ('[C]\nenv_vars = ["NCCL"]\n', "env_vars[0]: expected KEY=VALUE"),
        ('[C]\nenv_vars = ["a b=c"]\n', "'a b' is no name of an environment variable"),
        ("[C]\nenv_vars = {DEBUG = true}\n", "env_vars.DEBUG: expected text or a number, got bool"),
        ("[C]\nenv_vars = 3\n", "expected a list of KEY=VALUE or a table, got int"),
        ("[C]\napp_secret = 12345\n", "expected text, got a value (int)"),
    ],
)
def test_wrong_profiles(env: Path, text: str, message: str) -> None:
    assert message in refused(env, text)


def test_a_secret_value_is_not_shown(env: Path) -> None:
    assert "s3cr3t" not in refused(env, '[C]\nenv_vars = ["TOKEN s3cr3t"]\n')
    assert "s3cr3t" not in refused(env, '[C]\napp_secret = ["s3cr3t"]\n')


def test_broken_toml(env: Path) -> None:
    env.write_text("[C\n")
    with pytest.raises(UserError, match=r"not valid TOML.*line 1, column"):
        load_run_profile("C")


def test_aliases_and_both_forms_of_env_vars(env: Path) -> None:
    env.write_text('[C]\ncontainer = "img"\nenv_vars = ["A=1=2", "B="]\n[D]\n[D.env_vars]\nA = "x y"\nN = 3\n')
    assert load_run_profile("C").container_image == "img"
    assert env_dict(load_run_profile("C")) == {"A": "1=2", "B": ""}
    assert load_run_profile("D").env_vars == ["A=x y", "N=3"]
    assert env_dict(RunConfig()) == {}


def test_partitions() -> None:
    config = RunConfig(partition="p", run_partition="r", batch_partition="b")
    assert (resolve_partition(config, is_launch=False), resolve_partition(config, is_launch=True)) == ("r", "b")
    assert (
        resolve_partition(RunConfig(partition="p"), True) == resolve_partition(RunConfig(partition="p"), False) == "p"
    )
    assert resolve_partition(RunConfig(), True) is None


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file away")
def test_somebody_elses_file(env: Path) -> None:
    env.write_text("[D]\nnodes = 2\n")
    assert load_run_profile("D").nodes == 2
    os.chown(env, 12345, -1)
    with pytest.raises(UserError, match=r"env\.toml belongs to another user \(uid 12345\)"):
        load_run_profile("D")


def test_command_line_beats_profile_beats_file(env: Path) -> None:
    file_env = {"nodes": 2, "time": "01:00:00", "container": "img", "qos": None, "cpus_per_task": 3}
    profile = effective_profile("MY-CLUSTER", file_env=file_env, command_line={"nodes": "8", "exclusive": None})
    config = profile.config
    assert (config.nodes, config.time, config.container_image, config.exclusive) == (8, "04:00:00", "img", None)
    assert profile.origins["nodes"] == profile.origins["exclusive"] == "command line"
    assert profile.origins["time"] == "env.toml:9 [base-slurm]", (
        "what the profile says counts, also where it is the default"
    )
    assert profile.origins["cpus_per_task"] == "config file"
    assert effective_profile(None, file_env={"nproc_per_node": 2}).config == RunConfig(nproc_per_node=2)
    with pytest.raises(ProfileError, match=r"run\.env\.nodess: no such field"):
        effective_profile("MY-CLUSTER", file_env={"nodess": 2})


def test_loading_is_light(env: Path) -> None:
    code = (
        "import sys\nfrom nemotron_kit.spec.profiles import load_run_profile\nload_run_profile('MY-CLUSTER')\n"
        "heavy = {'hydra', 'omegaconf', 'nemo_run', 'torch', 'pydantic', 'rich', 'yaml'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=env.parent)


def test_every_truncation_loads_whole_or_is_refused(env: Path) -> None:
    loaded = 0
    for length in range(len(DOCUMENT)):
        env.write_text(DOCUMENT[:length])
        try:
            config = load_run_profile("MY-CLUSTER")
        except UserError:
            continue
        loaded += 1
        assert config.executor == "slurm" or config == RunConfig(), "never a parent's values in part"
    assert loaded


CLASSES = """
[base]
executor = "slurm"
partition = "gpu"
gpus_per_node = 8
[base.resources.prep]
partition = "cpu"
gpus_per_node = 0
[C]
extends = "base"
nodes = 4
[C.resources.prep]
nodes = 1
"""


def test_a_resource_class_beats_its_profile_and_the_command_line_beats_both(env: Path) -> None:
    env.write_text(CLASSES)
    found = effective_profile("C", resources="prep", command_line={"gpus_per_node": "1"})
    assert (found.config.partition, found.config.nodes, found.config.gpus_per_node) == ("cpu", 1, 1)
    assert found.origins["partition"] == "env.toml:7 [base.resources.prep]"
    assert effective_profile("C", resources="prep", file_env={"nodes": 9, "partition": "x"}).config.nodes == 1
    for other in (None, "train"):
        plain = effective_profile("C", resources=other).config
        assert (plain.partition, plain.nodes, plain.gpus_per_node) == ("gpu", 4, 8)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[C.resources.prep]\npartitoin = 'x'", ":1: [C.resources.prep] partitoin: no such field.|2"),
        ("[C.resources.prep]\nnodes = 'two'", "[C.resources.prep] nodes: expected a whole number"),
        ("[C.resources.prep]\nhost = 'h'", "[C.resources.prep] host: only the profile decides where jobs run"),
        ("[C.resources.prep]\nmem-per-gpu = '4G'", "[C.resources.prep] mem-per-gpu: no such field."),
        (
            "[C.resources.prep]\ncontainer = 'a'\ncontainer_image = 'b'",
            "the same field as container, which is set too.",
        ),
        ("[C]\nresources = 3", "[C] resources: expected tables [C.resources.CLASS], got 3."),
        ("[C.resources]\nprep = 3", "prep is 3, no table."),
    ],
)
def test_wrong_resource_classes(env: Path, text: str, message: str) -> None:
    message, _, line = message.partition("|")
    assert (message.replace(":1:", f":{line}:") if line else message) in refused(env, text)
