"""Low-rank adapters (LoRA: Hu et al., arXiv 2106.09685) on a model's linear layers: the weights are frozen, the
adapters trained.

An adapter is a parametrization of its layer's weight: all code that reads the weight, including fused kernels, gets W +
scale·B·A. So the merged model, which is saved, computes exactly what was trained.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemotron_kit.errors import UserError
from nemotron_kit.training.checkpoint import disk_errors
from nemotron_kit.training.parallel import seed_of

if TYPE_CHECKING:
    import torch

    from nemotron_kit.training.sft_config import PeftConfig

ADAPTERS = "adapters.safetensors"


def add_adapters(model: torch.nn.Module, config: PeftConfig, seed: int) -> int:
    """Freeze the model and add an adapter to each linear layer that the config names; returns their number. B is 0, so
    the model's output is unchanged at first; A depends on the seed and the layer's name only. Raises UserError if no
    layer has such a name."""
    import torch
    from torch.nn.utils import parametrize

    class Adapter(torch.nn.Module):  # type: ignore[misc,unused-ignore]
        def __init__(self, a: torch.Tensor, b: torch.Tensor, scale: float) -> None:
            super().__init__()
            self.a, self.b, self.scale = torch.nn.Parameter(a), torch.nn.Parameter(b), scale

        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return torch.addmm(weight, self.b, self.a, alpha=self.scale)

    model.requires_grad_(False)
    layers = [
        (name, layer)
        for name, layer in model.named_modules()
        if isinstance(layer, torch.nn.Linear) and name.rpartition(".")[2] in config.target_modules
    ]
    for name, layer in layers:
        generator = torch.Generator().manual_seed(seed_of(seed, name))
        rows, columns = layer.weight.shape
        a = (torch.rand((config.dim, columns), generator=generator) * 2 - 1) * (3 / columns) ** 0.5
        b = torch.zeros((rows, config.dim))
        adapter = Adapter(a.to(layer.weight), b.to(layer.weight), config.alpha / config.dim)
        parametrize.register_parametrization(layer, "weight", adapter)
    if not layers:
        linear = {name.rpartition(".")[2] for name, each in model.named_modules() if isinstance(each, torch.nn.Linear)}
        raise UserError(
            f"peft.target_modules: the model has no linear layer named {', '.join(config.target_modules)}.",
            hint=f"It has {', '.join(sorted(linear))}.",
        )
    return len(layers)


def save_adapters(model: torch.nn.Module, path: Path) -> None:
    """Write the adapters, which are all that is trained, by the names of their layers. Raises OSError if the disk
    refuses."""
    from safetensors.torch import save_file

    with disk_errors():
        save_file({name: value.detach().contiguous() for name, value in _adapters(model).items()}, path)


def load_adapters(model: torch.nn.Module, path: Path) -> None:
    """Load what `save_adapters` wrote. Raises UserError if the file holds other adapters."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    here = _adapters(model)
    try:
        saved = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: the adapters can't be read: {error}") from error
    if {name: value.shape for name, value in saved.items()} != {name: value.shape for name, value in here.items()}:
        odd = sorted(set(saved) ^ set(here)) or sorted(name for name in here if saved[name].shape != here[name].shape)
        raise UserError(f"{path}: these adapters don't fit the model ({odd[0]}).")
    with torch.no_grad():
        for name, value in saved.items():
            here[name].copy_(value)


def merge_adapters(model: torch.nn.Module) -> None:
    """Add the adapters to the weights and remove the parametrizations: the model is an ordinary one again."""
    from torch.nn.utils import parametrize

    for layer in list(model.modules()):
        if parametrize.is_parametrized(layer, "weight"):
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)


def _adapters(model: torch.nn.Module) -> dict[str, Any]:
    return {name: value for name, value in model.named_parameters() if value.requires_grad}
