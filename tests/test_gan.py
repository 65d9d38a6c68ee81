import copy
import itertools
import json
import math
import os
import re
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from pocketdiff import checkpoint, rng
from pocketdiff.checkpoint import CheckpointError, RunConfig
from pocketdiff.cli import run
from pocketdiff.config import GAN_PRESETS, PRESETS, GanConfig
from pocketdiff.data import Dataset, Images
from pocketdiff.gan import gradient_penalty, new_state, train
from pocketdiff.generate import GanModel, RequestError, build_denoiser
from pocketdiff.loop import Metrics, TrainingError, TrainState
from pocketdiff.nets.gan import LOSSES, ConvGanConfig, Gan, MlpGanConfig, Verdict
from tests.test_train import assert_same, tensors

SMALL = {
    "gan": GAN_PRESETS["gan"].model_copy(
        update={
            "net": MlpGanConfig(latent=8, generator=(16, 24), discriminator=(24, 16)),
            "images": 92,
            "epochs": None,
            "batch": 8,
        }
    ),
    "gan-conditional": GAN_PRESETS["gan-conditional"].model_copy(
        update={"net": ConvGanConfig(latent=8, widths=(8, 16), embedding=16), "images": 92, "batch": 8}
    ),
}
"""Both presets with small networks: 12 steps over a little more than two epochs of the forty digits."""
both = pytest.mark.parametrize("preset", SMALL)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def finished(config: GanConfig, data: Dataset) -> tuple[TrainState[Gan], list[Metrics]]:
    state = new_state(config, data.info)
    return state, list(train(state, data.train, config))


# The losses


def test_nonsaturating_is_goodfellows() -> None:
    real, fake = 3 * noise(50), 3 * noise(50, seed=1)
    d_real, d_fake = 1 / (1 + torch.exp(-real)), 1 / (1 + torch.exp(-fake))
    losses = LOSSES["nonsaturating"](real, fake)
    torch.testing.assert_close(losses.discriminator, -(d_real.log() + (1 - d_fake).log()).mean(), rtol=1e-9, atol=0)
    torch.testing.assert_close(losses.generator, -d_fake.log().mean(), rtol=1e-9, atol=0)


def test_relativistic_compares_each_pair() -> None:
    real, fake = 3 * noise(50), 3 * noise(50, seed=1)
    losses = LOSSES["relativistic"](real, fake)
    pairs = [(r, f) for r, f in zip(real.tolist(), fake.tolist(), strict=True)]
    discriminator = sum(-math.log(1 / (1 + math.exp(f - r))) for r, f in pairs) / 50
    generator = sum(-math.log(1 / (1 + math.exp(r - f))) for r, f in pairs) / 50
    assert losses.discriminator.item() == pytest.approx(discriminator, rel=1e-9)
    assert losses.generator.item() == pytest.approx(generator, rel=1e-9)


def test_relativistic_does_not_ask_where_zero_is() -> None:
    real, fake = noise(50), noise(50, seed=1)
    for one, other in zip(LOSSES["relativistic"](real, fake), LOSSES["relativistic"](real + 7, fake + 7), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("loss", "doubled"), [("nonsaturating", 2), ("relativistic", 1)])
def test_who_cannot_tell_pays_log_two(loss: str, doubled: int) -> None:
    losses = LOSSES[loss](torch.zeros(5), torch.zeros(5))
    assert losses.discriminator.item() == pytest.approx(doubled * math.log(2))
    assert losses.generator.item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("loss", LOSSES)
def test_no_logit_is_too_large_for_a_loss(loss: str) -> None:
    for real, fake in itertools.product((-1e4, 1e4), repeat=2):
        for value in LOSSES[loss](torch.tensor([real]), torch.tensor([fake])):
            assert 0 <= value.item() <= 3e4


# The gradient penalty


class Formula(nn.Module):
    """A discriminator whose logit is ``w . x``, or ``x . x / 2`` times the first of its weights."""

    def __init__(self, w: Tensor, square: bool) -> None:
        super().__init__()
        self.w, self.square = nn.Parameter(w), square

    def forward(self, x: Tensor, label: Tensor) -> Verdict:
        flat = x.flatten(1)
        return Verdict(self.w[0] * flat.square().sum(1) / 2 if self.square else flat @ self.w, None)


def test_a_linear_logits_penalty_is_half_its_squared_slope() -> None:
    w, x = noise(12), noise(5, 3, 2, 2, seed=1)
    discriminator = Formula(w, square=False)
    penalty = gradient_penalty(discriminator, x, torch.zeros(5, dtype=torch.long))
    torch.testing.assert_close(penalty.detach(), w.square().sum() / 2)
    penalty.backward()
    torch.testing.assert_close(discriminator.w.grad, w)


