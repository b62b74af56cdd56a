"""Hydra's own files (.hydra/config.yaml, overrides.yaml, hydra.yaml), with what could be a secret masked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from nemotron_kit.config.compose import Composed
from nemotron_kit.config.freeze import to_yaml
from nemotron_kit.config.secrets import is_secret_name

# Hydra copies and sets environment variables by these; their values are nobody's business.
_ENVIRONMENT = ("env_set", "env_copy")


def hydra_files(composed: Composed) -> dict[str, str]:
    """Name in the job folder → text, as Hydra would have written them."""
    from omegaconf import OmegaConf

    config: Any = OmegaConf.to_container(composed.config, resolve=False, enum_to_str=True)
    hydra: Any = OmegaConf.to_container(composed.hydra, resolve=False, enum_to_str=True)
    for name in _ENVIRONMENT:
        variables = hydra.get("job", {}).get(name)
        if isinstance(variables, Mapping):
            hydra["job"][name] = dict.fromkeys(variables, "***")
    return {
        ".hydra/config.yaml": to_yaml(masked(plain(config))),
        ".hydra/hydra.yaml": to_yaml({"hydra": masked(plain(hydra))}),
        ".hydra/overrides.yaml": json.dumps(list(composed.overrides), indent=2, ensure_ascii=False) + "\n",
    }


def plain(value: Any) -> Any:
    """Paths as strings: a YAML with a Python object in it is refused by every safe loader."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return str(value) if hasattr(value, "__fspath__") else value


def masked(value: Any) -> Any:
    """`value` with what is a secret by its key as `***`."""
    if not isinstance(value, Mapping):
        return [masked(item) for item in value] if isinstance(value, list) else value
    return {
        key: "***" if is_secret_name(str(key)) and isinstance(item, str) and not item.startswith("${") else masked(item)
        for key, item in value.items()
    }
