"""Consistency distillation: the papers' formulas, exactness, and models that draw in one step or two."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pocketdiff import checkpoint, rng
from pocketdiff.config import MethodConfig, SamplingConfig
from pocketdiff.data import Dataset, to_data_units
from pocketdiff.errors import RequestError
from pocketdiff.methods import METHODS, PRESETS
from pocketdiff.methods.consistency import Consistency, ConsistencyConfig
from pocketdiff.methods.diffusion import DiffusionConfig
from pocketdiff.methods.loop import Batch, TrainState, batches
from pocketdiff.methods.student import FewStepModel
from pocketdiff.model import DiffusionModel
from pocketdiff.nets.unet import UNetConfig
from pocketdiff.schedule import Karras, LogNormal
from tests.helpers import assert_same, model_of, new_state, resumed, tensors, trained

TEACHER = DiffusionConfig(
    images=200, batch=20, net=UNetConfig(widths=(8,), blocks=1, embedding=8), sampling=SamplingConfig(scale=1.5)
)


@pytest.fixture(scope="module")
def teacher(tiny_data: Dataset, tmp_path_factory) -> Path:
    path: Path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    model_of(trained(TEACHER, tiny_data)[0], TEACHER, tiny_data).save(path)
    return path


def make(path: Path, **changes: Any) -> ConsistencyConfig:
    """A short run's config, completed with what it takes from the teacher."""
    config = ConsistencyConfig(teacher=str(path), **{"images": 92, "batch": 8, **changes})
    return Consistency().complete(config, checkpoint.load)


@pytest.fixture
def config(teacher: Path) -> ConsistencyConfig:
    return make(teacher)


# What it takes from the teacher


def test_the_config_takes_network_and_scale_from_the_teacher(teacher: Path, config: ConsistencyConfig) -> None:
    for field in ("net", "parameterization", "sigma_data", "black", "schedule"):
        assert getattr(config, field) == getattr(TEACHER, field)
    assert (config.teacher, config.teacher_scale) == (str(teacher), 1.5)
    assert len(str(config.teacher_sha256)) == 64
    assert Consistency().complete(config, checkpoint.load) == config
    assert make(teacher, teacher_scale=1.0).teacher_scale == 1.0
    assert config.sampling.grid(config.schedule) == pytest.approx([10.0, 1.5, 0.0])


def test_drawing_starts_at_the_highest_level_of_a_teacher_with_little_noise(tiny_data: Dataset, tmp_path) -> None:
    low = TEACHER.model_copy(update={"images": 20, "schedule": LogNormal(sigma_max=1.2)})
    model_of(trained(low, tiny_data)[0], low, tiny_data).save(tmp_path / "low.safetensors")
    config = make(tmp_path / "low.safetensors")
    assert config.sampling.grid(config.schedule) == pytest.approx([1.2, 0.6, 0.0])


def test_the_state_starts_as_the_teacher(teacher: Path, config: ConsistencyConfig, tiny_data: Dataset) -> None:
    state = new_state(config, tiny_data)
    weights = checkpoint.load(teacher).net.state_dict()
    assert state.modules.keys() == {"net", "ema", "teacher"}
    for module in state.modules.values():
        assert all(torch.equal(tensor, weights[name]) for name, tensor in module.state_dict().items())
        assert not any(part.training for part in module.modules())
    frozen = [
        {weight.requires_grad for weight in state.modules[name].parameters()} for name in ("net", "ema", "teacher")
    ]
    assert frozen == [{True}, {False}, {False}]
    pointers = [next(module.parameters()).data_ptr() for module in state.modules.values()]
    assert len(set(pointers)) == 3


def test_the_teacher_stays_as_it_is(teacher: Path, config: ConsistencyConfig, tiny_data: Dataset) -> None:
    state, _ = trained(config, tiny_data)
    weights = checkpoint.load(teacher).net.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in state.modules["teacher"].state_dict().items())
    assert not torch.equal(state.net.net.first.weight, weights["net.first.weight"])
    assert not torch.equal(state.ema.net.first.weight, weights["net.first.weight"])


def saved(config: MethodConfig, data: Dataset, folder: Path) -> Path:
    """A new model as a file."""
    path = folder / "other.safetensors"
    model_of(new_state(config, data), config, data).save(path)
    return path


