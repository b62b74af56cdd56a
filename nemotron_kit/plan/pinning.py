"""Which registry a launch asks for its inputs: the one where the job will run, and each reference once a launch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from nemotron_kit.config.freeze import slots_used
from nemotron_kit.errors import NemotronError, UserError
from nemotron_kit.plan.inputs import Asked, LookUp
from nemotron_kit.plan.paths import Place
from nemotron_kit.plan.placing import Placed, Reach

if TYPE_CHECKING:
    from nemotron_kit.artifacts.pin import Pin

# One launch is one answer: all jobs of a sweep see the same version, whatever is saved meanwhile.
_launch: list[str] = []
_answers: dict[tuple[str, str, str | None], Pin | NemotronError | None] = {}


def look_up_for(placed: Placed, run_id: str, reach: Reach | None) -> LookUp | None:
    """What asks the registry of `placed`; None when it is on another machine and `reach` is None (a dry-run)."""
    if placed.place.apart and reach is None:
        return None
    if _launch != [run_id]:
        _launch[:] = [run_id]
        _answers.clear()

    def look_up(asked: Asked) -> Mapping[str, Pin | NemotronError | None]:
        root = placed.place.artifacts
        new = {slot: pair for slot, pair in asked.items() if (root, *pair) not in _answers}
        if new:
            found = _there(placed, new, reach) if placed.place.apart and reach else _here(placed.place, new)
            _answers.update({(root, *asked[slot]): answer for slot, answer in found.items()})
        return {slot: _answers[root, *pair] for slot, pair in asked.items()}

    return look_up


def pin_slots(config: Mapping[str, Any], placed: Placed, run_id: str, reach: Reach | None) -> dict[str, Pin]:
    """The pins of a config of somebody else's program: of what `${art:slot}` refers to through `run.<slot>`.

    Raises UserError for an artifact that is not there.
    """
    run: Any = config.get("run")
    used = sorted(slots_used(config) & set(run)) if isinstance(run, Mapping) else []
    asked = {slot: (str(run[slot]), None) for slot in used if isinstance(run[slot], str) and "${" not in run[slot]}
    look_up = look_up_for(placed, run_id, reach)
    found = look_up(asked) if look_up and asked else {}
    for slot, pin in found.items():
        if isinstance(pin, NemotronError):
            raise UserError(f"run.{slot}: {pin.message}", hint=pin.hint)
    return {slot: pin for slot, pin in found.items() if pin is not None and not isinstance(pin, NemotronError)}


def _here(place: Place, asked: Asked) -> dict[str, Pin | NemotronError | None]:
    from nemotron_kit.artifacts.override import parse_override
    from nemotron_kit.artifacts.registry import open_registry

    registry = open_registry(place.artifacts)
    found: dict[str, Pin | NemotronError | None] = {}
    for slot, (text, default) in asked.items():
        try:
            found[slot] = registry.resolve(parse_override(text, default, aliases=registry.aliases))
        except NemotronError as error:
            found[slot] = error
    return found


def _there(placed: Placed, asked: Asked, reach: Reach) -> dict[str, Pin | NemotronError | None]:
    from nemotron_kit.artifacts.pin import Pin
    from nemotron_kit.target.agent import error_from_dict

    place = placed.place
    for slot, (text, _) in asked.items():
        if text.startswith("."):
            raise UserError(
                f"{slot}: {text} is a path on this machine, but the job runs on {place.host}.",
                hint=f"Name an artifact of its registry ({place.artifacts}), or an absolute path there.",
            )
    answers, _ = reach({**vars(placed.settings)}).call(
        "resolve", root=place.artifacts, references={slot: list(pair) for slot, pair in asked.items()}
    )
    found: dict[str, Pin | NemotronError | None] = {}
    for slot, answer in answers.items():
        if "pin" in answer:
            found[slot] = Pin.from_dict(answer["pin"])
        else:
            error: Any = error_from_dict(answer["error"])
            found[slot] = NemotronError(f"on {place.host}: {error.message}", hint=error.hint)
    return found
