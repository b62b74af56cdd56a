"""The back ends that the other cluster tests stand on: they are what they say."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from ..conftest import until
from .backends import Docker, Slurm, Sshd
from .rogue_sshd import Rogue


def submit(slurm: Slurm, folder: Path, script: str, *flags: str) -> str:
    """sbatch a script whose output is `<job id>.out` in `folder`; the job id."""
    words = ["sbatch", "--parsable", "--account=research", f"--output={folder}/%A_%a.out", *flags]
    return slurm.run(*words, stdin=f"#!/bin/bash\n{script}\n").strip()


def wait_for(question: Callable[[], object], what: str, seconds: float = 60) -> None:
    until(question, seconds, lambda: what, every=0.2)


def states(slurm: Slurm, job: str) -> list[str]:
    """What accounting says of a job or of each task of an array."""
    return sorted(line.split()[0] for line in slurm.run("sacct", "-nXP", "-j", job, "-o", "State").splitlines())


def reach(slurm: Slurm, job: str, *wanted: str, seconds: float = 60) -> None:
    wait_for(lambda: states(slurm, job) == sorted(wanted), f"job {job} is {wanted}, not {states(slurm, job)}", seconds)


def test_a_job_over_two_nodes(slurm: Slurm, cluster_home: Path) -> None:
    job = submit(slurm, cluster_home, "srun -l hostname; touch seen", "--nodes=2", f"--chdir={cluster_home}", "--wait")
    assert sorted((cluster_home / f"{job}_4294967294.out").read_text().split("\n"))[1:] == ["0: n1", "1: n2"]
    assert (cluster_home / "seen").exists()
    reach(slurm, job, "COMPLETED")


def test_srun_from_here_reaches_both_nodes(slurm: Slurm) -> None:
    assert sorted(slurm.run("srun", "--nodes=2", "--ntasks-per-node=2", "hostname").split()) == ["n1", "n1", "n2", "n2"]


def test_an_array_and_its_exit_codes(slurm: Slurm, cluster_home: Path) -> None:
    job = submit(slurm, cluster_home, "exit $((SLURM_ARRAY_TASK_ID % 2))", "--array=0-4%2")
    reach(slurm, job, *["COMPLETED"] * 3, *["FAILED"] * 2)


def test_a_dependent_job_waits(slurm: Slurm, cluster_home: Path) -> None:
    first = submit(slurm, cluster_home, "sleep 1; date +%s.%N", "--wait")
    second = submit(slurm, cluster_home, "date +%s.%N", f"--dependency=afterok:{first}", "--wait")
    before, after = (float(next(cluster_home.glob(f"{job}_*")).read_text()) for job in (first, second))
    assert before < after


def test_accounts_and_limits_are_enforced(slurm: Slurm) -> None:
    words = ["sbatch", "--wrap=true", "--output=/dev/null"]
    assert slurm.run(*words, "--account=nobodys", check=False) == ""
    assert slurm.run(*words, "--partition=interactive", "--time=02:00:00", check=False) == ""
    assert slurm.run(*words, "--gpus-per-node=9", check=False) == ""
    assert "Submitted" in slurm.run(*words, "--account=research", "--partition=interactive", "--gpus-per-node=8")


def test_a_cancelled_job(slurm: Slurm, cluster_home: Path) -> None:
    job = submit(slurm, cluster_home, "sleep 300")
    wait_for(lambda: "RUNNING" in slurm.run("squeue", "-hj", job, "-o", "%T"), f"{job} runs")
    slurm.run("scancel", job)
    reach(slurm, job, "CANCELLED")


def test_preemption_requeues_and_the_job_runs_again(slurm: Slurm, cluster_home: Path) -> None:
    low = submit(
        slurm,
        cluster_home,
        'echo run ${SLURM_RESTART_COUNT:-0}; [ -n "$SLURM_RESTART_COUNT" ] || sleep 300',
        "--partition=preempt",
        "--exclusive",
        "--nodelist=n2",
        "--open-mode=append",
    )
    out = cluster_home / f"{low}_4294967294.out"
    wait_for(lambda: out.exists() and "run 0" in out.read_text(), f"{low} runs")
    submit(slurm, cluster_home, "true", "--exclusive", "--nodelist=n2", "--wait")
    wait_for(lambda: "run 1" in out.read_text(), f"{low} runs again", 90)
    reach(slurm, low, "COMPLETED")


def test_a_lost_node_requeues_its_job(slurm: Slurm, cluster_home: Path) -> None:
    job = submit(
        slurm,
        cluster_home,
        'hostname; [ -n "$SLURM_RESTART_COUNT" ] || sleep 300',
        "--nodelist=n1",
        "--open-mode=append",
    )
    out = cluster_home / f"{job}_4294967294.out"
    wait_for(lambda: out.exists() and "n1" in out.read_text(), f"{job} runs on n1")
    slurm.node("kill", "n1")
    try:
        wait_for(lambda: slurm.run("squeue", "-hj", job, "-o", "%T").strip() == "PENDING", f"{job} is requeued", 120)
    finally:
        slurm.node("start", "n1")
    wait_for(lambda: out.read_text().split() == ["n1", "n1"], f"{job} runs again", 120)


def test_a_stopped_controller_does_not_answer(slurm: Slurm) -> None:
    with slurm.stopped("slurmctld"), pytest.raises(subprocess.TimeoutExpired):
        slurm.run("squeue", timeout=2)
    assert slurm.run("squeue", "-h", "-n", "no-such-job") == ""


def test_ssh_into_this_root_filesystem(sshd: Sshd, cluster_home: Path) -> None:
    sshd.ssh("nk-plain", f"cat >{cluster_home}/sent; sinfo -hs", stdin="text")
    assert (cluster_home / "sent").read_text() == "text"


def test_ssh_into_a_second_machine(sshd: Sshd, cluster_home: Path) -> None:
    there = sshd.ssh("nk-cluster", "hostname; pwd; echo $HOME; command -v python3; pwd >mark")
    assert there.split() == ["login", "/home/lab", "/home/lab", "/usr/bin/python3"]
    assert sshd.here("/home/lab/mark").read_text() == "/home/lab\n"
    assert sshd.ssh("nk-cluster", f"ls {cluster_home} {Path.cwd()}", check=False) == ""
    sshd.ssh("nk-cluster", "python3 -c 'import omegaconf, yaml'")


def test_a_job_submitted_on_the_second_machine_runs_there(sshd: Sshd) -> None:
    flags = "--partition=remote --account=research --nodes=2 --wait --output=job.out"
    sshd.ssh("nk-cluster", f"sbatch {flags} --wrap 'srun -l sh -c \"hostname; ls /home\"'")
    said = sshd.here("/home/lab/job.out").read_text()
    assert "0: r1" in said and "1: r2" in said and "0: lab" in said


def test_a_password_and_a_one_time_code(sshd: Sshd, tmp_path: Path) -> None:
    ask = tmp_path / "ask"
    ask.write_text(f"#!/bin/sh\ncase $1 in *assword*) echo {sshd.password} ;; *) echo {sshd.one_time_code()} ;; esac\n")
    ask.chmod(0o700)
    words = ["env", f"SSH_ASKPASS={ask}", "SSH_ASKPASS_REQUIRE=force", "setsid", "ssh", "nk-password", "hostname"]
    assert sshd.run(*words) == "login\n"
    assert sshd.ssh("-oBatchMode=yes", "nk-password", check=False) == ""


@pytest.mark.parametrize("known", ["unknown", "changed", "revoked"])
def test_a_rogue_server_hears_no_login(rogue: Callable[[str], Rogue], known: str) -> None:
    server = rogue(known)
    words = ["ssh", "-oBatchMode=yes", "-oStrictHostKeyChecking=yes", server.host, "true"]
    done = subprocess.run(words, env={**os.environ, **server.env}, capture_output=True, text=True, check=False)
    assert done.returncode == 255 and "Host key verification failed" in done.stderr
    assert not server.heard_a_login()


def test_a_container_prints_its_python(docker: Docker, cluster_home: Path) -> None:
    mount = f"--volume={cluster_home}:{cluster_home}"
    program = "import omegaconf, sys; print('.'.join(map(str, sys.version_info[:2])))"
    run = ["docker", "run", "--rm", "--network=none", mount, f"--workdir={cluster_home}", docker.image]
    assert docker.run(*run, "python3", "-c", program) == "3.11\n"
    docker.run(*run, "touch", "seen")
    assert (cluster_home / "seen").exists()
