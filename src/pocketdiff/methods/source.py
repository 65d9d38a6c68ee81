"""What a run takes from the model that it starts from: a student's teacher, or the source of a fine-tuning."""

from typing import Any, TypeVar

import torch
from pydantic import ValidationError
from torch import Tensor

from pocketdiff.config import DenoiserConfig
from pocketdiff.data import DataInfo
from pocketdiff.denoiser import Denoiser
from pocketdiff.errors import RequestError
from pocketdiff.model import ImageModel
from pocketdiff.tensors import fingerprint

Config = TypeVar("Config", bound=DenoiserConfig)

TAKEN = ("net", "parameterization", "sigma_data", "black", "schedule")
"""Fields that a run takes from the model that it starts from: what the weights were trained for."""


def take(config: Config, source: ImageModel, whose: str, **changes: Any) -> Config:
    """The config with the source's `TAKEN` fields and further changes.

    Raises:
        RequestError: If the config has another value than the source and the default, or a change does not fit.
    """
    for field in TAKEN:
        changes[field] = getattr(source.config, field)
        if getattr(config, field) not in (type(config).model_fields[field].default, changes[field]):
            raise RequestError(f"{field} is {whose} and cannot be chosen; leave it out")
    try:
        return config.replace(**changes)
    except ValidationError as error:
        fault = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise RequestError(f"the config does not fit what is {whose}: {fault}") from error


def weights_sha256(model: ImageModel) -> str:
    """The SHA-256 of a model's weights."""
    return fingerprint({name: tensor.cpu() for name, tensor in model.net.state_dict().items()}, {})


def start_weights(denoiser: Denoiser, config: DenoiserConfig, info: DataInfo, source: ImageModel) -> dict[str, Tensor]:
    """The source's weights for a new denoiser, whose images may have another size and whose classes may differ.

    Weights that belong to a label are those of the source's class of the same name; for a new class they are the
    denoiser's own. The null label keeps its weights. The label dimensions of a tensor are those that grow by one with
    a further class.

    Raises:
        RequestError: If the weights do not fit; the message begins with the fault.
    """
    if source.info.channels != info.channels:
        here, there = ("grey" if each.channels == 1 else "RGB" for each in (info, source.info))
        raise RequestError(f"learned {there} images, and these are {here}; convert them")
    count, shape = len(info.classes), (info.channels, info.height, info.width)
    with torch.device("meta"):
        fewer, more = (config.net.build(shape, classes).state_dict() for classes in (count, count + 1))
    known = [(at, source.classes.index(name)) for at, name in enumerate(info.classes) if name in source.classes]
    trained: Any = source.net
    theirs, weights = trained.net.state_dict(), dict[str, Tensor]()
    for name, own in denoiser.net.state_dict().items():
        labels = [dim for dim in range(own.ndim) if more[name].shape[dim] == fewer[name].shape[dim] + 1]
        old = theirs.get(name)
        if old is None or _without(old.shape, labels) != _without(own.shape, labels):
            raise RequestError(f"its {name} does not fit images of {info.height} x {info.width}; use its own size")
        to: list[Any] = [slice(None)] * own.ndim
        taken = list(to)
        for number, dim in enumerate(labels):
            rest = range(own.shape[dim] - count)  # Behind the classes: the null label, if it has weights.
            pairs = torch.tensor(known + [(count + at, len(source.classes) + at) for at in rest], dtype=torch.long)
            outer = (-1, *[1] * (len(labels) - 1 - number))
            to[dim], taken[dim] = (side.view(outer) for side in pairs.view(-1, 2).T)
        weights[name] = own.clone()
        weights[name][tuple(to)] = old[tuple(taken)]
    return weights


def _without(shape: torch.Size, dims: list[int]) -> list[int]:
    return [size for dim, size in enumerate(shape) if dim not in dims]
