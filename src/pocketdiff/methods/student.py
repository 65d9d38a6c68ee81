"""What distilled models share: how a student starts from its teacher, and the model that it becomes."""

from typing import Annotated, Any, ClassVar

from torch import Tensor

from pocketdiff.config import DenoiserConfig, RunOrFile, SamplingConfig
from pocketdiff.data import DataInfo
from pocketdiff.errors import RequestError
from pocketdiff.frozen import Filled, Sha256
from pocketdiff.methods.loop import Load
from pocketdiff.methods.source import TAKEN
from pocketdiff.model import DiffusionModel, View
from pocketdiff.schedule import Karras


class StudentConfig(DenoiserConfig):
    """One distillation run. Network, parameterization and schedule are the teacher's."""

    teacher: RunOrFile | None = None
    """The teacher: a finished run, or a model file."""
    teacher_sha256: Annotated[Sha256 | None, Filled()] = None
    """Of the teacher's weights; the run fills it in."""
    common: ClassVar = ("teacher", *DenoiserConfig.common)


class FewStepModel(DiffusionModel):
    """A denoiser whose first guess is already an image; guidance is part of its weights."""

    def views(self) -> list[View]:
        """Images in one step and in two."""
        one, two = (self.with_sampling(self.config.sampling.replace(steps=steps)) for steps in (1, 2))
        return [View("_1step", "1 step", one), View("_2steps", "2 steps", two)]


def load_teacher(path: str | None, load: Load) -> Any:
    """The model that a student learns from; raises RequestError if there is none, or it is not a denoiser."""
    if path is None:
        raise RequestError("a student needs a teacher: --teacher RUN_OR_FILE")
    teacher: Any = load(path)
    if not set(TAKEN) <= set(type(teacher.config).model_fields):
        raise RequestError(f"{path}: is not a denoiser and cannot teach; give a diffusion model")
    return teacher


def teacher_weights(path: str | None, load: Load, info: DataInfo) -> dict[str, Tensor]:
    """The teacher's weights; raises RequestError if it learned other classes or channels than ``info`` has."""
    teacher: Any = load(str(path))
    if (teacher.info.channels, teacher.info.classes) != (info.channels, info.classes):
        raise RequestError(f"{path}: learned other classes or channels than these data have")
    weights: dict[str, Tensor] = teacher.net.state_dict()
    return weights


def start_within(sampling: SamplingConfig, highest: float) -> SamplingConfig:
    """The sampling settings with noise levels of at most ``highest``."""
    start = sampling.schedule
    if not isinstance(start, Karras) or start.sigma_max <= highest:
        return sampling
    lower = start.model_copy(update={"sigma_min": min(start.sigma_min, highest / 2), "sigma_max": highest})
    return sampling.replace(schedule=lower)
