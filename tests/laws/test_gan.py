"""GANs: losses, gradients, networks, and the laws that hold for every training method."""

import copy
import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from pocketdiff import checkpoint, rng
from pocketdiff.config import SamplingConfig
from pocketdiff.data import Dataset, Images, to_data_units
from pocketdiff.errors import CheckpointError, RequestError, TrainingError
from pocketdiff.methods.diffusion import PRESETS as DIFFUSION_PRESETS
from pocketdiff.methods.game import gradient_penalty
from pocketdiff.methods.gan import PRESETS, GanConfig, GanModel
from pocketdiff.model import build_denoiser
from pocketdiff.nets.gan import LOSSES, ConvGanConfig, Gan, MlpGanConfig, Verdict
from tests.helpers import (
    assert_draws_the_requested_classes,
    assert_same,
    distances_to_class_means,
    flip_bit,
    model_of,
    new_state,
    resumed,
    steps,
    tensors,
    trained,
)

SMALL = {
    "gan": PRESETS["gan"].model_copy(
        update={
            "net": MlpGanConfig(latent=8, generator=(16, 24), discriminator=(24, 16)),
            "images": 92,
            "epochs": None,
            "batch": 8,
        }
    ),
    "gan-conditional": PRESETS["gan-conditional"].model_copy(
        update={"net": ConvGanConfig(latent=8, widths=(8, 16), embedding=16), "images": 92, "batch": 8}
    ),
}
"""Both presets with small networks: 12 steps over a little more than two epochs of the forty digits."""
both = pytest.mark.parametrize("preset", SMALL)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def real_batch(data: Dataset, config: GanConfig, seen: range) -> tuple[Tensor, Tensor]:
    """The real images and labels of a step."""
    chosen = rng.visit_order(config.seed, seen, len(data.train))
    return to_data_units(data.train.pixels[chosen]), data.train.labels[chosen]


# The losses


def test_nonsaturating_is_that_of_goodfellow() -> None:
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


def test_relativistic_depends_on_differences_of_logits_only() -> None:
    real, fake = noise(50), noise(50, seed=1)
    for one, other in zip(LOSSES["relativistic"](real, fake), LOSSES["relativistic"](real + 7, fake + 7), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("loss", "doubled"), [("nonsaturating", 2), ("relativistic", 1)])
def test_equal_logits_cost_log_two(loss: str, doubled: int) -> None:
    losses = LOSSES[loss](torch.zeros(5), torch.zeros(5))
    assert losses.discriminator.item() == pytest.approx(doubled * math.log(2))
    assert losses.generator.item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_of_extreme_logits_are_finite(loss: str) -> None:
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


def test_the_penalty_of_a_linear_logit_is_half_its_squared_slope() -> None:
    w, x = noise(12), noise(5, 3, 2, 2, seed=1)
    discriminator = Formula(w, square=False)
    penalty = gradient_penalty(discriminator, x, torch.zeros(5, dtype=torch.long))
    torch.testing.assert_close(penalty.detach(), w.square().sum() / 2)
    penalty.backward()
    torch.testing.assert_close(discriminator.w.grad, w)


def test_the_penalty_of_a_quadratic_logit_grows_with_the_image() -> None:
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
    """The generator's, then the discriminator's, each from its own loss in two passes, as in the papers."""

    def logit(images: Tensor) -> Tensor:
        return pair.discriminator(images, label).real

    def classification(images: Tensor) -> Tensor | float:
        """The second task of Odena et al. 2017: minus the log of the label's probability."""
        logits = pair.discriminator(images, label).classes
        if logits is None:
            return 0.0
        probability = logits.exp() / logits.exp().sum(1, keepdim=True)
        return (
            -config.classification
            * torch.stack([row[k].log() for row, k in zip(probability, label, strict=True)]).mean()
        )

    fake = pair.generator(z, label)
    if config.loss == "nonsaturating":
        generator = -torch.sigmoid(logit(fake)).log().mean()
        discriminator = -(torch.sigmoid(logit(x)).log() + (1 - torch.sigmoid(logit(fake.detach()))).log()).mean()
    else:
        generator = -torch.sigmoid(logit(fake) - logit(x)).log().mean()
        discriminator = -torch.sigmoid(logit(x) - logit(fake.detach())).log().mean()
    generator, discriminator = generator + classification(fake), discriminator + classification(x)
    if step % config.penalty_every == 0:
        for images in (x.clone(), fake.detach().clone()):
            images.requires_grad_()
            (slope,) = torch.autograd.grad(logit(images).sum(), images, create_graph=True)
            r = slope.flatten(1).square().sum(1).mean()
            discriminator = discriminator + config.penalty_every * config.gradient_penalty / 2 * r
    return [
        *torch.autograd.grad(generator, list(pair.generator.parameters())),
        *torch.autograd.grad(discriminator, list(pair.discriminator.parameters())),
    ]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(("penalty", "task"), [(0.0, 0.0), (0.7, 0.0), (0.7, 0.6)])
