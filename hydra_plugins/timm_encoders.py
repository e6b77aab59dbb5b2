"""`encoder=<any timm name>` without a file for each: a config source for the group `encoder`.

Hydra imports this module at every start, so it imports nothing heavy. Files in `conf/encoder/` win over it, since it is
last on the search path.
"""

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf

from segsweep import catalog

GROUP = "encoder"


class TimmEncoders(ConfigSource):
    @staticmethod
    def scheme() -> str:
        return "timm"

    def load_config(self, config_path: str) -> ConfigResult:
        name = config_path.removeprefix(f"{GROUP}/").removesuffix(".yaml")
        return ConfigResult(
            config=OmegaConf.create({"name": name}),
            path=f"{self.scheme()}://{self.path}",
            provider=self.provider,
            header={"package": None},
        )

    def available(self) -> bool:
        return True

    def is_group(self, config_path: str) -> bool:
        return config_path in ("", GROUP)

    def is_config(self, config_path: str) -> bool:
        group, _, name = config_path.removesuffix(".yaml").partition("/")
        return group == GROUP and bool(name) and catalog.knows(name)

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        if config_path == "" and results_filter in (None, ObjectType.GROUP):
            return [GROUP]
        if config_path == GROUP and results_filter in (None, ObjectType.CONFIG):
            return catalog.architectures()
        return []


class TimmSearchPath(SearchPathPlugin):
    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.append(provider="timm", path="timm://encoders")
