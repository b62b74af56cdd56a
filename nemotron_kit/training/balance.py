"""Expert balancing without an auxiliary loss: a bias per expert, nudged towards equal load after each step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nemotron_kit.training.ranks import sum_over_ranks

if TYPE_CHECKING:
    import torch


class ExpertBalance:
    """Watches the routers of a model and moves their `e_score_correction_bias`.

    `update()` after an optimizer step adds `rate` to the bias of every expert that got fewer tokens than the average
    since the last update, over all ranks, and takes `rate` from those that got more. The bias decides who is chosen,
    never how much a chosen expert counts, so no gradient is disturbed. Tokens seen in eval mode don't count.
    """

    def __init__(self, model: torch.nn.Module, rate: float) -> None:
        self.rate = rate
        self.loads: list[tuple[torch.nn.Module, torch.Tensor]] = []
        if rate:
            for module in model.modules():
                if hasattr(module, "e_score_correction_bias"):
                    self._watch(module)

    def _watch(self, router: Any) -> None:
        import torch

        load = torch.zeros_like(router.e_score_correction_bias, dtype=torch.int64)

        def count(module: Any, _inputs: Any, outputs: Any) -> None:
            if module.training:
                load.add_(torch.bincount(outputs[2].flatten(), minlength=len(load)))

        router.register_forward_hook(count)
        self.loads.append((router, load))

    def update(self) -> None:
        """Move every bias by one step of size `rate`, and count anew."""
        import torch

        if not self.loads:
            return
        # One reduction for all layers: they have the same number of experts.
        loads = sum_over_ranks(torch.stack([load for _, load in self.loads])).double()
        moves = torch.sign(loads.mean(dim=1, keepdim=True) - loads) * self.rate
        for (router, load), move in zip(self.loads, moves, strict=True):
            router.e_score_correction_bias.add_(move.to(router.e_score_correction_bias))
            load.zero_()
