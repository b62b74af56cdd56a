"""The request that NeMo-Run would send for a job on SkyPilot, Lepton, DGX Cloud or Kubeflow, as data for --dry-run.

It is made from NeMo-Run's executor, by that executor's method if one makes only the request. DGX Cloud's and Lepton's
methods make and send it in one step, so those requests are assembled here from the executor's fields. Secrets appear by
name; values that only the service knows (`<…>`) are queried at launch. No connection is opened.
"""

from __future__ import annotations

import json
import os
import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NoReturn

from nemotron_kit.errors import NemotronError, Problem, UserError
from nemotron_kit.executors.base import (
    EVERYWHERE,
    SENT,
    SHELL,
    Executor,
    ExecutorPlan,
    PlanContext,
    executor_for,
    missing_secrets,
)
from nemotron_kit.executors.nemo_run import (
    build_executor,
    build_packager,
    git_packager,
    need,
    shell_lines,
    shell_quoted,
)
from nemotron_kit.spec.paths import IN_A_CLOUD, RemotePaths, cloud_paths
from nemotron_kit.spec.runconfig import ProfileError, RunConfig
from nemotron_kit.worker import python_module

COMMAND = tuple(python_module("nemotron_kit.worker", f"{IN_A_CLOUD}/job", python="python3"))
PROJECT, CLUSTER, NODE_GROUP, NODES = "<project's id>", "<cluster's id>", "<node group's id>", "<its nodes>"
_LONGEST = 34
_SECRET = re.compile(r"\$\{secret:([A-Za-z_][A-Za-z0-9_]*)\}\Z")


def request_of(config: RunConfig, run_id: str, job: int = 0) -> dict[str, Any]:
    """`{"to": the service, "body": the request}`. Raises ProfileError for a missing profile setting, MissingExtra for a
    package that isn't installed, NemotronError for any other error of NeMo-Run."""
    try:
        made, name = executor_for(config), _name(run_id, job)
        assert isinstance(made, Cloud)  # noqa: S101 — no other calls this
        # The secret of DGX Cloud's API is no part of the request.
        executor = build_executor(replace(config, app_secret="-") if config.app_secret else config)  # noqa: S106
        from nemo_run.config import get_nemorun_home

        executor.assign(run_id, f"{get_nemorun_home()}/experiments/{run_id}", name, str(job))
        for secret in config.secrets or ():  # names in place of the values
            if config.executor == "kubeflow":
                executor.env_list.append({"name": secret, "value": f"${{secret:{secret}}}"})
            else:
                executor.env_vars[secret] = f"${{secret:{secret}}}"
        to, body = made.request(executor, name)
    except NemotronError:
        raise
    # NeMo-Run's assertions; the service's package, without a kubeconfig or with a value that it refuses.
    except Exception as error:
        raise NemotronError(f"executor {config.executor!r}: {type(error).__name__}: {error}") from error
    return {"to": to, "body": json.loads(json.dumps(body, default=str))}


def _name(run_id: str, job: int) -> str:
    """A name of lower-case letters, digits and dashes, short, and different for any two jobs."""
    slug = re.sub(r"[^a-z0-9]+", "-", run_id.lower()).strip("-")
    end = f"-{slug[-6:]}-{job}"
    return f"nk-{slug[:-7]}"[: _LONGEST - len(end)].rstrip("-") + end


