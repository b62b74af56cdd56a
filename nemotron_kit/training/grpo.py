"""GRPO (Shao et al., arXiv 2402.03300): samples several answers to each prompt, scores them with verifiers, and trains
the model on each answer's advantage over the others."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemotron_kit.artifacts.manifest import sha256_files
from nemotron_kit.errors import UserError
from nemotron_kit.files import sha256_of
from nemotron_kit.training import checkpoint, processes
from nemotron_kit.training.checkpoint import TrainingProgress
from nemotron_kit.training.engine import (
    TrainingOutcome,
    begin_at,
    export_run,
    keep_freed_memory,
    load_libraries,
    make_ready,
    opening_lines,
    passive_cpu_waits,
    quiet,
)
from nemotron_kit.training.export import ChatTokens, output_folder, prepare_output
from nemotron_kit.training.grpo_checks import METRICS, renamed
from nemotron_kit.training.grpo_config import GRPOConfig, settings_identity
from nemotron_kit.training.grpo_loss import advantages, token_losses
from nemotron_kit.training.loop import LoopSettings, use_bf16
from nemotron_kit.training.model import load_model, require_model
from nemotron_kit.training.parallel import equal_passes, is_on_ranks, prepare
from nemotron_kit.training.pretrain_config import TrainConfig
from nemotron_kit.training.processes import Preempted, StopRequest
from nemotron_kit.training.prompts import PromptOrder, Prompts, agent_of, encode, opens_reasoning, read_rows
from nemotron_kit.training.reporter import Reporter, metrics_path
from nemotron_kit.training.rewards import check_rows, find_verifiers, reward
from nemotron_kit.training.sampling import Completion, answering, end_ids, generate, probabilities
from nemotron_kit.training.start import StartingPoint, find_start, given_weights, on_ranks
from nemotron_kit.training.step_loop import StepLoop

if TYPE_CHECKING:
    import torch

# Validation uses the same samples at each step, so that differences are due to the model only.
_VALIDATION = -1


def grpo(config: GRPOConfig) -> TrainingOutcome:
    """Train as `config` specifies, resuming from a checkpoint if there is one, and return where the model is.

    Runs in every process that torchrun starts; only rank 0 writes. Raises UserError if config, data or model are
    invalid, Preempted if a signal, or checkpoint_must_save_by, stopped the run (a checkpoint is saved by then).
    """
    passive_cpu_waits()
    began = time.monotonic()
    config.check()
    config.check_split(processes.world_size())
    load_libraries()
    quiet()
    keep_freed_memory()
    try:
        run = _Run(config, began)
        return on_ranks(run.start, config.train.hang_minutes, run.go)
    except UserError as error:
        raise renamed(error) from None
    except Preempted as stopped:
        if config.checkpointing.enabled:
            raise
        raise Preempted(stopped.message, hint="With checkpointing.enabled=true a checkpoint is saved.") from None


class _Run:
    """One run: its data and starting point, then the loop, then the export of the model."""

    def __init__(self, config: GRPOConfig, began: float) -> None:
        from transformers import AutoTokenizer

        self.config, self.began = config, began
        self.base = Path(str(config.policy.model_name))
        require_model(self.base)
        self.tokenizer_folder = Path(config.tokenizer) if config.tokenizer else self.base
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(self.tokenizer_folder, local_files_only=True)
        except (OSError, ValueError) as error:
            raise UserError(
                f"{self.tokenizer_folder}: no tokenizer can be read: {' '.join(str(error).split())}",
                hint="policy.tokenizer names a folder; null is the model's own.",
            ) from error
        longest = config.policy.max_total_sequence_length
        self.most_new = min(config.policy.generation.max_new_tokens or longest - 1, longest - 1)
        self.train = self._prompts(config.data.train_jsonl_fpath, "data.train_jsonl_fpath")
        given = config.data.validation_jsonl_fpath
        self.valid = self._prompts(given, "data.validation_jsonl_fpath", config.grpo.max_val_samples) if given else None
        agents = [*self.train.agents, *(self.valid.agents if self.valid else ())]
        self.verifiers = find_verifiers(dict.fromkeys(agents), config.env.verifiers)
        if processes.rank() == 0:
            check_rows(self.train.rows, self.verifiers, str(config.data.train_jsonl_fpath))
            check_rows(self.valid.rows if self.valid else (), self.verifiers, str(given))
        self.order = PromptOrder(
            [agent_of(row) for row in self.train.rows],
            config.grpo.seed,
            shuffle=config.data.shuffle,
            weights=config.env.weights,
        )
        self.steps = min(config.steps, self.order.rows * config.grpo.max_num_epochs // config.prompts)
        if not self.steps:
            raise UserError(
                f"There are {self.order.rows} prompts, fewer than a step takes ({config.prompts}).",
                hint="Set grpo.num_prompts_per_step lower, or grpo.max_num_epochs higher.",
            )
        self.folder = output_folder(config.checkpointing.checkpoint_dir, "rl")
        self.start = self._start()
        if processes.rank() == 0:
            prepare_output(self.folder)

    def _prompts(self, path: str | None, key: str, most: int | None = None) -> Prompts:
        rows = read_rows(Path(str(path)), key)[:most]
        total = self.config.policy.max_total_sequence_length
        given = self.config.policy.generation.max_new_tokens
        # As many as the whole sequence may have (NeMo-RL's configs) are what the prompt leaves, as without a number.
        longest = total - given if given is not None and given < total else total - 1
        return encode(rows, self.tokenizer, longest, self.config.template_settings)

    def _start(self) -> StartingPoint:
        """The starting point of the run. Only rank 0 reads large files and refuses a checkpoint of another run."""
        grpo, data = self.config.grpo, self.config.data
        config = replace(self.config, grpo=replace(grpo, max_num_steps=self.steps, num_iterations=None))
        if processes.rank() != 0:
            return find_start(config, {})
        same = settings_identity(config, "bf16" if use_bf16(config.precision) else "fp32")
        rows = Path(str(data.train_jsonl_fpath))
        same["data"]["content"] = sha256_files([rows], rows.stat().st_size)[0]
        same["policy"]["tokenizer"] = sha256_files([self.tokenizer_folder / "tokenizer.json"], 0)[0]
        same |= given_weights(config.checkpoint)
        valid_on = None
        if data.validation_jsonl_fpath is not None:  # what a validation measures on
            rows = Path(data.validation_jsonl_fpath)
            content = sha256_files([rows], rows.stat().st_size)[0]
            valid_on = sha256_of([content, grpo.max_val_samples, grpo.num_val_generations_per_prompt])
        return replace(begin_at(config, same, self.folder, self.steps), valid_on=valid_on)

    def load(self, folder: Path) -> Any:
        """The model in a folder, in the run's layout."""
        model: Any = load_model(folder, None, self.config.train.layout, bf16=use_bf16(self.config.precision))
        return model if is_on_ranks(model) else model.to(processes.device())

    def begin(self, stop: StopRequest) -> _Work:
        """The model, the loop, and the loop's callbacks."""
        config, start, policy = self.config, self.start, self.config.policy
        assert start.weights is not None  # noqa: S101  (a model's, or a checkpoint's)
        progress = start.progress or TrainingProgress()
        model = self.load(start.weights)
        for prompts, key in ((self.train, "data.train_jsonl_fpath"), (self.valid, "data.validation_jsonl_fpath")):
            largest = max(map(max, prompts.ids)) if prompts is not None else -1
            if largest >= model.config.vocab_size:
                raise UserError(
                    f"{key}: a prompt has token {largest}, but the vocabulary of {start.weights} has "
                    f"{model.config.vocab_size}.",
                    hint="policy.tokenizer must be the tokenizer that the model was trained with; null is its own.",
                )
        # Values of other rows are not compared with what this run measures. Records of earlier versions don't say.
        changed = progress.valid_on is not None and progress.valid_on != start.valid_on and processes.rank() == 0
        if self.valid is None or processes.any_rank(changed):
            progress.forget_held_out()
        progress.valid_on = start.valid_on
        optimizer = make_ready(model, config.train, self._optimizer_settings(), start)
        reporter = Reporter(metrics_path(config.metrics, self.folder), progress.step, self.steps)
        settings = LoopSettings(
            self.steps,
            config.peak_lr,
            config.scheduler,
            config.checkpoint,
            policy.max_grad_norm,
            config.grpo.seed,
            config.logger.log_interval,
            config.grpo.val_period or None,
            use_bf16(config.precision),
            lr_setting="policy.optimizer.kwargs.lr",
            hang_minutes=config.train.hang_minutes,
        )
        loop = StepLoop(
            settings,
            model,
            optimizer,
            progress=progress,
            identity=start.identity,
            reporter=reporter,
            stop=stop,
            prune=partial(_prune, config, start.valid_on),
        )
        return _Work(self, model, loop)

    def go(self, stop: StopRequest) -> TrainingOutcome:
        """Train, validate and export the model; what it raises is what `grpo` does."""
        work = self.begin(stop)
        model, loop, config = work.model, work.loop, self.config
        progress, reporter = loop.progress, loop.reporter
        try:
            for line in opening_lines(self.start, config.train.layout, model, self._notes()):
                reporter.print(line)
            evaluate = work.evaluate if self.valid is not None else None
            if evaluate is not None and config.grpo.val_at_start and not progress.step:
                loop.evaluate(evaluate)
                progress.before = dict(progress.held_out)
            if progress.step < self.steps:
                loop.run(work.step, evaluate)
            elif evaluate is not None and progress.held_out_step != progress.step:
                loop.evaluate(evaluate)  # the run was ended before it had measured its last weights
            if evaluate is not None:
                reporter.print(
                    _comparison(progress.before, progress.held_out, len(self.valid.rows if self.valid else ()))
                )
        finally:
            reporter.close()
        return self._finish(loop)

    def _optimizer_settings(self) -> TrainConfig:
        block = self.config.optimizer
        first, second = block.value("betas")
        return TrainConfig(
            lr=self.config.peak_lr,
            weight_decay=float(block.value("weight_decay")),
            adam_beta1=float(first),
            adam_beta2=float(second),
            adam_eps=float(block.value("eps")),
        )

    def _notes(self) -> list[str]:
        agents = ", ".join(self.train.agents)
        notes = [f"{len(self.train.rows):,} prompts ({agents}), {self.config.prompts} a step: {self.steps} steps."]
        for prompts, what in ((self.train, "train"), (self.valid, "validation")):
            if prompts is not None and prompts.left_out:
                notes.append(f"{prompts.left_out:,} {what} prompts are too long and left out.")
        saved, validated = self.config.checkpoint.save_interval, self.config.grpo.val_period
        by_value = self.config.checkpoint.save and self.config.checkpointing.metric_name and self.valid is not None
        if by_value and saved and validated and saved % validated:
            notes.append(
                f"checkpointing.save_period {saved} is no multiple of grpo.val_period {validated}: of the checkpoints, "
                f"only every {math.lcm(saved, validated) // saved}th has a held-out value to be kept for."
            )
        return notes

    def _finish(self, loop: StepLoop) -> TrainingOutcome:
        progress = loop.progress
        given = {"base model": self.base, "prompts": self.config.data.train_jsonl_fpath}
        facts = {
            "judged by": ", ".join(self.train.agents),
            "steps": progress.step,
            "tokens": progress.tokens,
            **{f"{name}, before": round(value, 4) for name, value in progress.before.items()},
            **{name: round(value, 4) for name, value in progress.held_out.items()},
        }
        title, chat = "Nemotron-H, trained by rewards", ChatTokens.of(self.tokenizer_folder)
        outcome = export_run(loop, self.folder, title, given, facts, self.tokenizer_folder, chat)
        return replace(outcome, before=progress.before, after=progress.held_out)


