"""A recipe is a dataclass, a function and an App that joins them; env.toml beside this folder names it."""

from dataclasses import dataclass
from pathlib import Path

from nemotron_kit import App, Artifact


@dataclass
class GreetConfig:
    name: str
    output_dir: Path = Path("greetings")
    times: int = 1


def greet(cfg: GreetConfig) -> None:
    cfg.output_dir.mkdir(exist_ok=True)
    (cfg.output_dir / "greeting.txt").write_text(f"Hello, {cfg.name}!\n" * cfg.times)
    Artifact(path=cfg.output_dir).save(name="Greeting")


app = App("hello", description="A recipe of one's own")
app.command("greet", GreetConfig, greet, description="Write a greeting")
