"""Runs one job of another @hydra.main app, in a separate process: `python -m … <job folder>`, started by the worker.

The composed config comes from the launch and is not composed again: later edits of its files change nothing. What the
task function returned or raised is written as a TaskResult.
"""

from __future__ import annotations

import os
import runpy
import sys
import zipfile
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from typing import Any

from nemotron_kit.errors import text_of
from nemotron_kit.masking import mask_logging, note_secrets
from nemotron_kit.spec.plan import is_local, rank, read_spec
from nemotron_kit.worker import python_module
from nemotron_kit.worker.hydra import without_files
from nemotron_kit.worker.payload import IMPORTED, PROGRAM, JobPayload, name_of, read_payload, task_of
from nemotron_kit.worker.process import exit_code, leave_fork, run_file
from nemotron_kit.worker.result import Failure, TaskResult, sendable
from nemotron_kit.worker.streams import masked_streams

# The variable by which a job's process tells itself that it has the payload's interpreter options.
_OPTIONS_SET = "NEMOTRON_OPTIONS_SET"


def main(argv: list[str] | None = None) -> int:
    """Run the job whose folder is named; the exit code that its task asked for."""
    (folder,) = map(Path, sys.argv[1:] if argv is None else argv)
    payload = read_payload(folder)
    if argv is None and payload.options and _OPTIONS_SET not in os.environ:
        os.environ[_OPTIONS_SET] = "1"
        job = python_module(__spec__.name, str(folder))
        os.execv(sys.executable, [job[0], *payload.options, *job[1:]])  # noqa: S606
    os.environ.pop(_OPTIONS_SET, None)
    note_secrets(read_spec(folder).secrets)
    masked_streams()
    sys.argv = list(payload.argv)
    # First the folders of the launch, then those of this environment.
    sys.path[:] = [*payload.sys_path, *(entry for entry in sys.path if entry not in payload.sys_path)]
    run = TaskRun(payload, folder)
    try:
        payload.check_versions()
        payload.check_literals()
        if payload.kind == PROGRAM:
            _run_program(payload, run)
        else:
            task = None
            if payload.kind == IMPORTED:
                module, _, name = payload.function.partition(":")
                task = task_of(attrgetter(name)(import_module(module)))
            run(task)
    # A program may raise anything before it reaches its task function, too.
    except Exception as error:  # noqa: BLE001
        run.end(_failed(error))
    if run.task_result is None:
        text = f"{payload.program} ended without reaching its task function {payload.function}."
        print(f"error: {text}", file=sys.stderr)  # noqa: T201
        run.end(TaskResult(1, failure=Failure("nemotron_kit.NeverArrived", text)))
    return run.task_result.code if run.task_result else 1


class TaskRun:
    """Runs the task function once and writes its TaskResult. It is called with the function (None: the one in the
    payload).
    """

    def __init__(self, payload: JobPayload, folder: Path) -> None:
        self.payload, self.folder = payload, folder
        self.task_result: TaskResult | None = None
        self._process = os.getpid()

    def __call__(self, task: Callable[..., Any] | None) -> None:
        """Call Hydra's run_job with the config that the launch composed."""
        from hydra.core.singleton import Singleton
        from hydra.core.utils import setup_globals
        from omegaconf import OmegaConf, open_dict
        from omegaconf.basecontainer import BaseContainer

        loaded = self.payload.load()
        # Hydra's singletons as the launch had them. Singleton.set_state would scan all plugins for every job.
        Singleton._instances = loaded["state"]["instances"]
        BaseContainer._resolvers.update(loaded["state"].get("omegaconf_resolvers", {}))
        # What Hydra's scan of its plugins would have registered.
        import_module("hydra_plugins.nemotron_kit_launcher.recipes_source")
        setup_globals()
        config: Any = loaded["config"]
        with open_dict(config):
            config.hydra.job.id = job_id(config.hydra.job.num)
            if rank() != 0:
                config.hydra.output_subdir = None
                job_logging: Any = OmegaConf.to_container(config.hydra.job_logging, resolve=False)
                config.hydra.job_logging = without_files(job_logging or {})
        try:
            self.end(_run(task or loaded["task"], config, loaded["callbacks"], self.payload.put_literals))
        except SystemExit as error:  # run_job lets it pass
            self.end(_exit(error, config))
        except KeyboardInterrupt:
            self.end(TaskResult(130, failure=Failure("builtins.KeyboardInterrupt", "interrupted")))
        except Exception:
            raise
        except BaseException as error:  # noqa: BLE001 — run_job lets it pass, too
            self.end(_failed(error))

    def end(self, task_result: TaskResult) -> None:
        """Store the result. Only the first one counts, and only rank 0 writes it. A child that the task forked ends
        here."""
        if os.getpid() != self._process:
            leave_fork(task_result.code)
        if self.task_result is None:
            self.task_result = task_result
            if rank() == 0:
                task_result.write(self.folder, scheduled=not is_local(os.environ.get("NEMOTRON_EXECUTOR")))