def test_a_teacher_that_cannot_teach_is_one_sentence(tiny_data: Dataset, tmp_path: Path) -> None:
    gan = saved(PRESETS["gan-conditional"], tiny_data, tmp_path)
    with pytest.raises(RequestError, match=r"other\.safetensors: is not a denoiser and cannot teach"):
        make(gan)
    x0 = saved(TEACHER.model_copy(update={"parameterization": "x0"}), tiny_data, tmp_path)
    with pytest.raises(RequestError, match="predicts x0, which is not the image itself at noise level 0; give a"):
        make(x0)
    for parameterization in ("eps", "v"):
        other = saved(TEACHER.model_copy(update={"parameterization": parameterization}), tiny_data, tmp_path)
        assert make(other).parameterization == parameterization
    with pytest.raises(RequestError, match="needs a teacher: --teacher RUN_OR_FILE"):
        Consistency().complete(ConsistencyConfig(), checkpoint.load)


def test_a_teacher_of_other_data_is_refused(config: ConsistencyConfig, tiny_data: Dataset) -> None:
    few = tiny_data.train.labels < 4
    data = Dataset.from_arrays(tiny_data.train.pixels[few], tiny_data.train.labels[few])
    with pytest.raises(RequestError, match="learned other classes or channels than these data have"):
        new_state(config, data)
    colour = Dataset.from_arrays(tiny_data.train.pixels.repeat(1, 3, 1, 1), tiny_data.train.labels)
    with pytest.raises(RequestError, match="learned other classes or channels"):
        new_state(config, colour)


def test_what_is_the_teachers_cannot_be_chosen(teacher: Path) -> None:
    with pytest.raises(RequestError, match=r"^parameterization is the teacher's and cannot be chosen; leave it out$"):
        make(teacher, parameterization="v")
    assert make(teacher, net=TEACHER.net).net == TEACHER.net


# The formulas


@pytest.mark.parametrize("progress", [0.0, 0.19, 0.2, 0.5, 0.79, 0.99])
def test_the_lower_level_is_that_of_the_paper(progress: float, teacher: Path) -> None:
    """r / t = 1 - n(t) / q^a with n(t) = 1 + k sigmoid(-b t), k = 8 and b = 1; a grows in equal parts of the run."""
    config = make(teacher, hop=(4.0, 64.0))
    hop = 4.0 * 2 ** math.floor(progress * 5)  # 4, 8, 16, 32, 64
    sigma = torch.tensor([0.01, 0.5, 2.0, 20.0, 80.0], dtype=torch.float64)
    expected = [max(0.0, t * (1 - (1 + 8 / (1 + math.exp(t))) / hop)) for t in sigma.tolist()]
    assert Consistency._lower(sigma, progress, config).tolist() == pytest.approx(expected)
    assert expected[0] == 0.0 or hop > 4.9


def test_hop_stays_where_both_values_are_equal(teacher: Path) -> None:
    config = make(teacher, hop=(16.0, 16.0))
    sigma = torch.tensor([3.0], dtype=torch.float64)
    assert len({Consistency._lower(sigma, progress, config).item() for progress in (0.0, 0.5, 0.99)}) == 1


def first_batch(config: ConsistencyConfig, data: Dataset) -> Batch:
    return next(batches(config, data.train, TrainState({}, [])))


def loss_by_hand(state: TrainState, batch: Batch, config: ConsistencyConfig) -> Tensor:
    """Song et al. 2023, equation 7 with the pseudo-Huber distance, image by image."""
    student, teacher, losses = state.net, state.modules["teacher"], []
    us = rng.stratified(config.seed, rng.Stream.LEVEL, batch.indices)
    uniform = rng.uniform(config.seed, rng.Stream.DROP, batch.indices)
    noise = rng.normal(config.seed, rng.Stream.NOISE, batch.indices, tuple(batch.pixels.shape[1:]))
    assert config.teacher_scale is not None
    for row, (u, drop) in enumerate(zip(us, uniform, strict=True)):
        top = 10.0
        t = top if drop < config.highest else min(top, config.levels(u[None]).item())
        r = max(0.0, t * (1 - (1 + 8 / (1 + math.exp(t))) / config.hop[0]))
        x0, label, null = to_data_units(batch.pixels[row : row + 1]), batch.label[row : row + 1], torch.tensor([10])
        x = x0 + t * noise[row : row + 1]
        level, lower = torch.tensor([t]), torch.tensor([r])
        with torch.no_grad():
            uncond, cond = teacher(x, level, null), teacher(x, level, label)
            image = uncond + config.teacher_scale * (cond - uncond)
            x_lower = x + (r - t) * (x - image) / t  # Euler: dx/dsigma = (x - x0_hat) / sigma
            target = student(x_lower, lower, label) if r > 0 else image
        c = config.huber * math.sqrt(x0.numel())
        losses.append(((student(x, level, label) - target).square().sum() + c**2).sqrt() - c)
    return torch.stack(losses).mean()