def _comparison(before: Mapping[str, float], after: Mapping[str, float], prompts: int) -> str:
    """`Held-out reward (n = 340): greedy 0.521 → 0.744, sampled 0.190 → 0.703.`"""
    parts = []
    for name, word in (("val_reward_greedy", "greedy"), ("val_reward", "sampled")):
        if name in after:
            began = f"{before[name]:.3f} → " if name in before else ""
            parts.append(f"{word} {began}{after[name]:.3f}")
    return f"Held-out reward (n = {prompts}): {', '.join(parts)}."


def _prune(config: GRPOConfig, valid_on: str | None, folder: Path) -> list[str]:
    """Remove all checkpoints but the newest ones, or the newest and the best by a held-out value of the data with the
    digest `valid_on`; returns a sentence for each that can't be removed."""
    block = config.checkpointing
    if block.metric_name is None or config.data.validation_jsonl_fpath is None:
        return checkpoint.prune(folder, block.keep_top_k)
    best = checkpoint.best(folder, block.keep_top_k, METRICS[block.metric_name], block.higher_is_better, valid_on)
    return checkpoint.prune(folder, 1, also=best)


@dataclass(frozen=True)
class _Rollout:
    """The answers to some prompts, in the prompts' order, with the prompts, the answers' rewards, [answers], and
    advantages, [answers]."""

    prompts: list[tuple[int, ...]]
    answers: list[Completion]
    rewards: torch.Tensor
    advantages: torch.Tensor
    counts: torch.Tensor  # whether an answer is learned from


