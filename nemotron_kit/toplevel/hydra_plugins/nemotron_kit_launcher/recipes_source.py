"""Config sources for every Hydra program: `${art:slot,field}` and the recipes' configs.

Hydra imports this at every start, so it imports what it refers to on first use.
"""

import sys
from typing import Any

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf

SCHEME = "nemotron"
CONF = "nemotron_kit.conf"
PROVIDER = "nemotron_kit"
GROUPS = ("recipe", "stage", "config", "schema", "job")


def _artifact(slot: str, field: str = "path", *, _parent_: Any, _root_: Any) -> Any:
    from nemotron_kit.config.resolvers import resolve_artifact

    return resolve_artifact(slot, field, _parent_=_parent_, _root_=_root_)


# A resolver that the program has registered under this name takes precedence.
if not OmegaConf.has_resolver("art"):
    OmegaConf.register_new_resolver("art", _artifact)


class RecipesSearchPath(SearchPathPlugin):
    """Appends the recipes' configs to each program's search path, so that the program's configs take precedence."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.append(provider=PROVIDER, path=f"{SCHEME}://recipes")


class RecipesSource(ConfigSource):
    """The configs of all recipes (see `nemotron_kit.config.registration.recipes_store`).

    Recipes are searched for only when one of these configs is requested.
    """

    @staticmethod
    def scheme() -> str:
        return SCHEME

    def available(self) -> bool:
        return True

    def is_group(self, config_path: str) -> bool:
        return self._type(config_path) is ObjectType.GROUP

    def is_config(self, config_path: str) -> bool:
        return self._type(self._normalize_file_name(config_path.rstrip("/"))) is ObjectType.CONFIG

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        found: list[str] = []
        for name in self._recipes().list(config_path):
            self._list_add_result(found, f"{config_path}/{name}", name, results_filter)
        return sorted(set(found))

    def load_config(self, config_path: str) -> ConfigResult:
        node = self._recipes().load(self._normalize_file_name(config_path))
        header = {"package": node.package}
        return ConfigResult(provider=str(node.provider), path=self.full_path(), config=node.node, header=header)

    def _type(self, config_path: str) -> ObjectType:
        group, _, inside = config_path.strip("/").partition("/")
        # A program may have a group of such a name itself: the bare name means ours where our search path is used.
        if group not in GROUPS or not (inside or CONF in sys.modules):
            return ObjectType.NOT_FOUND
        # A command registered in the program's own ConfigStore, as by `nemotron`, is looked up there next.
        registered = ConfigStore.instance().repo.get("recipe", {}).values()
        if any(getattr(node, "provider", None) == PROVIDER for node in registered):
            return ObjectType.NOT_FOUND
        return self._recipes().get_type(config_path)

    @staticmethod
    def _recipes() -> ConfigStore:
        from nemotron_kit.config.registration import recipes_store

        return recipes_store()
