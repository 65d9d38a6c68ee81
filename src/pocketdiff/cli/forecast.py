"""How long a run will take, measured on a few images, on the CPU."""

import copy
import time
from collections.abc import Callable

from pocketdiff.config import TrainConfig
from pocketdiff.data import Images
from pocketdiff.denoiser import Denoiser
from pocketdiff.generate import DiffusionModel
from pocketdiff.guidance import guide
from pocketdiff.train import draw_batch

_COUNT = 16
"""Images in a measurement: enough to be as fast as many are, near enough."""


def seconds_to_train(denoiser: Denoiser, data: Images, config: TrainConfig) -> float:
    """Time that training takes for an image, the optimizer's own left out; on a copy, so that nothing changes."""
    batch = draw_batch(data, config, denoiser.null, 0, _COUNT)
    trained = copy.deepcopy(denoiser).train()
    return _seconds(lambda: trained.loss(*batch).mean().backward()) / _COUNT


def seconds_to_denoise(model: DiffusionModel) -> float:
    """Time that one look at an image takes."""
    x = model.start(range(_COUNT), 1.0)
    denoise = guide(model.denoiser.eval(), x.new_zeros(_COUNT).long())
    return _seconds(lambda: denoise(x, 1.0)) / _COUNT


def _seconds(work: Callable[[], object]) -> float:
    """Time of the second call; the first one sets up."""
    work()
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
