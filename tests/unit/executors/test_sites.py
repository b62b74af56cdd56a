"""docs/how-to/sites.md: each profile is accepted; its dry-run has the lines of a batch script that the page shows."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from nemotron_kit import App
from nemotron_kit.cli.main import run_app

PAGE = Path(__file__).resolve().parents[3] / "docs" / "how-to" / "sites.md"
SITES = re.findall(r"```toml\n\[(\w+)\]\n(.*?)```\n\n```text\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@dataclass
class Config:
    n: int = 1


def test_the_page_has_twelve() -> None:
    assert len(SITES) == PAGE.read_text(encoding="utf-8").count("```toml") == 12


@pytest.mark.parametrize(("name", "fields", "lines"), SITES, ids=[name for name, *_ in SITES])
def test_a_sites_profile_as_the_page_shows_it(
    name: str,
    fields: str,
    lines: str,
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("nemo_run", reason="the nemo-run extra is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NEMOTRON_ENV_FILE", str(tmp_path / "env.toml"))
    (tmp_path / "env.toml").write_text(f"[{name}]\n{fields}")
    app = App("demo")
    app.command("go", Config, print, resources="prep")
    assert run_app(app, ["go", "--run", name, "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    script = plan["files"]["sbatch.sh"]
    assert plan["problems"] == [] and "no effect" not in "\n".join(plan["notes"])
    assert [line for line in lines.splitlines() if line not in script] == []
    whole = {line for line in script.splitlines() if line.startswith("#SBATCH")}
    flags = [line for line in lines.splitlines() if line.startswith("#SBATCH") and "--output" not in line]
    assert [line for line in flags if line not in whole] == []
