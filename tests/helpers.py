"""Helpers that several test files share."""

import itertools
import json
import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pocketdiff import checkpoint
from pocketdiff.checkpoint import RunConfig
from pocketdiff.config import MethodConfig
from pocketdiff.data import Dataset
from pocketdiff.folder import RunFolder
from pocketdiff.methods import METHODS
from pocketdiff.methods.diffusion import Diffusion, DiffusionConfig, Draws
from pocketdiff.methods.loop import StepReport, TrainState, batches, train
from pocketdiff.nets.context_unet import ContextUnetConfig
from pocketdiff.tensors import fingerprint

# Training


def new_state(config: MethodConfig, data: Dataset) -> TrainState:
    """The state before the first step."""
    return METHODS.find(config.kind).new_state(config, data.info, "cpu", checkpoint.load)


def steps(state: TrainState, config: MethodConfig, data: Dataset) -> Any:
    """The training loop of a state."""
    return train(METHODS.find(config.kind), state, data.train, config)


def trained(config: MethodConfig, data: Dataset) -> tuple[TrainState, list[StepReport]]:
    """A state after the whole run, and its reports."""
    state = new_state(config, data)
    return state, list(steps(state, config, data))


def resumed(
    config: MethodConfig, data: Dataset, stops: tuple[int, ...], folder: Path
) -> tuple[TrainState, list[StepReport]]:
    """The same after stops at these steps: each time a checkpoint is saved, and restored into a new state."""
    run_config = RunConfig(train=config, data=data.info)
    state, reports = new_state(config, data), list[StepReport]()
    for stop in (*stops, None):
        reports += itertools.islice(steps(state, config, data), stop and stop - state.step)
        path = checkpoint.save_checkpoint(RunFolder(folder), state, run_config)
        state = new_state(config, data)
        checkpoint.restore_checkpoint(checkpoint.read_checkpoint(path), state, run_config)
    return state, reports


def model_of(state: TrainState, config: MethodConfig, data: Dataset) -> Any:
    """The model that draws with a state's averaged weights."""
    return METHODS.find(config.kind).model(state.ema, config, data.info)


def draws(config: DiffusionConfig, data: Dataset, seen: int, count: int) -> Draws:
    """The inputs of the loss for ``count`` images, after ``seen`` images of the run."""
    config = config.model_copy(update={"images": seen + count, "epochs": None, "batch": count})
    batch = next(batches(config, data.train, TrainState({}, [], seen=seen)))
    return Diffusion().draw(batch, config, len(data.info.classes))


def tensors(state: TrainState) -> dict[str, Tensor]:
    """Every tensor of a state."""
    modules = {
        f"{part}.{name}": tensor
        for part, module in state.modules.items()
        for name, tensor in module.state_dict().items()
    }
    optimizers = {
        f"{number}.{index}.{key}": tensor
        for number, optimizer in enumerate(state.optimizers)
        for index, kept in optimizer.state_dict()["state"].items()
        for key, tensor in kept.items()
    }
    return modules | optimizers


def assert_same(one: TrainState, other: TrainState) -> None:
    """Two states are equal bit for bit."""
    a, b = tensors(one), tensors(other)
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []
    assert (one.step, one.seen) == (other.step, other.seen)


# Models


def class_means(images: Tensor, labels: Tensor) -> Tensor:
    """The mean image of each of ten classes, one flat row for each."""
    return torch.stack([images[labels == label].float().mean(0).flatten() for label in range(10)])


def assert_draws_the_requested_classes(model: Any, data: Dataset, before: Tensor) -> None:
    """The mean image of each drawn class is close to the real one's, and closest to it among the real ones.

    Args:
        model: After its training.
        data: What it learned.
        before: What `distances_to_class_means` gave before.
    """
    after = distances_to_class_means(model, data)
    assert (after.diagonal() < 0.6 * before.diagonal()).all(), after.diagonal() / before.diagonal()
    assert (after.argmin(1) == torch.arange(10)).sum() >= 9


