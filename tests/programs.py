"""Programs that tests of more than one kind run: a recipe with jobs of every kind, and a sweeper that tells."""

# Jobs that print, write down what they see, save and go on, fail, hang, or compute together.
WORK = '''
import json, os, signal, sys, time
from dataclasses import dataclass
from pathlib import Path

from nemotron.kit import App


@dataclass
class Config:
    lines: int = 3
    sleep: float = 0.0
    code: int = 0
    text: str = ""
    steps: int = 40
    gate: str = ""


def speak(cfg: Config) -> int:
    """Print some lines, once the file `gate` is there; fail when told to."""
    while cfg.gate and not Path(cfg.gate).exists():
        time.sleep(0.1)
    for n in range(cfg.lines):
        print(f"line {n} of rank {os.environ.get('RANK', '-')}", flush=True)
        time.sleep(cfg.sleep)
    print("last words", file=sys.stderr)
    return cfg.code


def look(cfg: Config) -> None:
    """Write down what the job sees."""
    seen = {"text": cfg.text, "environment": dict(os.environ), "cwd": os.getcwd(), "argv": sys.argv}
    Path(os.environ["NEMO_RUN_DIR"], f"seen-{os.environ.get('RANK', '0')}.json").write_text(json.dumps(seen))


def step(cfg: Config) -> int:
    """Count to `steps`, a tenth of a second each; told to stop, save and say so."""
    told = []
    for name in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(name, lambda number, _: told.append(signal.Signals(number).name))
    saved = Path(os.environ["NEMO_RUN_DIR"], "saved")
    done = int(saved.read_text()) if saved.exists() else 0
    print(f"from step {done}, restart {os.environ.get('SLURM_RESTART_COUNT', '0')}", flush=True)
    while done < cfg.steps and not told:
        done += 1
        time.sleep(0.1)
    if os.environ.get("RANK", "0") == "0":
        time.sleep(cfg.sleep)  # it saves, and the others are done before it
        saved.write_text(str(done))
    print(f"at step {done}, told {told}", flush=True)
    return 75 if done < cfg.steps else 0


def stumble(cfg: Config) -> int:
    """Fail until it has been tried `steps` times."""
    tried = Path(os.environ["NEMO_RUN_DIR"], "tried")
    count = int(tried.read_text()) + 1 if tried.exists() else 1
    tried.write_text(str(count))
    print(f"try {count}", flush=True)
    return 0 if count >= cfg.steps else 7


def deaf(cfg: Config) -> None:
    """Sleep, with no handler for any signal."""
    print("sleeping", flush=True)
    time.sleep(cfg.sleep)


def allreduce(cfg: Config) -> None:
    """Each rank adds its number to the others'; rank `code` dies of it the first time."""
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    total = torch.tensor([float(dist.get_rank())])
    dist.all_reduce(total)
    print(f"rank {dist.get_rank()} of {dist.get_world_size()}: sum {int(total)}", flush=True)
    time.sleep(cfg.sleep)
    if cfg.code and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" and dist.get_rank() == cfg.code:
        os.kill(os.getpid(), signal.SIGKILL)
    dist.barrier()
    dist.destroy_process_group()


app = App("work")
for function in (speak, look, step, stumble, deaf, allreduce):
    app.command(function.__name__, Config, function)
app.command("alone", Config, speak, torchrun=False)

if __name__ == "__main__":
    app.run()
'''

# `hydra/sweeper=told`: a job for each word after `how=`, in so many batches; it prints what each of them handed back.
TOLD_SWEEPER = """
from dataclasses import dataclass
from hydra.core.config_store import ConfigStore
from hydra.plugins.sweeper import Sweeper


@dataclass
class Conf:
    _target_: str = "hydra_plugins.told.Told"
    batches: int = 1


ConfigStore.instance().store(group="hydra/sweeper", name="told", node=Conf)


class Told(Sweeper):
    def __init__(self, batches):
        self.batches = batches

    def setup(self, *, hydra_context, task_function, config):
        from hydra.core.plugins import Plugins
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config)

    def sweep(self, arguments):
        words = [word for word in arguments if not word.startswith("how=")]
        hows = [how for word in arguments if word.startswith("how=") for how in word[4:].split(",")]
        size = -(-len(hows) // self.batches)
        for first in range(0, len(hows), size):
            for returned in self.launcher.launch([[*words, f"how={how}"] for how in hows[first : first + size]], first):
                try:
                    print("RETURNED", returned.return_value)
                except Exception as error:
                    print("RAISED", type(error).__name__, error.args, getattr(error, "exit_code", None))
                    print("NOTES", len(getattr(error, "__notes__", [])))
"""
