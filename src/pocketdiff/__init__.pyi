__version__: str

from .checkpoint import keep_sampling as keep_sampling, load as load, with_sampling as with_sampling
from .config import SamplingConfig as SamplingConfig
from .data import (
    AUGMENTATIONS as AUGMENTATIONS,
    DATASETS as DATASETS,
    Dataset as Dataset,
    load_data as load_data,
)
from .denoiser import (
    PARAMETERIZATIONS as PARAMETERIZATIONS,
    WEIGHTINGS as WEIGHTINGS,
    Denoiser as Denoiser,
)
from .errors import PocketdiffError as PocketdiffError
from .evaluation import METRICS as METRICS, compare as compare, evaluate as evaluate, sweep as sweep
from .guidance import guide as guide
from .methods import METHODS as METHODS, PRESETS as PRESETS
from .methods.consistency import ConsistencyConfig as ConsistencyConfig
from .methods.diffusion import DiffusionConfig as DiffusionConfig
from .methods.gan import GanConfig as GanConfig
from .nets import GANS as GANS, NETS as NETS
from .nets.unet import UNetConfig as UNetConfig
from .run import Run as Run
from .samplers import (
    SAMPLERS as SAMPLERS,
    ancestral as ancestral,
    consistency as consistency,
    dpmpp_2m as dpmpp_2m,
    euler as euler,
    heun as heun,
)
from .schedule import (
    SCHEDULES as SCHEDULES,
    Cosine as Cosine,
    DiscreteBeta as DiscreteBeta,
    Flow as Flow,
    Karras as Karras,
    LogNormal as LogNormal,
    grid as grid,
)