@both
def test_steps_equal_those_computed_by_hand(
    preset: str, penalty: float, task: float, loss: str, tiny_data: Dataset
) -> None:
    """Gradients from the papers' formulas in float64, weights from Adam's; both learning rates fall."""
    config = SMALL[preset].model_copy(
        update={
            "loss": loss, "gradient_penalty": penalty, "classification": task, "penalty_every": 2, "adam_beta1": 0.5,
            "adam_beta2": 0.9, "generator_lr": 1e-3, "discriminator_lr": 3e-3, "lr_decay": True,
        }
    )  # fmt: skip
    state = new_state(config, tiny_data)
    peaks = [1e-3] * len(list(state.net.generator.parameters()))
    peaks += [3e-3] * len(list(state.net.discriminator.parameters()))
    parameters = list(state.net.parameters())
    m, v = ([torch.zeros_like(p, dtype=torch.float64) for p in parameters] for _ in range(2))
    loop = steps(state, config, tiny_data)
    for step in range(4):
        seen = range(8 * step, 8 * step + 8)
        x, label = real_batch(tiny_data, config, seen)
        z = rng.normal(config.seed, rng.Stream.LATENT, seen, (8,))
        pair = copy.deepcopy(state.net).double().train()
        expected = gradients_by_hand(pair, config, x.double(), z.double(), label, step)
        before = [p.detach().double() for p in parameters]
        next(loop)
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


def test_the_reported_losses_are_the_adversarial_ones(tiny_data: Dataset) -> None:
    config = SMALL["gan-conditional"]
    state = new_state(config, tiny_data)
    x, label = real_batch(tiny_data, config, range(8))
    z = rng.normal(config.seed, rng.Stream.LATENT, range(8), (8,))
    with torch.no_grad():
        real, fake = (state.net.discriminator(images, label).real for images in (x, state.net.generator(z, label)))
    report = next(steps(state, config, tiny_data))
    assert report.losses.keys() == {"discriminator_loss", "generator_loss"}
    expected = LOSSES["relativistic"](real, fake)
    torch.testing.assert_close(report.losses["discriminator_loss"], expected.discriminator)
    torch.testing.assert_close(report.losses["generator_loss"], expected.generator)


# The networks


NETS = [MlpGanConfig(latent=8, generator=(16, 24), discriminator=(24, 16))] + [
    ConvGanConfig(latent=8, widths=(8,) * levels, embedding=16) for levels in (1, 2, 3)
]


@pytest.mark.parametrize("net", NETS, ids=["mlp", "conv-1", "conv-2", "conv-3"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [*((side, side) for side in range(27, 34)), (16, 31), (64, 17)])
def test_images_may_have_any_size_and_any_channels(net, channels: int, size: tuple[int, int]) -> None:
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
    """In the third step, because zero-initialized layers block gradients. (The relativistic loss ignores the bias.)"""
    config = SMALL[preset].model_copy(update={"loss": "nonsaturating"})
    state = new_state(config, tiny_data)
    for _ in itertools.islice(steps(state, config, tiny_data), 3):
        pass
    still = [name for name, p in state.net.named_parameters() if p.grad is None or p.grad.abs().max() == 0]
    assert still == []


def test_label_and_noise_change_the_image_and_the_label_changes_the_logit(tiny_data: Dataset) -> None:
    """The predicted classes do not depend on the label."""
    pair = new_state(SMALL["gan-conditional"], tiny_data).net
    z, zero = torch.randn(1, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0])
    with torch.no_grad():
        base, label, other = pair.generator(z, zero), pair.generator(z, zero + 1), pair.generator(z + 1, zero)
        one, two = pair.discriminator(base, zero), pair.discriminator(base, zero + 1)
    assert (base - label).abs().max() > 1e-3
    assert (base - other).abs().max() > 1e-3
    assert (one.real - two.real).abs() > 1e-3
    assert torch.equal(one.classes, two.classes)


