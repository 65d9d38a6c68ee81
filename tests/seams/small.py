"""A small world for documentation and examples: 700 digits in place of MNIST, and a "quick" preset of a second."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import pocketdiff as pd
from pocketdiff.data import Dataset, Source, Split
from pocketdiff.evaluation import METRICS, classifiers
from pocketdiff.registry import Registry

QUICK = pd.DiffusionConfig(
    images=320,
    batch=32,
    net=pd.UNetConfig(widths=(8, 16), blocks=1, embedding=16),
    gif_steps=2,
    sampling=pd.SamplingConfig(steps=2, scale=2.4),
)
REGISTRIES: tuple[Registry[Any], ...] = (
    pd.METHODS, pd.NETS, pd.SCHEDULES, pd.PARAMETERIZATIONS, pd.WEIGHTINGS, pd.SAMPLERS, pd.DATASETS, pd.AUGMENTATIONS,
    METRICS,
)  # fmt: skip


@contextmanager
def small_world(mnist: Dataset, folder: Path) -> Iterator[None]:
    """Works in a folder, with the small data and preset; entries that are made inside are removed at the end."""
    source = Source(
        Split(mnist.train.pixels[:500, 0].numpy(), mnist.train.labels[:500].numpy()),
        Split(mnist.test.pixels[:200, 0].numpy(), mnist.test.labels[:200].numpy()),
    )
    before = [dict(registry) for registry in REGISTRIES]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(pd.DATASETS, "mnist", lambda: source)
        patch.setitem(pd.METHODS["diffusion"].presets, "quick", QUICK)
        small = pd.load_data("mnist")
        for kind in classifiers.KINDS:
            shipped = classifiers.find_classifier(kind, mnist.info, [classifiers.SHIPPED])
            ready = classifiers.finished(kind, shipped.net, small)
            classifiers.save_classifier(folder / "shipped", ready, small.info)
        patch.setattr(classifiers, "SHIPPED", folder / "shipped")
        patch.setattr("pocketdiff.run.run.fp32_peak", lambda device: 1e11)
        patch.chdir(folder)
        try:
            yield
        finally:
            for registry, entries in zip(REGISTRIES, before, strict=True):
                registry.clear()
                registry.update(entries)
