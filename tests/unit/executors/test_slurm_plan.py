"""What a profile means on Slurm, and what may stand in a batch script's header."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nemotron_kit.artifacts.reference import Pin
from nemotron_kit.errors import Note, UserError
from nemotron_kit.executors import checks, nemo_run
from nemotron_kit.executors.base import PlanContext, executor_for
from nemotron_kit.executors.slurm import client
from nemotron_kit.executors.slurm import script as slurm_script
from nemotron_kit.remote.agent.slurm_commands import time_seconds
from nemotron_kit.spec.paths import RemotePaths
from nemotron_kit.spec.resources import Resources, resources_of
from nemotron_kit.spec.runconfig import ProfileError, RunConfig, check_header, check_srun_arguments, check_value
from nemotron_kit.worker import worker_command


def config(**fields: Any) -> RunConfig:
    return RunConfig(executor="slurm", account="a", partition="p", **fields)


@pytest.mark.parametrize(
    ("fields", "torchrun", "nodes", "processes", "cpus"),
    [
        ({}, None, 1, 1, None),
        ({"nproc_per_node": 4}, None, 1, 4, None),
        ({"ntasks_per_node": 8}, None, 1, 8, 8),
        ({"ntasks_per_node": 8, "cpus_per_task": 4}, None, 1, 8, 32),
        ({"ntasks_per_node": 8, "gpus_per_node": 8, "nodes": 2}, None, 2, 8, 8),
        ({"gpus_per_node": 8, "nodes": 2}, None, 2, 8, 8),
        ({"gpus_per_node": 8, "cpus_per_gpu": 12}, None, 1, 8, None),
        ({"ntasks_per_node": 8, "exclusive": True}, None, 1, 8, None),
        ({"nproc_per_node": 4, "cpus_per_task": 16}, None, 1, 4, 16),
        ({"nodes": 2}, None, 2, 1, None),
        ({"nodes": 2, "ntasks_per_node": 8, "gpus_per_node": 8}, False, 1, 1, 8),
        ({"nproc_per_node": 4}, False, 1, 1, None),
    ],
)
def test_one_worker_a_node_with_all_that_the_tasks_would_have_had(
    fields: dict[str, Any], torchrun: bool | None, nodes: int, processes: int, cpus: int | None
) -> None:
    found = resources_of(config(**fields), torchrun)
    assert (found.nodes, found.processes, found.cpus_per_task) == (nodes, processes, cpus)
    assert found.torchrun is (torchrun is not False and (nodes > 1 or processes > 1))


@pytest.mark.parametrize(
    ("gres", "fields", "processes"),
    [
        ("gpu:8", {}, 8), ("gpu:h100:8", {}, 8), ("gpu:a100:4,nvme:1", {}, 4), ("gpu:a100:2,gpu:h100:4", {}, 6),
        ("gpu", {}, 1), ("gpu:h100", {}, 1), ("nvme:4", {}, 1), ("gpu_memory:4", {}, 1), ("gpu:0", {}, 1),
        ("gpu:8", {"gpus_per_node": 4}, 4), ("gpu:8", {"gpus_per_node": 0}, 1), ("gpu:8", {"nproc_per_node": 2}, 2),
        ("gpu:8", {"ntasks_per_node": 3}, 3),
    ],
)  # fmt: skip
def test_gpus_are_counted_in_gres(gres: str, fields: dict[str, Any], processes: int) -> None:
    found = executor_for(config(gres=gres, **fields)).resources(None)
    assert (found.processes, found.torchrun) == (processes, processes > 1)
    said = f"gres={gres}: {processes} GPUs a node: one torchrun a node, which starts {processes} processes."
    assert (said in found.notes) is (processes > 1 and not fields)
    assert executor_for(config(gres=gres, **fields)).resources(False).processes == 1


def test_gres_of_a_command_that_is_one_process_is_said() -> None:
    found = executor_for(config(gres="gpu:8")).resources(False)
    assert found.notes == ("gres=gpu:8: this command is one process on one node.",)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            {"signal_lead": 600, "time": "00:10:00"},
            "signal_lead=600: the job would be signalled to save before it has begun",
        ),
        ({"segment": 4, "nodes": 6}, "segment=4: sbatch takes a segment size that divides the number of nodes, 6"),
    ],
)
def test_what_sbatch_would_refuse_or_make_nothing_of(fields: dict[str, Any], said: str) -> None:
    found = list(slurm_script.problems_of(config(**fields), resources_of(config(**fields), None), "batch", []))
    assert [problem for problem in found if str(problem).startswith(said)] == found != []


def test_a_sites_flags_stand_in_the_header() -> None:
    text = rendered(
        script(),
        nodes=4,
        nodelist="n[1-4]",
        reservation="maint-7",
        segment=2,
        comment="of mine; (really)",
        mail_user="me@example.com",
        mail_type="END,FAIL",
        signal_lead=900,
        extra={"additional_parameters": {"licenses": "scratch:1"}},
    )
    header = {line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH")}
    assert header >= {
        *("--nodelist='n[1-4]'", "--reservation=maint-7", "--segment=2", "--comment='of mine; (really)'"),
        *("--mail-user=me@example.com", "--mail-type=END,FAIL", "--signal=USR1@900", "--licenses=scratch:1"),
    }
    assert "--segment" not in rendered(script(), segment=2)


def test_neither_account_nor_partition_must_be_named() -> None:
    settings = RunConfig(executor="slurm")
    assert list(slurm_script.problems_of(settings, resources_of(settings, None), "batch", [])) == []
    pytest.importorskip("nemo_run", reason="the nemo-run extra is not installed")
    text = slurm_script.render(settings, resources_of(settings, None), script(), batch=True)
    assert "--account" not in text and "--partition" not in text and "None" not in text


def test_each_field_of_nemo_runs_in_extra_changes_the_script_or_is_refused() -> None:
    nemo_run_package = pytest.importorskip("nemo_run", reason="the nemo-run extra is not installed")
    values: dict[str, Any] = {
        "srun_args": ["-v"], "container_env": ["A"], "additional_parameters": {"licenses": "x"}, "array": "0-1",
        "signal": "USR2@30", "open_mode": "truncate", "memory_measure": True, "dependencies": ["slurm://x/y/12"],
        "exclusive": "user", "mem": "1G", "mem_per_gpu": "1G", "mem_per_cpu": "1G", "comment": "c", "time": "9",
    }  # fmt: skip

    def text(extra: dict[str, Any] | None) -> str:
        return slurm_script.render_in_process(
            config(container_image="i", extra=extra), resources_of(config(), None), script(), True
        )

    base, refused = text(None), set()
    for field in fields(nemo_run_package.SlurmExecutor):
        try:
            assert text({field.name: values.get(field.name, 3 if "int" in str(field.type) else "x")}) != base, (
                field.name
            )
        except ProfileError as error:
            refused.add(field.name)
            assert field.name in str(error), error
    assert {"heterogeneous", "het_group_indices", "launcher", "retries", "ray_template"} <= refused
    with pytest.raises(ProfileError, match=r"extra\.open_mod: .*\n.*open_mode"):
        text({"open_mod": "append"})
    with pytest.raises(ProfileError, match=r"extra\.memory_measure: expected true or false"):
        text({"memory_measure": "no"})
    for handle in ("12", "afterok:12", "slurm://12"):
        with pytest.raises(ProfileError, match=rf"extra\.dependencies: '{handle}' is not in NeMo-Run's form"):
            text({"dependencies": [handle]})


def test_a_check_asks_for_what_a_job_asks_for() -> None:
    pytest.importorskip("nemo_run", reason="the nemo-run extra is not installed")
    asked: dict[str, Sequence[str]] = {}

    def answer(op: str, *payload: bytes, options: Sequence[str] = (), **_: Any) -> tuple[Any, bytes]:
        if op == "slurm_limits":
            return {"time": "1:00:00"}, b""
        asked[f"{op} {next(o for o in options if o.startswith('--partition'))}"] = options
        return {"host": None, "message": "busy"} if payload else None, b""

    given = {
        "run_partition": "q",
        "gpus_per_node": 8,
        "cpus_per_task": 4,
        "gpus_per_task": 1,
        "mem_per_gpu": "4G",
        "signal_lead": 60,
        "extra": {"additional_parameters": {"licenses": "x:1"}},
    }
    settings = config(**given)
    paths = executor_for(settings).paths("20260102-030405-a-b-abc123", 0)
    target = checks.Target(settings, paths, SimpleNamespace(call=answer))  # type: ignore[arg-type]
    assert [found.what for found in checks.partitions(target)] == ["partition q", "partition p"]
    header = {line.removeprefix("#SBATCH ") for line in rendered(script(), **given).splitlines()}
    for options in asked.values():
        # As at a submission, the partition's limit follows.
        assert options[-2:] == ["--time=1:00:00", "--signal=USR1@60"]
        assert {option for option in options[:-2] if not option.startswith("--partition")} <= header
        assert {"--cpus-per-task=32", "--gpus-per-task=1", "--mem-per-gpu=4G", "--licenses=x:1"} <= set(options)
    assert [found.state for found in checks.node(target)] == [checks.WRONG]
    on_node = asked["slurm_on_node --partition=q"]
    assert {"--nodes=1", "--time=00:05:00", "--licenses=x:1"} <= set(on_node)
    assert not any(option.startswith(("--signal", "--requeue", "--open-mode")) for option in on_node)


def test_after_a_line_that_is_no_answer_the_helper_process_is_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[bool] = []
    helper = SimpleNamespace(
        stdin=io.StringIO(),
        stdout=io.StringIO('a warning\n{"answer": "of the request before"}\n'),
        poll=lambda: None,
        kill=lambda: killed.append(True),
    )
    monkeypatch.setattr(nemo_run, "_helper", [helper])
    assert nemo_run.ask("a.module", {}) is None and killed and nemo_run._helper == []


def test_a_check_on_a_node_pastes_nothing_into_its_script() -> None:
    settings = config(container_runtime="apptainer", container_image="/x.sif; touch /tmp/oops")
    with pytest.raises(ProfileError, match=r"container_image: '/x\.sif; touch"):
        slurm_script.check_text(settings, "python3", "pass")


def test_a_chain_is_not_queued_again_but_leaves_it_to_the_next() -> None:
    text = rendered(script(), chain=3, time="1-00:00:00")
    slurm_script.check_syntax(text)
    assert "#SBATCH --no-requeue\n" in text and "#SBATCH --requeue" not in text
    assert "/h/runs/r/jobs/0 && nemotron_over || nemotron_end $?\n" in text
    assert text.index("scontrol requeue") < text.index("nemotron_over() {") < text.index("\nsrun "), (
        "the later one counts"
    )


def test_what_was_understood_is_said() -> None:
    assert "8 processes" in resources_of(config(ntasks_per_node=8), None).notes[0]
    (note,) = resources_of(config(nodes=2), False).notes
    assert "one process on one node" in note and isinstance(note, Note) and note.field == "nodes"
    document = resources_of(config(nodes=2, gpus_per_node=8), False)
    assert document.notes == ("nodes=2, gpus_per_node=8: this command is one process on one node.",)
    assert resources_of(config(), False).notes == ()
    assert resources_of(config(nproc_per_node=8, nodes=2), None).notes == ()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("04:00:00", 14400), ("90", 5400), ("10:30", 630), ("1-12", 129600), ("2-01:30", 178200),
        ("1-00:00:01", 86401), ("UNLIMITED", None), ("infinite", None), ("x-1", None), ("", None),
        ("0", None), ("00:00:00", None), ("0-0", None),
    ],
)  # fmt: skip
def test_times_as_slurm_writes_them(text: str, seconds: int | None) -> None:
    assert time_seconds(text) == seconds


def test_a_short_job_is_told_a_short_time_before_its_end() -> None:
    assert [slurm_script.lead_seconds(limit) for limit in (None, 14400, 600, 60, 10)] == [300, 300, 150, 15, 10]
    assert [slurm_script.lead_seconds(limit, 120) for limit in (None, 14400, 60)] == [120, 120, 30], "or as asked"


def test_an_intent_stands_for_the_same_jobs_only() -> None:
    one = slurm_script.intent_of("run", [0])
    assert one == slurm_script.intent_of("run", [0]) and len(one) == 12 and int(one, 16) >= 0
    others = [
        slurm_script.intent_of("run", [1]),
        slurm_script.intent_of("run", [0, 1]),
        slurm_script.intent_of("other", [0]),
    ]
    assert len({one, *others, slurm_script.intent_of("run", [0], attempt=1)}) == 5


@pytest.mark.parametrize("label", ["nano3-data/prep/pretrain", "x" * 200, "$(touch x)", "a..b", "-", "ünï", ""])
def test_a_job_name_is_a_slug(label: str) -> None:
    name = slurm_script.job_name("0123456789ab", label)
    check_header(f"#!/bin/bash\n#SBATCH --job-name={name}\n\nset -e")
    assert name.startswith("nk-0123456789ab") and len(name) <= 64


GOOD = [
    "--time=1-04:00:00", "--nodes=2", "--mem=0", "--mem=16G", "--gres=gpu:h100:8", "--exclusive", "--exclusive=user",
    "--constraint='a&b|c'", "--exclude='n[1-3],n7'", "--signal=USR1@300", "--signal=B:USR1@300", "--array=0-199%32",
    "--comment='a job, of mine (really)'", "--output=/home/me/x_%j.out", "--dependency=afterok:12:13",
    "--mail-user=me@example.com", "--requeue", "--open-mode=append", "--gpus-per-node=a100:4",
]  # fmt: skip
BAD = [
    "--time='4; rm -rf /'", "--nodes=2-4x", "--mem='$(reboot)'", "--account='a b'", "--job-name='../x'",
    "--constraint='$(x)'", "--comment='`x`'", "--output=relative", "--mail-user='$(x)'", "--exclude=';'",
    "--array='0-1;2'", "--signal='USR1 @3'", "--partition='p\"'", "--job-name=", "--x='unfinished", "-p x", "--Time=1",
]  # fmt: skip


@pytest.mark.parametrize("flag", GOOD)
def test_values_that_slurm_takes_pass(flag: str) -> None:
    check_header(f"#!/bin/bash\n# words\n#SBATCH {flag}\n\nset -evx\n$(anything)")


@pytest.mark.parametrize("flag", BAD)
def test_values_that_no_flag_takes_are_refused(flag: str) -> None:
    with pytest.raises(ProfileError):
        check_header(f"#!/bin/bash\n#SBATCH {flag}\n\nset -evx\n")


@pytest.mark.parametrize(
    "lines", ["#SBATCH --comment='x\ntouch y #'", "touch y", "#SBATCH --comment='x\nset -evx\ntouch y'"]
)
def test_a_newline_in_a_value_does_not_hide_a_command(lines: str) -> None:
    with pytest.raises(ProfileError):
        check_header(f"#!/bin/bash\n{lines}\n\nset -evx\n")


@pytest.mark.parametrize(
    "image", ["nvcr.io/nvidia/nemo:25.11", "/images/nemo.sqsh", "nvcr.io#nvidia/nemo:25.11", "me@sha256:ab"]
)
def test_images_as_pyxis_wants_them(image: str) -> None:
    check_srun_arguments([], config(container_image=image, mounts=["/lustre:/lustre", "/data:/data:ro", "/home/me"]))


@pytest.mark.parametrize("word", ["--mpi=pmix", "--container-writable", "-v", "--overlap", "--export=ALL,X=1"])
def test_srun_words_that_are_plain_pass(word: str) -> None:
    check_srun_arguments([word], config())


@pytest.mark.parametrize("word", ["$(x)", "a b", "--x=`y`", ";", "&", "--x='y'", "", 5, "a\nb"])
def test_srun_words_that_a_shell_would_read_are_refused(word: object) -> None:
    with pytest.raises(ProfileError, match="srun"):
        check_srun_arguments([word], config())


def script(**changes: Any) -> slurm_script.Script:
    given = {
        "name": "nk-0123456789ab-x",
        "folder": "/h/runs/r",
        "command": tuple(worker_command("/py", None, "/h/runs/r/jobs/0")),
    }
    return slurm_script.Script(**{**given, **changes})


def rendered(found: slurm_script.Script, resources: Resources | None = None, **fields: Any) -> str:
    pytest.importorskip("nemo_run", reason="the nemo-run extra is not installed")
    return slurm_script.render(config(**fields), resources or resources_of(config(**fields), None), found, batch=True)


def test_the_script_is_nemo_runs_with_the_constant_command() -> None:
    text = rendered(script(), time="00:10:00")
    assert "# Generated by NeMo Run" in text
    assert " /py -P -m nemotron_kit.worker /h/runs/r/jobs/0 || nemotron_end $?\n" in text
    for line in ("--job-name=nk-0123456789ab-x", "--signal=USR1@150", "--requeue", "--time=00:10:00", "--partition=p"):
        assert f"#SBATCH {line}\n" in text
    assert "--cpu-bind=none" in text and "--wait=0" in text
    slurm_script.check_syntax(text)


def test_nemo_run_in_part_in_a_process_beside_writes_the_same_script() -> None:
    resources = resources_of(config(time="00:10:00"), None)
    given = {"config": asdict(config(time="00:10:00")), "resources": asdict(resources), "script": asdict(script())}
    nemo_run.start()
    told = nemo_run.ask(slurm_script.__name__, {**given, "batch": True})
    assert told == slurm_script.render_in_process(config(time="00:10:00"), resources, script(), True)
    assert nemo_run.ask(slurm_script.__name__, {**given, "batch": True, "config": {"executor": "none"}}) is None


def test_until_the_worker_has_begun_the_script_asks_to_be_queued_again_when_preempted() -> None:
    text = rendered(script())
    asked = '\necho told >"/h/runs/r/slurm/again-$SLURM_JOB_ID"\n'
    assert text.index("nemotron_end() {") < text.index(asked) < text.index("\nsrun ")


def test_eight_tasks_are_one_with_eight_cpus() -> None:
    text = rendered(script(), ntasks_per_node=8, nodes=2)
    assert "#SBATCH --ntasks-per-node=1\n" in text and "#SBATCH --cpus-per-task=8\n" in text
    assert "#SBATCH --nodes=2\n" in text


def test_a_container_gets_the_jobs_folders_at_the_same_paths() -> None:
    text = rendered(script(mounts=("/h/runs/r", "/h/artifacts")), container_image="nvcr.io/x:1", mounts=["/data:/data"])
    assert "--container-image nvcr.io/x:1 " in text
    assert "--container-mounts /data:/data,/h/runs/r:/h/runs/r,/h/artifacts:/h/artifacts," in text
    slurm_script.check_syntax(text)


SIF: dict[str, Any] = {"container_runtime": "apptainer", "container_image": "/images/nemo.sif"}


def in_apptainer(**fields: Any) -> str:
    folders = ("/h/runs/r", "/h/artifacts")
    inside = slurm_script.inside_of(config(**fields), "/h/runs/r", folders)
    command = (*inside, *worker_command("python3", "/h/kit/k", "/h/runs/r/jobs/0"))
    return rendered(script(command=command, mounts=folders), **fields)


def test_a_container_of_apptainer_is_part_of_the_command() -> None:
    fields = {**SIF, "mounts": ["/data:/data:ro"], "secrets": ["A_TOKEN"], "gpus_per_node": 8}
    text = in_apptainer(**fields, extra={"apptainer_args": ["--writable-tmpfs"]})
    slurm_script.check_syntax(text)
    assert (
        " apptainer exec --nv --bind=/data:/data:ro --bind=/tmp --bind=/h/runs/r --bind=/h/artifacts --pwd=/h/runs/r"
        " --env=PYTHONNOUSERSITE=1 --env=TMPDIR=/tmp --writable-tmpfs /images/nemo.sif"
        " python3 /h/kit/k /h/runs/r/jobs/0 || nemotron_end $?\n"
    ) in text
    assert "--container-" not in text and "apptainer exec /images" not in text
    secret = text.index('export APPTAINERENV_A_TOKEN="$A_TOKEN"')
    assert text.rindex("set +vx", 0, secret) > text.rindex("set -evx", 0, secret), "its value is not traced"


def test_an_image_is_pulled_by_the_first_node_alone() -> None:
    image = {**SIF, "container_image": "docker://nvcr.io/nvidia/nemo:25.11"}
    own = ["APPTAINER_CACHEDIR=$SCRATCH/a b", "SINGULARITY_TMPDIR=/s", "MINE=1"]
    text = in_apptainer(**image, nodes=2, env_vars=own, secrets=["A_TOKEN", "APPTAINER_DOCKER_PASSWORD"])
    slurm_script.check_syntax(text)
    before, pulled, _ = text.partition(
        " --env=TMPDIR=/tmp docker://nvcr.io/nvidia/nemo:25.11 python3 -c '' || nemotron_stop "
    )
    assert pulled and pulled not in in_apptainer(**image)
    assert "\nexport APPTAINER_CACHEDIR=\"$SCRATCH\"'/a b'\nexport SINGULARITY_TMPDIR=/s\n" in before
    assert "MINE" not in before and "DOCKER_PASSWORD" not in text, "Apptainer reads it from the job's environment"


@pytest.mark.parametrize(
    ("fields", "asks"),
    [({}, False), ({"gpus_per_node": 1}, True), ({"gpus_per_task": 1}, True), ({"gres": "gpu:a100:4"}, True),
     ({"gres": "gpu:4", "gpus_per_node": 0}, False), ({"gres": "tmpfs:1g"}, False)],
)  # fmt: skip
def test_the_driver_is_in_the_container_where_gpus_are_asked_for(fields: dict[str, Any], asks: bool) -> None:
    assert (" --nv " in in_apptainer(**SIF, **fields)) is asks


@pytest.mark.parametrize(
    ("fields", "said", "hint"),
    [
        (
            {"container_image": "/x.sif"},
            "container_image=/x.sif: Pyxis does not run images of Apptainer's.",
            "apptainer",
        ),
        ({"container_image": "oras://h/x"}, "container_image=oras://h/x: Pyxis does not", "container_runtime"),
        ({"container_image": "i", "extra": {"apptainer_args": ["--rocm"]}}, "extra.apptainer_args: has", "apptainer"),
        (
            {**SIF, "container_image": "nvcr.io#nvidia/nemo:1"},
            "container_image=nvcr.io#",
            "docker://nvcr.io/nvidia/nemo:1",
        ),
        ({**SIF, "container_image": "nvcr.io/nemo:1"}, "container_image=nvcr.io/nemo:1: ", "docker://nvcr.io/nemo:1"),
        (
            {**SIF, "container_image": "/x.sqsh"},
            "container_image=/x.sqsh: an image in enroot's",
            "apptainer build /x.sif",
        ),
        ({**SIF, "mounts": ["/a:/b:c"]}, "mounts=/a:/b:c: not in the form of Apptainer's", "/FOLDER:/INSIDE:ro"),
        ({**SIF, "mounts": ["/a,b"]}, "mounts=/a,b: not in the form of Apptainer's", "without a comma"),
        ({**SIF, "extra": {"srun_args": ["--container-writable"]}}, "extra.srun_args=--cont", "extra.apptainer_args"),
    ],
)
def test_what_a_runtime_of_containers_does_not_take(fields: dict[str, Any], said: str, hint: str) -> None:
    (found,) = slurm_script.problems_of(config(**fields), resources_of(config(**fields), None), "batch", [])
    assert str(found).startswith(said) and hint in str(found.hint)


def test_a_secret_beats_the_images_own_variable_and_only_its_name_is_said() -> None:
    image = {"container_image": "nvcr.io/x:1"}
    text = rendered(script(), secrets=["A_TOKEN", "B_KEY"], extra={"container_env": ["MINE"]}, **image)
    assert " --container-env MINE,A_TOKEN,B_KEY " in text
    assert "--container-env" not in rendered(script(), secrets=["A_TOKEN"])
    assert "--container-env" not in rendered(script(), **image)


def test_a_container_gets_what_describes_an_input_that_is_a_file(tmp_path: Path) -> None:
    file, folder = tmp_path / "one" / "x.bin", tmp_path / "two"
    file.parent.mkdir()
    folder.mkdir()
    file.touch()
    place = RemotePaths("/h", "/h/runs/r", "/h/runs/r/jobs/0", None, "/", "python3", "/h/kit/k", "/h/artifacts")
    pins = {path.name: Pin("", None, None, "", str(path)) for path in (file, folder)}
    context = PlanContext(resources_of(config(), None), place, pins, "r", 0, "l", "batch", single=False)
    mounted = executor_for(config(container_image="i")).plan(context).mounts
    assert mounted == ("/h/runs/r", "/h/artifacts", "/h/code", "/h/kit/k", str(file.parent), str(folder))


@pytest.mark.parametrize("single", [True, False])
def test_a_job_and_a_sweep_are_refused_without_nemo_run(single: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nemo_run", None)
    monkeypatch.setattr("nemotron_kit.executors.nemo_run.find_spec", lambda name: None)
    monkeypatch.setattr("nemotron_kit.executors.nemo_run._helper", [])  # one that another test has started would answer
    place = RemotePaths("/h", "/h/runs/r", "/h/runs/r/jobs/0", None, "/", "python3", "/h/kit/k", "/h/artifacts")
    context = PlanContext(resources_of(config(), None), place, {}, "r", 0, "l", "batch", single=single)
    (problem,) = executor_for(config()).plan(context).problems
    assert "needs NeMo-Run" in problem and "nemotron-kit[nemo-run]" in problem


def test_a_comma_in_a_folder_of_a_container_is_refused() -> None:
    with pytest.raises(UserError, match="separated by commas"):
        rendered(script(mounts=("/h/ru,ns/r",)), container_image="nvcr.io/x:1")


@pytest.mark.parametrize(
    "fields",
    [
        *({"secrets": ["A $(x)"]}, {"extra": {"container_env": ["A;B"]}}, {"python": "python3; id"}),
        *({"python": "$(id)"}, {"python": "~/a b/python"}),
    ],
)
def test_a_name_that_a_shell_would_read_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ProfileError, match="srun"):
        rendered(script(), container_image="nvcr.io/x:1", **fields)


def test_setup_is_shell_by_intent_and_must_be_shell() -> None:
    text = rendered(script(), setup="module load cuda", startup_commands=["ulimit -n 4096"])
    assert "\nulimit -n 4096\nmodule load cuda\n" in text
    with pytest.raises(Exception, match="no valid bash"):
        slurm_script.check_syntax(rendered(script(), setup="if true; then"))


def test_environment_values_are_not_in_it() -> None:
    assert "FINDME" not in rendered(script(), env_vars=["A=FINDME"], secrets=["FINDME_TOO"])


@pytest.mark.parametrize("folder", ["/home/a b/runs/r", "/home/$(x)/r", "/h/'q/r", "/h/new\nline"])
def test_a_folder_that_a_shell_would_read_is_refused(folder: str) -> None:
    with pytest.raises(Exception, match="takes paths of"):
        rendered(script(folder=folder))


def test_nemo_runs_own_replacement_does_not_reach_the_command() -> None:
    with pytest.raises(Exception, match="/nemo_run can't be part"):
        rendered(script(command=("/opt/nemo_run/bin/python", "-P", "-m", "nemotron_kit.worker", "/h/jobs/0")))


def test_jobs_of_a_sweep_differ_in_two_words() -> None:
    other = script(name="nk-ba9876543210-y", command=tuple(worker_command("/py", None, "/h/runs/r/jobs/7")))
    one, two = rendered(script()), rendered(other)
    assert one != two
    assert one.replace("nk-0123456789ab-x", "nk-ba9876543210-y").replace("jobs/0", "jobs/7") == two


FAKES = {
    "conda": "#!/bin/bash\necho 'conda() { [ \"$2\" = good ] && export CONDA_ENV=$2; }'\n",
    "hostname": "#!/bin/bash\necho n1\n",
    "squeue": "#!/bin/bash\necho RUNNING\n",
    "scontrol": '#!/bin/bash\n[ "$1" != requeue ] || touch requeued\n[ -z "$PREEMPTED" ] || echo PreemptTime=2026\n',
    "srun": '#!/bin/bash\ncase "$*" in *nemotron_kit*) echo "job began A=$A M=$LOADED C=$CONDA_ENV";; esac\n',
}
INIT = 'module() { [ "$2" = "bad/1" ] && { echo unknown >&2; return 4; }; export LOADED="$LOADED $2"; }\n'


@pytest.mark.parametrize(
    ("fields", "code", "said"),
    [
        (
            {"setup": "export A=1", "modules": ["cuda/12.4", "x;$(y)"], "conda": "good"},
            0,
            "A=1 M= cuda/12.4 x;$(y) C=good",
        ),
        ({"setup": "false || true\nif false; then :; fi\n. ./sloppy\nexport A=2"}, 0, "job began A=2"),
        ({"modules": ["cuda/12.4", "bad/1"]}, 4, "setup: module load bad/1 failed with exit code 4 on n1"),
        ({"conda": "nothing"}, 1, "setup: conda activate nothing failed with exit code 1 on n1"),
        ({"setup": "export A=1\n(exit 3)\nexport A=2"}, 3, "setup: ( exit 3 ) failed with exit code 3 on n1"),
        ({"startup_commands": ["nosuch --x", "true"]}, 127, "setup: nosuch --x failed with exit code 127 on n1"),
        ({"setup": "(exit 75)"}, 75, "setup: ( exit 75 ) failed with exit code 75"),
        ({"conda": "$NOWHERE/e", "container_image": "i"}, 0, "job began A= M= C="),
    ],
)
def test_what_comes_before_the_job_stops_it_where_it_fails(
    tmp_path: Path, fields: dict[str, Any], code: int, said: str
) -> None:
    for name, text in FAKES.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "init").mkdir()
    (tmp_path / "init" / "bash").write_text(INIT)
    (tmp_path / "sloppy").write_text("false\ntrue\n")
    (tmp_path / "slurm").mkdir()
    text = rendered(script(folder=str(tmp_path)), **fields)
    slurm_script.check_syntax(text)
    (tmp_path / "sbatch.sh").write_text(text)
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "HOME": str(tmp_path), "SLURM_JOB_ID": "7", "LMOD_PKG": str(tmp_path)}

    def run(**more: str) -> subprocess.CompletedProcess[str]:
        words = ["bash", "sbatch.sh"]
        return subprocess.run(words, cwd=tmp_path, env={**env, **more}, capture_output=True, text=True, check=False)

    done = run()
    assert (done.returncode, said in done.stdout) == (code, True), done.stdout + done.stderr
    assert ("job began" in done.stdout) is (code == 0)
    assert not (tmp_path / "requeued").exists()
    if code:
        run(PREEMPTED="1")
        assert (tmp_path / "requeued").exists(), "a job that is preempted meanwhile is queued again"


@pytest.mark.parametrize("fields", [{"modules": ["-x"]}, {"modules": ["a b"]}, {"conda": "--help"}, {"conda": "a\nb"}])
def test_no_module_or_environment_is_an_option(fields: dict[str, Any]) -> None:
    ((name, value),) = fields.items()
    with pytest.raises(ProfileError, match=f"^{name}.*(can't be a|control character)"):
        check_value(name, value, name)


def test_condas_python_runs_the_job_unless_another_is_named(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = executor_for(config(conda="e")).paths("20260101-000000-a-b-abcdef", 0)
    assert found.python == "python3" and found.package
    assert executor_for(config(conda="e", python="/p")).paths("20260101-000000-a-b-abcdef", 0).python == "/p"


@pytest.mark.parametrize(
    ("code", "left", "over"),
    [(0, None, True), (7, None, True), (75, "told", False), (75, "always", False), (7, "always", False),
     (143, None, False), (15, None, False), (143, "told", False), (1, "told", True), (0, "told", True)],
)  # fmt: skip
def test_a_link_of_a_chain_takes_the_others_away_where_the_job_has_ended(
    tmp_path: Path, code: int, left: str | None, over: bool
) -> None:
    worker = f"rm -f slurm/again-7; {f'echo {left} >slurm/again-7; ' if left else ''}exit {code}"
    programs = {
        "hostname": "echo n1", "scontrol": "true", "scancel": 'echo "$@" >scancelled',
        "srun": f'case "$*" in *nemotron_kit*) echo "link $SLURM_RESTART_COUNT"; {worker};; esac',
    }  # fmt: skip
    for name, line in programs.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{line}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm" / "link-nk-x-6").touch()
    (tmp_path / "sbatch.sh").write_text(rendered(script(folder=str(tmp_path)), chain=3))
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "nk-x"}

    def run() -> subprocess.CompletedProcess[str]:
        words = ["bash", "sbatch.sh"]
        return subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)

    done = run()
    assert (done.returncode, "link 1\n" in done.stdout) == (code, True), done.stdout + done.stderr
    assert (tmp_path / "scancelled").exists() is over
    if over:
        assert "--name=nk-x" in (tmp_path / "scancelled").read_text()
        assert (run().returncode, "link" in run().stdout) == (0, False), "what is left in the queue does nothing"


@pytest.mark.parametrize(("size", "most"), [(1001, 1000), (5, 4), (1, 1), (0, 1)])
def test_a_cluster_without_arrays_is_asked_all_the_same(size: int, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing at all was submitted where MaxArraySize is 0; sbatch gives the reason."""
    asked: list[int] = []
    slurm, plan = (
        executor_for(config()),
        SimpleNamespace(paths=SimpleNamespace(run="/r"), settings=config(), mode="run"),
    )
    slurm.__dict__["transport"] = SimpleNamespace(call=lambda *_, **__: ({"max_array_size": size, "time": None}, b""))
    monkeypatch.setattr(slurm, "prepare", lambda *_: None)
    monkeypatch.setattr(client, "_calls", lambda _, most: asked.append(most) or ())
    slurm.submit(Any, [plan])  # type: ignore[arg-type, list-item]
    assert asked == [most]


@pytest.mark.parametrize(("tunnel", "python"), [("ssh", "python3"), ("local", "/opt/py")])
def test_the_check_names_the_python_that_the_image_is_asked_for(tunnel: str, python: str) -> None:
    fields = {"container_image": "nvcr.io/x:1", "python": "/opt/py", "remote_job_dir": "/r", "host": "h", "user": "u"}
    found = config(tunnel=tunnel, **fields)
    target = checks.Target(found, executor_for(found).paths("20261130-000000-a-b-000000", 0), Any)
    assert next(checks.python(target)).detail.startswith(f"{python} of the image")
