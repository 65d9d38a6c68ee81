"""Class-conditional diffusion for small images, on a laptop, in minutes.

```python
import pocketdiff as pd

data = pd.load_data("mnist")  # or pd.Dataset.from_arrays(images, labels)
run = pd.Run(pd.PRESETS["quick"], data, "runs/mine")
for report in run:  # trains, logs, draws, saves; leaving the loop is safe
    print(report.seen, report.losses["loss"])
images = run.model([3, 1, 4])  # uint8 tensor, (3, 1, 28, 28)
print(pd.evaluate(run.model, data, n=2000).table())
run.model.save("mine.safetensors")
```

Data and runs: `load_data`, `Dataset`, `PRESETS`, `Run`, `load`. Scores: `evaluate`, `sweep`, `compare`. Configs:
`DiffusionConfig`, `GanConfig`, `ConsistencyConfig`, `SamplingConfig`, `UNetConfig`. The parts: `Denoiser`, `guide`,
`grid`, the schedules and the samplers. Registries that take your own entries: `METHODS`, `NETS`, `GANS`, `SCHEDULES`,
`PARAMETERIZATIONS`, `WEIGHTINGS`, `SAMPLERS`, `DATASETS`, `AUGMENTATIONS`. The command line is ``pocketdiff``.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pocketdiff.checkpoint import load as load, with_sampling as with_sampling
    from pocketdiff.config import SamplingConfig as SamplingConfig
    from pocketdiff.data import (
        AUGMENTATIONS as AUGMENTATIONS,
        DATASETS as DATASETS,
        Dataset as Dataset,
        load_data as load_data,
    )
    from pocketdiff.denoiser import (
        PARAMETERIZATIONS as PARAMETERIZATIONS,
        WEIGHTINGS as WEIGHTINGS,
        Denoiser as Denoiser,
    )
    from pocketdiff.errors import PocketdiffError as PocketdiffError
    from pocketdiff.evaluation import compare as compare, evaluate as evaluate, sweep as sweep
    from pocketdiff.guidance import guide as guide
    from pocketdiff.methods import METHODS as METHODS, PRESETS as PRESETS
    from pocketdiff.methods.consistency import ConsistencyConfig as ConsistencyConfig
    from pocketdiff.methods.diffusion import DiffusionConfig as DiffusionConfig
    from pocketdiff.methods.gan import GanConfig as GanConfig
    from pocketdiff.nets import GANS as GANS, NETS as NETS
    from pocketdiff.nets.unet import UNetConfig as UNetConfig
    from pocketdiff.run import Run as Run
    from pocketdiff.samplers import (
        SAMPLERS as SAMPLERS,
        ancestral as ancestral,
        consistency as consistency,
        dpmpp_2m as dpmpp_2m,
        euler as euler,
        heun as heun,
    )
    from pocketdiff.schedule import (
        SCHEDULES as SCHEDULES,
        Cosine as Cosine,
        DiscreteBeta as DiscreteBeta,
        Flow as Flow,
        Karras as Karras,
        LogNormal as LogNormal,
        grid as grid,
    )

__version__ = version("pocketdiff")

_EXPORTS = {
    "checkpoint": ("load", "with_sampling"),
    "config": ("SamplingConfig",),
    "data": ("AUGMENTATIONS", "DATASETS", "Dataset", "load_data"),
    "denoiser": ("PARAMETERIZATIONS", "WEIGHTINGS", "Denoiser"),
    "errors": ("PocketdiffError",),
    "evaluation": ("compare", "evaluate", "sweep"),
    "guidance": ("guide",),
    "methods": ("METHODS", "PRESETS"),
    "methods.consistency": ("ConsistencyConfig",),
    "methods.diffusion": ("DiffusionConfig",),
    "methods.gan": ("GanConfig",),
    "nets": ("GANS", "NETS"),
    "nets.unet": ("UNetConfig",),
    "run": ("Run",),
    "samplers": ("SAMPLERS", "ancestral", "consistency", "dpmpp_2m", "euler", "heun"),
    "schedule": ("SCHEDULES", "Cosine", "DiscreteBeta", "Flow", "Karras", "LogNormal", "grid"),
}
_MODULES = {name: module for module, names in _EXPORTS.items() for name in names}
__all__ = ["__version__", *_MODULES]  # noqa: PLE0604 (keys are strings)


def __getattr__(name: str) -> object:
    # Imported at first use, so that `pocketdiff --help` does not wait for torch.
    if name in _MODULES:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
