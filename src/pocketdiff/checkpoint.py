"""Checkpoints and model files: safetensors, everything in a file under one SHA-256, nothing pickled.

A checkpoint is one file. Older ones are removed only after it has been read back. A model file needs nothing else.
"""

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import ValidationError
from torch import Tensor

from pocketdiff import shipped
from pocketdiff.config import MethodConfig, SamplingConfig
from pocketdiff.data import DataInfo
from pocketdiff.errors import CheckpointError, RequestError
from pocketdiff.folder import RunFolder
from pocketdiff.frozen import Frozen
from pocketdiff.methods import METHODS
from pocketdiff.methods.loop import TrainState
from pocketdiff.model import FORMAT, ImageModel
from pocketdiff.nets import shapes_only
from pocketdiff.records import Amount, Count, Interval
from pocketdiff.registry import OneOf, Plugin, plugins
from pocketdiff.tensors import read_tensors, write_tensors

_REMAKE = "the same train command makes it anew"
_RENAMED = {"even_levels": "stratified"}  # Fields of format 2 that have another name now.


class RunConfig(Frozen):
    """The content of ``config.json``: enough to build everything again."""

    train: Annotated[MethodConfig, OneOf(METHODS)]
    data: DataInfo

    def to_json(self) -> str:
        """The config as text; equal configs give equal texts."""
        return json.dumps(self.model_dump(mode="json"), indent=2, sort_keys=True) + "\n"

    @property
    def ends(self) -> tuple[int, ...]:
        """Images seen at the end of each part of the run."""
        return self.train.ends(self.data.train_images or 0)

    def with_length_of(self, other: "RunConfig") -> "RunConfig":
        """The config with the length and the parts of another."""
        length = {field: getattr(other.train, field) for field in ("images", "epochs", "parts")}
        return self.model_copy(update={"train": self.train.model_copy(update=length)})

    def continues(self, other: "RunConfig") -> bool:
        """Whether this is the other run with further parts."""
        same = self.with_length_of(other) == other
        return same and len(self.ends) > len(other.ends) and self.ends[: len(other.ends)] == other.ends

    def differences(self, other: "RunConfig") -> list[str]:
        """The fields that differ in another run, each as ``name (this, other)``."""
        mine, theirs = _flat(self.model_dump(mode="json")), _flat(other.model_dump(mode="json"))
        changed = [name for name in sorted(mine.keys() | theirs.keys()) if mine.get(name) != theirs.get(name)]
        return [f"{name.removeprefix('train.')} ({mine.get(name)}, {theirs.get(name)})" for name in changed]


class Position(Frozen):
    """Where a run was when its checkpoint was saved, its times, as in its summary, and what its log has not written."""

    step: Count
    seen: Count
    training_seconds: Amount
    other_seconds: Amount
    interval: Interval = Interval()


class Checkpoint(NamedTuple):
    """A checkpoint that was read and verified."""

    path: Path
    position: Position
    config: RunConfig
    tensors: dict[str, Tensor]
    """``modules/NAME/...`` and ``optimizers/NUMBER/PARAMETER/KEY``."""


def save_checkpoint(
    folder: RunFolder, state: TrainState, config: RunConfig, training_seconds: float = 0.0, other_seconds: float = 0.0,
    interval: Interval | None = None,
) -> Path:  # fmt: skip
    """Writes a checkpoint, reads it back, and only then removes the older ones; returns its path."""
    tensors: dict[str, Tensor] = {}
    for part, module in state.modules.items():
        tensors |= {f"modules/{part}/{name}": tensor for name, tensor in module.state_dict().items()}
    names: dict[Tensor, str] = {weight: name for name, weight in state.net.named_parameters()}
    for number, optimizer in enumerate(state.optimizers):
        for weight, kept in optimizer.state.items():
            tensors |= {f"optimizers/{number}/{names[weight]}/{key}": tensor for key, tensor in kept.items()}
    position = Position(
        step=state.step, seen=state.seen, training_seconds=training_seconds, other_seconds=other_seconds,
        interval=interval or Interval(),
    )  # fmt: skip
    path = folder.checkpoint(state.step)
    path.parent.mkdir(parents=True, exist_ok=True)
    about = {"checkpoint": position.model_dump(), "config": config.model_dump(mode="json"), **plugins(config)}
    write_tensors(path, tensors, about)
    read_checkpoint(path)
    remove_others(folder, path)
    return path


