"""Import of models that other programs trained. The only place that reads a ``.pth``, as data and never as code."""

import math
import pickletools
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from pocketdiff.data import DataInfo
from pocketdiff.errors import CheckpointError
from pocketdiff.methods.diffusion import PRESETS, DiffusionConfig
from pocketdiff.model import DiffusionModel, build_denoiser
from pocketdiff.nets import shapes_only
from pocketdiff.nets.context_unet import SIDE, ContextUnetConfig
from pocketdiff.schedule import DiscreteBeta

_NET = "nn_model."
_MAX_PICKLE = 2**20
"""Limit of the pickle's size; the script's has 15 kB."""
_DTYPES = {
    "HalfStorage": torch.float16, "BFloat16Storage": torch.bfloat16, "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64, "LongStorage": torch.int64,
}  # fmt: skip


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
    with shapes_only():  # A small file may claim a large network.
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
        with zipfile.ZipFile(path) as archive:
            return _unpacked(archive, path.stat().st_size)
    except zipfile.BadZipFile as error:
        raise CheckpointError("cannot be read as a state dict of PyTorch 1.6 or newer") from error
    except CheckpointError:
        raise
    except Exception as error:  # Damaged files and pickles fail in many ways.
        raise CheckpointError(f"cannot be read as a state dict ({type(error).__name__})") from error


def _unpacked(archive: zipfile.ZipFile, size: int) -> dict[str, Tensor]:
    """The tensors in an archive of ``size`` bytes. A small file may claim any size, so sizes are checked first."""
    members = archive.infolist()
    if any(each.compress_type != zipfile.ZIP_STORED for each in members) or sum(m.file_size for m in members) > size:
        raise CheckpointError("is compressed, or claims more data than it holds, as torch.save never does")
    (pickle,) = (each for each in members if each.filename.endswith("/data.pkl"))
    if pickle.file_size > _MAX_PICKLE:
        raise CheckpointError(f"has a pickle of {pickle.file_size:,} bytes, too many for the script's model")
    state = _Machine().evaluate(archive.read(pickle))
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise CheckpointError("is not a state dict")
    if strange := [name for name, tensor in state.items() if not isinstance(tensor, _Packed)]:
        raise CheckpointError(f"{strange[0]!r} is not a plain tensor")
    if sum(math.prod(each.shape) * each.storage.dtype.itemsize for each in state.values()) > size:
        raise CheckpointError("has tensors that claim more data than it holds")
    folder = pickle.filename.removesuffix("data.pkl") + "data/"
    keys = {each.storage.key for each in state.values()}
    values = {key: bytearray(archive.read(folder + key)) for key in keys}
    tensors = {name: each.tensor(values[each.storage.key]) for name, each in state.items()}
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


class _Storage:
    """The values of tensors: the member ``data/KEY`` of the archive."""

    def __init__(self, what: Any, dtype: Any, key: Any, _device: Any, _numel: Any) -> None:
        if what != "storage" or not isinstance(dtype, torch.dtype) or not isinstance(key, str):
            raise CheckpointError("holds something else than tensors")
        self.dtype, self.key = dtype, key


class _Packed:
    """A tensor whose values were not read yet: ``torch._utils._rebuild_tensor_v2``."""

    def __init__(self, storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> None:
        numbers = (offset, *shape, *stride)
        if not isinstance(storage, _Storage) or not all(type(n) is int and 0 <= n < 2**40 for n in numbers):
            raise CheckpointError("holds something else than tensors")
        self.storage, self.offset, self.shape, self.stride = storage, offset, shape, stride

    def tensor(self, values: bytearray) -> Tensor:
        """The tensor; raises RuntimeError if there are too few values."""
        dtype = self.storage.dtype
        flat = torch.frombuffer(values, dtype=dtype) if values else torch.empty(0, dtype=dtype)
        return flat.as_strided(self.shape, self.stride, self.offset)


_GLOBALS: dict[str, Any] = {
    "collections OrderedDict": lambda *_: {},  # The items follow.
    "torch._utils _rebuild_tensor_v2": _Packed,
    "torch._utils _rebuild_parameter": lambda tensor, *_: tensor,
    **{f"torch {name}": dtype for name, dtype in _DTYPES.items()},
}
"""All that the pickle of a state dict names, and what stands for it here."""


class _Machine:
    """Evaluates a pickle by the operations that torch.save uses for a state dict. Other operations are refused, nothing
    is imported, and the attributes of objects are dropped.
    """

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []  # The stacks below each mark.
        self.memo: dict[int, Any] = {}

    def evaluate(self, pickle: bytes) -> object:
        """The object of a pickle."""
        for opcode, value, _ in pickletools.genops(pickle):
            if opcode.name == "STOP":
                return self.stack.pop()
            if opcode.name not in _OPERATIONS:
                raise CheckpointError(f"has the pickle operation {opcode.name}, which is no part of a state dict")
            _OPERATIONS[opcode.name](self, value)
        raise EOFError

    def push(self, value: object) -> None:
        self.stack.append(value)

    def pop(self, count: int) -> list[Any]:
        items = self.stack[-count:]
        del self.stack[-count:]
        return items

    def mark(self) -> None:
        self.marked.append(self.stack)
        self.stack = []

    def pop_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marked.pop()
        return items

    def put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def get(self, index: int) -> None:
        self.push(self.memo[index])

    def find(self, name: str) -> None:
        if name not in _GLOBALS:
            raise CheckpointError(f"names {name!r:.80}, which is no part of a state dict")
        self.push(_GLOBALS[name])

    def call(self) -> None:
        function, arguments = self.pop(2)
        self.push(function(*arguments))

    def set_items(self, items: list[Any]) -> None:
        for name, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(name, str):  # To hash a nested tuple can take forever.
                raise CheckpointError("is not a state dict")
            self.stack[-1][name] = value


_OPERATIONS: dict[str, Callable[[_Machine, Any], object]] = {
    "PROTO": lambda _machine, _version: None,
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    **dict.fromkeys(("BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"), _Machine.push),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), _Machine.put),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), _Machine.get),
    "MARK": lambda machine, _: machine.mark(),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.pop_mark())),
    "TUPLE1": lambda machine, _: machine.push(tuple(machine.pop(1))),
    "TUPLE2": lambda machine, _: machine.push(tuple(machine.pop(2))),
    "TUPLE3": lambda machine, _: machine.push(tuple(machine.pop(3))),
    "SETITEM": lambda machine, _: machine.set_items(machine.pop(2)),
    "SETITEMS": lambda machine, _: machine.set_items(machine.pop_mark()),
    "GLOBAL": _Machine.find,
    "REDUCE": lambda machine, _: machine.call(),
    "BINPERSID": lambda machine, _: machine.push(_Storage(*machine.stack.pop())),
    "BUILD": lambda machine, _: machine.pop(1),
}


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
