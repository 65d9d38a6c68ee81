"""Diffusion models: from labels and seeds to images, their settings, their cost, and their words."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from pocketdiff import model as module
from pocketdiff.checkpoint import with_sampling
from pocketdiff.config import SamplingConfig
from pocketdiff.data import Dataset, to_uint8
from pocketdiff.errors import PluginError, RequestError, SamplingError, TrainingError
from pocketdiff.methods.diffusion import PRESETS, DiffusionConfig
from pocketdiff.methods.gan import PRESETS as GAN_PRESETS
from pocketdiff.model import DiffusionModel, build_denoiser
from pocketdiff.nets.context_unet import ContextUnetConfig
from pocketdiff.nets.unet import UNetConfig
from pocketdiff.samplers import SAMPLERS
from pocketdiff.schedule import DiscreteBeta, Karras
from tests.helpers import model_of, new_state, tensors, trained

SMALL = UNetConfig(widths=(8, 16), blocks=1, embedding=16)
LABELS, SEEDS = [3, 1, 4, 1, 5], [9, 2, 6, 2, 2**63]


@pytest.fixture(scope="module")
def model(tiny_data: Dataset) -> DiffusionModel:
    config = DiffusionConfig(images=80, batch=8, net=SMALL)
    state, _ = trained(config, tiny_data)
    found: DiffusionModel = model_of(state, config, tiny_data)
    return found


@pytest.fixture(scope="module")
def weak(tiny_data: Dataset) -> DiffusionModel:
    """A smaller model of the same data, after one step."""
    config = DiffusionConfig(images=8, batch=8, net=UNetConfig(widths=(8,), blocks=1, embedding=8))
    state, _ = trained(config, tiny_data)
    found: DiffusionModel = model_of(state, config, tiny_data)
    return found


# Images


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_image_depends_on_its_label_and_its_seed_only(model: DiffusionModel, sampler: str) -> None:
    model = model.with_sampling(SamplingConfig(sampler=sampler, steps=4))
    together = model.generate(LABELS, SEEDS)
    assert torch.equal(together, model.generate(LABELS, SEEDS))
    assert torch.equal(together[1], together[3])
    assert not torch.equal(together[0], together[2])
    backwards = model.generate(LABELS[::-1], SEEDS[::-1]).flip(0)
    alone = torch.cat([model.generate([label], [seed]) for label, seed in zip(LABELS, SEEDS, strict=True)])
    for other in (backwards, alone):  # Up to rounding where the batch differs.
        assert (other.int() - together.int()).abs().max() <= 1


def test_batches_of_bounded_memory_change_nothing(model: DiffusionModel, monkeypatch: pytest.MonkeyPatch) -> None:
    labels, seeds = [0, 1, 2, 3, 4], range(5)
    whole = model(labels, seeds)
    monkeypatch.setattr(module, "CPU_CHUNK", 2)
    chunks = list(model.chunks(labels, seeds))
    assert [len(chunk) for chunk in chunks] == [2, 2, 1]
    assert (torch.cat(chunks).int() - whole.int()).abs().max() <= 1


def test_generate_is_the_last_of_steps(model: DiffusionModel) -> None:
    labels, seeds = torch.tensor([7, 8]), torch.tensor([1, 2])
    *_, last = found = list(model.steps(labels, seeds))
    assert len(found) == model.config.sampling.steps
    assert last.sigma == 0.0
    assert torch.equal(to_uint8(last.x), model(labels, seeds))


def test_seeds_are_0_1_2_if_left_out(model: DiffusionModel) -> None:
    assert torch.equal(model([3, 1, 4]), model([3, 1, 4], range(3)))
    *_, last = model.frames([3, 1, 4])
    assert torch.equal(last.pixels, model([3, 1, 4]))


def test_the_start_has_the_variance_of_a_noisy_image(model: DiffusionModel) -> None:
    start = model.start(range(200), 2.0)
    assert start.std().item() == pytest.approx((4 + model.config.sigma_data**2) ** 0.5, rel=0.01)


def test_numpy_arrays_are_labels_and_seeds(model: DiffusionModel) -> None:
    assert torch.equal(model(np.array([3, 4]), np.array([7, 8])), model([3, 4], [7, 8]))


def test_labels_and_seeds_must_have_the_same_length_in_every_batch(model: DiffusionModel) -> None:
    with pytest.raises(RequestError, match="256 labels but 300 seeds"):
        model([0] * 256, range(300))


def test_images_are_bytes_of_the_shape_of_the_data(model: DiffusionModel) -> None:
    images = model(torch.tensor([0, 9]), torch.tensor([5, 6]))
    assert images.dtype == torch.uint8
    assert images.shape == (2, 1, 28, 28)
    assert model.generate([], []).shape == (0, 1, 28, 28)
    assert model([10], [0]).shape == (1, 1, 28, 28)  # the null label
    assert model.classes == tuple("0123456789")


@pytest.mark.parametrize(
    ("labels", "seeds", "message"),
    [
        ([11], [0], "label 11 does not exist; the 10 classes are 0 to 9"),
        ([-1], [0], "label -1"),
        ([1, 2], [0], "2 labels but 1 seeds"),
    ],
)
def test_an_impossible_request_is_refused(model: DiffusionModel, labels, seeds, message) -> None:
    for draw in (model.generate, model.steps, model.frames):
        with pytest.raises(RequestError, match=message):
            list(draw(labels, seeds))


def test_a_network_that_is_not_finite_is_named_as_the_cause(model: DiffusionModel, tiny_data: Dataset) -> None:
    broken = model_of(new_state(model.config, tiny_data), model.config, tiny_data)
    with torch.no_grad():
        broken.denoiser.net.last[-1].bias.fill_(torch.nan)
    with pytest.raises(SamplingError, match="not finite"):
        broken([0], [0])


def test_frames_run_from_noise_to_the_sample(model: DiffusionModel) -> None:
    model = model.with_sampling(SamplingConfig(steps=5))
    left, sigmas, frames = zip(*model.frames([0, 1, 2], range(3)), strict=True)
    assert left == (5, 4, 3, 2, 1, 0)
    assert list(sigmas) == model.grid()
    assert torch.equal(frames[-1], model([0, 1, 2], range(3)))
    noise = frames[0].float() / 127.5 - 1  # unit variance, clipped at one
    assert noise.abs().mean().item() == pytest.approx(0.63, abs=0.03)


# Settings


def test_more_steps_than_levels_is_refused() -> None:
    with pytest.raises(ValidationError, match="only 5 noise levels"):
        SamplingConfig(steps=6, schedule=DiscreteBeta(timesteps=5))


def test_more_steps_than_levels_of_the_models_own_schedule_is_refused(tiny_data: Dataset) -> None:
    config = DiffusionConfig(net=SMALL, schedule=DiscreteBeta(timesteps=5))
    model = DiffusionModel(build_denoiser(config, tiny_data.info), config, tiny_data.info)
    fewer = model.with_sampling(SamplingConfig(steps=6, schedule=None))
    with pytest.raises(RequestError, match="only 5 noise levels"):
        fewer([0])


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.4])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_nfe_is_the_number_of_evaluations(sampler: str, scale: float, model: DiffusionModel) -> None:
    """Counted while an image is drawn: guidance evaluates twice, and heun corrects every step but the last."""
    way = model.with_sampling(SamplingConfig(sampler=sampler, steps=5, scale=scale))
    count = []
    hook = model.denoiser.register_forward_pre_hook(lambda _net, given: count.append(len(given[0])))
    way([3])
    hook.remove()
    assert way.nfe() == sum(count) == (9 if sampler == "heun" else 5) * (1 if scale == 1 else 2)


def test_a_guidance_interval_saves_evaluations(model: DiffusionModel) -> None:
    sigmas = model.with_sampling(SamplingConfig(steps=6)).grid()[:-1]
    middle = (sigmas[4], sigmas[2])
    way = model.with_sampling(SamplingConfig(steps=6, scale=2.0, interval=middle))
    assert way.nfe() == 6 + 3
    off, on = (model.with_sampling(SamplingConfig(steps=6, scale=scale)) for scale in (1.0, 2.0))
    images = [each([3, 1]) for each in (way, off, on)]
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(images, 2))
    whole, none = (
        model.with_sampling(SamplingConfig(steps=6, scale=2.0, interval=at)) for at in ((0.0, 1e3), (200.0, 300.0))
    )
    assert torch.equal(whole([3, 1]), images[2])
    assert torch.equal(none([3, 1]), images[1])
    assert none.nfe() == 6


def test_an_interval_is_a_pair_or_text() -> None:
    assert SamplingConfig(interval="0.3:3").interval == (0.3, 3.0)
    for wrong in ("3:0.3", "3", "1:2:3", "a:b", "-1:2", (2.0, 2.0)):
        with pytest.raises(ValidationError):
            SamplingConfig(interval=wrong)


def test_autoguidance_uses_the_weaker_model_with_the_label(model: DiffusionModel, weak: DiffusionModel) -> None:
    """One step from noise: the image is that of weak + scale * (strong - weak)."""
    way = model.with_sampling(SamplingConfig(steps=1, scale=2.5, guide="weak.safetensors"), weak)
    assert way.nfe() == 2
    (step,) = way.steps([3, 1])
    sigma = way.grid()[0]
    x, level, label = way.start([0, 1], sigma), torch.full((2,), sigma), torch.tensor([3, 1])
    with torch.no_grad():
        strong, weaker = (denoiser(x, level, label) for denoiser in (model.denoiser, weak.denoiser))
    torch.testing.assert_close(step.x, weaker + 2.5 * (strong - weaker))


def test_a_guide_is_loaded_from_its_path(model: DiffusionModel, weak: DiffusionModel, tmp_path) -> None:
    path = tmp_path / "weak.safetensors"
    weak.save(path)
    sampling = SamplingConfig(steps=3, scale=2.0, guide=str(path))
    way = with_sampling(model, sampling)
    assert torch.equal(way([3, 1]), model.with_sampling(sampling, weak)([3, 1]))
    faster = way.with_sampling(sampling.model_copy(update={"steps": 2}))
    assert faster.nfe() == 4  # The guide is kept.
    assert way.how() == f"dpmpp_2m, 3 steps, scale 2 (w = 1), guided by {path}"
    assert way.sampling_facts().guide == str(path)


def test_a_guide_that_does_not_fit_is_refused(model: DiffusionModel, tiny_data: Dataset) -> None:
    sampling = SamplingConfig(guide="x.safetensors")
    with pytest.raises(RequestError, match="load it and give it as guide="):
        model.with_sampling(sampling)
    config = GAN_PRESETS["gan-conditional"]
    gan = model_of(new_state(config, tiny_data), config, tiny_data)
    other_info = tiny_data.info.model_copy(update={"classes": ("a", "b")})
    other = DiffusionModel(build_denoiser(model.config, other_info), model.config, other_info)
    for guide in (gan, other):
        with pytest.raises(RequestError, match=r"x\.safetensors: cannot guide this model"):
            model.with_sampling(sampling, guide)


def test_a_training_config_with_a_guide_is_refused() -> None:
    with pytest.raises(ValidationError, match="guide is for drawing only"):
        DiffusionConfig(sampling=SamplingConfig(guide="runs/weak"))


def test_sampler_options_reach_the_sampler(model: DiffusionModel) -> None:
    def way(sampler: str, **options: float) -> torch.Tensor:
        return model.with_sampling(SamplingConfig(sampler=sampler, steps=4, options=options))([3, 1])

    assert torch.equal(way("ancestral", eta=1.0), way("ancestral"))
    assert torch.equal(way("ancestral", eta=0.0), way("euler"))
    assert not torch.equal(way("ancestral", eta=0.5), way("ancestral"))
    assert SamplingConfig(sampler="ancestral", options={"eta": "0.5"}).options == {"eta": 0.5}


@pytest.mark.parametrize(
    ("sampler", "options", "message"),
    [
        ("ancestral", {"ETA": 0.5}, "the sampler ancestral has no option 'ETA'; its options are eta"),
        ("euler", {"eta": 0.5}, "the sampler euler has no option 'eta'; it has no options"),
        ("ancestral", {"eta": "much"}, "the option eta must be a number, not 'much'"),
        ("ancestral", {"eta": 1.5}, "eta must be between 0 and 1, not 1.5"),
    ],
)
def test_a_wrong_sampler_option_is_one_sentence(sampler: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as error:
        SamplingConfig(sampler=sampler, options=options)
    (fault,) = error.value.errors()
    assert fault["msg"] == f"Value error, {message}"


# Words


def test_how_it_draws_is_told_in_words_and_as_a_record(model: DiffusionModel) -> None:
    assert model.how() == "dpmpp_2m, 8 steps, scale 1.4 (w = 0.4)"
    way = model.with_sampling(
        SamplingConfig(sampler="ancestral", steps=3, scale=2.0, interval=(0.3, 3.0), options={"eta": 0.5})
    )
    assert way.how() == "ancestral, 3 steps, scale 2 (w = 1), eta 0.5, guidance from 0.3 to 3"
    facts = way.sampling_facts()
    assert (facts.sampler, facts.steps, facts.scale, facts.interval) == ("ancestral", 3, 2.0, (0.3, 3.0))
    assert (facts.guide, facts.options, facts.nfe) == (None, {"eta": 0.5}, way.nfe())
    assert facts.schedule == {"kind": "karras", "rho": 7.0, "sigma_min": 0.05, "sigma_max": 80.0}
    assert type(facts).model_validate_json(facts.model_dump_json()) == facts


def test_print_says_what_it_is(model: DiffusionModel) -> None:
    assert repr(model) == (
        f"DiffusionModel(diffusion, 28 x 28 x 1, 10 classes, {model.num_parameters:,} weights, "
        "dpmpp_2m, 8 steps, scale 1.4 (w = 0.4))"
    )
    assert model.num_parameters == sum(weight.numel() for weight in model.denoiser.net.parameters())


def test_facts_are_lines_of_words(model: DiffusionModel, tiny_data: Dataset) -> None:
    facts = model.facts()
    assert list(facts) == ["method", "images", "classes", "trained on", "labels", "weights", "draws by"]
    assert facts["method"] == "diffusion"
    assert facts["images"] == "28 x 28, grey"
    assert facts["classes"] == "10: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9"
    assert facts["trained on"] == f"40 images, 10 held out, sha256 {tiny_data.info.sha256}"
    assert facts["draws by"] == "dpmpp_2m, 8 steps, scale 1.4 (w = 0.4), 16 network evaluations per image"


def test_views_are_the_guidance_strengths_with_slower_gifs(tiny_data: Dataset) -> None:
    def views(**changes: Any) -> list[module.View]:
        config = DiffusionConfig(net=SMALL, **changes)
        return DiffusionModel(build_denoiser(config, tiny_data.info), config, tiny_data.info).views()

    found = views(guidance_strengths=(-1.0, 0.5), gif_stride=4)
    assert [(view.suffix, view.caption, view.stride) for view in found] == [
        ("_w-1", "w = -1", 4),
        ("_w0.5", "w = 0.5", 4),
    ]
    for view, scale in zip(found, (0.0, 1.5), strict=True):
        assert view.still.sampling == SamplingConfig(scale=scale)
        assert view.slow.sampling == SamplingConfig(scale=scale, steps=30)
    (chain,) = views(guidance_strengths=(0.0,), gif_steps=None)
    assert chain.slow is chain.still
    sampling = SamplingConfig(steps=None, schedule=None)
    (few,) = views(guidance_strengths=(0.0,), schedule=DiscreteBeta(timesteps=7), sampling=sampling)
    assert few.slow.sampling.steps == 7  # A schedule of 7 levels has no 30 steps.


# Model files


def test_models_are_in_eval_mode_and_drawing_changes_no_buffer(tiny_data: Dataset) -> None:
    """Batch norm would update its statistics in training mode."""
    config = PRESETS["ddpm"].model_copy(
        update={"net": ContextUnetConfig(n_feat=8), "sampling": SamplingConfig(steps=2, schedule=Karras())}
    )
    denoiser = build_denoiser(config, tiny_data.info)
    assert not any(part.training for part in denoiser.modules())
    model = DiffusionModel(denoiser, config, tiny_data.info)
    before = {name: buffer.clone() for name, buffer in denoiser.named_buffers()}
    assert before
    denoise = model.bind([3, 1])
    denoise(torch.randn(2, 1, 28, 28), 1.0)
    model([3, 1])
    assert [name for name, buffer in denoiser.named_buffers() if not torch.equal(buffer, before[name])] == []


def test_training_leaves_the_drawing_model_in_eval_mode(tiny_config: DiffusionConfig, tiny_data: Dataset) -> None:
    state, _ = trained(tiny_config.model_copy(update={"images": 8}), tiny_data)
    before = {name: tensor.clone() for name, tensor in tensors(state).items()}
    model_of(state, tiny_config, tiny_data)([3, 1])
    assert all(torch.equal(before[name], tensor) for name, tensor in tensors(state).items())


def test_a_network_that_the_config_does_not_build_is_not_saved(
    tiny_config: DiffusionConfig, tiny_data: Dataset, tmp_path
) -> None:
    """Another class, other sizes, or another activation: a file that loads as something else is worse than none."""
    path = tmp_path / "model.safetensors"

    class Mine(torch.nn.Module):
        adam_only = ()

        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Conv2d(1, 1, 3, padding=1)

        def forward(self, x: torch.Tensor, noise: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
            return self.layer(x)

    for change in (
        lambda denoiser: setattr(denoiser, "net", Mine()),
        lambda denoiser: setattr(
            denoiser, "net", UNetConfig(widths=(8,), blocks=1, embedding=16).build((1, 28, 28), 10)
        ),
        lambda denoiser: setattr(denoiser.net, "last", torch.nn.Sequential(torch.nn.ReLU(), *denoiser.net.last[1:])),
        lambda denoiser: setattr(denoiser, "parameterization", "v"),
    ):
        denoiser = build_denoiser(tiny_config, tiny_data.info)
        change(denoiser)
        with pytest.raises(PluginError, match="the config does not build the network") as error:
            DiffusionModel(denoiser, tiny_config, tiny_data.info).save(path)
        assert "\n" not in str(error.value)
        assert list(tmp_path.iterdir()) == []


def test_weights_that_are_not_finite_are_not_saved(tiny_config: DiffusionConfig, tiny_data: Dataset, tmp_path) -> None:
    denoiser = build_denoiser(tiny_config, tiny_data.info).requires_grad_(False)
    next(denoiser.parameters()).view(-1)[0] = torch.inf
    with pytest.raises(TrainingError, match="not finite, so nothing was saved"):
        DiffusionModel(denoiser, tiny_config, tiny_data.info).save(tmp_path / "model.safetensors")
    assert list(tmp_path.iterdir()) == []