def test_a_quadratic_logits_penalty_grows_with_the_image() -> None:
    """The gradient of a |x|^2 / 2 is a x: the penalty is a^2 |x|^2 / 2, and its own gradient by a is a |x|^2."""
    x = noise(5, 1, 3, 4, seed=1)
    square = x.square().flatten(1).sum(1).mean()
    discriminator = Formula(torch.tensor([1.5], dtype=torch.float64), square=True)
    penalty = gradient_penalty(discriminator, x.clone(), torch.zeros(5, dtype=torch.long))
    torch.testing.assert_close(penalty.detach(), 1.5**2 * square / 2)
    penalty.backward()
    torch.testing.assert_close(discriminator.w.grad, 1.5 * square[None])


# A step


def gradients_by_hand(pair: Gan, config: GanConfig, x: Tensor, z: Tensor, label: Tensor, step: int) -> list[Tensor]:
    """The generator's and then the discriminator's, each of its own loss, in two passes and from the papers."""

    def judge(images: Tensor) -> Tensor:
        return pair.discriminator(images, label).real

    def misread(images: Tensor) -> Tensor | float:
        """The second task of Odena et al. 2017: minus the log of the probability that the label is given."""
        seen = pair.discriminator(images, label).classes
        if seen is None:
            return 0.0
        probability = seen.exp() / seen.exp().sum(1, keepdim=True)
        return (
            -config.classification
            * torch.stack([row[k].log() for row, k in zip(probability, label, strict=True)]).mean()
        )

    fake = pair.generator(z, label)
    if config.loss == "nonsaturating":
        wanted = -torch.sigmoid(judge(fake)).log().mean()
        told = -(torch.sigmoid(judge(x)).log() + (1 - torch.sigmoid(judge(fake.detach()))).log()).mean()
    else:
        wanted = -torch.sigmoid(judge(fake) - judge(x)).log().mean()
        told = -torch.sigmoid(judge(x) - judge(fake.detach())).log().mean()
    wanted, told = wanted + misread(fake), told + misread(x)
    if step % config.penalty_every == 0:
        for images in (x.clone(), fake.detach().clone()):
            images.requires_grad_()
            (slope,) = torch.autograd.grad(judge(images).sum(), images, create_graph=True)
            r = slope.flatten(1).square().sum(1).mean()
            told = told + config.penalty_every * config.gradient_penalty / 2 * r
    return [
        *torch.autograd.grad(wanted, list(pair.generator.parameters())),
        *torch.autograd.grad(told, list(pair.discriminator.parameters())),
    ]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(("penalty", "task"), [(0.0, 0.0), (0.7, 0.0), (0.7, 0.6)])
@both
def test_steps_equal_those_made_by_hand(
    preset: str, penalty: float, task: float, loss: str, tiny_data: Dataset
) -> None:
    """Gradients from the papers' formulas in float64, weights from Adam's; the rates are two, and fall."""
    config = SMALL[preset].model_copy(
        update={
            "loss": loss, "gradient_penalty": penalty, "classification": task, "penalty_every": 2, "adam_beta1": 0.5,
            "adam_beta2": 0.9, "generator_lr": 1e-3, "discriminator_lr": 3e-3, "lr_decay": True,
        }
    )  # fmt: skip
    state = new_state(config, tiny_data.info)
    peaks = [1e-3] * len(list(state.net.generator.parameters()))
    peaks += [3e-3] * len(list(state.net.discriminator.parameters()))
    parameters = list(state.net.parameters())
    m, v = ([torch.zeros_like(p, dtype=torch.float64) for p in parameters] for _ in range(2))
    steps = train(state, tiny_data.train, config)
    for step in range(4):
        seen = range(8 * step, 8 * step + 8)
        x, label = tiny_data.train.batch(rng.visits(config.seed, seen, 40))
        z = rng.normal(config.seed, rng.Stream.LATENT, seen, (8,))
        pair = copy.deepcopy(state.net).double().train()
        expected = gradients_by_hand(pair, config, x.double(), z.double(), label, step)
        before = [p.detach().double() for p in parameters]
        next(steps)
        for p, gradient in zip(parameters, expected, strict=True):
            assert p.grad is not None
            torch.testing.assert_close(p.grad.double(), gradient, rtol=1e-3, atol=1e-6)
        for i, (p, peak) in enumerate(zip(parameters, peaks, strict=True)):
            g = p.grad.double()
            m[i] = 0.5 * m[i] + 0.5 * g
            v[i] = 0.9 * v[i] + 0.1 * g * g
            ahead = (m[i] / (1 - 0.5 ** (step + 1))) / ((v[i] / (1 - 0.9 ** (step + 1))).sqrt() + 1e-8)
            after = before[i] - peak * (1 - 8 * step / 92) * ahead
            torch.testing.assert_close(p.detach().double(), after, rtol=1e-5, atol=1e-6)


