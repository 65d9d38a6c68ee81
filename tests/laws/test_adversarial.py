"""Adversarial distillation: what it takes from the teacher, the two evaluations, exactness."""

from pathlib import Path
from typing import Any

import pytest
import torch

from pocketdiff import checkpoint, rng
from pocketdiff.config import SamplingConfig
from pocketdiff.data import Dataset, to_data_units
from pocketdiff.errors import RequestError
from pocketdiff.methods import METHODS, PRESETS
from pocketdiff.methods.adversarial import Adversarial, AdversarialConfig, distillation
from pocketdiff.methods.diffusion import DiffusionConfig
from pocketdiff.methods.loop import Batch, TrainState, batches
from pocketdiff.methods.student import FewStepModel
from pocketdiff.nets.gan import relativistic
from pocketdiff.nets.unet import UNetConfig
from pocketdiff.schedule import Karras, LogNormal
from tests.helpers import assert_same, model_of, new_state, resumed, tensors, trained

TEACHER = DiffusionConfig(images=200, batch=20, net=UNetConfig(widths=(8,), blocks=1, embedding=8))


@pytest.fixture(scope="module")
def teacher(tiny_data: Dataset, tmp_path_factory) -> Path:
    path: Path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    model_of(trained(TEACHER, tiny_data)[0], TEACHER, tiny_data).save(path)
    return path


def make(path: Path, **changes: Any) -> AdversarialConfig:
    """A short run's config, completed with what it takes from the teacher."""
    short = {"images": 92, "batch": 8, "discriminator": (8, 8), "discriminator_first": 16, "muon_lr": 0.01, **changes}
    return Adversarial().complete(AdversarialConfig(teacher=str(path), **short), checkpoint.load)


@pytest.fixture
def config(teacher: Path) -> AdversarialConfig:
    return make(teacher)


def first_batch(config: AdversarialConfig, data: Dataset) -> Batch:
    return next(batches(config, data.train, TrainState({}, [])))


def test_the_generator_starts_as_the_teacher(teacher: Path, config: AdversarialConfig, tiny_data: Dataset) -> None:
    state, weights = new_state(config, tiny_data), checkpoint.load(teacher).net.state_dict()
    for gan in state.modules.values():
        assert all(torch.equal(tensor, weights[name]) for name, tensor in gan.generator.state_dict().items())
        assert not any(part.training for part in gan.modules())
    assert config.net == TEACHER.net
    assert len(str(config.teacher_sha256)) == 64


def test_at_first_only_the_discriminator_learns(config: AdversarialConfig, tiny_data: Dataset) -> None:
    start, state = new_state(config, tiny_data), new_state(config, tiny_data)
    method, seen = METHODS["adversarial"], []
    from pocketdiff.methods.loop import train

    for report in train(method, state, tiny_data.train, config):
        moved = [
            any(not torch.equal(a, b) for a, b in zip(part(state), part(start), strict=True))
            for part in (
                lambda one: list(one.net.generator.parameters()),
                lambda one: list(one.net.discriminator.parameters()),
            )
        ]
        seen.append((report.seen, *moved))
    assert seen[0] == (8, False, True)
    assert seen[1] == (16, False, True)
    assert seen[2] == (24, True, True)


@pytest.mark.parametrize("second", [0.0, 1.0])
def test_one_evaluation_or_two(second: float, config: AdversarialConfig, tiny_data: Dataset) -> None:
    """Without a second evaluation the images are those of the finished model in one step; with it, those in two."""
    config = config.replace(second=second)
    generator, batch = new_state(config, tiny_data).net.generator, first_batch(config, tiny_data)
    noise, again = (
        rng.normal(config.seed, stream, batch.indices, (1, 28, 28)) for stream in (rng.Stream.NOISE, rng.Stream.LATENT)
    )
    with torch.no_grad():
        x = generator(noise * (10.0**2 + 0.5**2) ** 0.5, torch.full((8,), 10.0), batch.label)
        if second:
            x = generator(x + 1.5 * again, torch.full((8,), 1.5), batch.label)
        torch.testing.assert_close(Adversarial().draw(generator, batch, config), x)


