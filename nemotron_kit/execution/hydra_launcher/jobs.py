"""The jobs of one sweep: planned one after another, recorded, and run where their profile says."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence

from nemotron_kit.errors import UserError
from nemotron_kit.execution.hydra_launcher.answer import read_answer
from nemotron_kit.execution.hydra_launcher.elsewhere import run_elsewhere
from nemotron_kit.execution.hydra_launcher.local import Carried
from nemotron_kit.execution.hydra_launcher.point import Point
from nemotron_kit.execution.hydra_launcher.queue import SweepQueue
from nemotron_kit.execution.hydra_launcher.record import JobWriter, write_plan
from nemotron_kit.execution.hydra_launcher.settings import Settings, carried_by
from nemotron_kit.execution.launch import refuse_problems
from nemotron_kit.execution.signals import Terminated, term_raises
from nemotron_kit.runs.folder import RunFolder
from nemotron_kit.runs.job import JobFolder

log = logging.getLogger("nemotron_kit.launcher")

Made = tuple[Point, JobFolder]


class Jobs:
    """One record, however many batches of jobs are asked for."""

    def __init__(self, run: RunFolder, settings: Settings, hydra: Sequence[str], *, ours: bool) -> None:
        """`hydra` is the sweep's command line in Hydra's words. `ours`: the kit's own command line launches it, which
        removes the record of a sweep that could not be planned, and says how to follow a detached one."""
        self.run, self.settings, self._hydra, self._ours = run, settings, hydra, ours
        self._kind = carried_by(settings)
        self._carried: Carried | None = None

    def carry_out(self, points: Iterable[Point], count: int) -> list[Made]:
        """Run so many jobs to their ends, or submit them and leave them alone, as the first one's plan says. A plan
        with problems stops all of them."""
        try:
            with term_raises():
                made = self._planned(points, count)
                self._launch(made)
                return made
        except Terminated:
            raise SystemExit(128 + 15) from None
        except BaseException:
            self._drop_if_empty()
            raise

    def detached(self, point: Point) -> bool:
        """Whether such a job is left alone once it is submitted."""
        return self.settings.detach or point.plan.mode == "batch"

    def carrier(self, detached: bool = False) -> Carried:
        """What starts the jobs of this machine. It imports NeMo-Run while the jobs are composed here."""
        if detached:
            self.close()
            return Carried(self.run, self._kind, detached=True)
        if self._carried is None:
            self._carried = Carried(self.run, self._kind)
        return self._carried

    def close(self) -> None:
        """End what this sweep still has running here."""
        if self._carried is not None:
            self._carried.stop()
            self._carried = None

    def _planned(self, points: Iterable[Point], count: int) -> list[Made]:
        """The jobs and their folders. Nothing is left of them when one of them can't be."""
        executor = None
        with JobWriter(self.run, count) as writer:
            for point in points:
                refuse_problems(point.plan)
                if executor is None:
                    executor, detached = point.plan.executor, self.detached(point)
                    write_plan(self.run, point, self._hydra)
                if point.plan.executor != executor:
                    raise UserError(f"One sweep goes to one executor: not to {executor} and {point.plan.executor}.")
                writer.add(point, attached=executor == "local" and not detached)
            return writer.done()

    def _launch(self, made: Sequence[Made]) -> None:
        first = made[0][0]
        plan, detached = first.plan, self.detached(first)
        labels = {point.plan.job: point.label for point, _ in made}
        if plan.executor == "local":
            self._run_here(first, labels, detached)
        else:
            log.info("%s: launching %d jobs on %s (%s)", self.run.id, len(made), plan.profile, plan.executor)
            ended = None if detached else lambda job: _tell(job, labels)
            SweepQueue(self.run).add(list(labels))
            run_elsewhere(self.run, [job for _, job in made], ended)
        if detached and not self._ours:
            log.info("%s goes on: nemotron runs attach %s; to stop it: nemotron runs cancel %s", *[self.run.id] * 3)

    def _run_here(self, first: Point, labels: Mapping[int, str], detached: bool) -> None:
        asked = first.plan.settings.get("max_parallel") or self.settings.max_parallel or os.cpu_count() or 1
        parallel = max(1, min(len(labels), int(asked)))
        through = "NeMo-Run" if self._kind == "nemo_run" else "processes of this machine"
        log.info("%s: launching %d jobs through %s, %d at a time", self.run.id, len(labels), through, parallel)
        carrier = self.carrier(detached)
        carrier.submit(list(labels), parallel)
        if detached:
            carrier.leave()
        else:
            carrier.wait(list(labels), lambda job: _tell(job, labels))

    def _drop_if_empty(self) -> None:
        """A sweep that could not be planned leaves no record."""
        if not self.run.jobs():
            self.close()
            if not self._ours:
                shutil.rmtree(self.run.path, ignore_errors=True)


def _tell(job: JobFolder, labels: Mapping[int, str]) -> None:
    state = job.state()
    text = f"\t#{job.number} {state.state}: {labels[job.number]}"
    if state.state == "succeeded":
        log.info(text)
    else:
        answer = read_answer(job)
        why = answer.failure.text if answer and answer.failure else state.error
        log.warning("%s (%s)", text, why or state.state)
