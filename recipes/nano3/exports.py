"""`nemotron nano3 model export --to DIR|hf://USER/NAME`: a model's weights, where others find them."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

from nemotron_kit.errors import UserError


@dataclass
class ExportModel:
    """Which model goes where."""

    to: str = field(metadata={"help": "a folder, which must be new or empty, or hf://USER/NAME"})
    private: bool = field(default=True, metadata={"help": "on the hub: make a new repository a private one"})
    path: Path = field(default=Path(), metadata={"help": "the model's folder, in place of run.model"})


def export_model(cfg: ExportModel) -> int:
    """Copy or upload the model; its place is printed."""
    from nemotron_kit.artifacts import open_registry
    from nemotron_kit.artifacts.lineage import job_inputs
    from nemotron_kit.artifacts.metadata import path_pin
    from nemotron_kit.training.publish import Place, copy_model, upload_model

    for problem in preflight(cfg, connect=False):
        raise UserError(problem)
    pin, place, registry = job_inputs().get("model"), Place.parse(cfg.to), open_registry()
    if pin is None or Path(pin.path).resolve() != cfg.path.resolve():
        pin = path_pin(cfg.path)
    if place.repository is not None:
        where = upload_model(pin, registry, place.repository, private=cfg.private)
    elif place.folder is not None:
        copy_model(pin, registry, place.folder)
        where = str(place.folder)
    print(f"{pin.label} → {where}", file=sys.stderr)
    print(where)
    return 0


def preflight(cfg: ExportModel, *, connect: bool) -> list[str]:
    """What is in the way, before there is a run."""
    from nemotron_kit.training.publish import Place

    del connect
    try:
        return Place.parse(cfg.to).problems()
    except UserError as error:
        return [str(error)]
