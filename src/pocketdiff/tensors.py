"""Files of tensors: safetensors with one metadata key, everything under one SHA-256, nothing pickled."""

import hashlib
import json
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from pocketdiff.errors import CheckpointError, RequestError, TrainingError
from pocketdiff.files import write_file

_METADATA_KEY = "pocketdiff"


def write_tensors(path: Path, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
    """Writes tensors and a JSON description of them; raises TrainingError, and writes nothing, if one is not finite."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    if broken := [name for name, tensor in tensors.items() if not tensor.isfinite().all()]:
        raise TrainingError(f"{broken[0]} is not finite, so nothing was saved; train again with a lower learning rate")
    text = json.dumps({**about, "sha256": fingerprint(tensors, about)}, sort_keys=True)
    write_file(path, safetensors.torch.save(tensors, {_METADATA_KEY: text}))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads what `write_tensors` wrote; raises CheckpointError if the file is missing, damaged, or something else."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            about = dict(json.loads((file.metadata() or {})[_METADATA_KEY]))
            sha256 = about.pop("sha256")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read as safetensors ({error}); copy the file again") from error
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path}: was not written by pocketdiff; give a file that pocketdiff saved") from error
    if sha256 != fingerprint(tensors, about):
        raise CheckpointError(f"{path}: its content is not what was saved; copy the file again")
    return tensors, about


def in_half(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with float16 in place of float32; raises RequestError if a finite value is beyond its range."""
    halves = {name: tensor.half() if tensor.dtype == torch.float32 else tensor for name, tensor in tensors.items()}
    if large := [name for name, half in halves.items() if (half.isinf() & tensors[name].isfinite()).any()]:
        raise RequestError(f"{large[0]} has values that float16 cannot hold (beyond 65,504); save it in full precision")
    return halves


def fingerprint(tensors: dict[str, Tensor], about: dict[str, Any]) -> str:
    """The SHA-256 of tensors and their description; the order of the tensors does not matter."""
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
