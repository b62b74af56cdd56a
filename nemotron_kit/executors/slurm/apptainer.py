"""Jobs in a container of Apptainer (`container_runtime = "apptainer"`): the command that starts one on each node, what
the script needs for it, and which settings it does not support."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence

from nemotron_kit.errors import Problem
from nemotron_kit.quoting import shell_word
from nemotron_kit.spec.resources import gpus_of
from nemotron_kit.spec.runconfig import RunConfig, env_dict

APPTAINER = "apptainer"
_ADDRESSES = ("docker://", "oras://", "library://")
_SUFFIX = ".sif"
# Apptainer's own settings (APPTAINER_CACHEDIR, APPTAINER_TMPDIR, …), also under its earlier name.
_SETTINGS = ("APPTAINER_", "SINGULARITY_")


def runs_in(config: RunConfig) -> bool:
    """Whether a job of this profile runs in a container of Apptainer."""
    return config.container_runtime == APPTAINER and config.container_image is not None


def is_address(image: str) -> bool:
    """Whether the image is an address, from which it is pulled, and not a file or a folder."""
    return image.startswith(_ADDRESSES)


def exec_arguments(config: RunConfig, folder: str, folders: Sequence[str] = ()) -> list[str]:
    """`apptainer exec … IMAGE`, the arguments in front of a command that is to run in `folder` of the container.

    `folders` and /tmp are mounted at the same paths, whatever the site's apptainer.conf mounts: the image itself is
    read-only. TMPDIR may name a folder that the container lacks. Without PYTHONNOUSERSITE the image's Python
    would load packages of the home folder, which were installed for another one.
    """
    image = str(config.container_image)
    mounts = [*(config.mounts or ()), *dict.fromkeys(("/tmp", *folders))]  # noqa: S108 — in the container
    arguments = [str(argument) for argument in (config.extra or {}).get("apptainer_args") or ()]
    # With GPUs the container gets the driver's libraries and devices.
    gpus = config.gpus_per_node or config.gpus_per_task or config.cpus_per_gpu or config.mem_per_gpu
    if config.gpus_per_node is None:
        gpus = gpus or gpus_of(config.gres)
    return [
        *(APPTAINER, "exec"),
        *(["--nv"] if gpus else []),
        *(f"--bind={mount}" for mount in mounts),
        f"--pwd={folder}",
        *("--env=PYTHONNOUSERSITE=1", "--env=TMPDIR=/tmp"),
        *arguments,
        image,
    ]


def setting_lines(config: RunConfig) -> list[str]:
    """The shell lines that set Apptainer's own settings among the profile's variables: the job's are set inside the
    container, where they come too late for it."""
    own = {name: value for name, value in env_dict(config).items() if name.startswith(_SETTINGS)}
    return [f"export {name}={shell_word(value)}" for name, value in own.items()]


def script_lines(config: RunConfig, nodes: int, command: Sequence[str] = ()) -> list[str]:
    """The lines of a batch script in front of the job, whose nodes each run `command`.

    A secret of the launch overrides the image's variable of that name; its value is neither in the script nor in the
    trace. An image that has to be pulled is pulled once, into Apptainer's cache, and not by all nodes at a time: by
    the job's Python, which the image must have, as it need not have anything else.
    """
    names = [*(config.secrets or ()), *((config.extra or {}).get("container_env") or ())]
    names = [name for name in names if not name.startswith(_SETTINGS)]
    lines = ["{ set +vx; } 2>/dev/null", *setting_lines(config)]
    lines += [f'[ -z "${{{name}+x}}" ] || export APPTAINERENV_{name}="${name}"' for name in names]
    missing = f"{APPTAINER} (not on the PATH; load its module: modules = [...] in the profile)"
    lines.append(f"command -v {APPTAINER} >/dev/null || nemotron_stop 127 {shlex.quote(missing)}")
    image = str(config.container_image)
    if nodes > 1 and is_address(image) and image in command:
        python = command.index(image) + 1
        what = f"{APPTAINER} exec {image} {command[python]}"
        lines.append(f"{' '.join(command[: python + 1])} -c '' || nemotron_stop \"$?\" {shlex.quote(what)}")
    return [*lines, "set -vx"]


def problems_of(config: RunConfig) -> Iterator[Problem]:
    """The problems of the profile's container with the runtime that it names, Apptainer or Pyxis."""
    image, extra = config.container_image, config.extra or {}
    if config.container_runtime != APPTAINER:
        hint = 'In the profile: container_runtime = "apptainer".'
        if image and (image.endswith(_SUFFIX) or image.startswith(("oras://", "library://"))):
            yield Problem("Pyxis does not run images of Apptainer's.", field=f"container_image={image}", hint=hint)
        if extra.get("apptainer_args"):
            yield Problem("has an effect on a container of Apptainer only.", field="extra.apptainer_args", hint=hint)
        return
    if not image:
        return
    if "#" in image:
        likely = f"docker://{image.replace('#', '/', 1)}"
        yield Problem(
            "Apptainer does not take a registry in Pyxis' form.",
            field=f"container_image={image}",
            hint=f"Write {likely}.",
        )
    elif not (image.startswith("/") or is_address(image)):
        how = f"An absolute path of a .sif file or of a folder, or docker://{image}."
        yield Problem("Apptainer would take it for a relative path.", field=f"container_image={image}", hint=how)
    elif image.endswith(".sqsh"):
        how = f"apptainer build {image.removesuffix('.sqsh')}.sif docker://…"
        yield Problem(
            "an image in enroot's format, which only Pyxis runs.",
            field=f"container_image={image}",
            hint=f"Make one: {how}",
        )
    for mount in config.mounts or ():
        source, _, rest = mount.partition(":")
        options = rest.partition(":")[2]
        # Apptainer takes a comma for the end of one mount and the begin of another.
        if not source.startswith("/") or "," in mount or (options and options not in ("ro", "rw")):
            form = "/FOLDER, /FOLDER:/INSIDE or /FOLDER:/INSIDE:ro, without a comma."
            yield Problem("not in the form of Apptainer's mounts.", field=f"mounts={mount}", hint=f"Write {form}")
    for argument in [str(argument) for argument in extra.get("srun_args") or ()]:
        if argument.startswith("--container-"):
            yield Problem(
                "an option of Pyxis', which Apptainer does not use.",
                field=f"extra.srun_args={argument}",
                hint="Use extra.apptainer_args.",
            )
