"""The request that NeMo-Run would send for a job on SkyPilot, Lepton, DGX Cloud or Kubeflow, as data for --dry-run.

It is made from NeMo-Run's executor, by its own method where it has one that only makes the request; DGX Cloud's and
Lepton's make and send it in one step, so theirs are put together here from the executor's fields. Secrets stand by
name; what only the service can say (`<…>`) is looked up at launch. No connection is opened."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from nemotron_kit.errors import NemotronError, Problem
from nemotron_kit.executors.base import ExecutorPlan, missing_secrets
from nemotron_kit.executors.nemo_run import build_executor
from nemotron_kit.spec.paths import IN_A_CLOUD
from nemotron_kit.spec.runconfig import ProfileError, RunConfig
from nemotron_kit.worker import python_module

COMMAND = tuple(python_module("nemotron_kit.worker", f"{IN_A_CLOUD}/job", python="python3"))
PROJECT, CLUSTER, NODE_GROUP, NODES = "<project's id>", "<cluster's id>", "<node group's id>", "<its nodes>"
_LONGEST = 34
_SECRET = re.compile(r"\$\{secret:([A-Za-z_][A-Za-z0-9_]*)\}\Z")


def cloud_for(config: RunConfig, *, run_id: str, job: int, mode: str) -> ExecutorPlan:
    """What a cloud job adds to its plan: the request, and why it can't be launched."""
    problems = [
        Problem(
            f"submitting to {config.executor} has not been tried in this version, so it is refused: --dry-run shows "
            "the request that NeMo-Run would send."
        )
    ]
    if mode == "local":
        problems.append(Problem(f"this profile's executor is {config.executor}: launch with --run or --batch."))
    secret = _SECRET.match(config.app_secret or "")
    problems += missing_secrets([*(config.secrets or ()), *([secret[1]] if secret else [])])
    try:
        request = request_of(config, run_id, job)
    except NemotronError as error:
        return ExecutorPlan(problems=(Problem(error.message, hint=error.hint), *problems))
    return ExecutorPlan(problems=tuple(problems), request=request)


def request_of(config: RunConfig, run_id: str, job: int = 0) -> dict[str, Any]:
    """`{"to": what it is sent to, "body": the request}`. Raises ProfileError for what the profile lacks, MissingExtra
    for a package that isn't installed, NemotronError for whatever else NeMo-Run says."""
    try:
        executor = _executor(config, run_id, job)
        to, body = _REQUESTS[config.executor](executor, _name(run_id, job), COMMAND)
    except NemotronError:
        raise
    # An assertion of NeMo-Run's, or the service's own package that finds no kubeconfig or dislikes a value.
    except Exception as error:
        raise NemotronError(f"executor {config.executor!r}: {type(error).__name__}: {error}") from error
    return {"to": to, "body": json.loads(json.dumps(body, default=str))}


def _executor(config: RunConfig, run_id: str, job: int) -> Any:
    """NeMo-Run's executor, assigned to the job, with the names of secrets in their values' places."""
    if config.app_secret:
        config = replace(config, app_secret="-")  # noqa: S106 — it is no part of the request
    executor = build_executor(config)
    from nemo_run.config import get_nemorun_home

    executor.assign(run_id, f"{get_nemorun_home()}/experiments/{run_id}", _name(run_id, job), str(job))
    for name in config.secrets or ():
        if config.executor == "kubeflow":
            executor.env_list.append({"name": name, "value": f"${{secret:{name}}}"})
        else:
            executor.env_vars[name] = f"${{secret:{name}}}"
    return executor


def _name(run_id: str, job: int) -> str:
    """Lower-case letters, digits and dashes, short, and different for any two jobs."""
    slug = re.sub(r"[^a-z0-9]+", "-", run_id.lower()).strip("-")
    end = f"-{slug[-6:]}-{job}"
    return f"nk-{slug[:-7]}"[: _LONGEST - len(end)].rstrip("-") + end


def _skypilot(executor: Any, name: str, command: Sequence[str]) -> tuple[str, Mapping[str, Any]]:
    return "sky.launch of the task", executor.to_task(name, list(command)).to_yaml_config()


