"""GRPO: the loss is trl's, the same answers in any batch and on any number of processes, a resumed run is the same."""

from __future__ import annotations

import json
import shutil
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nemotron_kit.config.schema import contradictions
from nemotron_kit.data_prep.chat import TEMPLATES
from nemotron_kit.errors import UserError
from nemotron_kit.training import checkpoint, processes
from nemotron_kit.training.checkpoint import export_model
from nemotron_kit.training.config_blocks import SchedulerConfig
from nemotron_kit.training.grpo import _Run, _Work, grpo
from nemotron_kit.training.grpo_config import GRPOConfig, LossBlock
from nemotron_kit.training.grpo_loss import advantages, token_losses
from nemotron_kit.training.model import load_model, model_config, new_model
from nemotron_kit.training.processes import Preempted, StopRequest
from nemotron_kit.training.prompts import PromptOrder
from nemotron_kit.training.sampling import Completion, answering, drawn, generate, probabilities, uniform

from ...packed import write_questions

TOKENIZER = Path(__file__).parents[3] / "recipes" / "nano3" / "tokenizers" / "tiny"
BLOCK = {
    "hybrid_override_pattern": "M*E", "vocab_size": 4096, "hidden_size": 16, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 8, "mamba_num_heads": 2, "mamba_head_dim": 16, "ssm_state_size": 8,
    "n_groups": 1, "chunk_size": 16, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
    "moe_shared_expert_intermediate_size": 16, "eos_token_id": [2, 5], "pad_token_id": 0,
}  # fmt: skip
ENDS = frozenset({2, 5})
KEYS = [(1, 1, n, 0) for n in range(6)]
PROMPTS = [(4, 20 + n, *range(30, 30 + n)) for n in range(6)]


def likes_odd(answer: str, row: Any) -> float:
    """A reward that differs between the answers of a new model."""
    return float(len(answer) % 2)