def test_the_losses_told_are_those_of_the_game(tiny_data: Dataset) -> None:
    config = SMALL["gan-conditional"]
    state = new_state(config, tiny_data.info)
    x, label = tiny_data.train.batch(rng.visits(config.seed, range(8), 40))
    z = rng.normal(config.seed, rng.Stream.LATENT, range(8), (8,))
    with torch.no_grad():
        real, fake = (state.net.discriminator(images, label).real for images in (x, state.net.generator(z, label)))
    metrics = next(train(state, tiny_data.train, config))
    assert metrics.losses.keys() == {"discriminator_loss", "generator_loss"}
    expected = LOSSES["relativistic"](real, fake)
    torch.testing.assert_close(metrics.losses["discriminator_loss"], expected.discriminator)
    torch.testing.assert_close(metrics.losses["generator_loss"], expected.generator)


# The networks


NETS = [MlpGanConfig(latent=8, generator=(16, 24), discriminator=(24, 16))] + [
    ConvGanConfig(latent=8, widths=(8,) * levels, embedding=16) for levels in (1, 2, 3)
]


@pytest.mark.parametrize("net", NETS, ids=["mlp", "conv-1", "conv-2", "conv-3"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [*((side, side) for side in range(27, 34)), (16, 31), (64, 17)])
def test_any_size_any_channels(net, channels: int, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    pair = net.build((channels, *size), 3)
    label = torch.tensor([0, 1, 2, 2])
    with torch.no_grad():
        images = pair.generator(5 * torch.randn(4, 8), label)
        logits, classes = pair.discriminator(images, label)
        corner = images.clone()
        corner[..., -1, -1] += 1
        moved = pair.discriminator(corner, label).real
    assert images.shape == (4, channels, *size)
    assert images.abs().max() <= 1
    assert images.std() > 0
    assert logits.shape == (4,)
    assert logits.isfinite().all()
    assert (moved != logits).all()  # the last pixel counts
    assert (None if classes is None else classes.shape) == ((4, 3) if net.conditional else None)


@both
def test_every_weight_learns(preset: str, tiny_data: Dataset) -> None:
    """In the third step: one layer that begins with zeros hides another. Relativistic leaves the logit's bias alone."""
    config = SMALL[preset].model_copy(update={"loss": "nonsaturating"})
    state = new_state(config, tiny_data.info)
    for _ in itertools.islice(train(state, tiny_data.train, config), 3):
        pass
    still = [name for name, p in state.net.named_parameters() if p.grad is None or p.grad.abs().max() == 0]
    assert still == []


def test_the_label_and_the_noise_decide_the_image_and_the_label_the_logit(tiny_data: Dataset) -> None:
    """But not the classes that are seen in it."""
    pair = new_state(SMALL["gan-conditional"], tiny_data.info).net
    z, zero = torch.randn(1, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0])
    with torch.no_grad():
        base, label, other = pair.generator(z, zero), pair.generator(z, zero + 1), pair.generator(z + 1, zero)
        one, two = pair.discriminator(base, zero), pair.discriminator(base, zero + 1)
    assert (base - label).abs().max() > 1e-3
    assert (base - other).abs().max() > 1e-3
    assert (one.real - two.real).abs() > 1e-3
    assert torch.equal(one.classes, two.classes)


def test_no_neighbour_reaches_an_image_even_in_training(tiny_data: Dataset) -> None:
    """Which batch norm would not allow."""
    generator = new_state(SMALL["gan-conditional"], tiny_data.info).net.generator.train()
    z, label = torch.randn(3, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2])
    with torch.no_grad():
        alone = torch.cat([generator(z[i : i + 1], label[i : i + 1]) for i in range(3)])
        torch.testing.assert_close(generator(z, label), alone, rtol=1e-4, atol=1e-5)


