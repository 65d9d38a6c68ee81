"""Diffusion: a denoiser trained on noisy images (Ho et al. 2020; Karras et al. 2022)."""

from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from pocketdiff import rng
from pocketdiff.config import DenoiserConfig, RunOrFile, SamplingConfig
from pocketdiff.data import DataInfo, to_data_units
from pocketdiff.denoiser import WEIGHTINGS, Denoiser
from pocketdiff.errors import RequestError
from pocketdiff.frozen import Filled, Sha256
from pocketdiff.methods.loop import Batch, DenoiserMethod, Device, Load, Losses, TrainState
from pocketdiff.methods.source import start_weights, take, weights_sha256
from pocketdiff.model import DiffusionModel
from pocketdiff.nets.context_unet import ContextUnetConfig
from pocketdiff.nets.unet import UNetConfig
from pocketdiff.registry import Named
from pocketdiff.schedule import DiscreteBeta


class DiffusionConfig(DenoiserConfig):
    """One training run of a diffusion model."""

    kind: Literal["diffusion"] = "diffusion"
    stratified: bool = True
    """Whether successive noise levels are spread evenly, which lowers the variance of the loss, or independent."""
    loss_weighting: Annotated[str, Named(WEIGHTINGS)] = "uniform"
    """Weight of the loss by noise level; uniform: each paper's simple loss."""
    label_dropout: float = Field(0.1, ge=0, lt=1)
    """Fraction of the images that are trained without their label, which guidance needs."""
    init_from: RunOrFile | None = None
    """Starts from the weights of this run or model file, also for other data and classes; none: new weights."""
    init_sha256: Annotated[Sha256 | None, Filled()] = None
    """Of these weights; the run fills it in."""
    lr_by_epoch: bool = False
    """Whether the learning rate changes only between epochs, instead of at each step."""
    common: ClassVar = (*DenoiserConfig.common, "init_from")

    def learning_rate(self, seen: int, n: int) -> float:
        """As in `DenoiserConfig`, by steps or by epochs."""
        start, _ = self.part(seen, n)
        return super().learning_rate(max(start, seen - seen % n) if self.lr_by_epoch else seen, n)


# Times are of two CPU cores; docs/results.md has the machine, the spread and the commands.
PRESETS = {
    # About a minute; Fréchet distance 2.84, label accuracy 99.2%.
    "quick": DiffusionConfig(images=22_000, batch=32, muon_lr=0.015, sampling=SamplingConfig(steps=10, scale=2.4)),
    # About five minutes; 0.67, 99.1%.
    "laptop": DiffusionConfig(),
    # The original experiment, every figure its own: docs/ddpm.md. A day or more; not yet run to its end.
    "ddpm": DiffusionConfig(
        epochs=20, batch=256, black=0.0, label_dropout=0.1, stratified=False, ema=None,
        net=ContextUnetConfig(n_feat=128), parameterization="eps", sigma_data=1.0,
        schedule=DiscreteBeta(timesteps=400, beta_start=1e-4, beta_end=0.02, zeroth=True),
        muon_lr=None, adam_lr=1e-4, adam_beta2=0.999, warmup=0.0, lr_by_epoch=True,
        log_every=2_560, checkpoint_every=12_800, pictures_every=1,
        gifs_every=5, gif_steps=None, gif_stride=20, guidance_strengths=(0.0, 0.5, 2.0),
        sampling=SamplingConfig(sampler="ancestral_beta", steps=None, scale=1.5, schedule=None),
    ),
    # Not yet measured on a GPU. Whole batches, because torch.compile compiles the network again for another size.
    "gpu": DiffusionConfig(
        images=6_000_128, batch=512, net=UNetConfig(widths=(128, 256), embedding=256), precision="bf16", compile=True,
        log_every=50_000, checkpoint_every=600_000,
    ),
}  # fmt: skip


class Draws(NamedTuple):
    """The inputs of the loss for one batch."""

    x0: Float[Tensor, "b c h w"]
    eps: Float[Tensor, "b c h w"]
    sigma: Float[Tensor, " b"]
    label: Int[Tensor, " b"]


class Diffusion(DenoiserMethod[DiffusionConfig]):
    """The training method."""

    config = DiffusionConfig
    presets = PRESETS
    advice = "a lower --muon-lr and --adam-lr, or --precision fp32"

    def complete(self, config: DiffusionConfig, load: Load) -> DiffusionConfig:
        """The config with what it takes from the model of ``init_from``; raises RequestError if they do not fit."""
        if config.init_from is None:
            return config
        source = load(config.init_from)
        if not isinstance(source.config, DiffusionConfig):
            raise RequestError(f"{config.init_from}: is a {source.config.kind} model; give a diffusion model")
        changes: dict[str, Any] = {"init_sha256": weights_sha256(source)}
        if config.sampling in [preset.sampling for preset in PRESETS.values()]:  # Not chosen.
            changes["sampling"] = source.sampling
        return take(config, source, "that of init_from", **changes)

    def new_state(self, config: DiffusionConfig, info: DataInfo, device: Device, load: Load) -> TrainState:
        """The state before the first step: new weights, or those of ``init_from``."""
        state = super().new_state(config, info, device, load)
        if config.init_from is not None:
            try:
                weights = start_weights(state.net, config, info, load(config.init_from))
            except RequestError as error:
                raise RequestError(f"{config.init_from}: {error}") from error
            for module in (state.net, state.ema):
                module.net.load_state_dict(weights)
        return state

    def draw(self, batch: Batch, config: DiffusionConfig, null: int) -> Draws:
        """Noise, noise levels and dropped labels of a batch, all keyed by the image's index in the run."""
        x0 = to_data_units(batch.pixels, config.black)
        device, indices = x0.device, batch.indices
        eps = rng.normal(config.seed, rng.Stream.NOISE, indices, tuple(x0.shape[1:])).to(device)
        draw = rng.stratified if config.stratified else rng.uniform
        sigma = config.schedule(draw(config.seed, rng.Stream.LEVEL, indices)).float().to(device)
        dropped = (rng.uniform(config.seed, rng.Stream.DROP, indices) < config.label_dropout).to(device)
        return Draws(x0, eps, sigma, batch.label.masked_fill(dropped, null))

    def loss(self, denoiser: Denoiser, draws: Draws, config: DiffusionConfig) -> Float[Tensor, ""]:
        """The batch's mean loss, at the config's precision."""
        with torch.autocast(draws.x0.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            return denoiser.loss(*draws, weighting=WEIGHTINGS.find(config.loss_weighting)).mean()

    def backward(self, state: TrainState, batch: Batch, config: DiffusionConfig) -> Losses:
        """Fills the gradients."""
        loss = self.loss(state.net, self.draw(batch, config, state.net.null), config)
        loss.backward()
        return {"loss": loss.detach()}

    def model(self, module: Denoiser, config: DiffusionConfig, info: DataInfo) -> DiffusionModel:
        """The model that draws with a denoiser's weights."""
        return DiffusionModel(module, config, info)