def test_an_image_does_not_depend_on_its_batch_even_in_training(tiny_data: Dataset) -> None:
    """With batch norm it would."""
    generator = new_state(SMALL["gan-conditional"], tiny_data).net.generator.train()
    z, label = torch.randn(3, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2])
    with torch.no_grad():
        alone = torch.cat([generator(z[i : i + 1], label[i : i + 1]) for i in range(3)])
        torch.testing.assert_close(generator(z, label), alone, rtol=1e-4, atol=1e-5)


def test_a_logit_does_not_depend_on_the_other_images(tiny_data: Dataset) -> None:
    discriminator = new_state(SMALL["gan-conditional"], tiny_data).net.discriminator
    x, label = to_data_units(tiny_data.train.pixels[:4]), tiny_data.train.labels[:4]
    with torch.no_grad():
        varied, copies = discriminator(x, label).real, discriminator(x[:1].repeat(4, 1, 1, 1), label[:1].repeat(4)).real
    torch.testing.assert_close(copies, varied[:1].expand(4))


# Drawing


@pytest.fixture(scope="module")
def models(tiny_data: Dataset) -> dict[str, GanModel]:
    """Both presets, trained for a few steps."""
    found = {}
    for preset, config in SMALL.items():
        state, _ = trained(config.model_copy(update={"generator_lr": 2e-3}), tiny_data)
        found[preset] = model_of(state, config, tiny_data)
    return found


@both
def test_an_image_depends_on_its_label_and_its_seed_only(preset: str, models: dict[str, GanModel]) -> None:
    model = models[preset]
    labels, seeds = [3, 1, 4, 1, 5] if model.conditional else [10] * 5, [9, 2, 6, 2, 2**63]
    together = model.generate(labels, seeds)
    assert together.shape == (5, 1, 28, 28)
    assert torch.equal(together, model(labels, seeds))
    assert torch.equal(together[1], together[3])
    assert len({image.numpy().tobytes() for image in together}) == 4  # Each seed gives another image.
    if model.conditional:
        assert not torch.equal(model([3], [2]), model([1], [2]))
    backwards = model(labels[::-1], seeds[::-1]).flip(0)
    alone = torch.cat([model([label], [seed]) for label, seed in zip(labels, seeds, strict=True)])
    for other in (backwards, alone):  # Up to rounding where the batch differs.
        assert (other.int() - together.int()).abs().max() <= 1


def test_an_image_is_the_generators_output_for_the_noise_of_its_seed(models: dict[str, GanModel]) -> None:
    """[-1, 1] becomes 0 to 255, and nothing is clipped."""
    model = models["gan-conditional"]
    z = rng.normal(0, rng.Stream.START, [5, 6], (8,))
    with torch.no_grad():
        x = model.net(z, torch.tensor([0, 1]))
    assert torch.equal(model([0, 1], [5, 6]), ((x + 1) * 127.5).round().to(torch.uint8))
    assert model.nfe() == model.sampling_facts().nfe == 1
    assert model.how() == "GAN, 1 step"


@both
def test_a_gan_has_no_sampling_settings_and_one_view(preset: str, models: dict[str, GanModel]) -> None:
    model = models[preset]
    assert model.sampling is None
    assert [(view.suffix, view.caption, view.still, view.slow) for view in model.views()] == [("", "", model, None)]
    with pytest.raises(RequestError, match="has no sampling settings"):
        model.with_sampling(SamplingConfig())
    with pytest.raises(RequestError, match="no denoising to show"):
        list(model.frames([0]))
    assert model.facts()["labels"] == ("draws the requested class" if model.conditional else "draws without labels")
    assert repr(model).startswith("GanModel(gan, 28 x 28 x 1, 10 classes, ")


@pytest.mark.parametrize(
    ("preset", "labels", "seeds", "message"),
    [
        ("gan-conditional", [0, 10], [0, 1], "cannot draw without a label; give labels from 0 to 9"),
        ("gan-conditional", [11], [0], "label 11 does not exist; the 10 classes are 0 to 9"),
        ("gan-conditional", [-1], [0], "label -1"),
        ("gan-conditional", [1, 2], [0], "2 labels but 1 seeds"),
        ("gan", [10, 0], [0, 1], "knows no labels; give the null label, 10"),
        ("gan", [11], [0], "label 11"),
        ("gan", [10], [0, 1], "1 labels but 2 seeds"),
    ],
)
def test_an_impossible_request_is_refused(preset, labels, seeds, message, models: dict[str, GanModel]) -> None:
    with pytest.raises(RequestError, match=message):
        models[preset](labels, seeds)


# Training


