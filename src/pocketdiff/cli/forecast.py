"""How long a run will take, measured on a few images, on the CPU."""

import copy
import time
from collections.abc import Callable
from typing import Any

from pocketdiff.config import AnyConfig
from pocketdiff.data import Images
from pocketdiff.generate import DiffusionModel, ImageModel
from pocketdiff.guidance import guide
from pocketdiff.loop import TrainState
from pocketdiff.methods import METHODS

_FEW = 16
"""Images in the first measurement, which says how many the second can have."""
_SECONDS = 10.0
"""The longest that the second one may take."""


def seconds_to_train(state: TrainState[Any], data: Images, config: AnyConfig) -> float:
    """Time that training takes for an image, in a step of a copy, so that nothing changes."""

    def work(count: int) -> None:
        trained = copy.deepcopy(state)
        trained.step, trained.seen = 1, 0  # Not a GAN's first step, to which the seldom penalty belongs.
        next(METHODS[config.kind].train(trained, data, config.model_copy(update={"batch": count})))

    return _seconds_each(work, min(config.batch, len(data) if config.epochs else config.length(len(data))))


def seconds_to_ask(model: ImageModel, count: int) -> float:
    """Time that one question to the network about an image takes, among ``count`` of them."""

    def work(count: int) -> None:
        if isinstance(model, DiffusionModel):
            x = model.start(range(count), 1.0)
            guide(model.denoiser.eval(), x.new_zeros(count).long())(x, 1.0)
        else:
            model.generate([0 if model.conditional else model.null] * count, range(count))

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
