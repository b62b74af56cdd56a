"""Why a job never began, found in what srun and Pyxis wrote."""

from __future__ import annotations

from pathlib import Path

import pytest

from nemotron_kit.remote.agent.slurm_status import failure_reason, reason_lines

# As Pyxis 0.24 and Slurm 22.05 write it.
NO_IMAGE = """\
slurmstepd-n1: error: pyxis: child 7352 failed with error code: 1
slurmstepd-n1: error: pyxis: failed to create container filesystem for image: /images/x.sqsh
slurmstepd-n1: error: pyxis: printing enroot log file:
slurmstepd-n1: error: pyxis:     [ERROR] No such file or directory: /images/x.sqsh
slurmstepd-n1: error: spank: required plugin spank_pyxis.so: task_init() failed with rc=-1
slurmstepd-n1: error: Failed to invoke spank plugin stack
"""
NO_MOUNT = """\
slurmstepd-n1: error: pyxis: --container-mounts: source path does not exist: /data/x
slurmstepd-n1: error: pyxis: couldn't create enroot start configuration script
slurmstepd-n1: error: pyxis: printing enroot log file:
slurmstepd-n1: error: pyxis:     [INFO] Extracting squashfs filesystem...
slurmstepd-n1: error: pyxis:     created 4184 files
slurmstepd-n1: error: pyxis: container was not started successfully by another task
"""
NO_REGISTRY = """\
pyxis: importing docker image: nvcr.io#nvidia/nemo:25.11
slurmstepd-n1: error: pyxis: child 8956 failed with error code: 6
slurmstepd-n1: error: pyxis: failed to import docker image: nvcr.io#nvidia/nemo:25.11
slurmstepd-n1: error: pyxis: printing enroot log file:
slurmstepd-n1: error: pyxis:     [INFO] Querying registry for permission grant
slurmstepd-n1: error: pyxis:     curl: (6) Could not resolve host: nvcr.io
"""


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        (NO_IMAGE, ["n1: failed to create container filesystem for image: /images/x.sqsh",
                    "[ERROR] No such file or directory: /images/x.sqsh"]),
        (NO_MOUNT, ["n1: --container-mounts: source path does not exist: /data/x"]),
        (NO_REGISTRY, ["n1: failed to import docker image: nvcr.io#nvidia/nemo:25.11",
                       "curl: (6) Could not resolve host: nvcr.io"]),
        ("slurmstepd-n1: error: execve(): /x/python3: No such file or directory\nsrun: error: n1: task 0: Exited\n",
         ["n1: execve(): /x/python3: No such file or directory"]),
        ("Traceback (most recent call last):\n  x\nImportError: no\n\n", ["ImportError: no"]),
        ("Fatal Python error: x\nModuleNotFoundError: No module named 'encodings'\n<no Python frame>\n",
         ["ModuleNotFoundError: No module named 'encodings'"]),
        ("FATAL:   Unable to handle x uri: manifest unknown\nINFO:    Cleaning up\n",
         ["Unable to handle x uri: manifest unknown"]),
        ("error: /usr/bin/python3 is Python 3.9.2\n", ["/usr/bin/python3 is Python 3.9.2"]),
        ("srun: Job 65 step creation temporarily disabled, retrying (Requested nodes are busy)\n"
         "srun: Step created for job 65\nsrun: Force Terminated StepId=65.1\n", []),
        ("srun: warning: can't run 1 processes on 2 nodes\n", []),
        ("", []),
    ],
)  # fmt: skip
def test_the_lines_that_say_why(text: str, lines: list[str]) -> None:
    assert reason_lines(text) == lines


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "slurm").mkdir()
    (tmp_path / "jobs" / "0").mkdir(parents=True)
    return tmp_path


def wrote(run: Path, name: str, text: str) -> None:
    (run / "slurm" / name).write_text(text)


def test_a_job_alone(run: Path) -> None:
    wrote(run, "log-nk-x_17_0.out", NO_MOUNT)
    wrote(run, "log-nk-x_18_0.out", NO_IMAGE)
    assert (
        failure_reason(run, 0, "nk-x", "17")
        == ", before the job began: n1: --container-mounts: source path does not exist: /data/x"
    )


def test_a_setup_that_failed_is_the_reason_however_much_it_wrote(run: Path) -> None:
    line = "setup: module load cuda/99 failed with exit code 1 on n1, and the job was not started"
    wrote(run, "sbatch_nk-x_17.out", "+ pip install\n" * 9000 + f"nemotron: {line}\nnemotron: job 17 ended with 1\n")
    assert failure_reason(run, 0, "nk-x", "17") == f", before the job began: {line}"


@pytest.mark.parametrize(
    ("wrote_itself", "words"),
    [
        ("INFO:    Starting\nFATAL:   Unable to handle docker://x uri: unknown\n", "Unable to handle docker"),
        ("ERROR: Unable to locate a modulefile for 'nosuch/1'\n", "Unable to locate a modulefile for 'nosuch/1'"),
        ('Lmod has detected the following error: These module(s) are unknown: "x"\n', "These module(s) are unknown"),
        ("+ nosuch --x\n/var/spool/slurmd/job3/slurm_script: line 64: nosuch: command not found\n", "nosuch: command"),
    ],
)
def test_what_the_setups_command_said_is_part_of_the_reason(run: Path, wrote_itself: str, words: str) -> None:
    line = "setup: it failed with exit code 1 on n1, and the job was not started"
    wrote(run, "sbatch_nk-x_17.out", f"ERROR: earlier\n+ it\n{wrote_itself}nemotron: {line}\nERROR: of srun\n")
    assert str(failure_reason(run, 0, "nk-x", "17")).startswith(f", before the job began: {line}: {words}")


def test_a_task_of_an_array_is_found_by_the_number_that_its_script_wrote(run: Path) -> None:
    wrote(run, "sbatch_nk-x_13_1.out", "+ echo 'nemotron: job 14 ended'\nnemotron: job 14 ended with 1\n")
    wrote(run, "log-nk-x_13_0.out", NO_MOUNT)
    wrote(run, "log-nk-x_14_0.out", NO_IMAGE)
    assert str(failure_reason(run, 0, "nk-x", "13_1")).startswith(
        ", before the job began: n1: failed to create container filesystem"
    )


def test_where_srun_did_not_get_so_far_the_scripts_own_output_says_why(run: Path) -> None:
    text = "+ srun --container-image x\nsrun: unrecognized option '--container-image'\nnemotron: job 5 failed\n"
    wrote(run, "sbatch_nk-x_5.out", text)
    assert failure_reason(run, 0, "nk-x", "5") == ", before the job began: unrecognized option '--container-image'"


def test_a_worker_that_began_was_ended_by_what_another_node_could_not_do(run: Path) -> None:
    (run / "jobs" / "0" / "logs").mkdir()
    (run / "jobs" / "0" / "logs" / "job.log").write_text("")
    end = "slurmstepd-n0: error: *** STEP 17.1 ON n0 CANCELLED AT 2026-11-28T13:48:17 ***\n"
    wrote(run, "log-nk-x_17_0.out", f"an error of its own\n{end}")
    assert failure_reason(run, 0, "nk-x", "17") is None
    wrote(run, "log-nk-x_17_0.out", f"{end}{NO_MOUNT}")
    assert failure_reason(run, 0, "nk-x", "17") == ": n1: --container-mounts: source path does not exist: /data/x"


def test_nothing_where_nothing_was_written(run: Path) -> None:
    assert failure_reason(run, 0, "nk-x", "17") is None