@pytest.mark.parametrize("stops", [(3,), (5, 6), (1, 11)])
@both
def test_stopped_and_resumed_equals_uninterrupted_bit_for_bit(preset, stops, tiny_data: Dataset, tmp_path) -> None:
    """Between two penalties, and at the end of an epoch."""
    config = SMALL[preset]
    whole, reports = trained(config, tiny_data)
    state, again = resumed(config, tiny_data, stops, tmp_path)
    assert_same(state, whole)
    assert again == reports


@both
def test_the_seed_decides_everything(preset: str, tiny_data: Dataset) -> None:
    torch.manual_seed(1)
    one, _ = trained(SMALL[preset], tiny_data)
    torch.manual_seed(2)
    same, _ = trained(SMALL[preset], tiny_data)
    other, _ = trained(SMALL[preset].model_copy(update={"seed": 1}), tiny_data)
    assert_same(one, same)
    for mine, theirs in zip(one.net.children(), other.net.children(), strict=True):
        assert not torch.equal(next(mine.parameters()), next(theirs.parameters()))


@both
def test_in_a_run_of_epochs_a_batch_ends_with_its_epoch(preset: str, tiny_data: Dataset) -> None:
    config = SMALL[preset].model_copy(update={"images": None, "epochs": 3, "batch": 16})
    state, reports = trained(config, tiny_data)
    assert [r.seen for r in reports] == [40 * epoch + end for epoch in range(3) for end in (16, 32, 40)]
    assert [r.epoch for r in reports] == [epoch for epoch in range(3) for _ in range(3)]
    assert state.step == 9


@pytest.mark.parametrize("what", ["discriminator's loss", "generator's loss", "discriminator's", "generator's"])
@both
def test_a_loss_or_gradient_that_is_not_finite_stops_before_the_step(preset, what, tiny_data, monkeypatch) -> None:
    """The statistics of batch norm are part of the state."""
    config = SMALL[preset]
    state = new_state(config, tiny_data)
    if what.endswith("loss"):
        loss_of = LOSSES[config.loss]
        factors = [math.nan, 1.0] if what.startswith("discriminator") else [1.0, math.nan]

        def broken(real: Tensor, fake: Tensor) -> Any:
            losses = loss_of(real, fake)
            bad = [loss * factor for loss, factor in zip(losses, factors, strict=True)]
            return type(losses)(*(bad if state.step == 3 else losses))

        monkeypatch.setitem(LOSSES, config.loss, broken)
    loop = steps(state, config, tiny_data)
    for _ in range(3):
        next(loop)
    before = {name: tensor.clone() for name, tensor in tensors(state).items()}
    if not what.endswith("loss"):
        net = state.net.generator if what.startswith("generator") else state.net.discriminator
        next(net.parameters()).register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(TrainingError, match=r"not finite at step 4, .* --generator-lr and --discriminator-lr"):
        next(loop)
    assert (state.step, state.seen) == (3, 24)
    assert [name for name, tensor in tensors(state).items() if not torch.equal(before[name], tensor)] == []


@pytest.mark.parametrize("batch", [1, 3])
@both
def test_a_batch_may_have_one_image(preset: str, batch: int, tiny_data: Dataset) -> None:
    """As the last batch of an epoch can: 40 = 13 * 3 + 1."""
    config = SMALL[preset].model_copy(update={"images": None, "epochs": 1, "batch": batch, "penalty_every": 1})
    state, reports = trained(config, tiny_data)
    assert state.seen == 40
    assert all(loss.isfinite() for loss in reports[-1].losses.values())


def test_images_with_a_constant_background_can_be_learned(tiny_data: Dataset) -> None:
    """Most pixels are equal in all images."""
    pixels = torch.zeros(40, 1, 64, 64, dtype=torch.uint8)
    pixels[..., :28, :28] = tiny_data.train.pixels
    data = Dataset(
        Images(pixels, tiny_data.train.labels),
        tiny_data.test,
        tiny_data.info.model_copy(update={"height": 64, "width": 64}),
    )
    state, reports = trained(SMALL["gan-conditional"].model_copy(update={"penalty_every": 1}), data)
    assert all(loss.isfinite() for report in reports for loss in report.losses.values())
    assert state.seen == 92


@pytest.mark.parametrize("decay", [False, True])
def test_the_learning_rate_is_constant_or_falls_to_zero(decay: bool, tiny_data: Dataset) -> None:
    config = SMALL["gan-conditional"].model_copy(
        update={"lr_decay": decay, "generator_lr": 1e-3, "discriminator_lr": 2e-3}
    )
    state, fractions = new_state(config, tiny_data), []
    for report in steps(state, config, tiny_data):
        rates = [group["lr"] for group in state.optimizers[0].param_groups]
        assert rates == pytest.approx([1e-3 * report.lr, 2e-3 * report.lr])
        fractions.append(report.lr)
    assert fractions == pytest.approx([1 - seen / 92 if decay else 1.0 for seen in range(0, 92, 8)])


