"""How long a run will take, measured on a few images, on the CPU."""

import copy
import time
from collections.abc import Callable

from pocketdiff.config import TrainConfig
from pocketdiff.data import Images
from pocketdiff.denoiser import Denoiser
from pocketdiff.generate import DiffusionModel
from pocketdiff.guidance import guide
from pocketdiff.train import batch_loss, draw_batch

_FEW = 16
"""Images in the first measurement, which says how many the second can have."""
_SECONDS = 10.0
"""The longest that the second one may take."""


def seconds_to_train(denoiser: Denoiser, data: Images, config: TrainConfig) -> float:
    """Time that training takes for an image, the optimizer's own left out; on a copy, so that nothing changes."""
    trained = copy.deepcopy(denoiser).train()

    def work(count: int) -> None:
        batch_loss(trained, draw_batch(data, config, denoiser.null, 0, count), config).backward()

    return _seconds_each(work, min(config.batch, len(data) if config.epochs else config.length(len(data))))


def seconds_to_denoise(model: DiffusionModel, count: int) -> float:
    """Time that one look at an image takes, among ``count`` of them."""

    def work(count: int) -> None:
        x = model.start(range(count), 1.0)
        guide(model.denoiser.eval(), x.new_zeros(count).long())(x, 1.0)

    return _seconds_each(work, count)


def _seconds_each(work: Callable[[int], None], most: int) -> float:
    """Time of the work for each image: in batches as large as the run's, for these are slower where memory is."""
    few = min(_FEW, most)
    work(few)
    each = _timed(work, few)
    return _timed(work, max(few, min(most, int(_SECONDS / each))))


def _timed(work: Callable[[int], None], count: int) -> float:
    began = time.perf_counter()
    work(count)
    return (time.perf_counter() - began) / count