def test_the_discriminator_judges_each_image_alone(tiny_data: Dataset) -> None:
    discriminator = new_state(SMALL["gan-conditional"], tiny_data.info).net.discriminator
    x, label = tiny_data.train.batch(torch.arange(4))
    with torch.no_grad():
        varied, copies = discriminator(x, label).real, discriminator(x[:1].repeat(4, 1, 1, 1), label[:1].repeat(4)).real
    torch.testing.assert_close(copies, varied[:1].expand(4))


# Drawing


@pytest.fixture(scope="module")
def models(tiny_data: Dataset) -> dict[str, GanModel]:
    """Both presets, trained for a few steps."""
    found = {}
    for preset, config in SMALL.items():
        state, _ = finished(config.model_copy(update={"generator_lr": 2e-3}), tiny_data)
        found[preset] = GanModel(state.ema.generator, config, tiny_data.info)
    return found


@both
def test_an_image_depends_on_its_label_and_its_seed_alone(preset: str, models: dict[str, GanModel]) -> None:
    model = models[preset]
    labels, seeds = [3, 1, 4, 1, 5] if model.conditional else [10] * 5, [9, 2, 6, 2, 2**63]
    together = model.generate(labels, seeds)
    assert together.shape == (5, 1, 28, 28)
    assert torch.equal(together, model(labels, seeds))
    assert torch.equal(together[1], together[3])
    assert len({image.numpy().tobytes() for image in together}) == 4  # seeds count
    if model.conditional:
        assert not torch.equal(model([3], [2]), model([1], [2]))
    backwards = model(labels[::-1], seeds[::-1]).flip(0)
    alone = torch.cat([model([label], [seed]) for label, seed in zip(labels, seeds, strict=True)])
    for other in (backwards, alone):  # Up to rounding where the batch differs.
        assert (other.int() - together.int()).abs().max() <= 1


def test_what_is_drawn_follows_from_the_seeds_noise(models: dict[str, GanModel]) -> None:
    """Tanh's [-1, 1] becomes 0 to 255, and nothing is cut off."""
    model = models["gan-conditional"]
    z = rng.normal(0, rng.Stream.START, [5, 6], (8,))
    with torch.no_grad():
        x = model.generator(z, torch.tensor([0, 1]))
    assert torch.equal(model([0, 1], [5, 6]), ((x + 1) * 127.5).round().to(torch.uint8))
    assert model.evaluations() == 1


