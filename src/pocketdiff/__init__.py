"""Class-conditional diffusion for small images, on a laptop, in minutes.

``load(path)`` gives a trained model; the command line is ``pocketdiff``. Each module can be used on its own. From the
lowest layer up: schedule, denoiser, guidance, samplers, rng, nets; data, optim; config; generate, loop; train, gan;
methods; checkpoint; importer, pictures, plots; evaluate; cli.
"""

from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pocketdiff.checkpoint import load as load

__version__ = version("pocketdiff")
__all__ = ["__version__", "load"]


def __getattr__(name: str) -> object:
    # Late, so that `pocketdiff --help` need not wait for torch.
    if name == "load":
        from pocketdiff.checkpoint import load

        return load
    raise AttributeError(f"module 'pocketdiff' has no attribute {name!r}")