class Cloud(Executor):
    """A service that NeMo-Run submits to. Jobs can be planned; submission has not been tested, and is refused."""

    reads = EVERYWHERE | SENT

    def _paths(self, run_id: str, job: int, registry: str | None) -> RemotePaths:
        return cloud_paths(self.settings, registry=registry)

    def plan(self, context: PlanContext) -> ExecutorPlan:
        """The request, and the problem that the job can't be launched."""
        config = self.settings
        problems = [Problem(self._refusal)]
        if context.mode == "local":
            problems.append(Problem(f"this profile's executor is {config.executor}: launch with --run or --batch."))
        secret = _SECRET.match(config.app_secret or "")
        problems += missing_secrets([*context.secrets, *([secret[1]] if secret else [])])
        try:
            request = request_of(config, context.run_id, context.job)
        except NemotronError as error:
            return ExecutorPlan(problems=(Problem(error.message, hint=error.hint), *problems))
        return ExecutorPlan(problems=tuple(problems), request=request)

    @abstractmethod
    def request(self, executor: Any, name: str) -> tuple[str, Mapping[str, Any]]:
        """(what the request is sent to, its body) of a job, by NeMo-Run's executor for it."""

    @property
    def _refusal(self) -> str:
        return (
            f"submitting to {self.settings.executor} has not been tested in this version, so it is refused: --dry-run "
            "shows the request that NeMo-Run would send."
        )

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise UserError(self._refusal)

    prepare = submit = observe_many = cancel = read_logs = _refuse

    def checks(self) -> Sequence[str]:
        return ("service", "secrets")


class SkyPilot(Cloud):
    """SkyPilot, which starts clusters on many clouds. It packs code by NeMo-Run's git packager only."""

    reads = EVERYWHERE | SENT | SHELL | {"cloud", "gpus", "cluster_name"}

    def nemo_run(self, run: Any, env: Mapping[str, str]) -> Any:
        config = self.settings
        kind, _, count = (config.gpus or "").partition(":")
        if count and not count.isdecimal():
            raise ProfileError(f"gpus: expected NAME or NAME:COUNT, got {config.gpus!r}.")
        return run.SkypilotExecutor(
            container_image=config.container_image,
            cloud=config.cloud,
            gpus=kind or None,
            gpus_per_node=int(count) if count else config.gpus_per_node,
            num_nodes=config.nodes or 1,
            cluster_name=config.cluster_name,
            setup="\n".join(shell_lines(config)) or None,
            torchrun_nproc_per_node=config.nproc_per_node,
            # SkyPilot's executor takes no other.
            packager=git_packager(run, config),
            env_vars=env,
            **(config.extra or {}),
        )

    def request(self, executor: Any, name: str) -> tuple[str, Mapping[str, Any]]:
        return "sky.launch of the task", executor.to_task(name, list(COMMAND)).to_yaml_config()


class Kubeflow(Cloud):
    """A TrainJob of the Kubeflow Trainer on a Kubernetes cluster."""

    def nemo_run(self, run: Any, env: Mapping[str, str]) -> Any:
        config = self.settings
        need(config, "container_image")
        return run.KubeflowExecutor(
            image=config.container_image,
            num_nodes=config.nodes or 1,
            nprocs_per_node=config.nproc_per_node,
            gpus_per_node=config.gpus_per_node,
            packager=build_packager(run, config),
            # As entries of the pod, not as env_vars: those go through a script that quotes nothing.
            env_list=[{"name": name, "value": value} for name, value in env.items()],
            **(config.extra or {}),
        )

    def request(self, executor: Any, name: str) -> tuple[str, Mapping[str, Any]]:
        body = executor.get_job_body(name, list(COMMAND))
        return f"POST /apis/{body['apiVersion']}/namespaces/{executor.namespace}/trainjobs", body


def _claim(item: str | dict[str, Any]) -> dict[str, Any]:
    """A volume claim: `claim:/path`, or a table in the form of DGX Cloud's API. Raises ProfileError."""
    if isinstance(item, dict):
        return item
    name, _, path = item.partition(":")
    if not (name and path.startswith("/")):
        raise ProfileError(f"pvcs: expected CLAIM:/PATH or a table, got {item!r}.")
    return {"claimName": name, "path": path, "existingPvc": True}


