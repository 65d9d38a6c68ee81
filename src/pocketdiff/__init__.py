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

Data and runs: `load_data`, `Dataset`, `PRESETS`, `Run`, `load`, `keep_sampling`. Scores: `evaluate`, `sweep`,
`compare`. Configs: `DiffusionConfig`, `GanConfig`, `ConsistencyConfig`, `SamplingConfig`, `UNetConfig`. The parts:
`Denoiser`, `guide`, `grid`, the schedules and the samplers. Registries that take your own entries: `METHODS`, `NETS`,
`GANS`, `SCHEDULES`, `PARAMETERIZATIONS`, `WEIGHTINGS`, `SAMPLERS`, `DATASETS`, `AUGMENTATIONS`, `METRICS`. The command
line is ``pocketdiff``.
"""

from importlib.metadata import version

import lazy_loader

__version__ = version("pocketdiff")
# Names are imported at first use, so that `pocketdiff --help` does not wait for torch. The stub lists them.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
