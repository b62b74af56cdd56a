"""The memory of training against the plan's estimate: small models on this machine's CPU, each in a process of its own.

    OMP_NUM_THREADS=1 python scripts/bench/memory.py

A process's peak is that of its resident memory in two steps, less what it had before there was a model. What is freed
goes back to the system (MALLOC_MMAP_THRESHOLD_), so that what is measured are tensors. Exits with 1 where an estimate
is off by more than 15 %.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from nemotron_kit.training.memory import Step, in_gib, memory_of
from nemotron_kit.training.model_size import count_parameters

SIZES = {
    "vocab_size": 8192,
    "hidden_size": 512,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "mamba_num_heads": 16,
    "mamba_head_dim": 64,
    "ssm_state_size": 64,
    "n_groups": 4,
    "chunk_size": 64,
    "n_routed_experts": 16,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 512,
    "moe_shared_expert_intermediate_size": 1024,
    "intermediate_size": 2048,
}
CASES: dict[str, dict[str, Any]] = {
    "mostly states": {"pattern": "MEM*EME", "seq_length": 128},
    "mostly activations": {"pattern": "MEM*EME", "seq_length": 1024, "micro_batch_size": 2},
    "checkpointed": {"pattern": "MEM*EME", "seq_length": 1024, "micro_batch_size": 2, "activation_checkpointing": True},
    "mostly logits": {"pattern": "*", "seq_length": 2048, "micro_batch_size": 2, "vocab_size": 32768},
    "chunked loss": {"pattern": "*", "seq_length": 2048, "micro_batch_size": 2, "vocab_size": 32768, "loss_chunk": 512},
    "Mamba alone": {"pattern": "MMMM", "seq_length": 1024},
    "accumulated": {"pattern": "MEM*EME", "seq_length": 512, "micro_batches": 2},
}
MOST = 0.15


def step_of(case: dict[str, Any]) -> Step:
    """The step of a case, as the plan would have it on a CPU."""
    given = dict(case)
    model = {**SIZES, "hybrid_override_pattern": given.pop("pattern")}
    model["vocab_size"] = given.pop("vocab_size", SIZES["vocab_size"])
    return Step(model, bf16=False, fused=False, **given)


def measure(step: Step) -> int:
    """Bytes that two steps have taken in this process, at most."""
    import torch
    from transformers.utils import logging

    logging.set_verbosity_error()
    from nemotron_kit.training.loop import build_optimizer
    from nemotron_kit.training.model import model_config, new_model
    from nemotron_kit.training.parallel import prepare, token_nll
    from nemotron_kit.training.pretrain_config import TrainConfig

    def train(model_block: dict[str, Any], length: int) -> None:
        model = new_model(model_config(model_block), seed=1)
        model.train()
        prepare(model, activation_checkpointing=step.activation_checkpointing)
        optimizer = build_optimizer(TrainConfig(), model)
        for _ in range(2):
            for _ in range(step.micro_batches):
                tokens = torch.randint(0, model_block["vocab_size"], (step.micro_batch_size, length))
                token_nll(model, tokens, tokens, step.loss_chunk).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    small = {name: value // 8 for name, value in SIZES.items()} | {"num_key_value_heads": 1, "num_experts_per_tok": 1}
    train({**step.model, **small, "n_groups": 1}, 64)  # what libraries allocate once
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _resident("VmRSS")
    train(dict(step.model), step.seq_length)
    return _resident("VmHWM") - before


def _resident(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) << 10
    raise SystemExit(f"/proc/self/status has no {name}.")


def main() -> int:
    if len(sys.argv) == 2:
        print(json.dumps(measure(step_of(CASES[sys.argv[1]]))))
        return 0
    wrong = 0
    print(f"{'':20}{'parameters':>12}{'estimate':>12}{'measured':>12}{'off':>8}")
    for name, case in CASES.items():
        step = step_of(case)
        command = [sys.executable, __file__, name]
        environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        estimate, measured = memory_of(step).peak, json.loads(done.stdout)
        off = estimate / measured - 1
        wrong += abs(off) > MOST
        parameters = f"{count_parameters(step.model) / 1e6:.1f} M"
        print(f"{name:20}{parameters:>12}{in_gib(estimate):>12}{in_gib(measured):>12}{off:>+8.1%}", flush=True)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
