"""Hydra's own files (.hydra/config.yaml, overrides.yaml, hydra.yaml), with what could be a secret masked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nemotron_kit.config.compose import Composed
from nemotron_kit.config.freeze import to_yaml
from nemotron_kit.config.secrets import masked_by_name, masked_words
from nemotron_kit.errors import UserError
from nemotron_kit.files import write_text

# Hydra copies and sets environment variables by these; their values are nobody's business.
_ENVIRONMENT = ("env_set", "env_copy")


def hydra_files(composed: Composed) -> dict[str, str]:
    """Name in the job folder → text, as Hydra would have written them."""
    from omegaconf import OmegaConf

    config: Any = OmegaConf.to_container(composed.config, resolve=False, enum_to_str=True)
    hydra: Any = OmegaConf.to_container(composed.hydra, resolve=False, enum_to_str=True)
    words = masked_words(composed.overrides)
    return {
        ".hydra/config.yaml": to_yaml(masked_by_name(plain(config))),
        ".hydra/hydra.yaml": to_yaml({"hydra": _masked_node(hydra)}),
        ".hydra/overrides.yaml": json.dumps(words, indent=2, ensure_ascii=False) + "\n",
    }


def mask_multirun(folder: Path) -> None:
    """Mask what Hydra's sweeper itself has written into a sweep's folder: multirun.yaml, Hydra's node in clear."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    path = folder / "multirun.yaml"
    if not path.is_file():
        return
    try:
        values: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except (OmegaConfBaseException, ValueError) as error:
        raise UserError(f"{path}: {str(error).splitlines()[0]}") from error
    masked_text = to_yaml({**masked_by_name(plain(values)), "hydra": _masked_node(values.get("hydra") or {})})
    write_text(path, masked_text)


def _masked_node(hydra: dict[str, Any]) -> Any:
    """Hydra's node without values of environment variables, as they stand in it and in the overrides that it lists."""
    hydra = plain(hydra)
    for name in _ENVIRONMENT:
        variables = hydra.get("job", {}).get(name)
        if isinstance(variables, Mapping):
            hydra["job"][name] = dict.fromkeys(variables, "***")
    overrides = hydra.get("overrides") or {}
    hydra["overrides"] = {kind: masked_words(map(str, words or ())) for kind, words in overrides.items()}
    return masked_by_name(hydra)


def plain(value: Any) -> Any:
    """Paths as strings: a YAML with a Python object in it is refused by every safe loader."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return str(value) if hasattr(value, "__fspath__") else value
