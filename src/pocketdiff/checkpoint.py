"""Run folders, checkpoints and model files: safetensors and JSON, nothing pickled, all tensors under a SHA-256.

A checkpoint gets its name only when it is whole, its manifest is written last, and the one before it goes only after it
has been read back. A model file carries its config and needs nothing beside it.
"""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any, get_args

import safetensors
import safetensors.torch
import torch
from pydantic import ValidationError
from torch import Tensor

from pocketdiff.config import AnyConfig
from pocketdiff.data import DataInfo
from pocketdiff.errors import PocketdiffError
from pocketdiff.files import new_folder, write_file
from pocketdiff.frozen import Frozen
from pocketdiff.generate import DiffusionModel, GanModel, ImageModel, build_model
from pocketdiff.loop import TrainingError, TrainState

MODEL_FILE = "model.safetensors"
_MANIFEST = "manifest.json"
_METADATA_KEY = "pocketdiff"
_FORMAT = 2
_KINDS = {config.model_fields["kind"].default for config in get_args(AnyConfig)}


class CheckpointError(PocketdiffError):
    """A run, a checkpoint or a model file that cannot be used."""


class RunConfig(Frozen):
    """What lies in ``config.json`` and in a model's metadata: enough to rebuild everything."""

    train: AnyConfig
    data: DataInfo

    def to_json(self) -> str:
        """The same config gives the same text."""
        return json.dumps(self.model_dump(mode="json"), indent=2, sort_keys=True) + "\n"

    def differences(self, other: "RunConfig") -> list[str]:
        """The fields in which another run differs, each as ``name (this, other)``."""
        mine, theirs = _flat(self.model_dump(mode="json")), _flat(other.model_dump(mode="json"))
        return [
            f"{name.removeprefix('train.')} ({mine.get(name)}, {theirs.get(name)})"
            for name in sorted(mine.keys() | theirs.keys())
            if mine.get(name) != theirs.get(name)
        ]


class Manifest(Frozen):
    """A checkpoint's ``manifest.json``: where training stood, and what the files beside it must be."""

    step: int
    seen: int
    training_seconds: float
    """Time spent in training steps so far, over all sessions."""
    other_seconds: float
    """Time spent on all else so far: pictures, checkpoints, getting ready."""
    config: RunConfig
    files: dict[str, tuple[int, str]]
    """Size and SHA-256 of each file."""


def read_run_config(run: Path) -> RunConfig | None:
    """The config of a run's folder, or None if it holds no run.

    Raises:
        CheckpointError: If ``config.json`` is there and cannot be read.
    """
    path = run / "config.json"
    try:
        return RunConfig.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        raise CheckpointError(f"{path}: is not a run's config; take another --out folder") from error


def save_checkpoint(
    run: Path, state: TrainState[Any], config: RunConfig, training_seconds: float = 0.0, other_seconds: float = 0.0
) -> Path:
    """Writes a checkpoint, reads it back, and only then removes the ones before it.

    Returns:
        Its folder, ``run/checkpoints/step-...``.

    Raises:
        TrainingError: If a weight is not finite; the checkpoints before are kept.
        OSError: If it cannot be written; the checkpoints before are kept.
    """
    parts = {
        "net.safetensors": _contiguous(state.net.state_dict()),
        "ema.safetensors": _contiguous(state.ema.state_dict()),
        "optimizers.safetensors": _contiguous(_optimizer_tensors(state)),
    }
    for tensors in parts.values():
        _check_finite(tensors)
    path = run / "checkpoints" / f"step-{state.step:08d}"
    if path.exists():
        shutil.rmtree(path)
    with new_folder(path) as folder:
        files = {}
        for part, tensors in parts.items():
            content = safetensors.torch.save(tensors)
            write_file(folder / part, content)
            files[part] = (len(content), hashlib.sha256(content).hexdigest())
        manifest = Manifest(
            step=state.step, seen=state.seen, training_seconds=training_seconds, other_seconds=other_seconds,
            config=config, files=files,
        )  # fmt: skip
        write_file(folder / _MANIFEST, manifest.model_dump_json(indent=2))
    verify_checkpoint(path)
    for other in path.parent.glob("step-*"):
        if other != path:
            shutil.rmtree(other)
    return path


def verify_checkpoint(path: Path) -> Manifest:
    """Reads a checkpoint's files against its manifest.

    Raises:
        CheckpointError: If anything is missing or differs.
    """
    try:
        manifest = Manifest.model_validate_json((path / _MANIFEST).read_bytes())
        for name, (size, sha256) in manifest.files.items():
            content = (path / name).read_bytes()
            if len(content) != size or hashlib.sha256(content).hexdigest() != sha256:
                raise CheckpointError(f"{path / name}: is not the file that was saved; take another checkpoint")
    except (OSError, ValidationError) as error:
        raise CheckpointError(f"{path}: is not a whole checkpoint; take another one") from error
    return manifest


def newest_checkpoint(run: Path) -> tuple[Path, list[str]] | None:
    """A run's newest checkpoint that verifies, with what is wrong with newer ones; None if there is none at all.

    Raises:
        CheckpointError: If there are checkpoints and none of them verifies.
    """
    faults: list[str] = []
    for path in sorted(run.glob("checkpoints/step-*"), reverse=True):
        try:
            verify_checkpoint(path)
        except CheckpointError as error:
            faults.append(str(error))
        else:
            return path, faults
    if faults:
        raise CheckpointError(f"{faults[0]} (no other is left: take a new --out folder)")
    return None