def _run_program(payload: JobPayload, run: TaskRun) -> None:
    """Run the program from its first line until it reaches the task function; nothing after that is executed."""
    import hydra  # noqa: F401 — hydra.main below is the module, not the function

    launched_from, earlier = Path.cwd(), payload.earlier

    def reached(*args: Any, task_function: Callable[..., Any], **kwargs: Any) -> None:
        nonlocal earlier
        # A program may have several @hydra.main functions, or run one of them several times: this job is of one.
        if name_of(task_function) != payload.function:
            return
        if earlier:
            earlier -= 1
            return
        os.chdir(launched_from)
        run(task_function)
        raise SystemExit(run.task_result.code if run.task_result else 1)

    sys.modules["hydra.main"]._run_hydra = reached  # type: ignore[attr-defined]
    program = str(payload.program)
    if payload.started_in and os.path.isdir(payload.started_in):  # noqa: PTH112
        os.chdir(payload.started_in)
    # How the task ends is in its TaskResult; a program that ends without one has not reached its task.
    with suppress(SystemExit):
        if payload.module:
            runpy.run_module(program, run_name="__main__", alter_sys=True)
        elif os.path.isfile(program) and not zipfile.is_zipfile(program):  # noqa: PTH113
            run_file(program)
        else:
            runpy.run_path(payload.argv[0] if Path(payload.argv[0]).exists() else program, run_name="__main__")


def job_id(number: int) -> str:
    """`hydra.job.id`: Slurm's id of a job that runs there, else `job_<number>`. SLURM_JOB_ID alone does not tell them
    apart: a local job that was launched inside a Slurm job has it, too."""
    if os.environ.get("NEMOTRON_EXECUTOR") != "slurm":
        return f"job_{number}"
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID", f"job_{number}")


def _run(task: Callable[..., Any], config: Any, callbacks: Any, complete: Callable[[Any], None]) -> TaskResult:
    from hydra.core.utils import JobStatus, run_job
    from hydra.types import HydraContext

    context: Any = HydraContext(config_loader=None, callbacks=callbacks)  # run_job reads only the callbacks

    @wraps(task)
    def with_masked_log(task_config: Any) -> Any:
        mask_logging()  # run_job has configured it by now
        complete(task_config)
        return task(task_config)

    done = run_job(
        task_function=with_masked_log,
        config=config,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
        hydra_context=context,
    )
    where: dict[str, Any] = {
        "working_dir": str(Path(done.working_dir or ".").absolute()),
        "output_dir": str(config.hydra.runtime.output_dir),
        "job_id": str(config.hydra.job.id),
    }
    if done.status is JobStatus.COMPLETED:
        return TaskResult(**sendable(done._return_value), **where)
    return _failed(done._return_value, **where)


def _failed(error: BaseException, **where: Any) -> TaskResult:
    """The result of a task that raised, with its traceback printed."""
    failure = Failure.of(error)
    print(failure.traceback, file=sys.stderr, end="")  # noqa: T201
    return TaskResult(1, failure=failure, **where)


def _exit(error: SystemExit, config: Any) -> TaskResult:
    """The result of `sys.exit(…)` in a task; its argument means what it means to Python."""
    code = error.code
    if code is not None and not isinstance(code, int):
        print(text_of(code), file=sys.stderr)  # noqa: T201
    number = code if isinstance(code, int) else 0 if code is None else 1
    output = config.hydra.runtime.get("output_dir")
    failure = None if number == 0 else Failure("builtins.SystemExit", f"SystemExit: {text_of(code)}")
    return TaskResult(exit_code(number), failure=failure, output_dir=output, working_dir=output)


if __name__ == "__main__":
    sys.exit(main())
