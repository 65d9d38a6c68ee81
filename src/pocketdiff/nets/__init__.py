"""Networks, one file each. To add one, write its file and name its config in ``NETS``."""

from pocketdiff.nets.unet import UNetConfig

Net = UNetConfig

NETS: dict[str, type[Net]] = {"unet": UNetConfig}
