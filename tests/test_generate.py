import itertools

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from pocketdiff import generate, pictures
from pocketdiff.config import SamplingConfig
from pocketdiff.data import to_uint8
from pocketdiff.generate import DiffusionModel, RequestError, SamplingError
from pocketdiff.samplers import SAMPLERS
from pocketdiff.schedule import DiscreteBeta
from pocketdiff.train import new_state, train


@pytest.fixture(scope="module")
def model(tiny_data) -> DiffusionModel:
    from pocketdiff.config import TrainConfig
    from pocketdiff.nets.unet import UNetConfig

    config = TrainConfig(images=80, batch=8, net=UNetConfig(widths=(8, 16), blocks=1, embedding=16))
    state = new_state(config, tiny_data.info)
    for _ in train(state, tiny_data.train, config):
        pass
    return DiffusionModel(state.ema, config, tiny_data.info)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_image_depends_on_its_label_and_its_seed_alone(model: DiffusionModel, sampler: str) -> None:
    model = model.with_sampling(SamplingConfig(sampler=sampler, steps=4))
    labels, seeds = [3, 1, 4, 1, 5], [9, 2, 6, 2, 2**63]
    together = model.generate(labels, seeds)
    assert torch.equal(together, model.generate(labels, seeds))
    assert torch.equal(together[1], together[3])
    assert not torch.equal(together[0], together[2])
    backwards = model.generate(labels[::-1], seeds[::-1]).flip(0)
    alone = torch.cat([model.generate([label], [seed]) for label, seed in zip(labels, seeds, strict=True)])
    for other in (backwards, alone):  # Up to rounding where the batch differs.
        assert (other.int() - together.int()).abs().max() <= 1


def test_batches_of_bounded_memory_change_nothing(model: DiffusionModel, monkeypatch) -> None:
    labels, seeds = [0, 1, 2, 3, 4], range(5)
    whole = model(labels, seeds)
    monkeypatch.setattr(generate, "CHUNK", 2)
    assert (model(labels, seeds).int() - whole.int()).abs().max() <= 1


def test_generate_is_the_last_of_steps(model: DiffusionModel) -> None:
    labels, seeds = torch.tensor([7, 8]), torch.tensor([1, 2])
    *_, last = steps = list(model.steps(labels, seeds))
    assert len(steps) == model.config.sampling.steps
    assert last.sigma == 0.0
    assert torch.equal(to_uint8(last.x), model(labels, seeds))


def test_the_start_has_a_noisy_images_variance(model: DiffusionModel) -> None:
    start = model.start(range(200), 2.0)
    assert start.std().item() == pytest.approx((4 + model.config.sigma_data**2) ** 0.5, rel=0.01)


def test_numpys_numbers_are_numbers(model: DiffusionModel) -> None:
    labels, seeds = np.array([3, 4]), np.array([7, 8])
    assert torch.equal(model(labels, seeds), model([3, 4], [7, 8]))


def test_labels_and_seeds_must_be_equally_many_in_every_batch(model: DiffusionModel) -> None:
    with pytest.raises(RequestError, match="256 labels but 300 seeds"):
        model([0] * 256, range(300))


def test_an_image_function(model: DiffusionModel) -> None:
    images = model(torch.tensor([0, 9]), torch.tensor([5, 6]))
    assert images.dtype == torch.uint8
    assert images.shape == (2, 1, 28, 28)
    assert model.generate([], []).shape == (0, 1, 28, 28)
    assert model([10], [0]).shape == (1, 1, 28, 28)  # the null label
    assert model.classes == tuple("0123456789")


@pytest.mark.parametrize(
    ("labels", "seeds", "message"),
    [([11], [0], "label 11"), ([-1], [0], "label -1"), ([1, 2], [0], "2 labels but 1 seeds")],
)
def test_a_request_that_makes_no_sense_is_refused(model: DiffusionModel, labels, seeds, message) -> None:
    with pytest.raises(RequestError, match=message):
        next(model.steps(labels, seeds))


def test_more_steps_than_levels_is_no_config() -> None:
    with pytest.raises(ValueError, match="only 5 noise levels"):
        SamplingConfig(steps=6, schedule=DiscreteBeta(timesteps=5))


def test_a_network_that_is_not_finite_is_named_as_the_cause(model: DiffusionModel, tiny_data) -> None:
    broken = DiffusionModel(new_state(model.config, tiny_data.info).ema, model.config, model.info)
    with torch.no_grad():
        next(broken.denoiser.parameters()).fill_(torch.nan)
        broken.denoiser.net.last[-1].bias.fill_(torch.nan)  # type: ignore[index]
    with pytest.raises(SamplingError, match="not finite"):
        broken([0], [0])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("n", "columns"), [(1, 1), (7, 3), (40, 10)])
def test_tile_puts_each_image_in_its_place(channels: int, n: int, columns: int) -> None:
    images = torch.arange(n, dtype=torch.uint8).view(n, 1, 1, 1).expand(n, channels, 20, 16) + 100
    zoom = 3
    picture = pictures.tile(images, columns, ink=False, zoom=zoom)
    assert picture.size == ((columns * 18 + 2) * zoom, (-(-n // columns) * 22 + 2) * zoom)
    for index, (row, column) in enumerate(itertools.islice(itertools.product(range(n), range(columns)), n)):
        pixel = picture.getpixel(((2 + column * 18) * zoom, (2 + row * 22) * zoom))
        assert pixel in (100 + index, (100 + index,) * 3)
    assert picture.getpixel((0, 0)) in (255, (255, 255, 255))


def test_ink_is_shown_dark_on_white() -> None:
    stroke = torch.zeros(1, 1, 16, 16, dtype=torch.uint8)
    stroke[..., 8, 8] = 255
    assert pictures.tile(stroke, 1, ink=True).getextrema() == (0, 255)
    assert pictures.tile(stroke, 1, ink=True).resize((1, 1), Image.Resampling.BOX).getpixel((0, 0)) > 240  # type: ignore[operator]


def test_the_denoising_runs_from_noise_to_the_sample(model: DiffusionModel) -> None:
    model = model.with_sampling(SamplingConfig(steps=5))
    left, frames = zip(*pictures.denoising(model, [0, 1, 2], range(3)), strict=True)
    assert left == (5, 4, 3, 2, 1, 0)
    assert torch.equal(frames[-1], model([0, 1, 2], range(3)))
    noise = frames[0].float() / 127.5 - 1  # unit variance, clipped at one
    assert noise.abs().mean().item() == pytest.approx(0.63, abs=0.03)


def test_gif_and_png_hold_their_pictures() -> None:
    import io

    tiles = [
        pictures.tile(torch.full((4, 1, 16, 16), 51 * k, dtype=torch.uint8), 2, ink=False, zoom=10) for k in range(4)
    ]
    with Image.open(io.BytesIO(pictures.gif(tiles))) as gif:
        assert [frame.convert("L").getpixel((100, 100)) for frame in ImageSequence.Iterator(gif)] == [0, 51, 102, 153]
        assert gif.info["loop"] == 0
    with Image.open(io.BytesIO(pictures.png(pictures.over(tiles[0], tiles[3])))) as png:
        assert png.getpixel((100, 100)) == 0
        assert png.getpixel((100, png.height - 100)) == 153


def test_blank_pictures_are_called_ill(model: DiffusionModel) -> None:
    assert "blank" in str(pictures.health(torch.zeros(4, 1, 28, 28, dtype=torch.uint8)))
    assert pictures.health(model.generate([0, 1], [0, 1])) is None
