"""A run's state in files: the model in transformers' format, AdamW's moments as safetensors, the rest as JSON."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemotron_kit.errors import UserError

if TYPE_CHECKING:
    import torch

MODEL = "model"
OPTIMIZER = "optimizer.safetensors"


@dataclass
class Progress:
    """How far a run has come; saved with each checkpoint.

    Random numbers need no place here: they, like the order of the data and the learning rate, are functions of the
    seed and the step.

    step: optimizer steps done. nll, steps_in_window: the loss collected since the last log line. elapsed: seconds of
    training, over all sittings. loss: the last logged training loss; valid_loss: the last held-out one. valid_on: what
    stands for the data that it was measured on. changes: what was other than before when the run was resumed ({step,
    name, there, here}), since checkpoint.may_differ allowed it.
    """

    step: int = 0
    nll: float = 0.0
    steps_in_window: int = 0
    elapsed: float = 0.0
    loss: float | None = None
    valid_loss: float | None = None
    valid_on: str | None = None
    changes: list[dict[str, Any]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def export_model(model: Any, folder: Path) -> None:
    """Write the model to `folder` in transformers' format (safetensors). OSError when the disk refuses."""
    use_cache, model.config.use_cache = model.config.use_cache, True  # the Trainer turns it off; it is for generation
    try:
        with _disk_errors():
            model.save_pretrained(folder)
    finally:
        model.config.use_cache = use_cache


def save_optimizer(optimizer: torch.optim.Optimizer, model: torch.nn.Module, path: Path) -> None:
    """Write every tensor of the optimizer's state, named `<entry>.<parameter>`. OSError when the disk refuses."""
    from safetensors.torch import save_file

    with _disk_errors():
        save_file(_named_state(optimizer, model), path)


def load_optimizer(optimizer: torch.optim.Optimizer, model: torch.nn.Module, path: Path) -> None:
    """Put back what `save_optimizer` wrote. UserError when the file doesn't belong to this model."""
    from safetensors.torch import load_file

    parameters = dict(model.named_parameters())
    saved = load_file(path)
    names = {key.partition(".")[2] for key in saved}
    if names != set(parameters):
        odd = sorted(names ^ set(parameters))[0]
        raise UserError(f"{path}: the optimizer's state doesn't fit the model ({odd} is on one side only).")
    for key, value in saved.items():
        entry, _, name = key.partition(".")
        # Fused AdamW, the one used here, keeps its step count beside the parameter too.
        optimizer.state[parameters[name]][entry] = value.to(parameters[name].device)


def _named_state(optimizer: torch.optim.Optimizer, model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {
        f"{entry}.{name}": value.contiguous()
        for name, parameter in model.named_parameters()
        for entry, value in optimizer.state[parameter].items()
    }


@contextlib.contextmanager
def _disk_errors() -> Iterator[None]:
    """safetensors reports a full disk as an error of its own: make it the OSError that it is."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        raise OSError(str(error)) from error