class _Work:
    """Computes a training step and a validation."""

    def __init__(self, run: _Run, model: Any, loop: StepLoop) -> None:
        self.run, self.model, self.loop, self.config = run, model, loop, run.config
        self.generation = run.config.policy.generation
        self.ends = end_ids(model, run.tokenizer, self.generation.stop_token_ids)
        self.pad = run.tokenizer.pad_token_id or 0
        self.shares = list(loop.parts(run.config.prompts))  # no gradients yet: only which prompts are whose
        self.reference = None
        if run.config.loss_fn.reference_policy_kl_penalty:
            self.reference = run.load(run.base).eval().requires_grad_(False)
            prepare(self.reference)
        self.chunk = run.config.train.tokens_per_chunk
        self.limit = run.config.seconds

    def step(self, number: int) -> dict[str, Any]:
        """Compute the gradients of a step: sample and score answers to this rank's share of the prompts, and call
        backward on their loss, divided by the number of tokens (or answers) of all ranks."""
        import torch

        rows = self.run.order.take(self.loop.samples(number, self.config.prompts).start, self.config.prompts)
        asked = [(row, rows[:place].count(row)) for place, row in enumerate(rows)]
        with answering(self.model):
            rollouts = [self._rollout(number, [asked[index] for index in part]) for part in self.shares]
        own = torch.zeros(2, dtype=torch.float64, device=self.model.device)
        for rollout in rollouts:
            lengths = torch.as_tensor([len(a.ids) for a in rollout.answers], device=own.device)
            own += torch.stack([(lengths * rollout.counts).sum(), rollout.counts.sum()])
        tokens, answers = processes.sum_over_ranks(own).tolist()
        totals = (max(1.0, tokens), max(1.0, answers))
        parts = self.loop.parts(self.config.prompts)
        values: dict[str, Any] = {"loss": 0.0, **({"kl": 0.0} if self.reference is not None else {})}
        for _, rollout in zip(parts, rollouts, strict=True):
            for name, value in self._learn(rollout, totals).items():
                values[name] = values[name] + value
        # After the step's work: the loop saves and stops at once, not a step later.
        if self.limit is not None and time.monotonic() - self.run.began > self.limit:
            self.loop.stop.signal = self.loop.stop.signal or "checkpointing.checkpoint_must_save_by"
        return {**values, **self._metrics(rollouts)}

    def _rollout(self, number: int, rows: Sequence[tuple[int, int]]) -> _Rollout:
        """Sampled and scored answers to the prompts in `rows`: (row, how often it came before in this step)."""
        import torch

        per_prompt, prompts = self.config.grpo.num_generations_per_prompt, self.run.train
        # A prompt that comes up again in a step gets answers of other numbers: the same ones would count twice.
        wanted = [(row, before * per_prompt + answer) for row, before in rows for answer in range(per_prompt)]
        keys = [(self.config.grpo.seed, number, row, answer) for row, answer in wanted]
        asked = [prompts.ids[row] for row, _ in wanted]
        answers = self._answers(asked, keys, self.config.policy.generation_batch_size)
        found = [self._score(prompts, row, answer) for (row, _), answer in zip(wanted, answers, strict=True)]
        rewards = torch.as_tensor(found, dtype=torch.float32, device=self.model.device)
        valid = torch.as_tensor(
            [answer.ended or not self.config.grpo.overlong_filtering for answer in answers], device=rewards.device
        )
        compared = advantages(
            rewards.view(-1, per_prompt),
            leave_one_out=self.config.grpo.use_leave_one_out_baseline,
            normalize=self.config.grpo.normalize_rewards,
        )
        return _Rollout(asked, answers, rewards, compared.flatten(), valid)

    def _answers(self, prompts: Sequence[tuple[int, ...]], keys: Any, size: int) -> list[Completion]:
        """Answers to the prompts; greedy without `keys`."""
        answers: list[Completion] = []
        longest = self.config.policy.max_total_sequence_length
        for at, counts in equal_passes(range(0, len(prompts), size), 0, self.model):
            batch = prompts[at : at + size] if counts else self.run.train.ids[:1]
            limits = [min(self.run.most_new, longest - len(prompt)) for prompt in batch] if counts else [1]
            with self.loop.autocast():
                found = generate(
                    self.model,
                    batch,
                    self.ends,
                    limits,
                    pad=self.pad,
                    temperature=self.generation.temperature,
                    keys=None if keys is None or not counts else keys[at : at + size],
                )
            answers += found if counts else []
        return answers

    def _score(self, prompts: Prompts, number: int, answer: Completion) -> float:
        row = prompts.rows[number]
        agent, reasons = agent_of(row), opens_reasoning(self.run.tokenizer, prompts.ids[number])
        return reward(self.run.verifiers[agent], answer.text(self.run.tokenizer), row, agent, reasons=reasons)

    def _learn(self, rollout: _Rollout, totals: tuple[float, float]) -> dict[str, Any]:
        """Add the gradients of the rollout's part of the loss; returns its metrics."""
        # Without a reference, answers that are like the others of their prompt have no gradient.
        counts = rollout.counts if self.reference is not None else rollout.counts & (rollout.advantages != 0)
        chosen = counts.nonzero().flatten().tolist()
        chosen.sort(key=lambda n: (len(rollout.prompts[n]) + len(rollout.answers[n].ids), n))
        size = self.config.policy.train_micro_batch_size
        sums: dict[str, Any] = {"loss": 0.0}
        batches = [chosen[at : at + size] for at in range(0, len(chosen), size)]
        for batch, counted in equal_passes(batches, [0], self.model):
            loss, kl = self._loss(rollout, batch, totals)
            if not counted:
                (loss * 0).backward()
                continue
            loss.backward()
            sums["loss"] = sums["loss"] + loss.detach()
            if kl is not None:
                sums["kl"] = sums.get("kl", 0.0) + kl.detach()
        return sums

    def _loss(self, rollout: _Rollout, chosen: list[int], totals: tuple[float, float]) -> tuple[Any, Any]:
        import torch

        prompts = [rollout.prompts[n] for n in chosen]
        answers = [rollout.answers[n] for n in chosen]
        temperature = self.generation.temperature
        with self.loop.autocast():
            logprobs, rows = probabilities(self.model, prompts, answers, temperature, pad=self.pad, chunk=self.chunk)
        reference = None
        if self.reference is not None:
            with torch.no_grad(), self.loop.autocast():
                reference = self._reference_logprobs(prompts, answers)
        per_token, kl = token_losses(
            logprobs, logprobs.detach(), rollout.advantages[chosen][rows], self.config.loss_fn, reference
        )
        if self.config.loss_fn.token_level_loss:
            weights = torch.full_like(per_token, 1.0 / totals[0])
        else:
            lengths = torch.as_tensor([len(answer.ids) for answer in answers], device=per_token.device)
            weights = 1.0 / (lengths[rows] * totals[1])
        return (per_token * weights).sum(), None if kl is None else kl.sum() / totals[0]

    def _reference_logprobs(self, prompts: list[tuple[int, ...]], answers: list[Completion]) -> torch.Tensor:
        import torch

        size = self.config.policy.logprob_batch_size
        temperature = self.generation.temperature
        found = []
        for at, counts in equal_passes(range(0, len(prompts), size), 0, self.reference):
            some = slice(at, at + size)
            logprobs = probabilities(
                self.reference, prompts[some], answers[some], temperature, pad=self.pad, chunk=self.chunk
            ).logprobs
            found += [logprobs] if counts else []
        return torch.cat(found)

    def _metrics(self, rollouts: Sequence[_Rollout]) -> dict[str, Any]:
        """Rewards, lengths and entropy: this rank's contribution to each mean."""
        answers = [answer for rollout in rollouts for answer in rollout.answers]
        total = self.config.answers
        written = sum(len(answer.ids) for answer in answers)
        entropies = sum(answer.entropy / len(answer.ids) for answer in answers)
        return {
            "reward": sum(float(rollout.rewards.double().sum()) for rollout in rollouts) / total,
            "length": written / total,
            "truncated": sum(not answer.ended for answer in answers) / total,
            "entropy": entropies / total,
            # The share of answers with a non-zero advantage: the others' rewards are equal for their prompt.
            "informative": sum(float((rollout.advantages != 0).sum()) for rollout in rollouts) / total,
            "tokens": written + sum(len(prompt) for rollout in rollouts for prompt in rollout.prompts),
        }

    def evaluate(self, _step: int) -> dict[str, float]:
        """The held-out rewards, greedy and sampled, overall and by environment; the rows are divided among the
        ranks."""
        import torch

        assert self.run.valid is not None  # noqa: S101  (the caller has seen to it)
        prompts, samples = self.run.valid, self.config.grpo.num_val_generations_per_prompt
        size = self.config.grpo.val_batch_size
        agents = prompts.agents
        sums = torch.zeros(2, len(agents) + 1, dtype=torch.float64)
        lengths = torch.zeros(1, dtype=torch.float64)
        wanted = [(row, sample) for sample in range(-1, samples) for row in range(len(prompts.rows))]
        batches = [wanted[at : at + size] for at in range(0, len(wanted), size)]
        shown = 0
        # The ranks take turns; in the last round some may have no batch.
        for first in range(0, len(batches), processes.world_size()):
            turn = first + processes.rank()
            batch = batches[turn] if turn < len(batches) else []
            for greedy in (True, False):
                own = [(row, sample) for row, sample in batch if (sample < 0) == greedy]
                keys = [(self.config.grpo.seed, _VALIDATION, row, sample) for row, sample in own]
                answers = self._answers([prompts.ids[row] for row, _ in own], None if greedy else keys, size)
                for (row, _), answer in zip(own, answers, strict=True):
                    value = self._score(prompts, row, answer)
                    column = agents.index(agent_of(prompts.rows[row]))
                    sums[0 if greedy else 1, column] += value
                    sums[0 if greedy else 1, -1] += value
                    lengths[0] += len(answer.ids) * (not greedy)
                    if greedy and shown < self.config.logger.num_val_samples_to_print:
                        shown += 1
                        asked = self.run.tokenizer.decode(prompts.ids[row], skip_special_tokens=False)
                        text = answer.text(self.run.tokenizer)
                        self.loop.reporter.print(f"{asked!r} → {text!r}: reward {value:g}")
        totals = processes.sum_over_ranks(torch.cat([sums.flatten(), lengths]).to(self.model.device)).tolist()
        count = len(prompts.rows)
        of_agent = [sum(agent_of(row) == agent for row in prompts.rows) for agent in agents]
        greedy_sums, sampled_sums = totals[: len(agents) + 1], totals[len(agents) + 1 : -1]
        found = {
            "val_reward": sampled_sums[-1] / (count * samples),
            "val_reward_greedy": greedy_sums[-1] / count,
            "val_length": totals[-1] / (count * samples),
        }
        if len(agents) > 1:
            for number, agent in enumerate(agents):
                found[f"val_reward/{agent}"] = sampled_sums[number] / (of_agent[number] * samples)
        return found