def remove_others(folder: RunFolder, kept: Path) -> None:
    """Removes all checkpoints of a run but one, if that one is there."""
    if kept in (saved := folder.saved_checkpoints()):
        for path in set(saved) - {kept}:
            path.unlink(missing_ok=True)


def read_checkpoint(path: Path) -> Checkpoint:
    """Reads a checkpoint; raises CheckpointError if it is missing, damaged, or of another version."""
    tensors, about = read_tensors(path)
    if "checkpoint" not in about:
        raise CheckpointError(f"{path}: is not a checkpoint; give a file of a run's checkpoints folder")
    try:
        position = Position.model_validate(about["checkpoint"])
        config = RunConfig.model_validate(about.get("config"))
    except ValidationError as error:
        raise CheckpointError(f"{path}: {_reason(about, error)}") from error
    length = config.train.length(config.data.train_images or 0)
    if not RunFolder.has_its_name(path, position.step) or not 0 < position.seen <= length:
        fault = f"holds step {position.step}, after {position.seen} of {length} images, which does not fit its name"
        raise CheckpointError(f"{path}: {fault} or its config; use another checkpoint")
    return Checkpoint(path, position, config, tensors)


def newest_checkpoint(folder: RunFolder) -> tuple[Checkpoint, list[str]] | None:
    """A run's newest valid checkpoint, with the faults of newer ones; None if the run has no checkpoint at all."""
    faults: list[str] = []
    for path in folder.saved_checkpoints():
        try:
            return read_checkpoint(path), faults
        except CheckpointError as error:
            faults.append(str(error))
    if faults:
        raise CheckpointError(f"{faults[0]} (no other checkpoint is left: use a new --out folder)")
    return None


def restore_checkpoint(checkpoint: Checkpoint, state: TrainState, config: RunConfig) -> None:
    """Puts a checkpoint of a run, or of its earlier parts, into a state; raises CheckpointError if the config or the
    version of the code is another.
    """
    path = checkpoint.path
    differences = checkpoint.config.differences(config)
    if differences and not config.continues(checkpoint.config):
        raise CheckpointError(f"{path}: belongs to a run that differs in {', '.join(differences)}")
    parameters = dict(state.net.named_parameters())
    try:
        for part, module in state.modules.items():
            module.load_state_dict(_below(checkpoint.tensors, f"modules/{part}/"))
        for slot, tensor in _below(checkpoint.tensors, "optimizers/").items():
            number, name, key = slot.split("/")
            weight = parameters[name]
            # With the weight's strides, as before the stop: a kernel may round by the strides.
            kept = torch.empty_like(weight if tensor.shape == weight.shape else tensor, device=weight.device)
            state.optimizers[int(number)].state[weight][key] = kept.copy_(tensor)
    except (RuntimeError, KeyError, ValueError, IndexError) as error:
        raise CheckpointError(f"{path}: was saved by another version of the code; use a new --out folder") from error
    state.step, state.seen = checkpoint.position.step, checkpoint.position.seen


def read_run_config(folder: RunFolder) -> RunConfig | None:
    """The config of a run; None if the folder holds no run. Raises CheckpointError if it cannot be used."""
    try:
        found = json.loads(folder.config.read_bytes())
        return RunConfig.model_validate(found)
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise CheckpointError(f"{folder.config}: {_reason(found, error)}; use another --out folder") from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{folder.config}: is not a run's config; use another --out folder") from error


