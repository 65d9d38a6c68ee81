"""Training methods, one file each. To add one, write its file and name it in ``METHODS``."""

from collections.abc import Iterator, Mapping
from typing import Any

from pocketdiff.config import MethodConfig
from pocketdiff.methods.adversarial import Adversarial
from pocketdiff.methods.consistency import Consistency
from pocketdiff.methods.diffusion import Diffusion
from pocketdiff.methods.gan import GanMethod
from pocketdiff.methods.loop import Method
from pocketdiff.registry import Registry

METHODS: Registry[Method[Any]] = Registry(
    "method", "pocketdiff.methods",
    {"diffusion": Diffusion(), "gan": GanMethod(), "consistency": Consistency(), "adversarial": Adversarial()},
)  # fmt: skip


class _Presets(Mapping[str, MethodConfig]):
    """The presets of all registered methods, plug-ins included."""

    def __getitem__(self, name: str) -> MethodConfig:
        return self._all()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())

    @staticmethod
    def _all() -> dict[str, MethodConfig]:
        return {name: preset for method in METHODS.usable().values() for name, preset in method.presets.items()}


PRESETS: Mapping[str, MethodConfig] = _Presets()
