"""Networks, one file each. To add one, write its file and name its config in ``NETS``; a GAN's pair, in ``GANS``."""

from pocketdiff.nets.context_unet import ContextUnetConfig
from pocketdiff.nets.gan import ConvGanConfig, MlpGanConfig
from pocketdiff.nets.unet import UNetConfig

Net = UNetConfig | ContextUnetConfig

NETS: dict[str, type[Net]] = {"unet": UNetConfig, "context_unet": ContextUnetConfig}

GanNet = MlpGanConfig | ConvGanConfig

GANS: dict[str, type[GanNet]] = {"mlp": MlpGanConfig, "conv": ConvGanConfig}