def distances_to_class_means(model: Any, data: Dataset) -> Tensor:
    """From the mean of ten drawn images of each class (rows) to the mean of each real class (columns)."""
    labels = torch.arange(10).repeat(10)
    drawn = class_means(model(labels, range(100)), labels)
    return torch.cdist(drawn, class_means(data.train.pixels, data.train.labels))


def metadata(path: Path) -> dict[str, Any]:
    """The description in a file of `write_tensors`."""
    with safe_open(path, "pt") as file:
        found: dict[str, Any] = json.loads(file.metadata()["pocketdiff"])
    return found


def signed(path: Path, about: dict[str, Any], folder: Path) -> Path:
    """The same tensors with another description and a valid SHA-256, as a stranger would write them."""
    about = {name: value for name, value in about.items() if name != "sha256"}
    about["sha256"] = fingerprint(load_file(path), about)
    changed = folder / "changed.safetensors"
    save_file(load_file(path), changed, {"pocketdiff": json.dumps(about)})
    return changed


def flip_bit(path: Path, at: int) -> None:
    """Changes one bit of a file."""
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


# The original experiment's network


def functional(state: dict[str, Tensor], x: Tensor, time: Tensor, context: Tensor) -> Tensor:
    """The DDPM-MNIST script's network in eval mode, from its state dict and torch.nn.functional alone."""

    def layer(x: Tensor, name: str) -> Tensor:
        x = F.conv2d(x, state[f"{name}.0.weight"], state[f"{name}.0.bias"], padding=1)
        mean, var = (state[f"{name}.1.running_{what}"][:, None, None] for what in ("mean", "var"))
        x = (x - mean) / torch.sqrt(var + 1e-5)
        x = x * state[f"{name}.1.weight"][:, None, None] + state[f"{name}.1.bias"][:, None, None]
        return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))

    def block(x: Tensor, name: str) -> Tensor:
        return layer(layer(x, f"{name}.conv1"), f"{name}.conv2")

    def up(x: Tensor, skip: Tensor, name: str) -> Tensor:
        weight, bias = state[f"{name}.model.0.weight"], state[f"{name}.model.0.bias"]
        x = F.conv_transpose2d(torch.cat([x, skip], 1), weight, bias, stride=2)
        return block(block(x, f"{name}.model.1"), f"{name}.model.2")

    def embed(x: Tensor, name: str) -> Tensor:
        x = F.gelu(F.linear(x, state[f"{name}.model.0.weight"], state[f"{name}.model.0.bias"]))
        return F.linear(x, state[f"{name}.model.2.weight"], state[f"{name}.model.2.bias"])[:, :, None, None]

    first = layer(x, "init_conv.conv1")
    x = (first + layer(first, "init_conv.conv2")) / 1.414
    d1 = F.max_pool2d(block(x, "down1.model.0"), 2)
    d2 = F.max_pool2d(block(d1, "down2.model.0"), 2)
    vector = F.gelu(d2.mean((2, 3), keepdim=True))
    h = F.conv_transpose2d(vector, state["up0.0.weight"], state["up0.0.bias"], stride=7)
    h = F.relu(F.group_norm(h, 8, state["up0.1.weight"], state["up0.1.bias"]))
    c1, c2 = embed(context, "contextembed1"), embed(context, "contextembed2")
    t1, t2 = embed(time, "timeembed1"), embed(time, "timeembed2")
    h = up(c1 * h + t1, d2, "up1")
    h = up(c2 * h + t2, d1, "up2")
    h = F.conv2d(torch.cat([h, x], 1), state["out.0.weight"], state["out.0.bias"], padding=1)
    h = F.relu(F.group_norm(h, 8, state["out.1.weight"], state["out.1.bias"]))
    return F.conv2d(h, state["out.3.weight"], state["out.3.bias"], padding=1)


def used_context_unet(n_feat: int, channels: int = 1, classes: int = 10, seed: int = 0) -> nn.Module:
    """The package's version of that network, with batch-norm statistics as after training."""
    torch.manual_seed(seed)
    net = ContextUnetConfig(n_feat=n_feat).build((channels, 28, 28), classes)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    return net.eval()
