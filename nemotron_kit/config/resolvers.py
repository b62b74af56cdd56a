"""OmegaConf resolvers of nemotron_kit: ${art:slot,field}, ${secret:NAME}, ${auto_mount:…}, ${nemotron.run_dir:}."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

from nemotron_kit.app import RESERVED_SLOTS
from nemotron_kit.artifacts.reference import Reference
from nemotron_kit.artifacts.registry import artifact_field, open_registry
from nemotron_kit.errors import UserError
from nemotron_kit.home import nemotron_home, new_run_id
from nemotron_kit.masking import note_used

if TYPE_CHECKING:
    from nemotron_kit.artifacts.reference import Pin


# The pins of the job that runs in this process, by slot. Other jobs read artifacts.json.
_pins: dict[str, Pin] = {}
_run_dir: list[str] = []
# The attribute of a root config that caches its resolved references (reference → Pin).
_FOUND = "_nemotron_artifacts"


def register_resolvers() -> None:
    """Register these resolvers with OmegaConf. Calling it again changes nothing."""
    from omegaconf import OmegaConf

    resolvers: dict[str, Callable[..., Any]] = {
        "art": resolve_artifact,
        "secret": resolve_secret,
        "auto_mount": resolve_auto_mount,
        "nemotron.run_dir": run_dir,
    }
    for name, resolver in resolvers.items():
        OmegaConf.register_new_resolver(name, resolver, replace=True)


@contextmanager
def registered(resolvers: Mapping[str, Callable[..., Any]]) -> Iterator[None]:
    """Within the block OmegaConf has these resolvers, in place of others with their names."""
    import omegaconf

    known = vars(omegaconf)["basecontainer"].BaseContainer._resolvers
    before = {name: known.get(name) for name in resolvers}
    for name, resolver in resolvers.items():
        omegaconf.OmegaConf.register_new_resolver(name, resolver, replace=True)
    try:
        yield
    finally:
        for name, resolver in before.items():
            if resolver is None:
                del known[name]
            else:
                known[name] = resolver


def multiplying() -> AbstractContextManager[None]:
    """Within the block, ${mul:A,B} of NeMo-RL's configs is the product. No longer: programs and recipes register a
    resolver of that name themselves, and OmegaConf refuses a second one."""
    from omegaconf import OmegaConf

    return registered({} if OmegaConf.has_resolver("mul") else {"mul": lambda one, other: one * other})


def set_run_dir(folder: str) -> None:
    """Set the value of ${nemotron.run_dir:} in this process: the folder of the launch."""
    _run_dir[:] = [folder]


def run_dir() -> str:
    """The folder of this launch; a new one where the process was not started by a launch."""
    if not _run_dir:
        _run_dir.append(str(nemotron_home() / "runs" / new_run_id("hydra", "app")))
    return _run_dir[0]


@contextmanager
def pinned(pins: dict[str, Pin]) -> Iterator[None]:
    """Within the block, ${art:slot} means exactly these versions."""
    before = dict(_pins)
    _pins.clear()
    _pins.update(pins)
    try:
        yield
    finally:
        _pins.clear()
        _pins.update(before)


def resolve_artifact(slot: str, field: str = "path", *, _parent_: Any, _root_: Any) -> Any:
    """`${art:slot,field}`: the pin of this job if there is one, else the reference that the nearest `run` section has
    for the slot, resolved in the registry once for each config."""
    from nemotron_kit.artifacts.lineage import job_inputs, record_input

    key, reference, run = _asked(str(slot), _parent_)
    # Each rank of a job reads the same artifacts.json, which the launch wrote.
    pin = _pins.get(key) or job_inputs().get(key)
    if pin is None:
        if reference is None:
            reference = _by_name(str(slot), run)
        # A reference is resolved once for each config, whatever is saved meanwhile.
        found: dict[str, Pin] = _root_.__dict__.setdefault(_FOUND, {}) if _root_ is not None else {}
        text = str(reference)
        pin = found.get(text) or found.setdefault(text, open_registry().resolve(Reference.parse(text)))
    record_input(pin)
    return artifact_field(pin, str(field))


def resolve_secret(name: str) -> str:
    """`${secret:NAME}`: the environment variable, which only the job itself reads."""
    value = os.environ.get(name)
    if value is None:
        raise UserError(f"${{secret:{name}}}: {name} is not in the environment.", hint=f"export {name}=…")
    note_used(name)
    return value


def resolve_auto_mount(spec: str, target: str = "") -> str:
    """Keep `${auto_mount:git+URL@REF,TARGET}` unchanged: the plan of a job that has mounts reads it."""
    return f"auto_mount:{spec},{target}" if target else f"auto_mount:{spec}"


def _asked(slot: str, parent: Any) -> tuple[str, Any, Any]:
    """(the input's name in a job's record, its reference or None, the `run` section that has it).

    A command's config that another program has put under another key (`pretrain.run.data`) keeps its own inputs.
    """
    section: Any = parent
    run: Any = None
    while section is not None:
        found: Any = section._get_node("run", validate_access=False) if hasattr(section, "keys") else None
        if hasattr(found, "keys"):
            run = found
            if slot in run and run[slot] is not None:
                key = run._get_full_key(slot)
                return (slot if key == f"run.{slot}" else key), run[slot], run
        section = section._get_parent()
    return slot, None, run


def _by_name(slot: str, run: Any) -> str:
    """The reference for a slot that the config does not set: the slot itself, if it is the name of a registered
    artifact. Raises UserError otherwise."""
    if slot.partition(":")[0] in open_registry().names():
        return slot
    known = [k for k in (run or {}) if k not in RESERVED_SLOTS]
    raise UserError(
        f"${{art:{slot}}}: run.{slot} is not set.",
        hint=f"Set run.{slot}=Name:version, or --art.{slot}" + (f"; there is: {', '.join(known)}." if known else "."),
    )