@pytest.mark.parametrize(
    ("preset", "labels", "seeds", "message"),
    [
        ("gan-conditional", [0, 10], [0, 1], "nothing without a label: give one of 0 to 9"),
        ("gan-conditional", [11], [0], "label 11 is none of the 10 classes"),
        ("gan-conditional", [-1], [0], "label -1"),
        ("gan-conditional", [1, 2], [0], "2 labels but 1 seeds"),
        ("gan", [10, 0], [0, 1], "learned no labels: give 10"),
        ("gan", [11], [0], "label 11"),
        ("gan", [10], [0, 1], "1 labels but 2 seeds"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused(preset, labels, seeds, message, models: dict[str, GanModel]) -> None:
    with pytest.raises(RequestError, match=message):
        models[preset](labels, seeds)


# Training


@pytest.mark.parametrize("stops", [(3,), (5, 6), (1, 11)])
@both
def test_stopped_and_resumed_equals_uninterrupted_bit_for_bit(preset, stops, tiny_data: Dataset, tmp_path) -> None:
    """Between two penalties, and at an epoch's edge."""
    config = SMALL[preset]
    both = RunConfig(train=config, data=tiny_data.info)
    whole, metrics = finished(config, tiny_data)
    state, resumed = new_state(config, tiny_data.info), list[Metrics]()
    for stop in (*stops, None):
        resumed += itertools.islice(train(state, tiny_data.train, config), stop and stop - state.step)
        path = checkpoint.save_checkpoint(tmp_path, state, both)
        state = new_state(config, tiny_data.info)
        checkpoint.restore_checkpoint(path, state, both)
    assert_same(state, whole)
    assert resumed == metrics


@both
def test_seeds_decide_everything(preset: str, tiny_data: Dataset) -> None:
    torch.manual_seed(1)
    one, _ = finished(SMALL[preset], tiny_data)
    torch.manual_seed(2)
    same, _ = finished(SMALL[preset], tiny_data)
    other, _ = finished(SMALL[preset].model_copy(update={"seed": 1}), tiny_data)
    assert_same(one, same)
    for mine, theirs in zip(one.net.children(), other.net.children(), strict=True):
        assert not torch.equal(next(mine.parameters()), next(theirs.parameters()))


@both
def test_in_epochs_a_batch_ends_where_its_epoch_does(preset: str, tiny_data: Dataset) -> None:
    config = SMALL[preset].model_copy(update={"images": None, "epochs": 3, "batch": 16})
    state, metrics = finished(config, tiny_data)
    assert [m.seen for m in metrics] == [40 * epoch + end for epoch in range(3) for end in (16, 32, 40)]
    assert [m.epoch for m in metrics] == [epoch for epoch in range(3) for _ in range(3)]
    assert state.step == 9


@pytest.mark.parametrize("what", ["discriminator's loss", "generator's loss", "discriminator's", "generator's"])
@both
def test_a_loss_or_gradient_that_is_not_finite_stops_before_the_step(preset, what, tiny_data, monkeypatch) -> None:
    """What batch norm keeps of its inputs is a part of the state."""
    config = SMALL[preset]
    state = new_state(config, tiny_data.info)
    if what.endswith("loss"):
        lose = LOSSES[config.loss]
        factors = [math.nan, 1.0] if what.startswith("discriminator") else [1.0, math.nan]

        def broken(real: Tensor, fake: Tensor) -> Any:
            losses = lose(real, fake)
            bad = [loss * factor for loss, factor in zip(losses, factors, strict=True)]
            return type(losses)(*(bad if state.step == 3 else losses))

        monkeypatch.setitem(LOSSES, config.loss, broken)
    steps = train(state, tiny_data.train, config)
    for _ in range(3):
        next(steps)
    before = {name: tensor.clone() for name, tensor in tensors(state).items()}
    if not what.endswith("loss"):
        net = state.net.generator if what.startswith("generator") else state.net.discriminator
        next(net.parameters()).register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(TrainingError, match=r"not finite at step 4, .* --generator-lr and --discriminator-lr"):
        next(steps)
    assert (state.step, state.seen) == (3, 24)
    assert [name for name, tensor in tensors(state).items() if not torch.equal(before[name], tensor)] == []


@pytest.mark.parametrize("batch", [1, 3])
@both
def test_a_batch_may_be_of_one_image(preset: str, batch: int, tiny_data: Dataset) -> None:
    """As the last of an epoch is where the batch leaves one over: 40 is 13 times 3 and one."""
    config = SMALL[preset].model_copy(update={"images": None, "epochs": 1, "batch": batch, "penalty_every": 1})
    state, metrics = finished(config, tiny_data)
    assert state.seen == 40
    assert all(loss.isfinite() for loss in metrics[-1].losses.values())


def test_images_on_one_background_can_be_learned(tiny_data: Dataset) -> None:
    """Most pixels are the same in all images, as far from a digit in its corner."""
    pixels = torch.zeros(40, 1, 64, 64, dtype=torch.uint8)
    pixels[..., :28, :28] = tiny_data.train.pixels
    data = Dataset(
        Images(pixels, tiny_data.train.labels),
        tiny_data.test,
        tiny_data.info.model_copy(update={"height": 64, "width": 64}),
    )
    state, metrics = finished(SMALL["gan-conditional"].model_copy(update={"penalty_every": 1}), data)
    assert all(loss.isfinite() for m in metrics for loss in m.losses.values())
    assert state.seen == 92


@pytest.mark.parametrize("decay", [False, True])
def test_the_learning_rate_stays_or_falls_to_zero(decay: bool, tiny_data: Dataset) -> None:
    config = SMALL["gan-conditional"].model_copy(
        update={"lr_decay": decay, "generator_lr": 1e-3, "discriminator_lr": 2e-3}
    )
    state, shares = new_state(config, tiny_data.info), []
    for metrics in train(state, tiny_data.train, config):
        rates = [group["lr"] for group in state.optimizers[0].param_groups]
        assert rates == pytest.approx([1e-3 * metrics.lr, 2e-3 * metrics.lr])
        shares.append(metrics.lr)
    assert shares == pytest.approx([1 - seen / 92 if decay else 1.0 for seen in range(0, 92, 8)])


@both
def test_the_average_weighs_each_step_as_it_says(preset: str, tiny_data: Dataset) -> None:
    """Of t steps step i counts as (i / t)^3 - ((i - 1) / t)^3, for a power of two; buffers are those of the last."""
    config = SMALL[preset].model_copy(update={"ema": 2.0, "generator_lr": 1e-2, "discriminator_lr": 1e-2})
    state = new_state(config, tiny_data.info)
    steps = itertools.islice(train(state, tiny_data.train, config), 6)
    passed = [[p.detach().double() for p in state.net.parameters()] for _ in steps]
    shares = [(i / 6) ** 3 - ((i - 1) / 6) ** 3 for i in range(1, 7)]
    for averaged, *weights in zip(state.ema.parameters(), *passed, strict=True):
        expected = sum(share * weight for share, weight in zip(shares, weights, strict=True))
        torch.testing.assert_close(averaged.double(), expected, rtol=1e-5, atol=1e-6)
    for averaged, last in zip(state.ema.buffers(), state.net.buffers(), strict=True):
        assert torch.equal(averaged, last)


def test_without_an_average_the_weights_are_copied(tiny_data: Dataset) -> None:
    config = SMALL["gan"].model_copy(update={"ema": None})
    state = new_state(config, tiny_data.info)
    for _ in itertools.islice(train(state, tiny_data.train, config), 3):
        for copied, own in zip(state.ema.state_dict().values(), state.net.state_dict().values(), strict=True):
            assert torch.equal(copied, own)


@both
def test_a_forecast_changes_nothing(preset: str, tiny_data: Dataset) -> None:
    """Neither the weights nor what batch norm keeps, at the start of a run or in its midst."""
    from pocketdiff.cli.forecast import seconds_to_ask, seconds_to_train

    config = SMALL[preset]
    state = new_state(config, tiny_data.info)
    for _ in range(2):
        before = copy.deepcopy(state)
        assert seconds_to_train(state, tiny_data.train, config) > 0
        assert seconds_to_ask(GanModel(state.ema.generator, config, tiny_data.info), 20) > 0
        assert_same(state, before)
        for _ in itertools.islice(train(state, tiny_data.train, config), 3):
            pass


def means(images: Tensor, labels: Tensor) -> Tensor:
    return torch.stack([images[labels == label].float().mean(0) for label in range(10)])


def test_it_learns_what_each_class_looks_like(tiny_data: Dataset) -> None:
    config = GAN_PRESETS["gan-conditional"].model_copy(
        update={
            "net": ConvGanConfig(latent=16, widths=(8, 16), embedding=32), "images": 4_000, "batch": 20, "ema": 4.0,
            "generator_lr": 2e-3, "discriminator_lr": 2e-3,
        }
    )  # fmt: skip
    state = new_state(config, tiny_data.info)
    model, labels = GanModel(state.ema.generator, config, tiny_data.info), torch.arange(10).repeat(10)
    real = means(tiny_data.train.pixels, tiny_data.train.labels)

    def distances() -> Tensor:
        """From the mean of what is drawn of each class, a row, to the mean of each real one, a column."""
        drawn = means(model(labels, range(100)), labels)
        return torch.cdist(drawn.flatten(1), real.flatten(1))

    start = distances().diagonal()
    for _ in train(state, tiny_data.train, config):
        pass
    end = distances()
    assert (end.diagonal() < 0.6 * start).all()
    assert (end.argmin(1) == torch.arange(10)).sum() >= 9


# Model files


@pytest.fixture
def file(models: dict[str, GanModel], preset: str, tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    checkpoint.save_model(path, models[preset])
    return path


@both
def test_a_model_file_holds_the_generator_and_draws_the_same(preset: str, file: Path, models) -> None:
    model, loaded = models[preset], checkpoint.load(file)
    assert isinstance(loaded, GanModel)
    assert (loaded.config, loaded.info, loaded.conditional) == (model.config, model.info, model.conditional)
    assert load_file(file).keys() == model.generator.state_dict().keys()
    labels = list(range(10)) if model.conditional else [10] * 10
    assert torch.equal(loaded(labels, range(10)), model(labels, range(10)))
    assert not any(parameter.requires_grad for parameter in loaded.net.parameters())


@both
def test_a_damaged_model_file_is_refused(preset: str, file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match="not those that were saved"):
        checkpoint.load(file)


# Presets


def test_the_conditional_preset_has_no_more_weights_than_the_laptops_network(mnist: Dataset) -> None:
    pair = new_state(GAN_PRESETS["gan-conditional"], mnist.info).net
    network = build_denoiser(PRESETS["laptop"], mnist.info).net
    ours, theirs = (sum(p.numel() for p in net.parameters()) for net in (pair, network))
    assert ours <= theirs == 627_684


def test_the_plain_preset_is_the_comparisons_gan(mnist: Dataset) -> None:
    config = GAN_PRESETS["gan"]
    assert config.net == MlpGanConfig()
    assert not GanModel(new_state(config, mnist.info).ema.generator, config, mnist.info).conditional
    assert (config.epochs, config.images, config.batch, config.loss) == (20, None, 256, "nonsaturating")
    (adam,) = new_state(config, mnist.info).optimizers
    assert isinstance(adam, torch.optim.Adam)
    for group in adam.param_groups:
        assert (group["peak_lr"], group["betas"], group["weight_decay"]) == (1e-4, (0.5, 0.999), 0)
    assert {config.learning_rate(seen, 60_000) for seen in (0, 600_000, 1_199_999)} == {1.0}


# The command line


WORDS = {
    "gan": "--net.generator 16 24 --net.discriminator 24 16 --images 92 --batch 8",
    "gan-conditional": "--net.widths 8 --embedding 8 --images 92 --batch 8",
}


def train_words(preset: str, data: Path, out: Path, *more: str) -> list[str]:
    words = (
        f"train --preset {preset} {WORDS[preset]} --latent 8 --log-every 16 --checkpoint-every 16 --pictures-every 1"
    )
    return [*words.split(), "--data", str(data), "--out", str(out), *more]


@pytest.fixture(scope="module")
def runs(tiny_file: Path, tmp_path_factory) -> dict[str, Path]:
    out = tmp_path_factory.mktemp("runs")
    for preset in WORDS:
        assert run(train_words(preset, tiny_file, out / preset)) == 0
    return {preset: out / preset for preset in WORDS}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def sentences(capsys, words: list[str], status: int) -> list[str]:
    """What the command says on standard error, when it gives this status."""
    capsys.readouterr()
    assert run(words) == status
    return capsys.readouterr().err.splitlines()


def refused(capsys, words: list[str], message: str) -> None:
    (line,) = sentences(capsys, words, 2)
    assert line.startswith("pocketdiff: ")
    assert message in line


@both
def test_a_run_leaves_all_its_files(preset: str, runs: dict[str, Path]) -> None:
    out = runs[preset]
    assert {path.name for path in (out / "pictures").iterdir()} == {f"image_ep{epoch}.png" for epoch in range(3)}
    assert [path.name for path in out.glob("*.safetensors")] == ["model.safetensors"]
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["seen"] for line in lines] == [16, 32, 48, 64, 80, 92]
    told = {"step", "seen", "epoch", "discriminator_loss", "generator_loss", "lr", "images_per_second", "seconds"}
    assert all(line.keys() == told for line in lines)
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["steps"], summary["images_seen"]) == (12, 92)
    with Image.open(out / "pictures/image_ep2.png") as picture:
        assert picture.width == (10 * 30 + 2) * 2
        assert np.asarray(picture)[-60:].mean() > 180  # real rows, dark on white


@both
def test_a_finished_run_says_so_and_changes_nothing(preset: str, runs, tiny_file: Path, capsys) -> None:
    before = contents(runs[preset])
    assert run(train_words(preset, tiny_file, runs[preset])) == 0
    assert "is finished" in capsys.readouterr().out
    assert contents(runs[preset]) == before


@both
def test_an_interrupted_run_goes_on_bit_for_bit(preset, runs, tiny_file: Path, tmp_path, monkeypatch, capsys) -> None:
    """In the midst of an epoch and between two penalties; then while drawing, which the next session owes."""
    from pocketdiff.cli.gallery import Gallery
    from pocketdiff.cli.records import MetricsLog

    out, add, draw = tmp_path / "run", MetricsLog.add, Gallery.draw

    def interrupt_training(self, metrics: Metrics, *rest) -> None:
        add(self, metrics, *rest)
        if metrics.step == 7:
            os.kill(os.getpid(), signal.SIGINT)

    def interrupt_drawing(self, *words) -> object:
        os.kill(os.getpid(), signal.SIGINT)
        return draw(self, *words)

    for patched, name, interrupt in ((MetricsLog, "add", interrupt_training), (Gallery, "draw", interrupt_drawing)):
        with monkeypatch.context() as patch:
            patch.setattr(patched, name, interrupt)
            assert run(train_words(preset, tiny_file, out)) == 130
        assert "stopped, and saved as" in capsys.readouterr().out
    assert run(train_words(preset, tiny_file, out)) == 0
    assert "going on from" in capsys.readouterr().out
    assert contents(out / "pictures") == contents(runs[preset] / "pictures")
    assert (out / "model.safetensors").read_bytes() == (runs[preset] / "model.safetensors").read_bytes()
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == sorted({line["step"] for line in lines})  # no line twice


def test_a_long_run_is_announced_with_its_hours(tiny_file: Path, runs, tmp_path, capsys, monkeypatch) -> None:
    """And is the same run for it."""
    from pocketdiff.cli import train as module

    monkeypatch.setattr(module, "LONG", 0.0)
    lines = sentences(capsys, train_words("gan", tiny_file, tmp_path / "run"), 0)
    assert any(re.search(r"takes about [\d.]+ hours: [\d.]+ of training and", line) for line in lines)
    assert (tmp_path / "run/model.safetensors").read_bytes() == (runs["gan"] / "model.safetensors").read_bytes()


def test_a_rate_that_is_too_high_ends_with_advice(tiny_file: Path, tmp_path, capsys) -> None:
    words = train_words("gan-conditional", tiny_file, tmp_path / "run", "--generator-lr", "1e30")
    *_, last = sentences(capsys, [*words, "--discriminator-lr", "1e30"], 1)
    assert "not finite" in last
    assert "--generator-lr and --discriminator-lr" in last
    assert not (tmp_path / "run/model.safetensors").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--preset gan --net.generator 0", "--net.generator 0"),
        ("--preset gan --net.widths 8", "--net.widths 8"),
        ("--preset gan-conditional --net.widths 12", "--net.widths 12: widths must be multiples of 8"),
        ("--preset gan --loss wasserstein", "'nonsaturating' or 'relativistic'"),
        ("--preset gan --sampling.steps 5", "--sampling.steps"),
        ("--preset gan --net.kind unet", "--net.kind unet: there is no such kind; use mlp, conv"),
        ("--preset laptop --net.kind mlp", "--net.kind mlp: there is no such kind; use unet, context_unet"),
    ],
)
def test_bad_input_is_one_sentence(words: str, message: str, tiny_file: Path, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    refused(capsys, ["train", "--data", str(tiny_file), *words.split()], message)


def test_sampling_of_labels_as_arrays_and_files(runs, tmp_path) -> None:
    words = ["sample", str(runs["gan-conditional"]), "--labels", "2-4", "--per-label", "2", "--seed", "5", "--out"]
    for name in ("x.png", "x.npz", "folder"):
        assert run([*words, str(tmp_path / name)]) == 0
    with np.load(tmp_path / "x.npz") as drawn:
        assert drawn["labels"].tolist() == [2, 3, 4] * 2
        model = checkpoint.load(runs["gan-conditional"])
        assert np.array_equal(drawn["images"], model([2, 3, 4] * 2, range(5, 11))[:, 0].numpy())
    files = sorted(str(path.relative_to(tmp_path / "folder")) for path in (tmp_path / "folder").rglob("*.png"))
    assert files == [f"{label}/{seed:06d}.png" for label in (2, 3, 4) for seed in (label + 3, label + 6)]


def test_sampling_without_labels_as_arrays_and_files(runs, tmp_path, capsys) -> None:
    words = ["sample", str(runs["gan"]), "--seed", "5", "--per-label", "1", "--out"]
    for name in ("x.png", "x.npz", "folder"):
        lines = sentences(capsys, [*words, str(tmp_path / name)], 0)
        assert any("learned no labels" in line for line in lines)
    with np.load(tmp_path / "x.npz") as drawn:
        assert sorted(drawn) == ["images", "seeds"]
        assert np.array_equal(drawn["images"], checkpoint.load(runs["gan"])([10] * 10, range(5, 15))[:, 0].numpy())
    assert sorted(path.name for path in (tmp_path / "folder").iterdir()) == [f"{seed:06d}.png" for seed in range(5, 15)]


@pytest.mark.parametrize(
    ("preset", "words", "message"),
    [
        ("gan", "--labels 3", "--labels 3: "),
        *(
            (preset, words, message)
            for preset in WORDS
            for words, message in {
                "--steps 5": "--steps: goes with a diffusion model",
                "--scale 2": "--scale: goes with a diffusion model",
                "--sampler heun": "--sampler: goes with a diffusion model",
                "--out x.gif": "--out x.gif: a GIF shows the denoising",
            }.items()
        ),
    ],
)
def test_what_a_gan_cannot_do_is_one_sentence(preset, words, message, runs, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    refused(capsys, ["sample", str(runs[preset]), *words.split()], message)
    assert list(tmp_path.iterdir()) == []


@both
def test_info_says_what_a_model_is(preset: str, runs, capsys) -> None:
    assert run(["info", str(runs[preset])]) == 0
    out = capsys.readouterr().out
    assert "28 x 28, grey, 10 classes: 0, 1, 2" in out
    assert ("labels      none" in out) == (preset == "gan")
    assert f'"loss": "{GAN_PRESETS[preset].loss}"' in out