def _kubeflow(executor: Any, name: str, command: Sequence[str]) -> tuple[str, Mapping[str, Any]]:
    body = executor.get_job_body(name, list(command))
    where = f"/apis/{body['apiVersion']}/namespaces/{executor.namespace}/trainjobs"
    return f"POST {where}", body


def _dgxcloud(executor: Any, name: str, command: Sequence[str]) -> tuple[str, Mapping[str, Any]]:
    del command  # it stands in the script that is copied into the job's folder
    several = executor.nodes > 1
    spec: dict[str, Any] = {
        "command": f"/bin/bash {executor.pvc_job_dir}/launch_script.sh",
        "image": executor.container_image,
        "compute": {"gpuDevicesRequest": executor.gpus_per_node, "largeShmRequest": True},
        "storage": {"pvc": executor.pvcs},
        "environmentVariables": [{"name": key, "value": value} for key, value in executor.env_vars.items()],
        **executor.custom_spec,
    }
    if several:
        replicas = dict.fromkeys(("minReplicas", "maxReplicas", "numWorkers"), executor.nodes)
        spec |= {"distributedFramework": executor.distributed_framework, **replicas}
    body = {"name": name, "useGivenNameAsPrefix": True, "projectId": PROJECT, "clusterId": CLUSTER, "spec": spec}
    return f"POST {executor.base_url}/workloads/{'distributed' if several else 'trainings'}", body


def _lepton(executor: Any, name: str, command: Sequence[str]) -> tuple[str, Mapping[str, Any]]:
    del command
    from leptonai.api.v1.types.affinity import LeptonResourceAffinity
    from leptonai.api.v1.types.common import Metadata
    from leptonai.api.v1.types.deployment import EnvValue, EnvVar, LeptonContainer, Mount
    from leptonai.api.v1.types.job import LeptonJob, LeptonJobUserSpec, ReservationConfig

    if any("from" not in mount for mount in executor.mounts):
        raise ProfileError(
            "mounts: Lepton wants to know the storage, too: PATH:MOUNT_PATH:STORAGE.",
            hint="For example /data:/data:node-nfs:NAME.",
        )
    script = f"bash {executor.lepton_job_dir}/launch_script.sh"
    variables = [EnvVar(name=key, value=value) for key, value in executor.env_vars.items()]
    variables += [
        EnvVar(name=key, value_from=EnvValue(secret_name_ref=value)) for key, value in executor.secret_vars.items()
    ]
    spec = LeptonJobUserSpec(
        resource_shape=executor.resource_shape,
        affinity=LeptonResourceAffinity(
            allowed_dedicated_node_groups=[NODE_GROUP], allowed_nodes_in_node_group=[NODES]
        ),
        container=LeptonContainer(image=executor.container_image, command=["/bin/bash", "-c", script]),
        shared_memory_size=executor.shared_memory_size,
        completions=executor.nodes,
        parallelism=executor.nodes,
        envs=variables,
        mounts=[Mount(**mount) for mount in executor.mounts],
        image_pull_secrets=executor.image_pull_secrets,
        ttl_seconds_after_finished=None,
        intra_job_communication=True,
        privileged=False,
        queue_config=_queue(executor),
        reservation_config=ReservationConfig(reservation_id=executor.node_reservation)
        if executor.node_reservation
        else None,
    )
    body = LeptonJob(spec=spec, metadata=Metadata(id=name)).model_dump(mode="json", by_alias=True, exclude_none=True)
    return f"POST /jobs of the workspace (node group {executor.node_group!r})", body


def _queue(executor: Any) -> Any:
    from leptonai.api.v1.types.deployment import QueueConfig

    if not (executor.can_be_preempted or executor.can_preempt):
        return None
    return QueueConfig(
        priority_class=executor.queue_priority or "mid-4000",
        can_be_preempted=executor.can_be_preempted or None,
        can_preempt=executor.can_preempt or None,
    )


_REQUESTS: dict[str, Callable[[Any, str, Sequence[str]], tuple[str, Mapping[str, Any]]]] = {
    "skypilot": _skypilot,
    "kubeflow": _kubeflow,
    "dgxcloud": _dgxcloud,
    "lepton": _lepton,
}