class DGXCloud(Cloud):
    """NVIDIA DGX Cloud, by the REST API of Run:ai. Needs `extra.kube_apiserver_url`."""

    reads = EVERYWHERE | SENT | {"base_url", "app_id", "app_secret", "project_name", "nemo_run_dir", "pvcs"}

    def nemo_run(self, run: Any, env: Mapping[str, str]) -> Any:
        config = self.settings
        needed = ("base_url", "app_id", "app_secret", "project_name", "container_image", "nemo_run_dir")
        need(config, *needed)
        extra = dict(config.extra or {})
        if "kube_apiserver_url" not in extra:
            raise ProfileError(
                'dgxcloud needs the address of its API server: extra = {kube_apiserver_url = "https://…"}.'
            )
        secret = _SECRET.match(config.app_secret or "")
        if secret and secret[1] not in os.environ:
            raise ProfileError(f"app_secret: the environment variable {secret[1]} is not set.")
        return run.DGXCloudExecutor(
            base_url=config.base_url,
            client_id=config.app_id,
            client_secret=os.environ[secret[1]] if secret else config.app_secret,
            project_name=config.project_name,
            container_image=config.container_image,
            pvc_nemo_run_dir=config.nemo_run_dir,
            nodes=config.nodes or 1,
            gpus_per_node=config.gpus_per_node or 0,
            nprocs_per_node=config.nproc_per_node or 1,
            pvcs=[_claim(item) for item in config.pvcs or ()],
            packager=build_packager(run, config),
            env_vars={name: shell_quoted(value) for name, value in env.items()},
            **extra,
        )

    def request(self, executor: Any, name: str) -> tuple[str, Mapping[str, Any]]:
        # The job's command is in the script that is copied into its folder.
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


class Lepton(Cloud):
    """NVIDIA DGX Cloud Lepton. `mounts` are PATH:MOUNT_PATH:STORAGE."""

    reads = EVERYWHERE | SENT | SHELL | {"mounts", "nemo_run_dir", "resource_shape", "node_group"}

    def nemo_run(self, run: Any, env: Mapping[str, str]) -> Any:
        config = self.settings
        need(config, "container_image", "nemo_run_dir")
        mounts = [mount.split(":", 2) for mount in config.mounts or ()]
        if any(len(parts) < 2 for parts in mounts):
            raise ProfileError(f"mounts: lepton takes PATH:MOUNT_PATH:STORAGE, got {config.mounts}.")
        return run.LeptonExecutor(
            container_image=config.container_image,
            nemo_run_dir=config.nemo_run_dir,
            nodes=config.nodes or 1,
            gpus_per_node=config.gpus_per_node or 0,
            nprocs_per_node=config.nproc_per_node or 1,
            resource_shape=config.resource_shape or "",
            node_group=config.node_group or "",
            mounts=[dict(zip(("path", "mount_path", "from"), parts, strict=False)) for parts in mounts],
            pre_launch_commands=shell_lines(config),
            packager=build_packager(run, config),
            env_vars=env,
            **(config.extra or {}),
        )

    def request(self, executor: Any, name: str) -> tuple[str, Mapping[str, Any]]:
        from leptonai.api.v1.types.affinity import LeptonResourceAffinity
        from leptonai.api.v1.types.common import Metadata
        from leptonai.api.v1.types.deployment import EnvValue, EnvVar, LeptonContainer, Mount, QueueConfig
        from leptonai.api.v1.types.job import LeptonJob, LeptonJobUserSpec, ReservationConfig

        if any("from" not in mount for mount in executor.mounts):
            raise ProfileError(
                "mounts: Lepton needs the storage, too: PATH:MOUNT_PATH:STORAGE.",
                hint="For example /data:/data:node-nfs:NAME.",
            )
        script = f"bash {executor.lepton_job_dir}/launch_script.sh"
        variables = [EnvVar(name=key, value=value) for key, value in executor.env_vars.items()]
        variables += [
            EnvVar(name=key, value_from=EnvValue(secret_name_ref=value)) for key, value in executor.secret_vars.items()
        ]
        queue = None
        if executor.can_be_preempted or executor.can_preempt:
            queue = QueueConfig(
                priority_class=executor.queue_priority or "mid-4000",
                can_be_preempted=executor.can_be_preempted or None,
                can_preempt=executor.can_preempt or None,
            )
        reservation = executor.node_reservation
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
            queue_config=queue,
            reservation_config=ReservationConfig(reservation_id=reservation) if reservation else None,
        )
        body = LeptonJob(spec=spec, metadata=Metadata(id=name)).model_dump(
            mode="json", by_alias=True, exclude_none=True
        )
        return f"POST /jobs of the workspace (node group {executor.node_group!r})", body