def test_the_gradients_are_those_of_the_paper(config: AdversarialConfig, tiny_data: Dataset) -> None:
    """The relativistic loss of R3GAN and the classification loss, without a penalty."""
    config = config.replace(discriminator_first=0, gradient_penalty=0.0, second=0.5)
    state, batch = new_state(config, tiny_data), first_batch(config, tiny_data)
    gan, label = state.net, batch.label
    fake, x0 = Adversarial().draw(gan.generator, batch, config), to_data_units(batch.pixels)
    on_real, on_fake = gan.discriminator(x0, label), gan.discriminator(fake, label)
    loss = relativistic(on_real.real, on_fake.real)
    wrong = [torch.nn.functional.cross_entropy(verdict.classes, label) for verdict in (on_real, on_fake)]
    expected = [
        *torch.autograd.grad(loss.generator + 0.3 * wrong[1], list(gan.generator.parameters()), retain_graph=True),
        *torch.autograd.grad(loss.discriminator + 0.3 * wrong[0], list(gan.discriminator.parameters())),
    ]
    Adversarial().backward(state, batch, config)
    for weight, gradient in zip(gan.parameters(), expected, strict=True):
        torch.testing.assert_close(weight.grad, gradient, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("stops", [(1,), (2, 7)])
def test_stopped_and_resumed_equals_uninterrupted_bit_for_bit(
    stops: tuple[int, ...], config: AdversarialConfig, tiny_data: Dataset, tmp_path: Path
) -> None:
    whole, reports = trained(config, tiny_data)
    state, again = resumed(config, tiny_data, stops, tmp_path)
    assert_same(state, whole)
    assert {name.split(".")[0] for name in tensors(state)} == {"net", "ema", "0", "1", "2"}
    assert again == reports


def test_a_model_of_one_step_or_two_that_needs_no_teacher(teacher: Path, tiny_data: Dataset, tmp_path: Path) -> None:
    (copy := tmp_path / "teacher.safetensors").write_bytes(teacher.read_bytes())
    config = make(copy, sampling=SamplingConfig(sampler="consistency", steps=2, scale=1.0, schedule=Karras(
        sigma_min=1.0, sigma_max=10.0)))  # fmt: skip
    model = model_of(trained(config, tiny_data)[0], config, tiny_data)
    model.save(tmp_path / "student.safetensors")
    copy.unlink()
    loaded = checkpoint.load(tmp_path / "student.safetensors")
    assert type(loaded) is FewStepModel
    assert loaded.config == config
    assert torch.equal(loaded([3, 1]), model([3, 1]))
    views = loaded.views()
    assert [(view.caption, view.still.nfe()) for view in views] == [("1 step", 1), ("2 steps", 2)]
    assert loaded.nfe() == 2


def test_a_teacher_that_does_not_fit_is_one_sentence(teacher: Path, tiny_data: Dataset, tmp_path: Path) -> None:
    gan = PRESETS["gan-conditional"]
    model_of(new_state(gan, tiny_data), gan, tiny_data).save(tmp_path / "gan.safetensors")
    with pytest.raises(RequestError, match=r"gan\.safetensors: is not a denoiser and cannot teach"):
        make(tmp_path / "gan.safetensors")
    with pytest.raises(RequestError, match="needs a teacher: --teacher RUN_OR_FILE"):
        Adversarial().complete(AdversarialConfig(), checkpoint.load)
    few = tiny_data.train.labels < 4
    with pytest.raises(RequestError, match="learned other classes or channels than these data have"):
        new_state(make(teacher), Dataset.from_arrays(tiny_data.train.pixels[few], tiny_data.train.labels[few]))
    with pytest.raises(RequestError, match=r"^parameterization is the teacher's and cannot be chosen; leave it out$"):
        make(teacher, parameterization="v")


def test_drawing_starts_at_the_highest_level_of_a_teacher_with_little_noise(tiny_data: Dataset, tmp_path) -> None:
    low = TEACHER.replace(images=20, schedule=LogNormal(sigma_max=1.2))
    model_of(trained(low, tiny_data)[0], low, tiny_data).save(tmp_path / "low.safetensors")
    grid = make(tmp_path / "low.safetensors").sampling.replace(steps=2).grid(low.schedule)
    assert grid == pytest.approx([1.2, 0.6, 0.0])


def test_the_library_makes_the_config_of_the_command(teacher: Path) -> None:
    config = distillation(teacher, checkpoint.load(teacher), 2)
    assert (config.teacher, config.sampling.steps, config.data) == (str(teacher), 2, TEACHER.data)
    changes = {"teacher": None, "sampling": config.sampling.replace(steps=1)}
    assert config.replace(**changes) == PRESETS["distill"]