@pytest.fixture(scope="module")
def sft(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with new weights and a chat template."""
    folder = tmp_path_factory.mktemp("sft")
    export_model(new_model(model_config(BLOCK), 7), folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(TOKENIZER / name, folder / name)
    shutil.copyfile(TEMPLATES["nano3"], folder / "chat_template.jinja")
    return folder


@pytest.fixture
def config(sft: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> GRPOConfig:
    monkeypatch.delenv("NEMO_RUN_DIR", raising=False)
    rows = write_questions(tmp_path, train=12, val=3)
    made = GRPOConfig()
    made.grpo.num_prompts_per_step, made.grpo.num_generations_per_prompt = 4, 3
    made.grpo.max_num_steps, made.grpo.num_val_generations_per_prompt, made.grpo.val_period = 2, 1, None
    made.policy.model_name = str(sft)
    made.policy.tokenizer = {"chat_template_kwargs": {"enable_thinking": False}}
    made.policy.train_micro_batch_size, made.policy.generation_batch_size = 4, 5
    made.policy.generation.max_new_tokens = 4
    made.policy.optimizer.kwargs = {"lr": 1e-2}
    made.data.train_jsonl_fpath, made.data.validation_jsonl_fpath = rows["train"], rows["val"]
    made.env.verifiers = {"odd": {"_target_": f"{__name__}.likes_odd"}}
    made.checkpointing.checkpoint_dir = str(tmp_path / "out")
    made.checkpointing.save_period = 1
    return made


@pytest.mark.parametrize("penalty", [0.0, 0.05])
def test_loss_and_gradient_are_those_of_trls_dapo(penalty: float) -> None:
    from trl import GRPOTrainer

    torch.manual_seed(0)
    lengths = torch.tensor([5, 2, 4, 1])
    mask = torch.arange(5) < lengths.unsqueeze(1)
    old, reference = -torch.rand(4, 5) * 3, -torch.rand(4, 5) * 3
    compared = torch.tensor([1.5, -0.7, 0.0, -1.0])
    theirs = (old + 0.6 * torch.randn(4, 5)).requires_grad_()
    ours = theirs.detach().clone().requires_grad_()
    trainer = object.__new__(GRPOTrainer)
    given = {
        "top_entropy_quantile": 1.0, "off_policy_mask_threshold": None, "importance_sampling_level": "token",
        "beta": penalty, "loss_type": "dapo", "epsilon_low": 0.2, "epsilon_high": 0.28, "use_vllm": False,
        "aux_loss_enabled": False, "_entropy_bonus_enabled": False, "current_gradient_accumulation_steps": 1,
        "model": SimpleNamespace(training=True), "_metrics": {"train": defaultdict(list)},
        "args": SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1),
        "accelerator": SimpleNamespace(
            num_processes=1, reduce=lambda value, reduction: value, gather=lambda value: value
        ),
        "_get_per_token_logps_and_entropies": lambda *a, **k: (theirs, torch.zeros(4, 5), None),
    }  # fmt: skip
    vars(trainer).update(given)
    loss = trainer._compute_loss(
        None,
        {
            "prompt_ids": torch.zeros(4, 1), "prompt_mask": torch.ones(4, 1), "completion_ids": torch.zeros(4, 5),
            "completion_mask": mask.int(), "advantages": compared, "old_per_token_logps": old,
            "ref_per_token_logps": reference, "num_items_in_batch": lengths.sum(),
        },
    )  # fmt: skip
    loss.backward()
    block = LossBlock(reference_policy_kl_penalty=penalty)
    per_token, divergence = token_losses(
        ours[mask],
        old[mask],
        compared.unsqueeze(1).expand(4, 5)[mask],
        block,
        reference[mask] if penalty else None,
    )
    (per_token.sum() / lengths.sum()).backward()
    assert float(per_token.detach().sum() / lengths.sum()) == pytest.approx(float(loss.detach()), abs=1e-6)
    assert torch.allclose(ours.grad, theirs.grad, atol=1e-6)
    assert (divergence is None) == (penalty == 0)


def test_advantages() -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0]])
    plain = advantages(rewards, leave_one_out=False, normalize=False)
    assert plain.tolist() == [[0.5, -0.5, -0.5, 0.5], [0.0] * 4]
    assert advantages(rewards, leave_one_out=False, normalize=True)[0].tolist() == [1.0, -1.0, -1.0, 1.0]
    others = advantages(rewards, leave_one_out=True, normalize=False)
    assert torch.allclose(others[0], torch.tensor([2 / 3, -2 / 3, -2 / 3, 2 / 3]))
    scaled = advantages(rewards, leave_one_out=True, normalize=True)
    assert torch.allclose(scaled[0], others[0] / (2 / 9) ** 0.5) and not scaled[1].any()
    # All others are alike: there is nothing to divide by.
    assert advantages(torch.tensor([[1.0, 0.0, 0.0]]), leave_one_out=True, normalize=True)[0, 0] == 1.0


def test_answers_do_not_depend_on_their_batch_and_their_probabilities_are_those_of_sampling(sft: Path) -> None:
    model = load_model(sft)
    with answering(model):
        together = generate(model, PROMPTS, ENDS, 5, keys=KEYS, temperature=0.7)
        alone = [
            generate(model, [p], ENDS, 5, keys=[k], temperature=0.7)[0] for p, k in zip(PROMPTS, KEYS, strict=True)
        ]
        other = generate(model, PROMPTS, ENDS, 5, keys=[(2, *key[1:]) for key in KEYS], temperature=0.7)
        greedy = generate(model, PROMPTS, ENDS, 5)
        logprobs, rows = probabilities(model, PROMPTS, greedy, 1.0)
        parts = [probabilities(model, [p], [a], 1.0).logprobs for p, a in zip(PROMPTS, greedy, strict=True)]
        logits = model(input_ids=torch.tensor([[*PROMPTS[5], *greedy[5].ids]]), use_cache=False).logits[0]
    assert [answer.ids for answer in together] == [answer.ids for answer in alone]
    assert [answer.ids for answer in together] != [answer.ids for answer in other]
    assert rows.tolist() == [n for n, answer in enumerate(greedy) for _ in answer.ids]
    assert torch.allclose(logprobs, torch.cat(parts), atol=1e-5)
    forward = logits[len(PROMPTS[5]) - 1 : -1].log_softmax(-1)
    assert [int(one.argmax()) for one in forward] == list(greedy[5].ids)
    assert torch.allclose(parts[5], forward.amax(-1), atol=1e-5)
    assert all(answer.entropy > 0 for answer in together) and not model.lm_head.weight.grad


def test_an_answer_has_the_room_that_its_own_prompt_leaves(
    sft: Path, config: GRPOConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(sft)
    with answering(model):
        short, long = generate(model, [PROMPTS[0], PROMPTS[5]], frozenset(), [7, 2], keys=KEYS[:2], temperature=0.7)
        one = generate(model, [PROMPTS[5]], frozenset(), 2, keys=KEYS[1:2], temperature=0.7)[0]
    assert (len(short.ids), len(long.ids)) == (7, 2) and not long.ended
    assert long.ids == one.ids and long.entropy == pytest.approx(one.entropy)
    config.policy.generation.max_new_tokens, config.policy.max_total_sequence_length = 40, 40  # as NeMo-RL's have it
    run = _Run(config, 0.0)
    with StopRequest() as stop:
        work = run.begin(stop)
    work.ends = frozenset()
    answers = work._answers(run.train.ids[:4], None, 4)
    assert [len(answer.ids) + len(ids) for answer, ids in zip(answers, run.train.ids[:4], strict=True)] == [40] * 4


def test_a_prompt_that_comes_up_twice_in_a_step_is_answered_anew(config: GRPOConfig) -> None:
    config.grpo.num_prompts_per_step, config.grpo.max_num_epochs = 16, 4  # of 12 rows
    run = _Run(config, 0.0)
    with StopRequest() as stop:
        work = run.begin(stop)
    asked: list[Any] = []
    answers = work._answers
    work._answers = lambda prompts, keys, size: asked.extend(keys) or answers(prompts, keys, size)  # type: ignore[method-assign]
    work.loop._attach_gradients()
    work.step(1)
    assert len(asked) == 48 == len(set(asked)) and len({key[2] for key in asked}) == 12
    assert {key[3] for key in asked} == {0, 1, 2, 3, 4, 5}


def test_reasoning_that_has_not_ended_is_no_answer(config: GRPOConfig) -> None:
    config.policy.tokenizer = {"chat_template_kwargs": {"enable_thinking": True}}
    config.policy.generation.max_new_tokens = 1
    config.env.verifiers["odd"] = {"_target_": f"{__name__}.length"}
    run = _Run(config, 0.0)
    with StopRequest() as stop:
        work = run.begin(stop)
    texts = ("seven", "seven</think>\n\n7")
    ids = [tuple(run.tokenizer.encode(text, add_special_tokens=False)) for text in texts]
    assert [work._score(run.train, 0, Completion(each, False)) for each in ids] == [0.0, 1.0]
    config.policy.tokenizer = {"chat_template_kwargs": {"enable_thinking": False}}
    work.run = _Run(config, 0.0)
    assert work._score(work.run.train, 0, Completion(ids[0], False)) == 5.0


def length(answer: str, row: Any) -> float:
    return float(len(answer))


def test_tokens_are_drawn_by_their_probabilities() -> None:
    shares = torch.tensor([0.5, 0.0, 0.3, 0.2])
    numbers = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    chosen, entropy = drawn(shares.log().clamp(min=-1e30).expand(1000, 4), numbers)
    assert torch.bincount(chosen, minlength=4).tolist() == [500, 0, 300, 200]
    assert float(entropy[0]) == pytest.approx(float(-(shares[shares > 0] * shares[shares > 0].log()).sum()))
    one, two = uniform([(1, 2, 3, 4), (1, 2, 3, 5)], 3)
    assert (uniform([(1, 2, 3, 5)], 5)[0, :3] == two).all() and (one != two).all()


def test_rows_come_up_by_seed_step_and_weight() -> None:
    agents = ["a"] * 6 + ["b"] * 2
    order = PromptOrder(agents, 3, shuffle=True)
    assert sorted(order.take(0, 8)) == sorted(order.take(8, 8)) == list(range(8))
    assert order.take(0, 8) != order.take(8, 8)
    assert PromptOrder(agents, 3, shuffle=True).take(5, 4) == order.take(5, 4)
    assert PromptOrder(agents, 3, shuffle=False).take(6, 4) == [6, 7, 0, 1]
    weighed = PromptOrder(agents, 3, shuffle=True, weights={"a": 1, "b": 1}).take(0, 8)
    assert sum(agents[row] == "b" for row in weighed) == 4
    with pytest.raises(UserError, match=r"env\.weights\.c: no row is of that environment; .*a, b"):
        PromptOrder(agents, 3, shuffle=True, weights={"c": 1})


def test_two_processes_make_the_gradient_of_one(config: GRPOConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "sum_over_ranks", lambda _: torch.tensor([40.0, 12.0]))

    def gradient(rank: int, size: int) -> torch.Tensor:
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", str(size))
        run = _Run(config, 0.0)
        with StopRequest() as stop:
            work = run.begin(stop)
        work.loop._attach_gradients()
        work.step(1)
        return torch.cat([parameter.grad.flatten().clone() for parameter in work.model.parameters()])

    whole = gradient(0, 1)
    assert whole.any() and whole.equal(gradient(0, 2) + gradient(1, 2))


def weights(folder: Path) -> list[torch.Tensor]:
    return list(load_model(folder).parameters())


def rows_of(config: GRPOConfig) -> Iterator[dict[str, Any]]:
    for line in Path(config.checkpointing.checkpoint_dir or "", "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        yield {name: value for name, value in row.items() if name not in ("elapsed", "tokens_per_second", "_timestamp")}


def test_a_run_of_two_steps_and_the_same_one_stopped_between(
    config: GRPOConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config.grpo.val_at_start = True
    config.loss_fn.reference_policy_kl_penalty = 0.01
    config.logger.num_val_samples_to_print = 1
    straight = grpo(config)
    found = list(rows_of(config))
    assert [row["step"] for row in found] == [0, 1, 2, 2]
    assert {"loss", "kl", "reward", "length", "entropy", "truncated", "grad_norm"} <= found[1].keys()
    assert straight.before.keys() == straight.after.keys() == {"val_reward", "val_reward_greedy", "val_length"}
    said = capsys.readouterr().err
    assert "Held-out reward (n = 3): greedy" in said and "12 prompts (odd), 4 a step: 2 steps." in said
    card = (straight.path / "README.md").read_text(encoding="utf-8")
    assert (straight.path / "chat_template.jinja").is_file() and "| judged by | odd |" in card
    assert [file.name for file in straight.path.iterdir() if str(tmp_path).encode() in file.read_bytes()] == []
    before = weights(Path(str(config.policy.model_name)))
    assert not all(a.equal(b) for a, b in zip(before, weights(straight.path), strict=True))

    config.checkpointing.checkpoint_dir = str(tmp_path / "stopped")
    step = _Work.step

    def stopped(self: _Work, number: int) -> dict[str, Any]:
        self.loop.stop.signal = "SIGTERM" if number == 1 else None
        return step(self, number)

    monkeypatch.setattr(_Work, "step", stopped)
    with pytest.raises(Preempted, match="Stopped by SIGTERM after step 1 of 2; saved in"):
        grpo(config)
    monkeypatch.setattr(_Work, "step", step)
    resumed = grpo(config)
    assert all(a.equal(b) for a, b in zip(weights(straight.path), weights(resumed.path), strict=True))
    assert list(rows_of(config)) == found and resumed.before == straight.before
    config.grpo.learning_rate = 0.5
    with pytest.raises(UserError, match=r"policy\.optimizer\.kwargs\.lr is 0\.01 there and 0\.5 here") as other:
        grpo(config)
    assert "checkpointing.checkpoint_dir" in str(other.value) and "checkpointing.may_differ=[" in str(other.value)
    config.checkpointing.may_differ = ["policy.optimizer.kwargs.lr"]
    # Of other held-out rows no earlier value is known, and without any there is none to report.
    config.grpo.max_val_samples = 2
    again = grpo(config)
    assert again.step == 2 and again.after and not again.before
    config.data.validation_jsonl_fpath = None
    assert grpo(config).after == {}
    folder = Path(str(config.policy.model_name))
    small = json.loads((folder / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    run = _Run(config, 0.0)
    run.train.ids[0] = (small,)  # type: ignore[index]
    with StopRequest() as stop, pytest.raises(UserError, match=rf"a prompt has token {small}, but the vocabulary of"):
        run.begin(stop)


def test_a_folder_that_cant_be_written_is_named_as_this_config_has_it(config: GRPOConfig, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    config.checkpointing.checkpoint_dir = str(tmp_path / "file" / "out")
    with pytest.raises(UserError, match=r"^checkpointing\.checkpoint_dir: .* can't be written to"):
        grpo(config)


def test_the_best_checkpoints_are_kept_and_time_is_kept(config: GRPOConfig, tmp_path: Path) -> None:
    def kept() -> list[str]:
        return sorted(path.name[-1] for path in checkpoint.all_in(tmp_path / "out"))

    run = _Run(config, 0.0)
    with StopRequest() as stop:
        loop = run.begin(stop).loop
    # The last two are not validated: the value that is known is that of earlier weights.
    for number, value in ((1, 0.2), (2, 0.9), (3, 0.1), (4, 0.3), (5, 0.2), (6, None), (7, None)):
        loop.progress.step = number
        if value is not None:
            loop.evaluate(lambda _, value=value: {"val_reward": value})  # type: ignore[misc]
        loop.model.zero_grad()
        for parameter in loop.model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        loop.optimizer.step()
        config.checkpointing.keep_top_k = 2
        loop.save()
        if number == 5:
            assert kept() == ["2", "4", "5"]
            # One whose record can't be read is the worst; the run goes on.
            (tmp_path / "out/step-00000004/checkpoint.json").write_text("{")
    assert kept() == ["2", "5", "7"]
    config.checkpointing.checkpoint_dir = str(tmp_path / "timed")
    config.checkpointing.checkpoint_must_save_by = "00:00:00:00"
    config.checkpointing.enabled = False
    with pytest.raises(Preempted, match=r"checkpoint_must_save_by after step 1 of 2; nothing is saved") as stopped:
        grpo(config)
    assert "checkpointing.enabled=true" in str(stopped.value)
    config.checkpointing.enabled, config.checkpointing.save_period, config.grpo.val_period = True, 4, 6
    assert any("only every 3th has" in note for note in _Run(config, 0.0)._notes())
    with pytest.raises(Preempted, match=r"Stopped by checkpointing\.checkpoint_must_save_by after step 1 of 2; saved"):
        grpo(config)


def test_a_step_that_ends_behind_the_time_to_save_by_is_the_last(
    config: GRPOConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.checkpointing.checkpoint_must_save_by = "01:00:00"
    run = _Run(config, time.monotonic())
    with StopRequest() as stop:
        work = run.begin(stop)
    learn = _Work._learn

    def slowly(self: _Work, *given: Any) -> dict[str, Any]:
        self.run.began -= 3000
        return learn(self, *given)

    monkeypatch.setattr(_Work, "_learn", slowly)
    work.loop._attach_gradients()
    work.step(1)
    assert stop.signal == "checkpointing.checkpoint_must_save_by"


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("policy.generation.backend", "vllm", r"policy\.generation\.backend is 'vllm'.*=hf"),
        ("policy.generation.vllm_cfg", {"a": 1}, r"policy\.generation\.vllm_cfg"),
        ("policy.megatron_cfg", {"enabled": True}, r"policy\.megatron_cfg\.enabled=false"),
        ("policy.megatron_cfg", {"tensor_model_parallel_size": 2}, r"policy\.megatron_cfg"),
        ("env.nemo_gym", {"config_paths": ["a", "b"]}, r"env\.nemo_gym.*2 config_paths"),
        ("cluster", {"num_nodes": 32}, r"cluster \(num_nodes=32\) is Ray's.*nodes, nproc_per_node"),
        ("grpo.use_dynamic_sampling", True, r"Set grpo\.use_dynamic_sampling=false"),
        ("policy.generation.top_p", 0.9, r"Set policy\.generation\.top_p=1\.0"),
        ("logger.mlflow_enabled", True, r"logger\.mlflow_enabled"),
        ("policy.train_global_batch_size", 7, r"null, or to 12 \(4 prompts × 3 answers\)"),
        ("grpo.batch_size", 0, r"grpo\.batch_size \(num_prompts_per_step\) is 0"),
        ("grpo.num_generations_per_prompt", 1, r"grpo\.num_generations_per_prompt is 1"),
        ("grpo.learning_rate", -1.0, r"grpo\.learning_rate is -1\.0"),
        ("policy.optimizer.kwargs", {"rate": 1}, r"policy\.optimizer\.kwargs\.rate"),
        ("policy.optimizer.kwargs", {"betas": [0.9]}, r"policy\.optimizer\.kwargs\.betas is \[0\.9\]; .* two numbers"),
        ("policy.optimizer.kwargs", {"betas": [0.9, 2]}, r"policy\.optimizer\.kwargs\.betas\[1\] is 2; .* less than 1"),
        ("policy.optimizer.kwargs", {"eps": "a"}, r"policy\.optimizer\.kwargs\.eps is 'a'; it must be a number"),
        ("policy.max_grad_norm", -1.0, r"policy\.max_grad_norm is -1\.0"),
        ("grpo.val_period", -5, r"grpo\.val_period is -5"),
        ("loss_fn.kl_input_clamp_value", 0.0, r"loss_fn\.kl_input_clamp_value is 0\.0; .* null for no limit"),
        (
            "policy.tokenizer",
            {"name": None, "chat_templat": "x"},
            r"policy\.tokenizer\.chat_templat: .*no such setting",
        ),
        ("logger.wandb", {"run_name": "x"}, r"logger\.wandb\.run_name: .*no such setting; .*name"),
        ("policy.precision", "fp8", r"policy\.precision is 'fp8'"),
        ("policy.model_name", None, r"policy\.model_name is not set"),
        ("data.train_jsonl_fpath", None, r"data\.train_jsonl_fpath is not set"),
        ("checkpointing.metric_name", "accuracy", r"checkpointing\.metric_name is 'accuracy'"),
        ("checkpointing.checkpoint_must_save_by", "3 hours", r"DD:HH:MM:SS"),
        ("policy.scheduler", SchedulerConfig(min_lr=1.0), r"policy\.scheduler\.min_lr is 1\.0, more than policy\.opt"),
        ("policy.scheduler.lr_decay_style", "odd", r"policy\.scheduler\.lr_decay_style is 'odd'"),
        ("env.weights", {"a": float("nan")}, r"env\.weights\.a is nan"),
        ("env.verifiers", {"x": {}}, r"env\.verifiers\.x has no _target_"),
    ],
)
def test_what_cant_be_run_is_refused_by_name(config: GRPOConfig, key: str, value: Any, words: str) -> None:
    owner: Any = config
    *above, last = key.split(".")
    for part in above:
        owner = getattr(owner, part)
    setattr(owner, last, value)
    with pytest.raises(UserError, match=words):
        config.check()


def test_the_recipes_configs_compose_and_the_published_ones_problems_are_told() -> None:
    from nemotron.recipes.nano3 import app

    from nemotron_kit.config.compose import compose
    from nemotron_kit.config.freeze import freeze, typed
    from nemotron_kit.discovery import Tree
    from nemotron_kit.envfile import EnvFile

    def problems(name: str, *words: str) -> list[str]:
        found = compose(Tree(apps={"nano3": app}), ["recipe=nano3", "stage=rl", f"config={name}", *words], EnvFile())
        return typed(freeze(found.config, "/job"), GRPOConfig).problems()

    assert problems("tiny") == [] == problems("tiny", "policy.tokenizer=/a/folder", "env.weights.a=2")
    keys = [
        "policy.generation.backend", "policy.generation.vllm_cfg", "policy.megatron_cfg", "policy.sequence_packing",
        "env.nemo_gym", "cluster",
    ]  # fmt: skip
    assert [problem.split(" ")[0] for problem in problems("default")] == keys
    assert problems("grpo_nanov3") == problems("default")


def test_an_alias_and_another_value_for_what_it_stands_for_are_refused(config: GRPOConfig) -> None:
    config.grpo.num_iterations, config.grpo.learning_rate = 3, 0.5
    line = ["grpo.num_iterations=3", "grpo.max_num_steps=4", "grpo.learning_rate=0.5", "policy.optimizer.kwargs.lr=1"]
    names = [told.split(" ")[0] for told in contradictions(line, asdict(config), GRPOConfig)]
    assert names == ["grpo.num_iterations", "grpo.learning_rate"]
    config.policy.optimizer = None
    assert contradictions(line[:3], asdict(config), GRPOConfig) == contradictions(line[:2], asdict(config), GRPOConfig)


def test_aliases(config: GRPOConfig) -> None:
    config.grpo.num_iterations, config.grpo.batch_size, config.grpo.learning_rate = 9, 2, 0.5
    config.policy.tokenizer = "a/folder"
    assert (config.steps, config.prompts, config.peak_lr, config.tokenizer) == (9, 2, 0.5, "a/folder")
    config.policy.tokenizer = {"name": "b", "chat_template_kwargs": {"enable_thinking": False}}
    assert (config.tokenizer, config.template_settings) == ("b", {"enable_thinking": False})
    config.checkpointing.checkpoint_must_save_by = "01:02:03:04"
    assert config.seconds == 86400 + 2 * 3600 + 3 * 60 + 4
    config.check()