def load(path: Path | str, device: torch.device | str = "cpu") -> ImageModel:
    """Loads a trained model: a model file, a finished run's folder, or, by its name, one that comes with the package:
    ``load("mnist")([3, 1, 4])``. A run or a file of that name in the working directory comes first.

    Raises:
        CheckpointError: If there is no model, the file is damaged, or it needs a plug-in that is not available.
    """
    path = shipped.find(path)
    folder = RunFolder(path)
    if path.is_dir() and not folder.model.exists():
        fault = "is an unfinished run; train it to its end first" if folder.is_run() else "holds no model file"
        fault = f"the model file is missing; {_REMAKE}" if folder.summary.exists() else fault
        raise CheckpointError(f"{path}: {fault}")
    finished = path.is_dir() and folder.summary.exists()
    path = folder.model if path.is_dir() else path
    if not path.exists():
        names = ", ".join(shipped.names())
        raise CheckpointError(
            f"{path}: no such file; give a model file, the folder of a finished run, or a model of the package: {names}"
        )
    try:
        tensors, about = read_tensors(path)
    except CheckpointError as error:
        if finished:
            raise CheckpointError(f"{path}: the model file is damaged; {_REMAKE}") from error
        raise
    if about.get("format") != FORMAT or not about.keys() <= {"format", "kind", "train", "data", "plugins"}:
        raise CheckpointError(
            f"{path}: has the format {about.get('format')!r:.40} and this version reads {FORMAT}; use the version of "
            "pocketdiff that wrote it"
        )
    train = about.get("train")
    if isinstance(train, Mapping):
        train = {_RENAMED.get(name, name): value for name, value in train.items()}
    try:
        config = RunConfig.model_validate({"train": train, "data": about.get("data")})
        if about.get("kind") != config.train.kind:
            raise ValueError("kind and config differ")
        with shapes_only():  # A small file may ask for a large network.
            wanted = _layout(_new_model(config).net.state_dict())
    except (ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path}: {_reason(about, error)}") from error
    if differing := sorted(name for name, _ in wanted.items() ^ _layout(tensors).items()):
        name = differing[0]
        raise CheckpointError(f"{path}: its config does not fit its tensor {name!r}; use the version that wrote it")
    model = _new_model(config)
    model.net.load_state_dict(tensors)
    model.net.requires_grad_(False).to(device)
    return model


def with_sampling(model: ImageModel, sampling: SamplingConfig) -> ImageModel:
    """The model with other sampling settings; loads the weaker model that ``sampling.guide`` names.

    Raises:
        RequestError: If the model has no sampling settings, or the guide does not fit.
        CheckpointError: If the guide cannot be loaded.
    """
    return model.with_sampling(sampling, None if sampling.guide is None else load(sampling.guide, model.device))


def keep_sampling(path: Path | str, sampling: SamplingConfig) -> ImageModel:
    """Makes sampling settings the defaults of a model file, or of a finished run's; returns the changed model.

    The file is replaced as a whole, with the same weights. A run's ``config.json`` stays as it is.

    Raises:
        RequestError: If the model has no sampling settings or comes with the package, the settings do not fit, or they
            name a guide: a model file must be complete on its own.
        CheckpointError: As `load`.
        OSError: If the file cannot be written.
    """
    check_changeable(path)
    model = load(path)
    if model.sampling is None:
        raise RequestError(f"{path}: draws in one step and has no sampling settings")
    try:
        model.config = model.config.model_validate({**dict(model.config), "sampling": sampling})
    except ValidationError as error:
        raise RequestError(f"{path}: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from error
    file = RunFolder(path).model if Path(path).is_dir() else Path(path)
    half = torch.float16 in {tensor.dtype for tensor in read_tensors(file)[0].values()}
    model.save(file, half=half)
    return model.with_sampling(sampling)


def check_changeable(path: Path | str) -> None:
    """Raises RequestError if a path or a name means a model of the package."""
    if shipped.is_shipped(shipped.find(path)):
        raise RequestError(
            f"{path}: comes with the package and cannot be changed; give the settings when you draw, or change a copy: "
            f"pocketdiff.load({str(path)!r}).save('mine.safetensors')"
        )


def _new_model(config: RunConfig) -> ImageModel:
    method = METHODS.find(config.train.kind)
    return method.model(method.build(config.train, config.data), config.train, config.data)


def _layout(tensors: Mapping[str, Tensor]) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shapes and types; float16 counts as float32, because a model file may store it in place of that."""
    found = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
    return {name: (shape, torch.float32 if of == torch.float16 else of) for name, (shape, of) in found.items()}


def _reason(about: object, error: Exception) -> str:
    """Why a file's config cannot be used: a plug-in that is missing, or another version."""
    faults = error.errors() if isinstance(error, ValidationError) else []
    messages = [str(fault["msg"]).removeprefix("Value error, ") for fault in faults]
    message = next((text for text in messages if text.startswith("there is no ")), "")
    if not message:
        return "its config is not valid in this version of pocketdiff; use the version that wrote it"
    needed = about.get("plugins") if isinstance(about, Mapping) else None
    for entry in needed if isinstance(needed, list) else []:
        with contextlib.suppress(ValidationError):
            plugin = Plugin.model_validate(entry)
            name = f"{plugin.noun} {plugin.name!r}"
            if message.startswith(f"there is no {name}"):
                return f"needs the {name}, which is not part of pocketdiff: {plugin.remedy()}"
    return f"{message.partition(';')[0]}; if a plug-in provides it, import it first (--plugin MODULE)"


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