@both
def test_the_average_has_its_closed_form(preset: str, tiny_data: Dataset) -> None:
    """With a power of 2, step i of t has the weight (i / t)^3 - ((i - 1) / t)^3; buffers are copied."""
    config = SMALL[preset].model_copy(update={"ema": 2.0, "generator_lr": 1e-2, "discriminator_lr": 1e-2})
    state = new_state(config, tiny_data)
    loop = itertools.islice(steps(state, config, tiny_data), 6)
    passed = [[p.detach().double() for p in state.net.parameters()] for _ in loop]
    shares = [(i / 6) ** 3 - ((i - 1) / 6) ** 3 for i in range(1, 7)]
    for averaged, *weights in zip(state.ema.parameters(), *passed, strict=True):
        expected = sum(share * weight for share, weight in zip(shares, weights, strict=True))
        torch.testing.assert_close(averaged.double(), expected, rtol=1e-5, atol=1e-6)
    for averaged, last in zip(state.ema.buffers(), state.net.buffers(), strict=True):
        assert torch.equal(averaged, last)


def test_without_an_average_the_weights_are_the_current_ones(tiny_data: Dataset) -> None:
    config = SMALL["gan"].model_copy(update={"ema": None})
    state = new_state(config, tiny_data)
    for _ in itertools.islice(steps(state, config, tiny_data), 3):
        for copied, own in zip(state.ema.state_dict().values(), state.net.state_dict().values(), strict=True):
            assert torch.equal(copied, own)


@pytest.mark.slow
def test_a_trained_gan_draws_the_requested_classes(tiny_data: Dataset) -> None:
    config = PRESETS["gan-conditional"].model_copy(
        update={
            "net": ConvGanConfig(latent=16, widths=(8, 16), embedding=32), "images": 4_000, "batch": 20, "ema": 4.0,
            "generator_lr": 2e-3, "discriminator_lr": 2e-3,
        }
    )  # fmt: skip
    state = new_state(config, tiny_data)
    model = model_of(state, config, tiny_data)
    before = distances_to_class_means(model, tiny_data)
    for _ in steps(state, config, tiny_data):
        pass
    assert_draws_the_requested_classes(model, tiny_data, before)


# Model files


@pytest.fixture
def file(models: dict[str, GanModel], preset: str, tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    models[preset].save(path)
    return path


@both
def test_a_model_file_holds_the_generator_and_draws_the_same(preset: str, file: Path, models) -> None:
    model, loaded = models[preset], checkpoint.load(file)
    assert type(loaded) is GanModel
    assert (loaded.config, loaded.info, loaded.conditional) == (model.config, model.info, model.conditional)
    assert load_file(file).keys() == model.net.state_dict().keys()
    labels = list(range(10)) if model.conditional else [10] * 10
    assert torch.equal(loaded(labels, range(10)), model(labels, range(10)))
    assert not any(parameter.requires_grad for parameter in loaded.net.parameters())


@both
def test_a_damaged_model_file_is_refused(preset: str, file: Path) -> None:
    flip_bit(file, -1)
    with pytest.raises(CheckpointError, match="not what was saved"):
        checkpoint.load(file)


# Presets


def test_the_conditional_preset_has_no_more_weights_than_the_laptops_network(mnist: Dataset) -> None:
    pair = new_state(PRESETS["gan-conditional"], mnist).net
    network = build_denoiser(DIFFUSION_PRESETS["laptop"], mnist.info).net
    ours, theirs = (sum(p.numel() for p in net.parameters()) for net in (pair, network))
    assert ours <= theirs == 627_684


def test_the_plain_preset_is_the_gan_of_the_original_comparison(mnist: Dataset) -> None:
    config = PRESETS["gan"]
    state = new_state(config, mnist)
    assert config.net == MlpGanConfig()
    assert not model_of(state, config, mnist).conditional
    assert (config.epochs, config.images, config.batch, config.loss) == (20, None, 256, "nonsaturating")
    (adam,) = state.optimizers
    assert isinstance(adam, torch.optim.Adam)
    for group in adam.param_groups:
        assert (group["peak_lr"], group["betas"], group["weight_decay"]) == (1e-4, (0.5, 0.999), 0)
    assert {config.learning_rate(seen, 60_000) for seen in (0, 600_000, 1_199_999)} == {1.0}
