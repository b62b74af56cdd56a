"""transformers' Trainer, held to its documented doors: two overridden methods and one callback."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from nemotron_kit.training.batches import Batches
from nemotron_kit.training.ranks import world_size

if TYPE_CHECKING:
    import torch
    from transformers import Trainer, TrainingArguments


class Hooks(Protocol):
    """What a run does around its steps. Steps count from 1, over the whole run and not since the last resume."""

    first_step: int

    def before_step(self, step: int) -> None: ...

    def add_loss(self, nll: torch.Tensor) -> None:
        """A micro-batch's summed negative log likelihood, detached."""

    def after_step(self, step: int) -> bool:
        """Whether something is due now: then `report` is called."""

    def report(self, step: int, grad_norm: float | None) -> bool:
        """Do what is due; whether to stop."""


def build_trainer(
    model: torch.nn.Module,
    args: TrainingArguments,
    optimizers: tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR],
    batches: Batches,
    hooks: Hooks,
) -> Trainer:
    """A Trainer that takes its micro-batches from `batches` and does nothing between steps but call `hooks`."""
    from transformers import Trainer
    from transformers.trainer_callback import PrinterCallback

    class PretrainTrainer(Trainer):  # type: ignore[misc,unused-ignore]
        loss_is_scaled_for_ga = True

        def get_train_dataloader(self) -> Batches:
            return batches

        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
            nll = summed_nll(model(input_ids=inputs["input_ids"]).logits, inputs["labels"])
            hooks.add_loss(nll.detach())
            # DDP averages gradients over the ranks; what is wanted is the mean over the tokens of the global batch.
            return nll * (world_size() / batches.tokens_per_step)

    trainer = PretrainTrainer(model, args, optimizers=optimizers, callbacks=[_callback(hooks)])
    trainer.remove_callback(PrinterCallback)
    return trainer


def summed_nll(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The sum over all tokens of −log p(label), a scalar; logits [..., vocabulary], labels [...] already shifted."""
    from torch.nn.functional import cross_entropy

    return cross_entropy(logits.flatten(0, -2).float(), labels.flatten(), reduction="sum")


def _callback(hooks: Hooks) -> Any:
    from transformers import TrainerCallback

    class StepCallback(TrainerCallback):  # type: ignore[misc,unused-ignore]
        reported = 0

        def on_step_begin(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
            hooks.before_step(hooks.first_step + state.global_step)

        def on_step_end(self, _args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_log = hooks.after_step(hooks.first_step + state.global_step - 1)

        # The Trainer knows the gradients' norm only when it logs, so what is due is done then.
        def on_log(self, _args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if state.global_step > self.reported:  # the Trainer logs once more when all is over
                self.reported = state.global_step
                stop = hooks.report(hooks.first_step + state.global_step - 1, (logs or {}).get("grad_norm"))
                control.should_training_stop = control.should_training_stop or stop

    return StepCallback()