def restore_checkpoint(path: Path, state: TrainState[Any], config: RunConfig) -> Manifest:
    """Puts a checkpoint's weights, EMA, optimizers and position into a new state.

    Raises:
        CheckpointError: If it does not verify, or is of a run with another config or another version of the network.
    """
    manifest = verify_checkpoint(path)
    if differences := manifest.config.differences(config):
        raise CheckpointError(f"{path}: is of a run that differs in {', '.join(differences)}; take one of this run")
    parameters = dict(state.net.named_parameters())
    try:
        state.net.load_state_dict(safetensors.torch.load_file(path / "net.safetensors"))
        state.ema.load_state_dict(safetensors.torch.load_file(path / "ema.safetensors"))
        for slot, tensor in safetensors.torch.load_file(path / "optimizers.safetensors").items():
            number, name, key = slot.split("/")
            state.optimizers[int(number)].state[parameters[name]][key] = _laid_out_as(parameters[name], tensor)
    except (OSError, RuntimeError, KeyError, ValueError, IndexError) as error:
        raise CheckpointError(
            f"{path}: was saved by another version of the network's code; take a new --out"
        ) from error
    state.step, state.seen = manifest.step, manifest.seen
    return manifest


def save_model(path: Path, model: ImageModel) -> None:
    """Writes a model file: the weights, with the config and the SHA-256 of both in one metadata key.

    Raises:
        TrainingError: If a weight is not finite.
    """
    tensors = model.net.state_dict()
    _check_finite(tensors)
    config = RunConfig(train=model.config, data=model.info).model_dump(mode="json")
    write_tensors(path, tensors, {"format": _FORMAT, "kind": model.config.kind, **config})


def load(path: Path | str, device: torch.device | str = "cpu") -> DiffusionModel | GanModel:
    """A trained model, ready to draw: ``load("runs/laptop")([3, 1, 4], [0, 1, 2])``.

    Args:
        path: A model file, or the folder of a finished run.
        device: Where to sample.

    Raises:
        CheckpointError: If there is no model, or the file is damaged or not pocketdiff's.
    """
    path = Path(path)
    if path.is_dir():
        if not (path / MODEL_FILE).exists():
            unfinished = (path / "config.json").exists()
            fault = "is an unfinished run; train it to its end first" if unfinished else f"holds no {MODEL_FILE}"
            raise CheckpointError(f"{path}: {fault}")
        path = path / MODEL_FILE
    if not path.exists():
        raise CheckpointError(f"{path}: no such file; give a model file or the folder of a finished run")
    tensors, about = read_tensors(path)
    version, kind = about.get("format"), about.get("kind")
    strange = CheckpointError(
        f"{path}: holds {kind!r} in format {version!r}, which this version does not read; use the one that wrote it"
    )
    if version != _FORMAT or kind not in _KINDS:
        raise strange
    try:
        config = RunConfig.model_validate({name: about[name] for name in about.keys() - {"format", "kind"}})
        if kind != config.train.kind:
            raise strange
        model = build_model(config.train, config.data)
        model.net.load_state_dict(tensors)
    except (ValidationError, RuntimeError) as error:
        raise CheckpointError(
            f"{path}: its config is not of this version of pocketdiff; use the version that wrote it"
        ) from error
    model.net.requires_grad_(False).to(device)
    return model


def write_tensors(path: Path, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
    """Writes tensors to a file, with what is said about them and the SHA-256 of both in one metadata key.

    Raises:
        OSError: If it cannot be written.
    """
    tensors = _contiguous(tensors)
    text = json.dumps({**about, "sha256": fingerprint(tensors, about)}, sort_keys=True)
    write_file(path, safetensors.torch.save(tensors, {_METADATA_KEY: text}))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `write_tensors` wrote: the tensors, and what is said about them.

    Raises:
        CheckpointError: If the file is damaged, or not one of pocketdiff's.
    """
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read as safetensors ({error}); copy the file again") from error
    try:
        about = dict(json.loads(metadata[_METADATA_KEY]))
        sha256 = about.pop("sha256")
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path}: was not written by pocketdiff; give a model file that was") from error
    if sha256 != fingerprint(tensors, about):
        raise CheckpointError(f"{path}: its weights or its config are not those that were saved; copy the file again")
    return tensors, about


def _optimizer_tensors(state: TrainState[Any]) -> dict[str, Tensor]:
    """What the optimizers keep for each parameter, as ``optimizer/parameter/key``."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in state.net.named_parameters()}
    return {
        f"{number}/{names[parameter]}/{key}": tensor
        for number, optimizer in enumerate(state.optimizers)
        for parameter, kept in optimizer.state.items()
        for key, tensor in kept.items()
    }


def _laid_out_as(parameter: Tensor, tensor: Tensor) -> Tensor:
    """A tensor with its parameter's strides and device, as before the stop: a kernel may round by the strides."""
    return torch.empty_like(parameter).copy_(tensor) if tensor.shape == parameter.shape else tensor.to(parameter.device)


def _check_finite(tensors: dict[str, Tensor]) -> None:
    if broken := [name for name, tensor in tensors.items() if not tensor.isfinite().all()]:
        raise TrainingError(f"{broken[0]} is not finite, so nothing was saved; train again with a lower learning rate")


def _contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def fingerprint(tensors: dict[str, Tensor], about: dict[str, Any]) -> str:
    """The SHA-256 of weights and of what is said about them, whatever their order."""
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
