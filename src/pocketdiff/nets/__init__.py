"""Networks, one file each. To add one, write its file and name its config in ``NETS``."""

from pocketdiff.nets.context_unet import ContextUnetConfig
from pocketdiff.nets.unet import UNetConfig

Net = UNetConfig | ContextUnetConfig

NETS: dict[str, type[Net]] = {"unet": UNetConfig, "context_unet": ContextUnetConfig}
