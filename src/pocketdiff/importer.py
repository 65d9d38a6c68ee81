"""Import of models that other programs trained. The only place that reads a ``.pth``, as data and never as code."""

import warnings
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from pocketdiff.data import DataInfo
from pocketdiff.errors import CheckpointError
from pocketdiff.methods.diffusion import PRESETS, DiffusionConfig
from pocketdiff.model import DiffusionModel, build_denoiser
from pocketdiff.nets.context_unet import SIDE, ContextUnetConfig
from pocketdiff.schedule import DiscreteBeta

_NET = "nn_model."
_DTYPES = {torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64}


def import_ddpm(path: Path | str) -> DiffusionModel:
    """Reads what the DDPM-MNIST script's ``torch.save(ddpm.state_dict(), path)`` wrote, with any number of features,
    classes and steps.

    The model is on the CPU. Its training settings are the script's defaults, and nothing is known of its data.

    Raises:
        CheckpointError: If it is not such a file; the message names the first fault.
    """
    try:
        return _model(_read(Path(path)))
    except CheckpointError as fault:
        remedy = "give what the script's torch.save(ddpm.state_dict(), ...) wrote"
        raise CheckpointError(f"{path}: {fault}; {remedy}") from fault


def _model(state: dict[str, Tensor]) -> DiffusionModel:
    """The model of a state dict; raises CheckpointError with the first fault, as the functions below do."""
    net, schedule, classes, channels = _describe(state)
    with torch.device("meta"):  # Shapes only: a small file may claim a large network.
        weights = net.build((channels, SIDE, SIDE), classes).state_dict()
    tables = _tables(schedule)
    expected = {**tables, **{_NET + name: weight for name, weight in weights.items()}}
    if missing := sorted(expected.keys() - state.keys()):
        raise CheckpointError(f"has no {missing[0]!r}")
    if strange := sorted(state.keys() - expected.keys()):
        raise CheckpointError(f"has {strange[0]!r}, which is not part of the script's model")
    for name, tensor in state.items():
        if (shape := tuple(tensor.shape)) != (right := tuple(expected[name].shape)):
            raise CheckpointError(f"{name!r} has the shape {shape} instead of {right}")
        if not tensor.isfinite().all() or (name.endswith("running_var") and (tensor < 0).any()):
            raise CheckpointError(f"{name!r} has invalid values, as after a training that failed")
    for name, table in tables.items():
        # In the script's float32, 1 - alpha_bar loses digits.
        rtol, atol = (1e-2, 1e-4) if "mab" in name else (1e-3, 1e-6)
        if not torch.allclose(state[name].double(), table, rtol=rtol, atol=atol):
            raise CheckpointError(f"{name!r} does not match the script's linear beta schedule")
    config = DiffusionConfig.model_validate({**PRESETS["ddpm"].model_dump(), "net": net, "schedule": schedule})
    info = DataInfo(
        channels=channels, height=SIDE, width=SIDE, classes=tuple(str(label) for label in range(classes)),
        ink=channels == 1, train_images=None, test_images=None, sha256=None,
    )  # fmt: skip
    denoiser = build_denoiser(config, info)
    denoiser.net.load_state_dict({name: state[_NET + name] for name in weights})
    return DiffusionModel(denoiser.requires_grad_(False), config, info)


def _tables(schedule: DiscreteBeta) -> dict[str, Tensor]:
    """The buffers of the script's model by name: T + 1 entries each, in float64."""
    beta = torch.linspace(schedule.beta_start, schedule.beta_end, schedule.timesteps + 1, dtype=torch.float64)
    alphabar = torch.cumprod(1 - beta, 0)
    return {
        "alpha_t": 1 - beta,
        "oneover_sqrta": 1 / torch.sqrt(1 - beta),
        "sqrt_beta_t": torch.sqrt(beta),
        "alphabar_t": alphabar,
        "sqrtab": torch.sqrt(alphabar),
        "sqrtmab": torch.sqrt(1 - alphabar),
        "mab_over_sqrtmab": beta / torch.sqrt(1 - alphabar),
    }


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors of a state dict; floating-point tensors are converted to float32."""
    if not path.is_file():
        raise CheckpointError("is a folder" if path.is_dir() else "no such file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises errors of many kinds on damaged files.
        raise CheckpointError(f"cannot be read as a state dict ({type(error).__name__})") from error
    # The file may have set any attribute on its dict and tensors, so only the types' own methods are called.
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in dict.keys(state)):
        raise CheckpointError("is not a state dict")
    tensors = dict(dict.items(state))
    if strange := [name for name, tensor in tensors.items() if not _is_plain(tensor)]:
        raise CheckpointError(f"{strange[0]!r} is not a plain tensor")
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


def _is_plain(tensor: object) -> bool:
    """Whether this is a plain tensor with all its data; a few bytes can claim to be a tensor of any size."""
    if not isinstance(tensor, Tensor) or type(tensor) not in (Tensor, nn.Parameter) or vars(tensor):
        return False
    if tensor.dtype not in _DTYPES or tensor.layout != torch.strided or tensor.is_nested or tensor.is_meta:
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def _describe(state: dict[str, Tensor]) -> tuple[ContextUnetConfig, DiscreteBeta, int, int]:
    """Network, schedule, number of classes and number of channels, from the tensors' shapes and the beta table."""
    try:
        n_feat, channels, _, _ = state[f"{_NET}init_conv.conv1.0.weight"].shape
        _, classes = state[f"{_NET}contextembed1.model.0.weight"].shape
        (entries,) = state["sqrt_beta_t"].shape
        # Not from 1 - alpha_t, which keeps four of a float32's seven digits.
        start, end = (float(f"{state['sqrt_beta_t'][at].double().item() ** 2:.6g}") for at in (0, -1))
        if channels not in (1, 3) or classes < 1:
            raise CheckpointError(
                f"has {classes} classes and {channels} channels; it needs a class, and 1 or 3 channels"
            )
        net = ContextUnetConfig(n_feat=n_feat)
        schedule = DiscreteBeta(timesteps=entries - 1, beta_start=start, beta_end=end, zeroth=True)
    except KeyError as error:
        raise CheckpointError(f"has no {error.args[0]!r}") from error
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(str(part) for part in fault["loc"]) or "beta"
        raise CheckpointError(f"{where} cannot be {fault['input']}") from error
    except (ValueError, IndexError, ArithmeticError) as error:
        raise CheckpointError("its tensors do not have the script's shapes") from error
    return net, schedule, classes, channels