@pytest.mark.parametrize(("hop", "scale"), [(1.001, 1.5), (8.0, 1.5), (8.0, 1.0), (64.0, 0.0)])
def test_the_loss_is_that_of_the_papers(hop: float, scale: float, teacher: Path, tiny_data: Dataset) -> None:
    """Loss and gradients; with the shortest hop, many lower levels are 0."""
    config = make(teacher, hop=(hop, hop), teacher_scale=scale, images=4000, batch=16)
    state = new_state(config, tiny_data)
    with torch.no_grad():  # A student that is not the teacher any more.
        for weight in state.net.parameters():
            weight.mul_(1.05)
    batch = first_batch(config, tiny_data)
    expected = loss_by_hand(state, batch, config)
    gradients = torch.autograd.grad(expected, list(state.net.parameters()))
    losses = Consistency().backward(state, batch, config)
    torch.testing.assert_close(losses["loss"], expected.detach(), rtol=1e-4, atol=1e-5)
    for weight, gradient in zip(state.net.parameters(), gradients, strict=True):
        torch.testing.assert_close(weight.grad, gradient, rtol=1e-3, atol=1e-4)
    assert all(weight.grad is None for weight in state.modules["teacher"].parameters())


def test_with_the_lower_level_0_the_target_is_the_teachers_image(teacher: Path, tiny_data: Dataset) -> None:
    """The student at level 0 is never used: a student that is broken there gives the same loss."""
    config = make(teacher, hop=(1.001, 1.001), levels=LogNormal(mean=-3.0, std=0.1), highest=0.0)
    state = new_state(config, tiny_data)
    batch = first_batch(config, tiny_data)
    x0 = to_data_units(batch.pixels)
    levels = config.levels(rng.stratified(config.seed, rng.Stream.LEVEL, batch.indices)).float()
    assert (Consistency._lower(levels, 0.0, config) == 0).all()
    x = x0 + levels.view(-1, 1, 1, 1) * rng.normal(config.seed, rng.Stream.NOISE, batch.indices, (1, 28, 28))
    with torch.no_grad():
        strong, weak = (state.modules["teacher"](x, levels, label) for label in (batch.label, torch.full((8,), 10)))
        error = (state.net(x, levels, batch.label) - weak.lerp(strong, 1.5)).square().sum((1, 2, 3))
    c = config.huber * 28
    expected = ((error + c**2).sqrt() - c).mean()
    torch.testing.assert_close(Consistency().backward(state, batch, config)["loss"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("highest", "top"), [(0.0, 80.0), (0.15, 80.0), (1.0, 80.0), (0.15, 5.0)])
def test_the_fraction_at_the_highest_level_is_as_chosen(
    highest: float, top: float, teacher: Path, tiny_data: Dataset, monkeypatch
) -> None:
    """The highest level is where the model's sampling starts; no level is higher."""
    way = SamplingConfig(sampler="consistency", steps=2, scale=1.0, schedule=Karras(sigma_min=1.5, sigma_max=top))
    config = make(teacher, highest=highest, images=4000, batch=1000, sampling=way)
    levels: list[Tensor] = []

    def stop(sigma: Tensor, progress: float, config: ConsistencyConfig) -> Tensor:
        levels.append(sigma)
        raise KeyboardInterrupt

    monkeypatch.setattr(Consistency, "_lower", staticmethod(stop))
    with pytest.raises(KeyboardInterrupt):
        Consistency().backward(new_state(config, tiny_data), first_batch(config, tiny_data), config)
    clipped = 0.5 * math.erfc((math.log(top) - 0.4) / 1.4 / 2**0.5)  # levels of the log-normal above the highest
    expected = highest + (1 - highest) * clipped
    assert (levels[0] > top - 1e-6).double().mean().item() == pytest.approx(expected, abs=0.035)
    assert levels[0].max() < top + 1e-6


# Training


@pytest.mark.parametrize("stops", [(1,), (5, 6)])
def test_stopped_and_resumed_equals_uninterrupted_bit_for_bit(
    stops: tuple[int, ...], config: ConsistencyConfig, tiny_data: Dataset, tmp_path: Path
) -> None:
    whole, reports = trained(config, tiny_data)
    state, again = resumed(config, tiny_data, stops, tmp_path)
    assert_same(state, whole)
    assert {name.split(".")[0] for name in tensors(state)} == {"net", "ema", "teacher", "0", "1"}
    assert again == reports


def test_losses_fall(teacher: Path, tiny_data: Dataset) -> None:
    config = make(teacher, hop=(4.0, 4.0), images=800, batch=20, muon_lr=0.01, adam_lr=2e-3)
    state, reports = trained(config, tiny_data)
    losses = torch.stack([report.losses["loss"] for report in reports])
    assert losses[-20:].mean() < 0.6 * losses[:5].mean()
    batch = first_batch(config, tiny_data)
    assert Consistency().backward(state, batch, config)["loss"] < 0.6 * losses[0]


def test_a_student_that_equals_its_targets_has_loss_0(teacher: Path, tiny_data: Dataset) -> None:
    """A perfect teacher of a data set of one image: its image at every level."""
    config = make(teacher, images=100, batch=16)
    state = new_state(config, tiny_data)
    for name in ("net", "teacher"):
        state.modules[name] = OneImage(tiny_data)
    assert Consistency().backward(state, first_batch(config, tiny_data), config)["loss"] == 0


class OneImage(torch.nn.Module):
    """Always predicts the same image."""

    null = 10

    def __init__(self, data: Dataset) -> None:
        super().__init__()
        self.image = torch.nn.Parameter(to_data_units(data.train.pixels[:1]))

    def forward(self, x: Tensor, sigma: Tensor, label: Tensor) -> Tensor:
        return self.image.expand(len(x), -1, -1, -1)


# The model


@pytest.fixture(scope="module")
def model(teacher: Path, tiny_data: Dataset) -> FewStepModel:
    config = make(teacher)
    found: FewStepModel = model_of(trained(config, tiny_data)[0], config, tiny_data)
    return found


def test_the_model_draws_in_two_steps_or_one(model: FewStepModel) -> None:
    assert type(model) is FewStepModel
    assert model.nfe() == 2
    assert model.how() == "consistency, 2 steps, scale 1 (w = 0)"
    one = model.with_sampling(model.sampling.model_copy(update={"steps": 1}))
    assert one.nfe() == 1
    sigma = one.grid()[0]
    with torch.no_grad():
        image = model.net(one.start([5], sigma), torch.tensor([sigma]), torch.tensor([3]))
    assert torch.equal(one([3], [5]), ((image.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8))
    assert not torch.equal(model([3], [5]), one([3], [5]))
    assert torch.equal(model([3, 3], [5, 6])[1], model([3], [6])[0])


def test_its_views_are_one_step_and_two(model: FewStepModel) -> None:
    views = model.views()
    assert [(view.suffix, view.caption) for view in views] == [("_1step", "1 step"), ("_2steps", "2 steps")]
    assert [view.still.nfe() for view in views] == [1, 2]
    assert [view.slow for view in views] == [None, None]


def test_a_model_file_needs_no_teacher(teacher: Path, tiny_data: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "teacher.safetensors"
    path.write_bytes(teacher.read_bytes())
    config = make(path)
    model = model_of(trained(config, tiny_data)[0], config, tiny_data)
    model.save(tmp_path / "student.safetensors")
    path.unlink()
    loaded = checkpoint.load(tmp_path / "student.safetensors")
    assert type(loaded) is FewStepModel
    assert loaded.config == config
    assert torch.equal(loaded([3, 1]), model([3, 1]))


def test_a_student_can_teach(model: FewStepModel, tmp_path: Path, tiny_data: Dataset) -> None:
    path = tmp_path / "student.safetensors"
    model.save(path)
    state = new_state(make(path), tiny_data)
    assert torch.equal(state.net.net.first.weight, model.net.state_dict()["net.first.weight"])


def test_the_method_is_registered_with_its_preset() -> None:
    assert METHODS["consistency"].config is ConsistencyConfig
    assert PRESETS["consistency"] == ConsistencyConfig()
    assert ConsistencyConfig().sampling.schedule == Karras(sigma_min=1.5, sigma_max=10.0)
    assert issubclass(FewStepModel, DiffusionModel)
